"""10x PBMC 68k, the reduced set that ships inside scanpy: 700 cells x 765 genes, 10 types.

Source ``cells`` is ``datasets/10x_pbmc68k_reduced.h5ad`` of the installed scanpy package. Labels
are ``obs["bulk_labels"]``, published with the data by Zheng et al. (2017, Nature Communications,
doi:10.1038/ncomms14049), where cells were matched to profiles of sorted populations.

The file holds no raw counts: ``X`` is scaled and ``raw.X`` is log1p of counts that were scaled
cell by cell. The scale is undone here. In each cell the smallest non-zero value of ``expm1(raw.X)``
belongs to a gene seen exactly once (a cell with 765 of the most variable genes practically always
has one), so dividing by it gives the UMI counts up to rounding. This is checked, not believed: if
any value is 0.2 or more from an integer, or the median distance (over all values but the smallest
ones, which are 1 by construction) is 0.05 or more, the recipe stops. In scanpy 1.11.5's file the
largest distance is 0.112 and the median 0.001. Should the rarest gene of some cell have been seen
twice, its counts would come out halved, and integers might not show it. So the estimate is also
compared with ``obs["n_counts"]``, the number of UMIs by which the file's authors scaled to 10,000:
one UMI has to be worth 10,000 / ``n_counts`` to within 1 % (found: 0.08 %).

There is no column of batches, so ``obs["batch"]`` is left out. No gene ids are in the file.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ._common import as_counts, check_shape, column, read_h5ad, source, tidy

VERSION = 1
EXPECTED_SHAPE = (700, 765)
EXPECTED_LABELS = 10
MAX_DEVIATION = 0.2
MEDIAN_DEVIATION = 0.05
SCALE = 1e4
SCALE_TOLERANCE = 0.01


def recover_counts(log_scaled: sp.csr_matrix, path: Path) -> tuple[sp.csr_matrix, np.ndarray]:
    """Undo log1p and the scaling per cell.

    Parameters
    ----------
    log_scaled
        log1p of counts times one factor per cell.
    path
        The file, for the error.

    Returns
    -------
    The counts, and the smallest non-zero scaled value of each cell (one UMI after scaling).

    Raises
    ------
    ValueError
        If the result is not close to integers, or a cell is empty.
    """
    matrix = sp.csr_matrix(log_scaled, dtype=np.float64, copy=True)
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise ValueError(f"{path}: raw.X: found negative or infinite values, expected log1p of scaled counts")
    per_cell = np.diff(matrix.indptr)
    if (per_cell == 0).any():
        raise ValueError(
            f"{path}: raw.X: found {int((per_cell == 0).sum())} cells without counts, expected none"
        )
    matrix.data = np.expm1(matrix.data)
    unit = np.minimum.reduceat(matrix.data, matrix.indptr[:-1])
    matrix.data /= np.repeat(unit, per_cell)
    deviation = np.abs(matrix.data - np.round(matrix.data))
    beyond = deviation[matrix.data != 1]
    largest, median = float(deviation.max()), float(np.median(beyond)) if beyond.size else 0.0
    if largest >= MAX_DEVIATION or median >= MEDIAN_DEVIATION:
        raise ValueError(
            f"{path}: raw.X: found distances from integers of at most {largest:.3f} and "
            f"{median:.3f} in the median, expected less than {MAX_DEVIATION} and {MEDIAN_DEVIATION}"
        )
    matrix.data = np.round(matrix.data)
    return as_counts(matrix, path, "raw.X"), unit


def load(files: dict[str, Path], entry: dict | None = None) -> ad.AnnData:
    """Return the reduced PBMC 68k data with their raw UMI counts.

    Parameters
    ----------
    files
        ``cells``: ``10x_pbmc68k_reduced.h5ad`` from scanpy.

    Returns
    -------
    One batch, ten published labels, 700 cells x 765 genes.

    Raises
    ------
    ValueError
        If the file is another one, or its counts cannot be recovered.
    """
    path = source(files, "cells")
    with warnings.catch_warnings():  # anndata warns of the old layout
        warnings.simplefilter("ignore")
        adata = read_h5ad(path)
    label = column(adata, "bulk_labels", path)
    if adata.raw is None:
        raise ValueError(f"{path}: raw: found none, expected log1p of scaled counts")
    check_shape(adata.raw.shape, EXPECTED_SHAPE, path)
    if label.nunique() != EXPECTED_LABELS:
        raise ValueError(
            f"{path}: obs key 'bulk_labels': found {label.nunique()} labels, expected {EXPECTED_LABELS}"
        )
    if "n_counts" not in adata.obs:
        raise ValueError(f"{path}: obs key 'n_counts' is missing, expected UMIs per cell")
    counts, unit = recover_counts(adata.raw.X, path)
    scale = unit * adata.obs["n_counts"].to_numpy(dtype=np.float64)
    worst = float(np.abs(scale / SCALE - 1).max())
    if worst > SCALE_TOLERANCE:
        raise ValueError(
            f"{path}: raw.X: found a cell whose smallest value is {worst:.3f} away from one UMI "
            f"by obs key 'n_counts', expected at most {SCALE_TOLERANCE}"
        )
    return tidy(
        counts,
        obs_names=adata.obs_names,
        symbols=adata.raw.var_names,
        label=label,
        facts={"label_source": "published", "counts": "recovered from log1p of scaled counts"},
    )
