"""The raw forms of MS, Myeloid and Lung-Kim: made-up files in the layouts that the archives give out."""

from __future__ import annotations

from pathlib import Path

import look_alikes
import numpy as np
import pandas as pd
import pytest
from scipy.io import mmread

from workflow.recipes import geo_myeloid, gxa, threeca
from workflow.tidy import check_tidy


def read_counts(path: Path) -> np.ndarray:
    return mmread(path).toarray().T


@pytest.fixture
def threeca_files(tmp_path: Path) -> dict[str, Path]:
    return look_alikes.write_threeca(tmp_path)


@pytest.fixture
def gxa_files(tmp_path: Path) -> dict[str, Path]:
    return look_alikes.write_gxa(tmp_path)


@pytest.fixture
def geo_files(tmp_path: Path) -> dict[str, Path]:
    return look_alikes.write_geo_myeloid(tmp_path, ("paad", "thca", "esca"))


# 3CA

THREECA = {"obs": {"label": "cell_type", "batch": "sample"}, "options": {"unlabelled": "drop"}}


def test_threeca(threeca_files, assert_tidy) -> None:
    files, counts = threeca_files, read_counts(threeca_files["matrix"])
    adata = threeca.load(files, THREECA)
    check_tidy(adata, "test", {"n_obs": 20, "n_vars": 20, "labels": 2, "batches": 4})
    assert_tidy(adata, obs=["label", "batch"])
    assert (adata.layers["counts"].toarray() == counts[np.arange(30) % 3 != 2]).all()
    assert list(adata.var_names[-3:]) == ["GENE17", "NA", "GENE3-1"]
    assert adata.uns["recipe"]["dropped_unlabelled"] == 10
    assert "differ" in adata.uns["recipe"]["fallback"]


def test_threeca_names_what_is_wrong(threeca_files) -> None:
    files, counts = threeca_files, read_counts(threeca_files["matrix"])
    look_alikes.write_mtx(files["matrix"], counts.T)
    with pytest.raises(ValueError, match="UMIcounts.mtx: found 30 x 20, expected 20 genes x 30 cells"):
        threeca.load(files, THREECA)
    files["matrix"].write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="UMIcounts.mtx: not a readable MatrixMarket file"):
        threeca.load(files, THREECA)
    files["matrix"].write_bytes(
        b"%%MatrixMarket matrix coordinate integer general\n20 30 999999999999999\n1 1 1\n"
    )
    with pytest.raises(ValueError, match="UMIcounts.mtx: not a readable MatrixMarket file"):
        threeca.load(files, THREECA)
    look_alikes.write_mtx(files["matrix"], counts / 2, field="real")
    with pytest.raises(ValueError, match="UMIcounts.mtx has .* non-integer values"):
        threeca.load(files, THREECA)
    files["cells"].write_text("cell,sample\nA,B\n")
    with pytest.raises(ValueError, match="Cells.csv: column 'cell_name' is missing, found cell, sample"):
        threeca.load(files, THREECA)


# Single Cell Expression Atlas

GXA = {
    "obs": {"label": look_alikes.MS_LABEL, "batch": look_alikes.MS_BATCH, "split": "Factor Value[disease]"},
    "options": {
        "unlabelled": "drop",
        "reference": ["normal"],
        "drop_cells": {look_alikes.MS_LABEL: ["B cell", "T cell", "oligodendrocyte B"]},
    },
}


def test_gxa(gxa_files, assert_tidy) -> None:
    files, counts = gxa_files, read_counts(gxa_files["matrix"])
    adata = gxa.load(files, GXA)
    found = check_tidy(adata, "test", {"n_obs": 18, "n_vars": 20, "labels": 3, "batches": 4})
    assert sum(found["splits"].values()) == 18
    assert_tidy(adata, obs=["label", "batch", "split"], gene_id=True)
    keep = np.arange(42) % 7 < 3
    assert (adata.layers["counts"].toarray() == np.round(counts[keep])).all()
    assert list(adata.obs_names) == [f"SAMEA100-{i:016}" for i in np.flatnonzero(keep)]
    assert list(adata.obs["split"]) == [("reference", "query")[i % 4 // 2] for i in np.flatnonzero(keep)]
    assert list(adata.var_names) == [*look_alikes.symbols(18), *look_alikes.ensembl(20)[18:]]
    assert list(adata.var["gene_id"]) == look_alikes.ensembl(20)
    facts = adata.uns["recipe"]
    assert facts["rounded_share"] == pytest.approx(3 / np.count_nonzero(counts[keep]))
    assert (facts["genes_without_symbol"], facts["dropped_cells"], facts["dropped_unlabelled"]) == (2, 18, 6)
    assert "differ" in facts["fallback"]


def test_gxa_without_symbols_has_ids(gxa_files) -> None:
    files = gxa_files
    del files["symbols"]
    adata = gxa.load(files, GXA)
    assert list(adata.var_names) == list(adata.var["gene_id"]) == look_alikes.ensembl(20)


def test_gxa_names_what_is_wrong(gxa_files) -> None:
    files, counts = gxa_files, read_counts(gxa_files["matrix"])
    normalised = counts / counts.sum(1, keepdims=True) * 1e6
    look_alikes.write_mtx(files["matrix"], normalised, field="real")
    with pytest.raises(ValueError, match=r"counts.mtx: \d+\.\d% of the values are fractions; expected"):
        gxa.load(files, GXA)
    look_alikes.write_mtx(files["matrix"], counts, field="real")
    files["symbols"].write_text("hgnc_id\tsymbol\tensembl_id\n")
    with pytest.raises(ValueError, match="column 'ensembl_gene_id' is missing; did you mean 'ensembl_id'"):
        gxa.load(files, GXA)
    design = pd.read_csv(files["design"], sep="\t")
    design.iloc[2:].to_csv(files["design"], sep="\t", index=False)
    with pytest.raises(ValueError, match="design.tsv: 1 of 42 cells of the matrix are not there, first"):
        gxa.load(files, GXA)
    design.rename(columns={"Assay": "Cell"}).to_csv(files["design"], sep="\t", index=False)
    with pytest.raises(ValueError, match="design.tsv: column 'Assay' is missing"):
        gxa.load(files, GXA)


# GEO

GEO = {
    "obs": {"label": "MajorCluster", "batch": "patient"},
    "values": "lognorm",
    "options": {"query": ["esca"], "keep_obs": ["cancer", "tissue"]},
}


def test_geo_myeloid(geo_files, assert_tidy, monkeypatch) -> None:
    monkeypatch.setattr(geo_myeloid, "ROWS", 4)  # several blocks
    adata = geo_myeloid.load(geo_files, GEO)
    found = check_tidy(
        adata, "test", {"n_obs": 36, "n_vars": 17, "labels": 3, "batches": 6}, values="lognorm"
    )
    assert found["splits"] == {"reference": 21, "query": 15}
    assert_tidy(adata, obs=["label", "batch", "split", "cancer", "tissue"], counts=False, x=True)
    assert set(adata.obs["label"]) == {"Mono_CD14", "Macro_SPP1", "cDC2_CD1C"}
    assert not {"GENE4", "GENE5", "GENE6"} & set(adata.var_names)
    for name in ("paad", "thca", "esca"):
        real = pd.read_csv(geo_files[f"{name}_expression"], index_col=0, compression="gzip")
        mine = adata[[f"{name}_{cell}" for cell in real.index]]
        np.testing.assert_allclose(mine.X.toarray(), real[mine.var_names], rtol=1e-6)
        about = pd.read_csv(geo_files[f"{name}_metadata"], index_col=0, compression="gzip").loc[real.index]
        assert list(mine.obs["batch"]) == list(about["patient"])
        assert [f"M{t}" for t in mine.obs["label"]] == [t[0] + t[4:] for t in about["MajorCluster"]]
        assert set(mine.obs["split"]) == {"query" if name == "esca" else "reference"}
    facts = adata.uns["recipe"]
    assert facts["genes_of_paad"] == 19 and "differ" in facts["fallback"]
    assert facts["values"] == "log-normalised, by measurement"


def test_geo_myeloid_names_what_is_wrong(geo_files) -> None:
    def fails(message: str, options: dict | None = None, files: dict | None = None) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            geo_myeloid.load(files or geo_files, GEO | ({"options": options} if options is not None else {}))
        assert "\n" not in str(caught.value)

    fails("options.query: no source 'ecsa_expression'; did you mean 'esca'", {"query": ["ecsa"]})
    fails("found paad, thca, esca with none as query", {})
    fails("found esca with esca as query", files={k: v for k, v in geo_files.items() if "esca" in k})
    path = geo_files["paad_expression"]
    real = pd.read_csv(path, index_col=0, compression="gzip")
    real.T.to_csv(path)
    fails(r"paad_metadata: 19 of 19 cells of paad_expression are not there, first 'GENE0'")
    real.replace(0, "a word").to_csv(path)
    fails("paad_expression: not a readable table .*a word")
    np.expm1(real * 4).to_csv(path)
    fails("the expression of paad, thca, esca has values up to")
    path.write_bytes(b"\x1f\x8b and no more")
    fails("paad_expression: not a readable table")
    real.to_csv(path)
    about = pd.read_csv(geo_files["paad_metadata"], index_col=0, compression="gzip")
    pd.concat([about, about]).to_csv(geo_files["paad_metadata"])
    fails("paad_metadata: cell 'AAAC8-1-0' is there twice")


def test_fallbacks_say_that_they_are() -> None:
    for module in (threeca, gxa, geo_myeloid):
        assert "fallback for" in module.__doc__
