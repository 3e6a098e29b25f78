"""From gene ids and expression values to token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config

__all__ = [
    "BatchNorm",
    "BinEncoder",
    "DomainBatchNorm",
    "LabelEncoder",
    "ValueEncoder",
    "embed_values",
    "value_encoder",
]

EPS = 6.1e-5
"""Of the batch norms; the smallest normal number of float16, rounded."""


class LabelEncoder(nn.Module):
    """A lookup table followed by LayerNorm, for gene ids, batch labels and modalities.

    The table starts uniform in [-0.1, 0.1] if ``bound`` is 0.1, as genes do in the released
    SC-MAMBA2, else standard normal, as batches do. ``padding_idx`` gets no gradient.
    """

    def __init__(
        self, n: int, d_model: int, padding_idx: int | None = None, bound: float | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n, d_model, padding_idx=padding_idx)
        if bound is not None:
            nn.init.uniform_(self.embedding.weight, -bound, bound)
        self.enc_norm = nn.LayerNorm(d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids ``(...)`` int64 to ``(..., d_model)``."""
        return self.enc_norm(self.embedding(ids))


class ValueEncoder(nn.Module):
    """A small network on the expression value, cut off at 512."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, d_model)
        self.linear2 = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Map values ``(...)`` to ``(..., d_model)``."""
        hidden = torch.relu(self.linear1(values.clamp(max=512).unsqueeze(-1)))
        return self.dropout(self.norm(self.linear2(hidden)))


class BinEncoder(LabelEncoder):
    """A row per bin, then one for pads, which gets no gradient, and one for hidden values."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.n_bins + 2, config.d_model, padding_idx=config.n_bins)
        self.n_bins, self.pad_value, self.mask_value = config.n_bins, config.pad_value, config.mask_value

    def forward(self, values: Tensor) -> Tensor:
        """Map bins ``(...)`` float to ``(..., d_model)``.

        Raises
        ------
        ValueError
            For a value that is no bin.
        """
        ids, pad, hidden = values.long(), values == self.pad_value, values == self.mask_value
        if (((ids < 0) | (ids >= self.n_bins)) & ~pad & ~hidden).any():
            raise ValueError(f"value_encoder 'category' needs bins from 0 to {self.n_bins - 1}")
        ids = ids.masked_fill(pad, self.n_bins).masked_fill(hidden, self.n_bins + 1)
        return super().forward(ids)


def value_encoder(config: Config) -> nn.Module | None:
    """Return the module that ``config.value_encoder`` names; None for ``"scaling"``."""
    if config.value_encoder == "scaling":
        return None
    if config.value_encoder == "category":
        return BinEncoder(config)
    return ValueEncoder(config.d_model, config.dropout)


def embed_values(gene: Tensor, values: Tensor, encoder: nn.Module | None) -> Tensor:
    """Add the embedding of ``values`` ``(b, T)`` to that of the genes ``(b, T, d_model)``.

    Without an encoder the genes are multiplied by their values.
    """
    return gene * values.unsqueeze(-1) if encoder is None else gene + encoder(values)


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over every position of every cell, pads included, as the released model does."""

    def __init__(self, d_model: int, affine: bool = True) -> None:
        super().__init__(d_model, eps=EPS, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(b, T, d_model)``."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class DomainBatchNorm(nn.Module):
    """One BatchNorm per batch of cells (DSBN)."""

    def __init__(self, n_batches: int, d_model: int, affine: bool) -> None:
        super().__init__()
        self.bns = nn.ModuleList(BatchNorm(d_model, affine) for _ in range(n_batches))

    def forward(self, x: Tensor, batches: Tensor) -> Tensor:
        """Normalise ``(b, T, d_model)`` with the norm of the one batch in ``batches`` ``(b,)``.

        Raises
        ------
        ValueError
            If the cells come from more than one batch.
        """
        if (batches != batches[0]).any():
            raise ValueError(
                f"domain-specific batch norm needs a mini-batch from one batch, "
                f"not from {len(batches.unique())}"
            )
        return self.bns[int(batches[0])](x)
