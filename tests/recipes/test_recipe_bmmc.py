"""BMMC: two modalities taken apart without holding the matrix of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from omics_files import as_anndata_07, assert_multimodal, random_counts, write_bmmc

from workflow.recipes import bmmc
from workflow.recipes._common import open_h5ad

COLUMNS = ["label", "batch", "Site", "DonorID", "DonorNumber"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that 50 cells need eight of them."""
    monkeypatch.setattr(bmmc.split_columns, "__defaults__", (7,))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("second", "name", "shape", "obs"),
    [("ADT", "protein", (50, 4), [*COLUMNS, "is_train"]), ("ATAC", "atac", (50, 60), COLUMNS)],
)
def test_modalities_by_feature_type(
    second: str, name: str, shape: tuple, obs: list, old: bool, tmp_path: Path, small_blocks: None
) -> None:
    path = write_bmmc(tmp_path / "bmmc.h5ad", second)
    raw = ad.read_h5ad(path)
    if old:
        as_anndata_07(path)
    data = bmmc.load({"cells": path})
    assert_multimodal(data, {"rna": (50, 25), name: shape}, obs)
    for kind, modality in (("GEX", "rna"), (second, name)):
        want = raw[:, raw.var["feature_types"] == kind]
        assert (data[modality].layers["counts"] != want.layers["counts"]).nnz == 0
        assert list(data[modality].var_names) == list(want.var_names)
    assert list(data.obs["label"]) == list(raw.obs["cell_type"])
    assert list(data.obs["DonorID"]) == list(raw.obs["DonorID"].astype(str))
    assert list(data["rna"].var) == ["gene_id"]
    assert data.uns["recipe"]["cell_types"] == 5 and data.uns["recipe"]["donors"] == 3
    if second == "ATAC":
        assert data["atac"].var.loc["chr1-9776-10668"].tolist() == ["chr1", 9776, 10668]
    else:
        assert list(data["protein"].var_names[:2]) == ["CD86-1", "CD274"]


def test_features_may_be_mixed(tmp_path: Path, small_blocks: None) -> None:
    path = write_bmmc(tmp_path / "bmmc.h5ad", "ADT")
    mixed = ad.read_h5ad(path)[:, np.random.default_rng(1).permutation(29)].copy()
    mixed.write_h5ad(path)
    data = bmmc.load({"cells": path})
    for name in ("rna", "protein"):
        want = mixed[:, data[name].var_names].layers["counts"]
        assert (data[name].layers["counts"] != want).nnz == 0


def test_nothing_but_the_counts_is_read(tmp_path: Path) -> None:
    path = write_bmmc(tmp_path / "bmmc.h5ad", "ATAC")
    with h5py.File(path, "r+") as file:
        for key in ("X", "obsm", "uns"):
            del file[key]
            file[key] = "what stands here would stop anything that reads it"
    assert bmmc.load({"cells": path}).n_obs == 50


def test_split_takes_room_for_the_values_only() -> None:
    counts = random_counts(np.random.default_rng(0), 20, 10)
    parts = bmmc.split_columns(counts, {"a": np.arange(3), "b": np.arange(3, 10)}, Path("x"), "X", rows=6)
    assert sp.hstack(list(parts.values())).nnz == counts.nnz
    for part in parts.values():
        assert part.data.size == part.indices.size == part.nnz == part.indptr[-1]
        part.check_format()


def test_the_matrix_stays_on_disk(tmp_path: Path) -> None:
    cells = open_h5ad(write_bmmc(tmp_path / "bmmc.h5ad", "ATAC"), "layers/counts")
    assert isinstance(cells.layers["counts"], ad.abc.CSRDataset) and cells.X is None


def break_counts(adata: ad.AnnData) -> None:
    adata.layers["counts"].data[-1] = 0.5


def drop_layer(adata: ad.AnnData) -> None:
    del adata.layers["counts"]


def unknown_type(adata: ad.AnnData) -> None:
    adata.var["feature_types"] = adata.var["feature_types"].astype(str).replace("ADT", "Hashtag")


def peaks_without_position(adata: ad.AnnData) -> None:
    adata.var["feature_types"] = adata.var["feature_types"].astype(str).replace("ADT", "ATAC")


def no_label(adata: ad.AnnData) -> None:
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object).where(adata.obs["cell_type"] != "NK")


def one_batch(adata: ad.AnnData) -> None:
    adata.obs["batch"] = "s1d1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (lambda a, k=key: a.obs.pop(k) is None, f"bmmc.h5ad: obs key '{key}' is missing, found GEX_")
            for key in ("cell_type", "batch", "Site", "DonorID", "DonorNumber")
        ),
        (
            lambda a: a.var.pop("gene_id") is None,
            "bmmc.h5ad: var key 'gene_id' is missing, found feature_types",
        ),
        (lambda a: a.var.pop("feature_types") is None, "bmmc.h5ad: var key 'feature_types' is missing"),
        (drop_layer, "bmmc.h5ad: layers/counts is missing, found X"),
        (
            break_counts,
            r"bmmc.h5ad: layers\['counts'\]: found 1 values that are no raw counts \(such as 0.5\)",
        ),
        (unknown_type, "'feature_types': found GEX, Hashtag, expected GEX with either ADT or ATAC"),
        (peaks_without_position, r"bmmc.h5ad: names of peaks: found 4 .*'CD86-1'"),
        (no_label, r"obs key 'cell_type': found \d+ missing values, expected none"),
        (one_batch, "obs key 'batch': found a single batch, expected two or more"),
    ],
)
def test_broken_input_gives_one_sentence(
    change: Callable[[ad.AnnData], None], message: str, tmp_path: Path
) -> None:
    path = write_bmmc(tmp_path / "bmmc.h5ad", "ADT")
    adata = ad.read_h5ad(path)
    change(adata)
    adata.write_h5ad(path)
    with pytest.raises(ValueError, match=message) as error:
        bmmc.load({"cells": path})
    assert "\n" not in str(error.value)
