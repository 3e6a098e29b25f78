"""SC-MAMBA2: embeddings, backbone, heads.

Parameters are named as in the released model (SC-MAMBA2 preprint, bioRxiv 2024.09.30.615775), so
that its state dict fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config
from .backbone import Backbone
from .embeddings import BatchNorm, DomainBatchNorm, LabelEncoder, embed_values, value_encoder
from .heads import BatchDiscriminator, CellDecoder, Classifier, ExpressionDecoder

__all__ = ["ScMamba2"]


class ScMamba2(nn.Module):
    """The model. A cell is a set of tokens, gene and value; :meth:`read_cell` gives its embedding.

    Batch and modality do not enter the backbone: their embeddings, or the sum of both, are
    appended to what the two decoders read.

    Parameters
    ----------
    config
        Sizes. ``dsbn`` None means no domain-specific batch norm.
    n_tokens
        Size of the vocabulary, special tokens included.
    pad_id
        Token whose embedding gets no gradient.
    n_batches
        Batches of cells; above 0 their label is known to the two decoders.
    n_classes
        Outputs of the classifier. The released model has one, unused, when it does not classify.
    explicit_zeros
        Whether the decoders also predict that a value is not zero.
    mvc
        Whether to have the decoder from the cell embedding.
    adversarial
        Whether to have the batch discriminator.
    n_modalities
        Modalities of the features; above 0 a token's modality is known to the two decoders. Their
        ids are 0 to ``n_modalities - 1``, then those of ``<pad>``, ``<cls>`` and ``<eoc>``.

    Raises
    ------
    ValueError
        With domain-specific batch norm or ``adversarial``, if ``n_batches`` is 0; with
        ``config.oov`` "pad", if ``pad_id`` is None.
    """

    def __init__(
        self,
        config: Config,
        n_tokens: int,
        *,
        pad_id: int | None = None,
        n_batches: int = 0,
        n_classes: int = 1,
        explicit_zeros: bool = False,
        mvc: bool = False,
        adversarial: bool = False,
        n_modalities: int = 0,
    ) -> None:
        super().__init__()
        if n_batches < 1 and (config.dsbn or adversarial):
            raise ValueError("domain-specific batch norm and the discriminator need n_batches > 0")
        if config.oov == "pad" and pad_id is None:
            raise ValueError("genes that become <pad> (oov='pad') need pad_id")
        self.config, self.pad_id = config, -1 if pad_id is None else pad_id
        self.heads = {
            "n_batches": n_batches,
            "n_classes": n_classes,
            "explicit_zeros": explicit_zeros,
            "mvc": mvc,
            "adversarial": adversarial,
            "n_modalities": n_modalities,
        }
        d = config.d_model
        d_in = 2 * d if n_batches or n_modalities else d
        self.encoder = LabelEncoder(n_tokens, d, padding_idx=pad_id, bound=0.1)
        self.value_encoder = value_encoder(config)
        self.bn = None if config.dsbn else BatchNorm(d)
        self.dsbn = DomainBatchNorm(n_batches, d, config.dsbn_affine) if config.dsbn else None
        self.mamba_encoder = Backbone(config)
        self.batch_encoder = LabelEncoder(n_batches, d) if n_batches else None
        self.mod_encoder = (
            LabelEncoder(n_modalities + 3, d, padding_idx=n_modalities) if n_modalities else None
        )
        self.decoder = ExpressionDecoder(d_in, d, explicit_zeros)
        self.cls_decoder = Classifier(d, n_classes)
        self.mvc_decoder = CellDecoder(d_in, explicit_zeros) if mvc else None
        self.grad_reverse_discriminator = BatchDiscriminator(d, n_batches) if adversarial else None

    def forward(
        self,
        genes: Tensor,
        values: Tensor,
        lengths: Tensor,
        batches: Tensor | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Encode cells; row ``[:, 0]`` of the result is the state of ``<cls>``.

        Parameters
        ----------
        genes
            ``(b, T)`` int64, pads at the end.
        values
            ``(b, T)`` float.
        lengths
            ``(b,)`` int64, ``<cls>`` included.
        batches
            ``(b,)`` int64, all equal; used by domain-specific batch norm only.
        first_only
            Return the state of ``<cls>`` alone, at less work; for the readout "cls".

        Returns
        -------
        Tensor
            ``(b, T, d_model)``, or ``(b, 1, d_model)`` if ``first_only``.

        Raises
        ------
        ValueError
            With domain-specific batch norm, if ``batches`` is missing or mixed; with ``first_only``
            and another readout.
        """
        if first_only and self.config.readout != "cls":
            raise ValueError(f"the readout {self.config.readout!r} needs all tokens, not first_only")
        x = embed_values(self.encoder(genes), values, self.value_encoder)
        if self.dsbn is not None:
            if batches is None:
                raise ValueError("domain-specific batch norm needs the cells' batch")
            x = self.dsbn(x, batches)
        elif self.bn is not None:
            x = self.bn(x)
        if self.config.oov == "pad":  # the released model counts the tokens that are no pads
            lengths = genes.ne(self.pad_id).sum(1)
        return self.mamba_encoder(x, lengths, first_only)

    def read_cell(self, hidden: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """Return cell embeddings ``(b, d_model)`` as ``config.readout`` says.

        ``"cls"``: the state of ``<cls>``. ``"average"``: the mean over the tokens, ``<cls>``
        included, pads not. ``"weighted"``: the mean weighted by the values, hidden ones left out.

        Parameters
        ----------
        hidden
            ``(b, T, d_model)``, from :meth:`forward`.
        values, lengths
            What that was given.
        """
        if self.config.readout == "cls":
            return hidden[:, 0]
        weight = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]).to(hidden)
        if self.config.readout == "weighted":
            weight = weight * values.clamp(min=0)
        return (weight.unsqueeze(-1) * hidden).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-9)

    def decode_tokens(
        self, hidden: Tensor, batches: Tensor | None, modalities: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict values from hidden states ``(m, d_model)`` of tokens.

        ``batches`` and ``modalities`` are those of the tokens, ``(m,)`` int64, as far as the model
        knows them. Logits of being non-zero come second, or None.
        """
        return self.decoder(self._with_source(hidden, batches, modalities))

    def decode_cells(
        self, genes: Tensor, cells: Tensor, batches: Tensor | None, modalities: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict values of ``genes`` ``(m,)`` from the embeddings ``(m, d_model)`` of their cells.

        The rest is as in :meth:`decode_tokens`; the cell's own modality is that of ``<cls>``.
        """
        if self.mvc_decoder is None:
            raise ValueError("this model has no decoder of cell embeddings: build it with mvc=True")
        gene = self._with_source(self.encoder(genes), batches, modalities)
        cls = self.heads["n_modalities"] + 1
        first = None if modalities is None else torch.full_like(modalities, cls)
        return self.mvc_decoder(gene, self._with_source(cells, batches, first))

    def _with_source(self, x: Tensor, batches: Tensor | None, modalities: Tensor | None) -> Tensor:
        source = None
        for name, encoder, ids in (
            ("batches", self.batch_encoder, batches),
            ("modalities", self.mod_encoder, modalities),
        ):
            if encoder is None:
                continue
            if ids is None:
                raise ValueError(f"this model's decoders need the tokens' {name}")
            source = encoder(ids) if source is None else source + encoder(ids)
        return x if source is None else torch.cat([x, source], dim=-1)

    def count_parameters(self) -> int:
        """Return the number of trainable values."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
