"""What a tidy dataset is, and the checks that say in one sentence what is wrong with another."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from workflow.declarations import closest


class DataError(ValueError):
    """A dataset is not what its declaration says; the message names file, key, found, expected."""


def read_h5ad(path: str | Path) -> ad.AnnData:
    """Read an h5ad file.

    Raises
    ------
    DataError
        If the file is truncated or is no h5ad file.
    """
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable h5ad file ({reason})") from error


def from_columns(path: str | Path, columns: dict[str, str]) -> ad.AnnData:
    """Make an AnnData tidy that needs no recipe: name its columns, find its counts.

    Of ``var`` only ``gene_id`` is kept, and of ``obs`` only what is declared.

    Parameters
    ----------
    path
        An h5ad file.
    columns
        ``{"label": column, "batch": column}`` of ``obs``; ``batch`` is optional.

    Raises
    ------
    DataError
        If a column is missing or empty for a cell, or what should be counts is not.
    """
    adata = read_h5ad(path)
    for name, column in columns.items():
        if column not in adata.obs:
            raise DataError(
                f"{path}: obs column {column!r} (for {name!r}) is missing{closest(column, adata.obs.columns)}"
            )
        # text made of a missing value would stand for a cell type or a batch of that name
        missing = adata.obs[column].isna() | adata.obs[column].astype(str).isin(["", "nan"])
        if missing.any():
            first = ", ".join(adata.obs_names[missing][:3])
            raise DataError(
                f"{path}: obs column {column!r} (for {name!r}) is missing for {missing.sum()} of "
                f"{adata.n_obs} cells, first {first}; expected a value for every cell"
            )
    place = "layers['counts']" if "counts" in adata.layers else "X (there is no layers['counts'])"
    matrix = adata.layers["counts"] if "counts" in adata.layers else adata.X
    if matrix is None:
        raise DataError(f"{path}: neither layers['counts'] nor X is there; expected raw counts in one")
    counts = sp.csr_matrix(matrix)
    check_counts(counts, f"{path}: {place}")
    counts = counts.astype(np.float32)
    obs = pd.DataFrame(
        {name: pd.Categorical(adata.obs[column].astype(str)) for name, column in columns.items()},
        index=adata.obs_names,
    )
    var = pd.DataFrame(index=adata.var_names)
    if "gene_id" in adata.var:  # an id that is not known is empty, not "nan"
        var["gene_id"] = (
            adata.var["gene_id"].astype(object).where(adata.var["gene_id"].notna(), "").astype(str)
        )
    return ad.AnnData(X=counts, obs=obs, var=var, layers={"counts": counts.copy()})


def check_counts(counts: sp.csr_matrix, place: str) -> None:
    """Raise unless every value is a count: finite, not negative, an integer.

    Parameters
    ----------
    counts
        Cells x genes.
    place
        The file or dataset and the slot that the values came from, for the message.

    Raises
    ------
    DataError
        With the number or share of values that are none, and the first of them.
    """
    values = counts.data
    if not np.isfinite(values).all():
        raise DataError(f"{place} has {int((~np.isfinite(values)).sum())} values that are NaN or inf")
    if (values < 0).any():
        raise DataError(f"{place} has negative values, smallest {values.min():g}; expected counts")
    broken = values != np.round(values)
    if broken.any():
        raise DataError(
            f"{place} has {broken.mean():.1%} non-integer values, first {values[broken][0]:g}; "
            "expected raw counts"
        )


def check_tidy(adata: ad.AnnData, source: str, expect: dict) -> None:
    """Raise unless the dataset is tidy and has the declared shape.

    Parameters
    ----------
    adata
        What a recipe returned.
    source
        What to call it in the message.
    expect
        ``n_obs``, ``n_vars``, ``labels`` and, where there are batches, ``batches``.

    Raises
    ------
    DataError
        On the first thing that is wrong.
    """

    def fail(text: str) -> None:
        raise DataError(f"{source}: {text}")

    for axis, names in (("cell", adata.obs_names), ("gene", adata.var_names)):
        if not names.is_unique:
            double = names[names.duplicated()]
            fail(f"{len(double)} duplicated {axis} names, first {double[0]!r}; expected unique names")
    if "label" not in adata.obs:
        fail(f"obs column 'label' is missing (found: {', '.join(adata.obs.columns) or 'none'})")
    for column in ("label", "batch"):
        if column in adata.obs and adata.obs[column].isna().any():
            fail(f"obs[{column!r}] is missing for {int(adata.obs[column].isna().sum())} cells")
    if "counts" not in adata.layers:
        fail(f"layers['counts'] is missing (found: {', '.join(adata.layers) or 'none'})")
    counts = sp.csr_matrix(adata.layers["counts"])
    check_counts(counts, f"{source}: layers['counts']")
    empty = np.flatnonzero(np.diff(counts.indptr) == 0)
    if len(empty):
        fail(f"{len(empty)} cells have no counts, first {adata.obs_names[empty[0]]!r}")
    found = {
        "n_obs": adata.n_obs,
        "n_vars": adata.n_vars,
        "labels": adata.obs["label"].nunique(),
        "batches": adata.obs["batch"].nunique() if "batch" in adata.obs else 1,
    }
    for key, value in expect.items():
        if found[key] != value:
            fail(f"{key} is {found[key]}, expected {value} (expect.{key} in workflow/datasets.yaml)")


def log_normalize(adata: ad.AnnData) -> None:
    """Set X to log(1 + counts scaled to 10,000 per cell), as float32 CSR, in place (scanpy)."""
    adata.layers["counts"] = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    adata.X = adata.layers["counts"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.uns.pop("log1p", None)
