"""SC-MAMBA2: embeddings, backbone, heads.

Parameters are named as in the released model (SC-MAMBA2 preprint, bioRxiv 2024.09.30.615775), so
that its state dict fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config
from .backbone import Backbone
from .embeddings import BatchNorm, DomainBatchNorm, LabelEncoder, ValueEncoder
from .heads import BatchDiscriminator, CellDecoder, Classifier, ExpressionDecoder

__all__ = ["ScMamba2"]


class ScMamba2(nn.Module):
    """The model. A cell is a set of tokens, gene and value; its embedding is that of ``<cls>``.

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
    ) -> None:
        super().__init__()
        if n_batches < 1 and (config.dsbn or adversarial):
            raise ValueError("domain-specific batch norm and the discriminator need n_batches > 0")
        d = config.d_model
        d_in = 2 * d if n_batches else d
        self.encoder = LabelEncoder(n_tokens, d, padding_idx=pad_id, bound=0.1)
        self.value_encoder = ValueEncoder(d, config.dropout)
        self.bn = None if config.dsbn else BatchNorm(d)
        self.dsbn = DomainBatchNorm(n_batches, d, config.dsbn_affine) if config.dsbn else None
        self.mamba_encoder = Backbone(config)
        self.batch_encoder = LabelEncoder(n_batches, d) if n_batches else None
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
        """Encode cells; row ``[:, 0]`` of the result is the cell embedding.

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
            Return the cell embedding alone, at less work.

        Returns
        -------
        Tensor
            ``(b, T, d_model)``, or ``(b, 1, d_model)`` if ``first_only``.

        Raises
        ------
        ValueError
            With domain-specific batch norm, if ``batches`` is missing or mixed.
        """
        x = self.encoder(genes) + self.value_encoder(values)
        if self.dsbn is not None:
            if batches is None:
                raise ValueError("domain-specific batch norm needs the cells' batch")
            x = self.dsbn(x, batches)
        elif self.bn is not None:
            x = self.bn(x)
        return self.mamba_encoder(x, lengths, first_only)

    def decode_tokens(self, hidden: Tensor, batches: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Predict values from hidden states ``(m, d_model)`` of tokens of ``batches`` ``(m,)``."""
        return self.decoder(self._with_batch(hidden, batches))

    def decode_cells(
        self, genes: Tensor, cells: Tensor, batches: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict values of ``genes`` ``(m,)`` from cell embeddings ``(m, d_model)``."""
        assert self.mvc_decoder is not None
        gene = self._with_batch(self.encoder(genes), batches)
        return self.mvc_decoder(gene, self._with_batch(cells, batches))

    def _with_batch(self, x: Tensor, batches: Tensor | None) -> Tensor:
        if self.batch_encoder is None:
            return x
        return torch.cat([x, self.batch_encoder(batches)], dim=-1)

    def count_parameters(self) -> int:
        """Return the number of trainable values."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
