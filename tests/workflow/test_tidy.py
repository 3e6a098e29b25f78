"""What a tidy dataset must be: one modality or several, counts or not, in memory or on disk."""

from __future__ import annotations

import anndata as ad
import h5py
import mudata
import numpy as np
import pytest
import scipy.sparse as sp
from support import make_cells

from workflow import tidy
from workflow.recipes._common import open_h5ad
from workflow.steps.tidy import read, write
from workflow.tidy import DataError, check_tidy, describe


@pytest.fixture
def data() -> ad.AnnData:
    adata = make_cells()
    adata.obs["label"] = adata.obs.pop("cell_type")
    adata.X = None
    return adata


@pytest.fixture
def several(data) -> mudata.MuData:
    parts = {}
    for name, genes in (("rna", slice(0, 30)), ("protein", slice(30, 40))):
        part = data[:, genes].copy()
        parts[name] = ad.AnnData(obs=part.obs[[]], var=part.var, layers={"counts": part.layers["counts"]})
    joined = mudata.MuData(parts)
    joined.obs[["label", "batch"]] = data.obs[["label", "batch"]]
    return joined


def test_what_is_there_is_counted(data):
    data.obs["condition"] = np.where(np.arange(60) < 20, "ctrl", "A+ctrl")
    data.obs["split"] = np.where(np.arange(60) < 50, "reference", "query")
    found = describe(data)
    assert (found["n_obs"], found["n_vars"]) == (60, 40)
    assert found["conditions"] == {"A+ctrl": 40, "ctrl": 20}
    assert found["controls"] == 20
    assert found["splits"] == {"reference": 50, "query": 10}
    expect = {"labels": 3, "batches": 2, "conditions": 2, "controls": 20}
    assert check_tidy(data, "test", expect | {"splits": {"reference": 50, "query": 10}}) == found


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"n_vars": 41}, "n_vars is 40, expected 41"),
        ({"batches": 3}, "batches is 2, expected 3"),
        ({"conditions": 2}, "conditions is 0, expected 2"),
        ({"controls": 7}, "controls is 0, expected 7"),
        ({"splits": {"reference": 60}}, "splits is 0, expected {'reference': 60}"),
        ({"modalities": {"rna": [60, 40]}}, r"modalities is 0, expected {'rna': \[60, 40\]}"),
    ],
)
def test_what_is_not_as_expected_is_told(data, expect, words):
    with pytest.raises(DataError, match=f"test: {words} \\(expect"):
        check_tidy(data, "test", expect)


def test_nothing_is_asserted_of_what_is_not_known(data):
    assert check_tidy(data, "test", {})["labels"] == {"type 0": 20, "type 1": 20, "type 2": 20}


def test_several_modalities(several, tmp_path):
    expect = {"n_obs": 60, "labels": 3, "batches": 2, "modalities": {"rna": [60, 30], "protein": [60, 10]}}
    check_tidy(several, "test", expect)
    path = tmp_path / "tidy.h5mu"
    write(several, path)
    again = read(path)
    check_tidy(again, "test", expect)
    assert (again["rna"].layers["counts"] != several["rna"].layers["counts"]).nnz == 0
    assert list(again.obs["label"]) == list(several.obs["label"])
    with pytest.raises(DataError, match=r"modalities is .*expected \{'rna': \[60, 31\]"):
        check_tidy(several, "test", {"modalities": {"rna": [60, 31], "protein": [60, 10]}})
    several["protein"].layers["counts"].data[2] = 0.5
    with pytest.raises(DataError, match=r"test: modality 'protein': layers\['counts'\] has .* first 0.5"):
        check_tidy(several, "test", {})


def test_log_normalised_values(data):
    with pytest.raises(DataError, match=r"layers\['counts'\] is there, but .* values: lognorm"):
        check_tidy(data, "test", {}, values="lognorm")
    counts = data.layers.pop("counts")
    with pytest.raises(DataError, match="X is missing"):
        check_tidy(data, "test", {}, values="lognorm")
    with pytest.raises(DataError, match=r"layers\['counts'\] is missing"):
        check_tidy(data, "test", {})
    data.X = counts.log1p()
    check_tidy(data, "test", {}, values="lognorm")
    data.X.data[5] = -1.5
    with pytest.raises(DataError, match="X has the value -1.5"):
        check_tidy(data, "test", {}, values="lognorm")


def test_x_beside_counts_is_checked_too(data):
    data.X = data.layers["counts"].log1p()
    check_tidy(data, "test", {})
    data.X.data[5] = np.nan
    with pytest.raises(DataError, match="test: X has the value nan"):
        check_tidy(data, "test", {})


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_a_large_matrix_may_stay_on_disk(data, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tidy, "_ROWS", 7)  # blocks that do not divide the cells
    counts = data.layers["counts"].copy()
    stored = {"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray()}[kind]
    data.layers["counts"] = stored
    data.uns["large"] = np.zeros(10)
    data.write_h5ad(tmp_path / "source.h5ad")

    lazy = open_h5ad(tmp_path / "source.h5ad", "layers/counts")
    on_disk = isinstance(lazy.layers["counts"], ad.abc.CSRDataset)
    assert on_disk == (kind == "csr")
    assert not lazy.uns and lazy.X is None
    assert check_tidy(lazy, "test", {"n_obs": 60})["batches"] == describe(data)["batches"]
    write(lazy, tmp_path / "tidy.h5ad")
    again = read(tmp_path / "tidy.h5ad")
    assert isinstance(again.layers["counts"], sp.csr_matrix)
    assert (again.layers["counts"] != counts).nnz == 0
    assert list(again.obs["label"]) == list(data.obs["label"])


def test_a_wrong_value_in_the_last_block_of_a_matrix_on_disk_is_found(data, tmp_path, monkeypatch):
    monkeypatch.setattr(tidy, "_ROWS", 7)
    data.layers["counts"].data[-1] = 2.5
    data.write_h5ad(tmp_path / "source.h5ad")
    lazy = open_h5ad(tmp_path / "source.h5ad", "layers/counts")
    with pytest.raises(DataError, match="non-integer values, first 2.5"):
        check_tidy(lazy, "test", {})


def test_a_matrix_that_is_not_there_is_named(data, tmp_path):
    path = tmp_path / "source.h5ad"
    data.write_h5ad(path)
    with pytest.raises(ValueError, match=r"source\.h5ad: X is missing, found layers/counts"):
        open_h5ad(path, "X")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"source\.h5ad: found no readable AnnData"):
        open_h5ad(path, "layers/counts")
    with h5py.File(path, "w"):
        pass
    with pytest.raises(ValueError, match=r"source\.h5ad: found no readable AnnData"):
        open_h5ad(path, "layers/counts")
