"""From a matrix of counts to token sequences: bins, tokens, masks.

The rules are those of the SC-MAMBA2 preprint (bioRxiv 2024.09.30.615775) and its code. Two of the
code's flaws are choices that default to their repair: ``Config.oov`` and ``Config.mask_cls``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .config import Config

__all__ = ["ABSENT", "Tokens", "bin_values", "mask_values", "tokenize"]

ABSENT = -3.0
"""Value of a feature that was not measured in a cell; no bin and no token comes of it."""


class Tokens(NamedTuple):
    """Cells as sequences: ``<cls>``, genes, then pads.

    Genes outside the vocabulary, where ``Config.oov`` keeps them, have the id of ``<pad>`` and count
    in ``lengths``.
    """

    genes: np.ndarray  # (n, T) int64
    values: np.ndarray  # (n, T) float32
    lengths: np.ndarray  # (n,) int64, <cls> included
    modalities: np.ndarray = np.empty((0, 0), np.int64)  # (n, T) int64; (n, 0) for one modality


def bin_values(
    matrix: Any, n_bins: int = 51, rule: str = "plain", rng: np.random.Generator | None = None
) -> sparse.csr_matrix:
    """Replace each cell's non-zero values by the bins of their quantiles within the cell.

    The edges are the ``n_bins - 1`` quantiles of the cell's non-zero values at equal steps from
    0 to 1. ``"plain"``: the bin is the number of edges at or below the value. ``"spreading"``:
    a value that equals several edges, as tied counts do, falls at random into one of their bins.
    Zeros stay 0 and :data:`ABSENT` stays as it is; neither shapes the edges. Each cell is binned
    by itself, so any strictly increasing transform of a cell leaves its bins unchanged, up to ties.

    Parameters
    ----------
    matrix
        ``(n, g)`` numpy array or scipy sparse matrix, no value negative but :data:`ABSENT`.
    n_bins
        Bins, 0 included: the result lies in 0 .. n_bins - 1.
    rule
        ``"plain"`` or ``"spreading"``.
    rng
        Needed for ``"spreading"``.

    Returns
    -------
    scipy.sparse.csr_matrix
        ``(n, g)`` float32.

    Raises
    ------
    ValueError
        Unknown rule, or ``"spreading"`` without ``rng``.
    """
    if rule not in ("plain", "spreading"):
        raise ValueError(f"rule must be 'plain' or 'spreading', not {rule!r}")
    if rule == "spreading" and rng is None:
        raise ValueError("the spreading rule draws random numbers: pass rng")
    counts = sparse.csr_matrix(matrix, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    bins = counts.astype(np.float32)
    steps = np.linspace(0, 1, n_bins - 1)
    for start, end in zip(counts.indptr, counts.indptr[1:], strict=False):
        x = counts.data[start:end].astype(np.float64)
        measured = x != ABSENT
        x = x[measured]
        if not x.size:
            continue
        edges = np.quantile(x, steps)
        high = np.searchsorted(edges, x, side="right")
        if rng is not None and rule == "spreading":
            low = np.searchsorted(edges, x, side="left")
            high = np.ceil(rng.random(x.size) * (low - high) + high)
        bins.data[start:end][measured] = high
    return bins


def tokenize(
    bins: Any,
    gene_ids: np.ndarray,
    cls_id: int,
    pad_id: int,
    config: Config,
    rng: np.random.Generator,
    modalities: np.ndarray | None = None,
    n_modalities: int = 0,
) -> Tokens:
    """Turn binned cells into token sequences.

    A cell is ``<cls>`` with ``config.cls_value``, then its genes in the order of the columns, without those
    that are :data:`ABSENT`. A cell with more genes than ``config.max_length - 1`` keeps a random
    subset, in random order.

    Parameters
    ----------
    bins
        ``(n, g)`` numpy array or scipy sparse matrix, from :func:`bin_values`.
    gene_ids
        ``(g,)`` int64, token id of each column; ``pad_id`` for an unknown gene that is kept.
    cls_id, pad_id
        Token ids.
    config
        Gives ``include_zero_genes``, ``max_length``, ``pad_value`` and ``cls_value``.
    rng
        Draws the subsets.
    modalities
        ``(g,)`` int64, modality of each column from 0 to ``n_modalities - 1``, if there are several.
    n_modalities
        Number of modalities. Pads have modality ``n_modalities``, ``<cls>`` the next: the numbers
        that :meth:`scmamba2.vocabulary.Vocabulary.from_genes` gives to the modalities' names.

    Returns
    -------
    Tokens
        T is the longest cell's length.
    """
    bins = sparse.csr_matrix(bins)
    bins.sort_indices()
    n, g = bins.shape
    zeros = bool(config.include_zero_genes)
    limit = g if config.max_length is None else config.max_length - 1
    # Every column becomes a token but the absent ones; or every stored value that is not one of them.
    counted = bins.data == ABSENT if zeros else (bins.data != 0) & (bins.data != ABSENT)
    counts = np.diff(np.concatenate([[0], counted.cumsum()])[bins.indptr])
    lengths = 1 + np.minimum(g - counts if zeros else counts, limit).astype(np.int64)
    shape = n, int(lengths.max(initial=1))
    genes = np.full(shape, pad_id, dtype=np.int64)
    values = np.full(shape, config.pad_value, dtype=np.float32)
    kinds = np.full(shape if modalities is not None else (n, 0), n_modalities, dtype=np.int64)
    genes[:, 0], values[:, 0], kinds[:, :1] = cls_id, config.cls_value, n_modalities + 1
    for i, length in enumerate(lengths):
        row = slice(bins.indptr[i], bins.indptr[i + 1])
        columns, x = bins.indices[row], bins.data[row]
        if zeros:
            dense = np.zeros(g, dtype=np.float32)
            dense[columns] = x
            columns, x = np.arange(g), dense
        kept = np.flatnonzero(x != ABSENT if zeros else counted[row])
        if len(kept) > limit:
            kept = rng.choice(kept, limit, replace=False)
        columns = columns[kept]
        genes[i, 1:length] = gene_ids[columns]
        values[i, 1:length] = x[kept]
        if modalities is not None:
            kinds[i, 1:length] = modalities[columns]
    return Tokens(genes, values, lengths, kinds)


def mask_values(
    tokens: Tokens, ratio: float, mask_value: float, rng: np.random.Generator, mask_cls: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Hide the values of ``int(ratio * genes)`` random genes of each cell, zeros included.

    Pads at the end are never hidden; ``<cls>`` counts as a gene if ``mask_cls`` (released code).

    Returns
    -------
    values
        ``(n, T)`` float32 with ``mask_value`` at the hidden positions.
    mask
        ``(n, T)`` bool, True where hidden.
    """
    keys = rng.random(tokens.values.shape, dtype=np.float32)
    position = np.arange(keys.shape[1])
    keys[position >= tokens.lengths[:, None]] = 2
    if not mask_cls:
        keys[:, 0] = 2
    count = ((tokens.lengths - (not mask_cls)) * ratio).astype(np.int64)
    rank = np.empty(keys.shape, dtype=np.int64)
    np.put_along_axis(rank, keys.argsort(axis=1), position[None].repeat(len(keys), 0), axis=1)
    mask = rank < count[:, None]
    return np.where(mask, np.float32(mask_value), tokens.values), mask
