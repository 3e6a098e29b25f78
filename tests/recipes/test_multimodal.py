"""What the multi-omic recipes share: the parts of a MuData, and its way to disk and back."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from omics_files import assert_multimodal

from workflow.recipes import bmmc, multiome_glue
from workflow.recipes._common import modality, multimodal, peak_positions, text_column
from workflow.steps.tidy import read, write


def part(cells: list[str], features: list[str]):
    """A modality in which every value tells its cell and feature apart."""
    counts = np.arange(1, len(cells) * len(features) + 1, dtype=np.float32).reshape(len(cells), -1)
    return modality(sp.csr_matrix(counts), obs_names=cells, var=pd.DataFrame(index=features))


def mosaic() -> tuple[dict, pd.DataFrame]:
    """Two cells with RNA and protein, two with ATAC and protein, one with protein only."""
    cells = list("abcde")
    parts = {
        "rna": part(cells[:2], ["CD4", "G"]),
        "atac": part(cells[2:4], ["p1", "p2", "p3"]),
        "protein": part(cells, ["CD4", "CD8"]),
    }
    obs = pd.DataFrame(
        {"kept": [1, 2, 3, 4, 5], "batch": [1, 1, 2, 2, 2], "label": list("xyxyx")}, index=cells
    )
    return parts, obs


def test_mosaic_goes_to_disk_and_back_without_a_warning(tmp_path: Path) -> None:
    parts, obs = mosaic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = multimodal(parts, obs=obs, facts={"a": 1, "b": "two"})
        write(data, tmp_path / "tidy.h5mu")
        back = read(tmp_path / "tidy.h5mu")
    shapes = {"rna": (2, 2), "atac": (2, 3), "protein": (5, 2)}
    assert_multimodal(data, shapes, ["label", "batch", "kept"])
    assert list(data.obs_names) == list("abcde") and list(data.obs["batch"]) == list("11222")
    assert data.uns["recipe"] == {"a": 1, "b": "two"}

    assert_multimodal(back, shapes, ["label", "batch", "kept"])
    pd.testing.assert_frame_equal(back.obs, data.obs)
    for name in shapes:
        assert list(back[name].obs_names) == list(data[name].obs_names)
        assert list(back[name].var_names) == list(data[name].var_names)
        assert (back[name].layers["counts"] != data[name].layers["counts"]).nnz == 0
        assert np.array_equal(np.ravel(back.obsm[name]), data.obs_names.isin(data[name].obs_names))
    assert dict(back.uns["recipe"]) == data.uns["recipe"]


def test_cells_meet_their_own_labels_whatever_their_order() -> None:
    parts, obs = mosaic()
    data = multimodal(parts, obs=obs.iloc[::-1], facts={})
    assert data.obs["kept"].to_dict() == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def test_repeated_features_get_a_suffix() -> None:
    assert list(part(["a"], ["G", "H", "G"]).var_names) == ["G", "H", "G-1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda parts, obs: (parts, obs.drop(columns="label")),
            "obs key 'label' is missing, found kept, batch",
        ),
        (lambda parts, obs: (parts, obs.replace({"label": {"x": None}})), "'label': found 3 cells without"),
        (lambda parts, obs: (parts, obs.assign(batch="one")), "'batch': found a single batch, expected two"),
        (
            lambda parts, obs: (parts, obs.drop(index="e")),
            "modality 'protein': found cell 'e', which obs does",
        ),
        (lambda parts, obs: (parts, pd.concat([obs, obs.loc[["a"]]])), "obs: found cell 'a' twice"),
        (
            lambda parts, obs: (parts | {"rna": part(["a", "a"], ["G"])}, obs),
            "modality 'rna': found cell 'a' twice",
        ),
        (
            lambda parts, obs: ({"rna": parts["rna"]}, obs),
            r"obs: found 3 cells that no modality has \(such as 'c'\)",
        ),
    ],
)
def test_parts_that_do_not_fit(change, message: str) -> None:
    parts, obs = change(*mosaic())
    with pytest.raises(ValueError, match=message):
        multimodal(parts, obs=obs, facts={})


def test_only_raw_counts_as_the_contract_has_them() -> None:
    parts, obs = mosaic()
    parts["rna"].layers["counts"] = parts["rna"].layers["counts"].astype(np.int64)
    with pytest.raises(
        ValueError, match="'rna': .*found csr_matrix of int64, expected csr_matrix of float32"
    ):
        multimodal(parts, obs=obs, facts={})
    del parts["rna"].layers["counts"]
    with pytest.raises(ValueError, match="'rna': .*found none, expected"):
        multimodal(parts, obs=obs, facts={})


@pytest.mark.parametrize(("recipe", "key"), [(multiome_glue, "rna"), (bmmc, "cells")])
def test_missing_source_is_named(recipe, key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"sources: key '{key}' is missing, found other, expected '{key}'"):
        recipe.load({"other": tmp_path}, {})


def test_positions_of_peaks_in_three_spellings() -> None:
    names = ["chr1:9790-10675", "chr1-9776-10668", "chrX_898633_899089", "GL000194.1-101175-101986"]
    table = peak_positions(names, Path("x"))
    assert list(table.index) == names
    assert list(table["chrom"]) == ["chr1", "chr1", "chrX", "GL000194.1"]
    assert list(table["chromStart"]) == [9790, 9776, 898633, 101175]
    assert list(table["chromEnd"]) == [10675, 10668, 899089, 101986]
    assert table["chromStart"].dtype == np.int64
    with pytest.raises(
        ValueError, match=r"^x: names of peaks: found 1 .*'CD4'\), expected chromosome, start"
    ):
        peak_positions(["chr1:1-2", "CD4"], Path("x"))


def test_missing_values_stop_only_where_they_matter() -> None:
    table = pd.DataFrame({"a": pd.Categorical(["x", None])})
    with pytest.raises(ValueError, match="^f: var key 'a': found 1 missing values, expected none"):
        text_column(table, "a", Path("f"), "var")
    assert list(text_column(table, "a", Path("f"), "var", missing="")) == ["x", ""]
    with pytest.raises(ValueError, match="^f: var key 'b' is missing, found a, expected 'b'"):
        text_column(table, "b", Path("f"), "var", missing="")
