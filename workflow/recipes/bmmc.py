"""Bone marrow mononuclear cells of the NeurIPS 2021 challenge (GSE194122), CITE-seq and Multiome.

Source ``cells`` is the unpacked
``GSE194122_openproblems_neurips2021_{cite,multiome}_BMMC_processed.h5ad``. Both files hold two modalities
side by side in one matrix; ``var["feature_types"]`` tells them apart: ``GEX`` is RNA, ``ADT`` surface
protein, ``ATAC`` peaks. Raw counts are in ``layers["counts"]`` (csr); ``X`` is normalised and is not
read.

* CITE: 13,953 genes and 134 proteins, 12 batches;
* Multiome: 13,431 genes and 116,490 peaks, 13 batches.

Kept of ``obs``: ``cell_type`` and ``batch`` under the suite's names; ``Site``, ``DonorID``,
``DonorNumber`` and, in the CITE file, ``is_train`` (the challenge's own split) under theirs. The number
of cell types is recorded and not asserted: the paper speaks of 48, descriptions of the CITE file of 45,
of the Multiome file of 22. All cells are kept (a widely used tutorial takes three donors).

Names. Features have one common index in the file, unique over both modalities, and stay as they are
there. So a protein has no prefix; one whose name is also a gene's may carry the suffix that made the
index unique.

The Multiome file also has gene activity scores (``obsm["ATAC_gene_activity"]``, 19,039 genes); no task
reads them, and they are left out.

Memory. The Multiome matrix has hundreds of millions of values. They are read in blocks of rows, and each
value is written to its place at once, so that the peak is little above the result, 8 bytes a value:
5.7 GB for 500 million values, writing included (``tests/recipes/measure_memory_bmmc.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mudata
import numpy as np
import scipy.sparse as sp

from ._common import as_counts, column, modality, multimodal, open_h5ad, peak_positions, source, text_column

VERSION = 1
MODALITIES = {"GEX": "rna", "ADT": "protein", "ATAC": "atac"}
KEPT = ("Site", "DonorID", "DonorNumber")
KEPT_IF_THERE = ("is_train",)
ROWS = 1024  # read at a time; of the Multiome file some ten million values


def split_columns(
    matrix: Any, columns: dict[str, np.ndarray], path: Path, key: str, rows: int = ROWS
) -> dict[str, sp.csr_matrix]:
    """Split a large matrix of counts by columns, without ever holding it.

    Parameters
    ----------
    matrix
        Raw counts, cells x features, csr on disk or in memory.
    columns
        For each part the places of its columns.
    path, key
        File and slot of the matrix, for the error.
    rows
        Number of rows that are read at a time.

    Returns
    -------
    For each part its counts as :func:`workflow.recipes._common.as_counts` returns them.

    Raises
    ------
    ValueError
        If a value is no count.
    """
    most = int(matrix.nnz if sp.issparse(matrix) else matrix.group["data"].size)
    # Room for all values in each part: memory that is never written to is never taken.
    data = {name: np.empty(most, np.float32) for name in columns}
    indices = {name: np.empty(most, np.int32) for name in columns}
    row_ends: dict[str, list[np.ndarray]] = {name: [np.zeros(1, np.int64)] for name in columns}
    for first in range(0, matrix.shape[0], rows):
        block = sp.csr_matrix(matrix[first : first + rows])
        for name, places in columns.items():
            part = as_counts(block[:, places], path, key)
            start = int(row_ends[name][-1][-1])
            data[name][start : start + part.nnz] = part.data
            indices[name][start : start + part.nnz] = part.indices
            row_ends[name].append(part.indptr[1:] + np.int64(start))
    result = {}
    for name, places in columns.items():
        indptr = np.concatenate(row_ends[name])
        values = (data.pop(name)[: indptr[-1]], indices.pop(name)[: indptr[-1]], indptr)
        result[name] = sp.csr_matrix(values, shape=(matrix.shape[0], len(places)))
    return result


def load(files: dict[str, Path], entry: dict | None = None) -> mudata.MuData:
    """Return RNA with protein, or RNA with ATAC, whichever the file holds.

    Parameters
    ----------
    files
        ``cells``: one of the two h5ad files.
    entry
        Not read.

    Returns
    -------
    Modalities ``rna`` (``var["gene_id"]``: Ensembl ids) and ``protein`` or ``atac``
    (``var``: ``chrom``, ``chromStart``, ``chromEnd``) over the same cells; ``obs`` with ``label``,
    ``batch`` and the columns named above.

    Raises
    ------
    ValueError
        If a column or the counts are missing, or the types of the features are others.
    """
    path = source(files, "cells")
    cells = open_h5ad(path, "layers/counts")
    obs = column(cells, "cell_type", path).to_frame("label")
    obs["batch"] = column(cells, "batch", path)
    for key in KEPT + tuple(key for key in KEPT_IF_THERE if key in cells.obs):
        obs[key] = text_column(cells.obs, key, path, "obs", missing="").astype("category")

    types = text_column(cells.var, "feature_types", path, "var").to_numpy()
    found = {name: np.flatnonzero(types == name) for name in np.unique(types)}
    if set(found) not in ({"GEX", "ADT"}, {"GEX", "ATAC"}):
        raise ValueError(
            f"{path}: var key 'feature_types': found {', '.join(found)}, expected GEX with either ADT or ATAC"
        )
    var = {
        "rna": text_column(cells.var.iloc[found["GEX"]], "gene_id", path, "var", missing="").to_frame(),
        "protein": cells.var.iloc[found.get("ADT", [])][[]],
        "atac": peak_positions(cells.var_names[found.get("ATAC", [])], path),
    }
    columns = {MODALITIES[name]: places for name, places in found.items()}
    counts = split_columns(cells.layers["counts"], columns, path, "layers['counts']")
    parts = {
        name: modality(counts.pop(name), obs_names=cells.obs_names, var=table)
        for name, table in var.items()
        if name in counts
    }
    facts = {
        "label_source": "published",
        "cell_types": obs["label"].nunique(),
        "donors": obs["DonorID"].nunique(),
        "sites": obs["Site"].nunique(),
    }
    return multimodal(parts, obs=obs, facts=facts)
