"""A small true piece of the PBMC 10k data, for development tests only.

Source ``cells`` is one h5ad with raw counts in ``X``, ``obs["batch"]`` (0 = 10x pbmc8k,
1 = 10x pbmc4k) and ``obs["str_labels"]`` (the nine types that scVI's PBMC data carry). The recipe
renames the columns to the contract's and checks that ``X`` holds counts; nothing is filtered or
relabelled. The file is no part of this project. Its counts came from public R packages, joined on
barcodes with the metadata that :mod:`workflow.recipes.pbmc10k` reads; no gene ids are in it.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from ._common import as_counts, check_shape, column, read_h5ad, source, tidy

VERSION = 1
EXPECTED_SHAPE = (2433, 1767)
EXPECTED_LABELS = 9


def load(files: dict[str, Path], entry: dict | None = None) -> ad.AnnData:
    """Return the development piece of PBMC 10k.

    Parameters
    ----------
    files
        ``cells``: the h5ad file.

    Returns
    -------
    Two batches, nine labels, 2,433 cells x 1,767 genes of raw counts.

    Raises
    ------
    ValueError
        If the file is not the one that is described above.
    """
    path = source(files, "cells")
    adata = read_h5ad(path)
    batch, label = column(adata, "batch", path), column(adata, "str_labels", path)
    check_shape(adata.shape, EXPECTED_SHAPE, path)
    if label.nunique() != EXPECTED_LABELS:
        raise ValueError(
            f"{path}: obs key 'str_labels': found {label.nunique()} labels, expected {EXPECTED_LABELS}"
        )
    return tidy(
        as_counts(adata.X, path),
        obs_names=adata.obs_names,
        symbols=adata.var_names,
        label=label,
        batch=batch,
        facts={"label_source": "published", "batch_0": "pbmc8k", "batch_1": "pbmc4k"},
    )
