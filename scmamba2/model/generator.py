"""The perturbation model: from a control cell and the perturbed genes to the perturbed cell."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import Config
from .backbone import Backbone
from .embeddings import LabelEncoder, embed_values, value_encoder
from .heads import AffineDecoder

__all__ = ["Generator"]


class Generator(nn.Module):
    """Predict the expression after a perturbation; there is no ``<cls>`` and no batch norm.

    A token is gene + value + flag; the prediction is alpha(h) x + beta(h) of its state h and its
    control value x. Parameters are named as in the released SC-MAMBA2 (bioRxiv
    2024.09.30.615775), where the backbone is ``transformer_encoder`` here and ``mamba_encoder`` in
    the pre-trained model: :func:`scmamba2.checkpoints.transfer` maps one to the other.

    Parameters
    ----------
    config
        Sizes. ``value_encoder`` must not be ``"category"``: values are logarithms, not bins.
    n_tokens
        Size of the vocabulary, special tokens included.
    pad_id
        Token whose embedding gets no gradient; it stands for every unknown gene.
    explicit_zeros
        Whether to predict also that a value is not zero.
    scale_bias
        Whether to multiply beta by the cell's mean non-zero control value. The released scripts
        do not.

    Raises
    ------
    ValueError
        For the value encoder ``"category"``.
    """

    def __init__(
        self,
        config: Config,
        n_tokens: int,
        *,
        pad_id: int | None = None,
        explicit_zeros: bool = False,
        scale_bias: bool = False,
    ) -> None:
        super().__init__()
        if config.value_encoder == "category":
            raise ValueError("value_encoder 'category' needs bins; the generator reads log values")
        self.config = config
        self.heads = {"explicit_zeros": explicit_zeros, "scale_bias": scale_bias}
        self.encoder = LabelEncoder(n_tokens, config.d_model, padding_idx=pad_id, bound=0.1)
        self.value_encoder = value_encoder(config)
        self.pert_encoder = nn.Embedding(3, config.d_model, padding_idx=0)
        self.transformer_encoder = Backbone(config)
        self.decoder = AffineDecoder(config.d_model, explicit_zeros, scale_bias)

    def forward(
        self, genes: Tensor, values: Tensor, flags: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the perturbed cells.

        Parameters
        ----------
        genes
            ``(b, T)`` int64.
        values
            ``(b, T)`` float, the control's log1p values.
        flags
            ``(b, T)`` int64: 1 at the perturbed genes, else 0, which embeds to the zero vector.
        lengths
            ``(b,)`` int64 if there are pads at the end.

        Returns
        -------
        values
            ``(b, T)`` float.
        nonzero
            ``(b, T)`` logits of being non-zero, or None.
        """
        x = embed_values(self.encoder(genes), values, self.value_encoder)
        x = self.transformer_encoder(x + self.pert_encoder(flags), lengths)
        return self.decoder(x, values)

    def count_parameters(self) -> int:
        """Return the number of trainable values."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
