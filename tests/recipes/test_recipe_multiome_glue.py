"""10x Multiome PBMC: pairing of scGLUE's two files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from omics_files import GLUE_TYPES, as_anndata_07, assert_multimodal, write_glue

from workflow.recipes import multiome_glue

SHAPES = {"rna": (60, 30), "atac": (60, 40)}


def rewrite(path: Path, change: Callable[[ad.AnnData], ad.AnnData | None]) -> None:
    """Change a file in place."""
    adata = ad.read_h5ad(path)
    (change(adata) or adata).write_h5ad(path)


@pytest.mark.parametrize("old", [False, True])
def test_both_modalities_with_labels_and_no_batch(old: bool, tmp_path: Path) -> None:
    paths = write_glue(tmp_path)
    raw = {name: ad.read_h5ad(path) for name, path in paths.items()}
    if old:
        paths = {name: as_anndata_07(path) for name, path in paths.items()}
    data = multiome_glue.load(paths)
    assert_multimodal(data, SHAPES, ["label"])
    assert list(data.obs_names) == list(raw["rna"].obs_names)
    assert list(data.obs["label"]) == list(raw["rna"].obs["cell_type"])
    assert list(data["rna"].var) == ["gene_id"] and data["rna"].var["gene_id"].iloc[2] == "ENSG00000000002"
    assert list(data["atac"].var) == ["chrom", "chromStart", "chromEnd"]
    assert np.array_equal(data["atac"].var["chromStart"], raw["atac"].var["chromStart"])
    for name, adata in raw.items():
        assert (data[name].layers["counts"] != adata.X).nnz == 0
    assert data.uns["recipe"] == {
        "label_source": "published",
        "cell_types": len(GLUE_TYPES),
        "reordered_cells": 0,
    }


def test_cells_are_paired_by_name_not_by_place(tmp_path: Path) -> None:
    paths = write_glue(tmp_path)
    want = multiome_glue.load(paths)
    rewrite(paths["atac"], lambda adata: adata[np.roll(np.arange(60), 7)].copy())
    data = multiome_glue.load(paths)
    assert data.uns["recipe"]["reordered_cells"] == 60
    assert list(data["atac"].obs_names) == list(data["rna"].obs_names)
    assert (data["atac"].layers["counts"] != want["atac"].layers["counts"]).nnz == 0


def test_the_copy_made_for_snapatac2_has_fewer_columns(tmp_path: Path) -> None:
    paths = write_glue(tmp_path)
    want = multiome_glue.load(paths)

    def shorten(adata: ad.AnnData) -> None:
        adata.obs = adata.obs[["domain", "cell_type"]]
        adata.var = adata.var[[key for key in ("gene_ids", "feature_types") if key in adata.var]]
        adata.obsm["X_spectral"] = np.zeros((adata.n_obs, 3))
        adata.X = adata.X.astype(np.uint32)

    for path in paths.values():
        rewrite(path, shorten)
    data = multiome_glue.load(paths)
    assert_multimodal(data, SHAPES, ["label"])
    pd.testing.assert_frame_equal(data["atac"].var, want["atac"].var)


def rename(adata: ad.AnnData) -> None:
    adata.obs_names = ["other-1", *adata.obs_names[1:]]


def double(adata: ad.AnnData) -> None:
    adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]


def relabel(adata: ad.AnnData) -> None:
    adata.obs["cell_type"] = ["NK", *adata.obs["cell_type"].astype(str)[1:]]


def move(adata: ad.AnnData) -> None:
    adata.var["chromEnd"] += np.arange(40) == 3


def normalise(adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "rna",
            lambda a: a.obs.pop("cell_type") is None,
            "RNA.h5ad: obs key 'cell_type' is missing, found domain",
        ),
        ("atac", lambda a: a.obs.pop("cell_type") is None, "ATAC.h5ad: obs key 'cell_type' is missing"),
        (
            "rna",
            lambda a: a.var.pop("gene_ids") is None,
            "RNA.h5ad: var key 'gene_ids' is missing, found feature",
        ),
        (
            "atac",
            lambda a: a[:50].copy(),
            r"ATAC.h5ad: obs_names: found 10 cells of the RNA file missing and 0 ",
        ),
        (
            "atac",
            rename,
            r"obs_names: found 1 cells of the RNA file missing and 1 that it lacks \(such as '[ACGT]+-1'\)",
        ),
        ("atac", double, r"obs_names: found '[ACGT]+-1' twice in the ATAC file"),
        ("atac", relabel, r"found 1 cells with another type .*: 'NK', 'CD14 Mono'\), expected the same"),
        ("atac", move, r"chromEnd: found 1 peaks that lie elsewhere .*such as 'chr1:\d+-\d+'"),
        ("rna", normalise, r"RNA.h5ad: X: found \d+ values that are no raw counts"),
    ],
)
def test_broken_input_gives_one_sentence(name: str, change, message: str, tmp_path: Path) -> None:
    paths = write_glue(tmp_path)
    rewrite(paths[name], change)
    with pytest.raises(ValueError, match=message) as error:
        multiome_glue.load(paths)
    assert "\n" not in str(error.value)


def test_files_the_wrong_way_round(tmp_path: Path) -> None:
    paths = write_glue(tmp_path)
    with pytest.raises(ValueError, match=r"RNA.h5ad: names of peaks: found 30 .*expected chromosome"):
        multiome_glue.load({"rna": paths["atac"], "atac": paths["rna"]})


def test_a_truncated_file(tmp_path: Path) -> None:
    paths = write_glue(tmp_path)
    content = paths["atac"].read_bytes()
    paths["atac"].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=re.escape(f"{paths['atac']}: found no readable AnnData")):
        multiome_glue.load(paths)
