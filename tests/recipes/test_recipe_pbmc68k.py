"""The reduced PBMC 68k data of scanpy."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from workflow.recipes import pbmc68k

SHA256 = "e71d41e737c941559b7c57c9243bdb3d2c889c2adfdf00e3422ac6b46783676f"


def read(path: Path) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ad.read_h5ad(path)


def test_recipe(scanpy_file: Path, assert_tidy) -> None:
    assert hashlib.sha256(scanpy_file.read_bytes()).hexdigest() == SHA256
    adata = pbmc68k.load({"cells": scanpy_file})
    assert_tidy(adata, batches=False)
    assert adata.shape == (700, 765)
    assert adata.obs["label"].nunique() == 10
    assert adata.obs["label"].value_counts()["Dendritic"] == 240
    assert adata.layers["counts"].min() == 0 and adata.layers["counts"].max() == 259
    assert adata.uns["recipe"]["label_source"] == "published"


def test_counts_scale_back_to_the_file(scanpy_file: Path) -> None:
    """Scaling the counts by the authors' UMI totals gives the file's values to within rounding."""
    adata = pbmc68k.load({"cells": scanpy_file})
    given = read(scanpy_file)
    total = given.obs["n_counts"].to_numpy(dtype=float)[:, None]
    again = adata.layers["counts"].toarray() / total * 1e4
    values = np.expm1(given.raw.X.toarray().astype(float))
    assert np.array_equal(again > 0, values > 0)
    seen = values > 0
    assert np.abs(again[seen] / values[seen] - 1).max() < 2e-3
    assert (adata.layers["counts"].sum(axis=1) <= total).all()


def test_recover_counts_exactly() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, size=(50, 40))
    counts[:, 0] = 1
    scaled = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    found, unit = pbmc68k.recover_counts(sp.csr_matrix(scaled), Path("x"))
    assert np.array_equal(found.toarray(), counts)
    assert unit == pytest.approx(1e4 / counts.sum(axis=1), rel=1e-4)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.log1p([[1.0, 1.5], [1.0, 2.0]]), "distances from integers of at most 0.500"),
        ([[1.0, 2.0], [0.0, 0.0]], "found 1 cells without counts"),
        ([[1.0, -2.0], [1.0, 0.0]], "found negative or infinite values"),
    ],
)
def test_what_is_no_scaled_count_is_refused(matrix, message: str) -> None:
    with pytest.raises(ValueError, match=f"x: raw.X: found .*{message.removeprefix('found ')}"):
        pbmc68k.recover_counts(sp.csr_matrix(matrix), Path("x"))


def double_first_cell(adata: ad.AnnData) -> ad.AnnData:
    """Make one cell's smallest count 2: integers alone would not show it."""
    adata.obs.loc[adata.obs_names[0], "n_counts"] *= 2
    return adata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:600].copy(), "found 600 cells x 765 genes, expected 700 x 765"),
        (lambda a: a.obs.pop("bulk_labels"), "obs key 'bulk_labels' is missing"),
        (lambda a: a.obs.pop("n_counts"), "obs key 'n_counts' is missing"),
        (lambda a: delattr(a, "raw"), "raw: found none"),
        (double_first_cell, "whose smallest value is 0.99\\d* away from one UMI"),
    ],
)
def test_wrong_content_is_named(scanpy_file: Path, tmp_path: Path, change, message: str) -> None:
    adata = read(scanpy_file)
    changed = change(adata)
    path = tmp_path / "wrong.h5ad"
    (changed if isinstance(changed, ad.AnnData) else adata).write_h5ad(path)
    with pytest.raises(ValueError, match=f"wrong.h5ad: .*{message}"):
        pbmc68k.load({"cells": path})
