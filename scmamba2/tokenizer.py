"""From a matrix of counts to token sequences: bins, tokens, masks.

The rules are those of the SC-MAMBA2 preprint (bioRxiv 2024.09.30.615775) and its code, with two
repairs: genes outside the vocabulary are dropped first, and ``<cls>`` is never masked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .config import Config

__all__ = ["Tokens", "bin_values", "mask_values", "tokenize"]


class Tokens(NamedTuple):
    """Cells as sequences: ``<cls>``, genes, then pads."""

    genes: np.ndarray  # (n, T) int64
    values: np.ndarray  # (n, T) float32
    lengths: np.ndarray  # (n,) int64, <cls> included


def bin_values(
    matrix: Any, n_bins: int = 51, rule: str = "plain", rng: np.random.Generator | None = None
) -> sparse.csr_matrix:
    """Replace each cell's non-zero values by the bins of their quantiles within the cell.

    The edges are the ``n_bins - 1`` quantiles of the cell's non-zero values at equal steps from
    0 to 1. ``"plain"``: the bin is the number of edges at or below the value. ``"spreading"``:
    a value that equals several edges, as tied counts do, falls at random into one of their bins.
    Zeros stay 0. Each cell is binned by itself, so any strictly increasing transform of a cell
    leaves its bins unchanged, up to ties.

    Parameters
    ----------
    matrix
        ``(n, g)`` numpy array or scipy sparse matrix, no value negative.
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
        if start == end:
            continue
        x = counts.data[start:end].astype(np.float64)
        edges = np.quantile(x, steps)
        high = np.searchsorted(edges, x, side="right")
        if rng is not None and rule == "spreading":
            low = np.searchsorted(edges, x, side="left")
            high = np.ceil(rng.random(x.size) * (low - high) + high)
        bins.data[start:end] = high
    return bins


def tokenize(
    bins: Any,
    gene_ids: np.ndarray,
    cls_id: int,
    pad_id: int,
    config: Config,
    rng: np.random.Generator,
) -> Tokens:
    """Turn binned cells into token sequences.

    A cell is ``<cls>`` with value 0, then its genes in the order of the columns. A cell with
    more genes than ``config.max_length - 1`` keeps a random subset, in random order.

    Parameters
    ----------
    bins
        ``(n, g)`` numpy array or scipy sparse matrix, from :func:`bin_values`.
    gene_ids
        ``(g,)`` int64, token id of each column.
    cls_id, pad_id
        Token ids.
    config
        Gives ``include_zero_genes``, ``max_length`` and ``pad_value``.
    rng
        Draws the subsets.

    Returns
    -------
    Tokens
        ``genes`` (n, T) int64, ``values`` (n, T) float32, ``lengths`` (n,) int64, where T is the
        longest cell's length.
    """
    bins = sparse.csr_matrix(bins)
    bins.sort_indices()
    n, g = bins.shape
    limit = g if config.max_length is None else config.max_length - 1
    found = np.full(n, g) if config.include_zero_genes else np.diff(bins.indptr)
    lengths = 1 + np.minimum(found, limit).astype(np.int64)
    shape = n, int(lengths.max(initial=1))
    genes = np.full(shape, pad_id, dtype=np.int64)
    values = np.full(shape, config.pad_value, dtype=np.float32)
    genes[:, 0], values[:, 0] = cls_id, 0
    for i, length in enumerate(lengths):
        row = slice(bins.indptr[i], bins.indptr[i + 1])
        columns, x = bins.indices[row], bins.data[row]
        if config.include_zero_genes:
            dense = np.zeros(g, dtype=np.float32)
            dense[columns] = x
            columns, x = np.arange(g), dense
        if len(columns) > limit:
            kept = rng.choice(len(columns), limit, replace=False)
            columns, x = columns[kept], x[kept]
        genes[i, 1:length] = gene_ids[columns]
        values[i, 1:length] = x
    return Tokens(genes, values, lengths)


def mask_values(
    tokens: Tokens, ratio: float, mask_value: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hide the values of ``int(ratio * genes)`` random genes of each cell, zeros included.

    ``<cls>`` and pads are never hidden.

    Returns
    -------
    values
        ``(n, T)`` float32 with ``mask_value`` at the hidden positions.
    mask
        ``(n, T)`` bool, True where hidden.
    """
    keys = rng.random(tokens.values.shape, dtype=np.float32)
    position = np.arange(keys.shape[1])
    keys[(position == 0) | (position >= tokens.lengths[:, None])] = 2
    count = ((tokens.lengths - 1) * ratio).astype(np.int64)
    rank = np.empty(keys.shape, dtype=np.int64)
    np.put_along_axis(rank, keys.argsort(axis=1), position[None].repeat(len(keys), 0), axis=1)
    mask = rank < count[:, None]
    return np.where(mask, np.float32(mask_value), tokens.values), mask
