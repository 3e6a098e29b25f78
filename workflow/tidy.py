"""What a tidy dataset is, and the checks that say in one sentence what is wrong with another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import mudata
import numpy as np
import scanpy as sc
import scipy.sparse as sp

#: Columns of obs with a meaning for the suite; a recipe may add others under their own names.
COLUMNS = ("label", "batch", "split", "condition", "modality")
_ROWS = 2048  # of an on-disk matrix, read at a time


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


def row_blocks(matrix: Any) -> Iterator[sp.csr_matrix]:
    """Yield a matrix, in memory or on disk, as csr blocks of some thousand rows."""
    for start in range(0, matrix.shape[0], _ROWS):
        yield sp.csr_matrix(matrix[start : start + _ROWS])


def check_counts(matrix: Any, place: str) -> np.ndarray:
    """Raise unless every value is a count: finite, not negative, an integer.

    Parameters
    ----------
    matrix
        Cells x genes, sparse, in memory or on disk.
    place
        The file or dataset and the slot that the values came from, for the message.

    Returns
    -------
    numpy.ndarray
        Sum of each cell (n_obs,).

    Raises
    ------
    DataError
        With the number or share of values that are none, and the first of them.
    """
    sums, n_values, not_finite, fractions = [], 0, 0, 0
    smallest, first = 0.0, None
    for block in row_blocks(matrix):
        values = block.data
        finite = np.isfinite(values)
        broken = finite & (values != np.round(values))
        n_values += len(values)
        not_finite += int((~finite).sum())
        fractions += int(broken.sum())
        smallest = min(smallest, float(values[finite].min(initial=0)))
        if first is None and broken.any():
            first = values[broken][0]
        sums.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
    if not_finite:
        raise DataError(f"{place} has {not_finite} values that are NaN or inf")
    if smallest < 0:
        raise DataError(f"{place} has negative values, smallest {smallest:g}; expected counts")
    if fractions:
        raise DataError(
            f"{place} has {fractions / n_values:.1%} non-integer values, first {first:g}; expected raw counts"
        )
    return np.concatenate(sums) if sums else np.zeros(0)


def parts_of(data: ad.AnnData | mudata.MuData) -> dict[str, ad.AnnData]:
    """The AnnData of each modality; one without a name where there is only one."""
    return dict(data.mod) if isinstance(data, mudata.MuData) else {"": data}


def describe(data: ad.AnnData | mudata.MuData) -> dict:
    """Count what a tidy dataset holds: cells, genes, and the values of each of the suite's columns.

    Returns
    -------
    dict
        ``n_obs``, ``n_vars``; for each column that is there {value: cells} under its plural;
        ``controls`` where there are conditions; ``modalities`` {name: [n_obs, n_vars]} for MuData.
    """
    found: dict[str, Any] = {"n_obs": data.n_obs, "n_vars": data.n_vars}
    for column in COLUMNS:
        if column in data.obs:
            plural = {"batch": "batches", "modality": "modality"}.get(column, f"{column}s")
            found[plural] = {str(k): int(v) for k, v in data.obs[column].value_counts().items()}
    if "conditions" in found:
        found["controls"] = found["conditions"].get("ctrl", 0)
    if isinstance(data, mudata.MuData):
        found["modalities"] = {name: list(part.shape) for name, part in data.mod.items()}
    return found


def check_tidy(
    data: ad.AnnData | mudata.MuData, source: str, expect: dict, *, values: str = "counts"
) -> dict:
    """Raise unless the dataset is tidy and is what its declaration expects.

    Parameters
    ----------
    data
        What a recipe returned.
    source
        What to call it in the message.
    expect
        What :func:`describe` must find; of labels, batches and conditions their number.
    values
        ``counts``: raw counts in ``layers["counts"]`` of every modality. ``lognorm``: there are none, and X
        holds log-normalised values.

    Returns
    -------
    dict
        What was found, by :func:`describe`.

    Raises
    ------
    DataError
        On the first thing that is wrong.
    """

    def fail(text: str) -> None:
        raise DataError(f"{source}: {text}")

    for modality, part in parts_of(data).items():
        where = f"modality {modality!r}: " if modality else ""
        for axis, names in (("cell", part.obs_names), ("gene", part.var_names)):
            if not names.is_unique:
                double = names[names.duplicated()]
                fail(
                    f"{where}{len(double)} duplicated {axis} names, first {double[0]!r}; expected unique ones"
                )
        if values == "counts":
            if "counts" not in part.layers:
                fail(f"{where}layers['counts'] is missing (found: {', '.join(part.layers) or 'none'})")
            sums = check_counts(part.layers["counts"], f"{source}: {where}layers['counts']")
            if not modality and (sums == 0).any():
                empty = np.flatnonzero(sums == 0)
                fail(f"{len(empty)} cells have no counts, first {part.obs_names[empty[0]]!r}")
        elif "counts" in part.layers:
            fail(f"{where}layers['counts'] is there, but the declaration says values: lognorm")
        elif part.X is None:
            fail(f"{where}X is missing; expected log-normalised values (values: lognorm)")
        if part.X is not None:
            check_lognorm(part.X, f"{source}: {where}X")
    known = [column for column in COLUMNS if column in data.obs]
    if not {"label", "condition"} & set(known):
        fail(f"obs column 'label' is missing (found: {', '.join(data.obs.columns) or 'none'})")
    for column in known:
        if data.obs[column].isna().any():
            fail(f"obs[{column!r}] is missing for {int(data.obs[column].isna().sum())} cells")
    found = describe(data)
    for key, value in expect.items():
        now = found.get(key, 1 if key == "batches" else 0)
        if isinstance(now, dict):  # the number of labels; of modalities and splits only those that are named
            now = len(now) if isinstance(value, int) else {name: now.get(name) for name in value}
        if now != value:
            fail(f"{key} is {now}, expected {value} (expect.{key} in workflow/datasets.yaml)")
    return found


def check_lognorm(matrix: Any, place: str) -> None:
    """Raise unless every value may be a log-normalised one: finite, not negative.

    Raises
    ------
    DataError
        With the first value that is neither.
    """
    for block in row_blocks(matrix):
        wrong = block.data[~(np.isfinite(block.data) & (block.data >= 0))]
        if len(wrong):
            raise DataError(f"{place} has the value {wrong[0]:g}; expected log-normalised values, 0 or more")


def log_normalize(adata: ad.AnnData) -> None:
    """Set X to log(1 + counts scaled to 10,000 per cell), as float32 CSR, in place (scanpy)."""
    counts = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    adata.layers["counts"] = counts
    # one copy of the places of the values serves both matrices: at 300 million values it is gigabytes
    adata.X = sp.csr_matrix((counts.data.copy(), counts.indices, counts.indptr), shape=counts.shape)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.uns.pop("log1p", None)
