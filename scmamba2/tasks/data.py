"""Read an AnnData object, and say clearly what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ..vocabulary import Vocabulary

__all__ = ["read_column", "read_matrix"]


def read_matrix(adata: Any, vocabulary: Vocabulary) -> tuple[sparse.csr_matrix, np.ndarray, float]:
    """Return the values of the known genes, these genes' token ids, and their share.

    Values are ``adata.layers["counts"]`` if there, else ``adata.X``: counts, or any increasing
    transform of them per cell, such as log-normalised values.

    Returns
    -------
    matrix
        ``(n, g)`` scipy CSR for the g genes in the vocabulary.
    gene_ids
        ``(g,)`` int64.
    coverage
        Share of the data's genes that is in the vocabulary.

    Raises
    ------
    ValueError
        Duplicate genes, no known gene, NaN or infinite or negative values, or a cell without any
        value above zero in the known genes.
    """
    names = adata.var_names
    if not names.is_unique:
        twice = list(names[names.duplicated()].unique())
        raise ValueError(
            f"{len(twice)} gene names occur more than once ({_some(twice)}): "
            "call adata.var_names_make_unique() or drop them"
        )
    ids, coverage = vocabulary.lookup(list(names))
    known = np.flatnonzero(ids >= 0)
    if not known.size:
        raise ValueError(
            f"none of the {len(names)} genes ({_some(names)}) is in the vocabulary of "
            f"{len(vocabulary)} tokens ({_some(vocabulary.ids)}): are both gene symbols?"
        )
    values = adata.layers["counts"] if "counts" in adata.layers else adata.X
    if values is None:
        raise ValueError('adata has neither layers["counts"] nor X')
    matrix = sparse.csr_matrix(values)
    if not np.isfinite(matrix.data).all():
        raise ValueError("the matrix holds NaN or infinite values")
    if matrix.data.size and matrix.data.min() < 0:
        raise ValueError(
            f"the matrix holds negative values (down to {matrix.data.min():g}): pass counts or "
            "log-normalised values, not scaled ones"
        )
    matrix = matrix[:, known]
    matrix.eliminate_zeros()
    empty = np.flatnonzero(np.diff(matrix.indptr) == 0)
    if empty.size:
        raise ValueError(
            f"{empty.size} of {matrix.shape[0]} cells have no count in the {known.size} known "
            f"genes ({_some(adata.obs_names[empty])}): filter them out"
        )
    return matrix, ids[known], coverage


def read_column(adata: Any, key: str, what: str) -> np.ndarray:
    """Return ``adata.obs[key]`` as an ``(n,)`` array of str.

    Raises
    ------
    ValueError
        No such column, or missing entries in it.
    """
    if key not in adata.obs:
        raise ValueError(f"no {what} column {key!r} in adata.obs ({_some(adata.obs.columns)})")
    column = adata.obs[key]
    missing = np.flatnonzero(column.isna())
    if missing.size:
        raise ValueError(
            f"{missing.size} cells have no {what} in {key!r} ({_some(adata.obs_names[missing])})"
        )
    return column.astype(str).to_numpy(dtype=str)


def _some(names: Any) -> str:
    """Name the first few."""
    names = list(names)
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
