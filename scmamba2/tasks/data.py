"""Read an AnnData object, in memory or backed by its file, and say clearly what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..vocabulary import Vocabulary

__all__ = ["CHUNK", "Genes", "check_values", "match_genes", "read_column", "read_values"]

CHUNK = 4096
"""Cells that are read at a time."""

VERSION = re.compile(r"^(ENS[A-Z]*[GTP]\d+)\.\d+$")
"""An Ensembl identifier with its version."""


class Genes(NamedTuple):
    """How the columns of an AnnData object match a vocabulary."""

    ids: np.ndarray  # (n_vars,) int64, -1 where unknown
    coverage: float  # share that is known, from 0 to 1
    source: str  # where the names stand: "var_names" or "var['...']"


def match_genes(adata: Any, vocabulary: Vocabulary, least: float = 0.0) -> Genes:
    """Find the names in ``adata.var`` that the vocabulary knows best.

    Tried are ``var_names`` and each column of text, with and without the version at the end of
    Ensembl identifiers, so that data named by symbols works with a vocabulary of either kind as
    long as the other stands in a column.

    Parameters
    ----------
    adata
        Cells by genes.
    vocabulary
        Of the model.
    least
        Smallest share of the genes that must be known.

    Raises
    ------
    ValueError
        If too few genes are known, or a known gene occurs twice.
    """
    names = {"var_names": list(adata.var_names)}
    for column in adata.var.columns:
        values = adata.var[column]
        if values.dtype.kind in "OUT" or values.dtype.name in ("category", "string", "str"):
            names[f"var[{column!r}]"] = [str(value) for value in values]
    best: Genes | None = None
    chosen: list[str] = []
    for source, given in names.items():
        for tried in (given, [VERSION.sub(r"\1", name) for name in given]):
            ids, coverage = vocabulary.lookup(tried)
            if best is None or coverage > best.coverage:
                best, chosen = Genes(ids, coverage, source), tried
    if best is None or not best.coverage or best.coverage < least:
        share = f"{best.coverage:.1%}" if best and best.coverage else "none"
        raise ValueError(
            f"{share} of the {adata.n_vars} genes ({_some(adata.var_names)}) is in the vocabulary of "
            f"{len(vocabulary)} tokens ({_some(vocabulary.ids)})"
            + (f"; at least {least:.0%} must be" if best and best.coverage else "")
            + f". Looked in {', '.join(names)}: are both of one species, and symbols or Ensembl identifiers?"
        )
    known = best.ids[best.ids >= 0]
    found, counts = np.unique(known, return_counts=True)
    if twice := set(found[counts > 1].tolist()):
        genes = [name for name, i in zip(chosen, best.ids.tolist(), strict=True) if i in twice]
        genes = list(dict.fromkeys(genes))
        advice = (
            "call adata.var_names_make_unique() or drop them" if best.source == "var_names" else "drop them"
        )
        raise ValueError(
            f"{len(genes)} gene names occur more than once in {best.source} ({_some(genes)}): {advice}"
        )
    return best


def read_values(adata: Any, cells: slice = slice(None)) -> sparse.csr_matrix:
    """Return the values of ``cells``, ``(n, n_vars)`` scipy CSR.

    They are ``adata.layers["counts"]`` if there, else ``adata.X``: counts, or any increasing
    transform of them per cell, such as log-normalised values.

    Raises
    ------
    ValueError
        If there is neither.
    """
    values = adata.layers["counts"] if "counts" in adata.layers else adata.X
    if values is None:
        raise ValueError('adata has neither layers["counts"] nor X')
    return sparse.csr_matrix(values[cells])


def check_values(adata: Any, columns: np.ndarray) -> None:
    """Go through all values once.

    Parameters
    ----------
    adata
        Cells by genes.
    columns
        Indices of the genes that the model knows.

    Raises
    ------
    ValueError
        NaN, infinite or negative values, or cells without any value above zero in ``columns``.
    """
    where = 'layers["counts"]' if "counts" in adata.layers else "X"
    empty: list[int] = []
    for cells in chunks(adata.n_obs):
        matrix = read_values(adata, cells)
        if not np.isfinite(matrix.data).all():
            raise ValueError(f"{where} holds NaN or infinite values")
        if matrix.data.size and matrix.data.min() < 0:
            raise ValueError(
                f"{where} holds negative values (down to {matrix.data.min():g}): pass counts or "
                "log-normalised values, not scaled ones"
            )
        matrix = matrix[:, columns]
        matrix.eliminate_zeros()
        empty.extend(cells.start + np.flatnonzero(np.diff(matrix.indptr) == 0))
    if empty:
        raise ValueError(
            f"{len(empty)} of {adata.n_obs} cells have no count in the {len(columns)} known "
            f"genes ({_some(adata.obs_names[empty[:6]])}): filter them out"
        )


def chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    """Cut ``n`` cells into runs of ``size``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


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
