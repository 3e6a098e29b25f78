"""Checks and the final tidying that all recipes share."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset
from anndata.utils import make_index_unique


def source(files: Mapping[str, Path], key: str) -> Path:
    """Return the local path of a declared source.

    Parameters
    ----------
    files
        Source names and local paths, as handed to ``load``.
    key
        The source that the recipe needs.

    Returns
    -------
    The path, which exists.

    Raises
    ------
    ValueError
        If the source is not declared, or its file is not there.
    """
    if key not in files:
        found = ", ".join(sorted(files)) or "none"
        raise ValueError(f"sources: key {key!r} is missing, found {found}, expected {key!r}")
    path = Path(files[key])
    if not path.is_file():
        raise ValueError(f"{path}: source {key!r}: found no file, expected one")
    return path


def read_h5ad(path: Path) -> ad.AnnData:
    """Read an h5ad file, and say plainly when it is not one.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Its content, in memory.

    Raises
    ------
    ValueError
        If the file cannot be read as h5ad.
    """
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # anndata and h5py raise many kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: found no readable AnnData ({reason}), expected h5ad") from error


def column(adata: ad.AnnData, key: str, path: Path) -> pd.Series:
    """Return an ``obs`` column as str, refusing absent columns and missing values.

    Parameters
    ----------
    adata
        Where to look.
    key
        Name of the column.
    path
        The file, for the error.

    Returns
    -------
    The column as str.

    Raises
    ------
    ValueError
        If the column is absent or has missing values.
    """
    return text_column(adata.obs, key, path, "obs")


def as_counts(matrix: Any, path: Path, key: str = "X") -> sp.csr_matrix:
    """Turn a matrix into canonical ``csr_matrix`` of ``float32``, provided it holds raw counts.

    Parameters
    ----------
    matrix
        Dense or sparse, cells x genes.
    path, key
        File and place of the matrix, for the error.

    Returns
    -------
    The counts, without stored zeros, with sorted indices.

    Raises
    ------
    ValueError
        If a value is negative, not finite or not an integer.
    """
    counts = sp.csr_matrix(matrix)
    values = counts.data
    wrong = values[~(np.isfinite(values) & (values >= 0) & (values == np.round(values)))]
    if wrong.size:
        raise ValueError(
            f"{path}: {key}: found {wrong.size} values that are no raw counts "
            f"(such as {wrong[0]}), expected non-negative integers"
        )
    counts = counts.astype(np.float32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts


def check_shape(found: tuple[int, int], expected: tuple[int, int], path: Path) -> None:
    """Raise ``ValueError`` unless cells x genes are as expected.

    Parameters
    ----------
    found, expected
        Numbers of cells and genes.
    path
        The file, for the error.
    """
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"{path}: shape: found {found[0]} cells x {found[1]} genes, "
            f"expected {expected[0]} x {expected[1]}"
        )


def tidy(
    counts: sp.csr_matrix,
    *,
    obs_names: Iterable[str],
    symbols: Iterable[str],
    label: Iterable[str],
    facts: Mapping[str, str | int | float],
    batch: Iterable[str] | None = None,
    gene_id: Iterable[str] | None = None,
) -> ad.AnnData:
    """Put the parts together in the form that the contract asks for.

    Parameters
    ----------
    counts
        Raw counts as :func:`as_counts` returns them.
    obs_names
        Cell names; they must be unique.
    symbols
        Gene symbols; repeats get a suffix.
    label
        Cell type of each cell.
    facts
        What goes to ``uns["recipe"]``.
    batch
        Batch of each cell; left out for a single batch.
    gene_id
        Ensembl ids, where known.

    Returns
    -------
    The tidy AnnData.

    Raises
    ------
    ValueError
        If cell names repeat, or ``batch`` holds a single batch.
    """
    index = pd.Index([str(name) for name in obs_names])
    if not index.is_unique:
        first = index[index.duplicated()][0]
        raise ValueError(f"obs_names: found {first!r} twice, expected unique cell names")
    obs = pd.DataFrame(index=index)
    if batch is not None:
        obs["batch"] = pd.Categorical([str(value) for value in batch])
        if len(obs["batch"].cat.categories) < 2:
            raise ValueError("obs key 'batch': found a single batch, expected two or more")
    obs["label"] = pd.Categorical([str(value) for value in label])
    var = pd.DataFrame(index=make_index_unique(pd.Index([str(name) for name in symbols])))
    if gene_id is not None:
        var["gene_id"] = [str(value) for value in gene_id]
    return ad.AnnData(obs=obs, var=var, layers={"counts": counts}, uns={"recipe": dict(facts)})


def open_h5ad(path: Path, *slots: str) -> ad.AnnData:
    """Open a large h5ad file: names and columns in memory, the matrices asked for left on disk.

    Parameters
    ----------
    path
        The file.
    *slots
        ``"X"`` and ``"layers/<name>"``, as many as are needed; nothing else is read, ``uns`` neither.

    Returns
    -------
    ``obs`` and ``var`` as they are, and the matrices as ``anndata.abc.CSRDataset`` (float32 or not), or
    in memory where the file holds them dense or by column. An on-disk matrix is read by slices of rows;
    the file stays open as long as the process.

    Raises
    ------
    ValueError
        If the file cannot be read as h5ad, or a slot is not there.
    """
    try:
        file = h5py.File(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ad.OldFormatWarning)  # anndata 0.7 wrote no encoding of columns
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
        matrices = {}
        for slot in slots:
            if slot not in file:
                found = ["X"] * ("X" in file) + [f"layers/{name}" for name in file.get("layers", [])]
                raise ValueError(f"{path}: {slot} is missing, found {', '.join(found) or 'no matrix'}")
            by_row = "csr" in str(file[slot].attrs.get("encoding-type", ""))
            matrices[slot] = sparse_dataset(file[slot]) if by_row else sp.csr_matrix(read_elem(file[slot]))
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: found no readable AnnData ({reason}), expected h5ad") from error
    layers = {slot.removeprefix("layers/"): m for slot, m in matrices.items() if slot != "X"}
    return ad.AnnData(X=matrices.get("X"), obs=obs, var=var, layers=layers)


def text_column(
    table: pd.DataFrame, key: str, path: Path, slot: str, missing: str | None = None
) -> pd.Series:
    """Return a column of any table as str, refusing absent columns and missing values.

    Parameters
    ----------
    table
        Where to look.
    key
        Name of the column.
    path, slot
        The file, and what the table is in it (``"obs"``, ``"var"``, ``"csv"``), for the error.
    missing
        What stands for a missing value, where one may be missing.

    Returns
    -------
    The column as str.

    Raises
    ------
    ValueError
        If the column is absent or has missing values.
    """
    if key not in table:
        found = ", ".join(map(str, table.columns)) or "no columns"
        raise ValueError(f"{path}: {slot} key {key!r} is missing, found {found}, expected {key!r}")
    absent = table[key].isna()
    if absent.any() and missing is None:
        raise ValueError(f"{path}: {slot} key {key!r}: found {absent.sum()} missing values, expected none")
    return table[key].astype(str).mask(absent, missing)


def peak_positions(names: Iterable[str], path: Path) -> pd.DataFrame:
    """Read the position of peaks from their names, such as ``chr1:10-20``, ``chr1-10-20``, ``chr1_10_20``.

    Parameters
    ----------
    names
        Names of the peaks.
    path
        The file, for the error.

    Returns
    -------
    Columns ``chrom`` (str), ``chromStart`` and ``chromEnd`` (int64, bases, as the name
    has them), indexed by the names.

    Raises
    ------
    ValueError
        If a name is no position.
    """
    index = pd.Index([str(name) for name in names])
    parts = index.str.extract(r"^(?P<chrom>.+)[:_-](?P<chromStart>\d+)[_-](?P<chromEnd>\d+)$")
    wrong = index[parts["chrom"].isna()]
    if len(wrong):
        raise ValueError(
            f"{path}: names of peaks: found {len(wrong)} that are no position (such as {wrong[0]!r}), "
            "expected chromosome, start and end"
        )
    return parts.astype({"chromStart": np.int64, "chromEnd": np.int64}).set_index(index)


def modality(counts: sp.csr_matrix, *, obs_names: Iterable[str], var: pd.DataFrame) -> ad.AnnData:
    """Put the parts of one modality together, for :func:`multimodal`.

    Parameters
    ----------
    counts
        Raw counts as :func:`as_counts` returns them, cells x features.
    obs_names
        Cell names.
    var
        Its index are the names of the features; repeats get a suffix.

    Returns
    -------
    Counts in ``layers["counts"]``, no ``X`` and no columns of ``obs``.
    """
    obs = pd.DataFrame(index=pd.Index([str(name) for name in obs_names]))
    var = var.set_axis(make_index_unique(pd.Index([str(name) for name in var.index])))
    return ad.AnnData(obs=obs, var=var, layers={"counts": counts})


def multimodal(
    parts: Mapping[str, ad.AnnData], *, obs: pd.DataFrame, facts: Mapping[str, str | int | float]
) -> mudata.MuData:
    """Put modalities together in the form that the contract asks for; the mate of :func:`tidy`.

    Parameters
    ----------
    parts
        Modalities by name (``rna``, ``atac``, ``protein``), as :func:`modality` returns them. They may hold
        different cells (a mosaic).
    obs
        One row for each cell: ``label``; ``batch`` and ``modality``, where there are any; and columns
        that are kept under their own names.
    facts
        What goes to ``uns["recipe"]``.

    Returns
    -------
    The tidy MuData. A cell has a modality where the ``obs_names`` of that modality list it.

    Raises
    ------
    ValueError
        If a cell is there twice, is in no modality, or is in one but not in ``obs``; if a modality has no raw
        counts; if a label is missing; or if ``batch`` holds a single batch.
    """
    obs = obs.set_axis(pd.Index([str(name) for name in obs.index]))
    measured = pd.Index([])
    for name, part in parts.items():
        counts = part.layers.get("counts")
        if not isinstance(counts, sp.csr_matrix) or counts.dtype != np.float32:
            kind = f"{type(counts).__name__} of {counts.dtype}" if hasattr(counts, "dtype") else "none"
            raise ValueError(
                f"modality {name!r}: layers['counts']: found {kind}, expected csr_matrix of float32"
            )
        unknown = part.obs_names.difference(obs.index)
        if len(unknown):
            raise ValueError(f"modality {name!r}: found cell {unknown[0]!r}, which obs does not list")
        measured = measured.union(part.obs_names)
    for where, names in [("obs", obs.index), *((f"modality {n!r}", p.obs_names) for n, p in parts.items())]:
        if not names.is_unique:
            first = names[names.duplicated()][0]
            raise ValueError(f"{where}: found cell {first!r} twice, expected unique cell names")
    alone = obs.index.difference(measured)
    if len(alone):
        raise ValueError(f"obs: found {len(alone)} cells that no modality has (such as {alone[0]!r})")
    if "label" not in obs:
        raise ValueError(f"obs key 'label' is missing, found {', '.join(obs.columns) or 'no columns'}")
    ours = [key for key in ("label", "batch", "modality") if key in obs]
    obs = obs[[*ours, *obs.columns.drop(ours)]]
    for key in ours:
        if obs[key].isna().any():
            raise ValueError(f"obs key {key!r}: found {int(obs[key].isna().sum())} cells without a value")
        obs[key] = pd.Categorical(obs[key].astype(str))
    if "batch" in obs and len(obs["batch"].cat.categories) < 2:
        raise ValueError("obs key 'batch': found a single batch, expected two or more")
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        # a gene and its protein may share a name; the modality tells them apart
        warnings.filterwarnings(
            "ignore", "var_names are not unique|.*var_names are intersecting", UserWarning
        )
        data = mudata.MuData(dict(parts))
        data.obs = obs.loc[data.obs_names]
    data.uns["recipe"] = dict(facts)
    return data
