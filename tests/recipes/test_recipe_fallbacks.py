"""The raw forms of MS, Myeloid and Lung-Kim: made-up files in the layouts that the archives give out."""

from __future__ import annotations

import gzip
from pathlib import Path

import look_alikes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

from workflow.recipes import geo_myeloid, gxa, threeca
from workflow.tidy import DataError, check_tidy


def write_mtx(path: Path, counts: np.ndarray, field: str = "integer") -> Path:
    with open(path, "wb") as file:
        mmwrite(file, sp.coo_matrix(counts.T), field=field)
    return path


# 3CA

THREECA = {"obs": {"label": "cell_type", "batch": "sample"}, "options": {"unlabelled": "drop"}}


@pytest.fixture
def threeca_files(tmp_path: Path) -> tuple[dict[str, Path], np.ndarray]:
    counts, label = look_alikes.draw(30, 20, ["Malignant", "T_cell", ""], seed=0)
    genes = [*look_alikes.symbols(18), "NA", "GENE3"]
    (tmp_path / "Genes.txt").write_text("".join(f'"{gene}"\n' for gene in genes))
    table = pd.DataFrame(
        {
            "cell_name": [f"AAAC{i}_LUNG_T06" for i in range(30)],
            "sample": [f"P00{i % 4}" for i in range(30)],
            "source": "tLung",
            "cell_type": label,
            "subclone": "",
            "complexity": (counts > 0).sum(1),
        }
    )
    table.to_csv(tmp_path / "Cells.csv", index=False)
    files = {"genes": tmp_path / "Genes.txt", "cells": tmp_path / "Cells.csv"}
    return files | {"matrix": write_mtx(tmp_path / "Exp_data_UMIcounts.mtx", counts)}, counts


def test_threeca(threeca_files, assert_tidy) -> None:
    files, counts = threeca_files
    adata = threeca.load(files, THREECA)
    check_tidy(adata, "test", {"n_obs": 20, "n_vars": 20, "labels": 2, "batches": 4})
    assert_tidy(adata, obs=["label", "batch"])
    assert (adata.layers["counts"].toarray() == counts[np.arange(30) % 3 != 2]).all()
    assert list(adata.var_names[-3:]) == ["GENE17", "NA", "GENE3-1"]
    assert adata.uns["recipe"]["dropped_unlabelled"] == 10
    assert "differ" in adata.uns["recipe"]["fallback"]


def test_threeca_names_what_is_wrong(threeca_files) -> None:
    files, counts = threeca_files
    write_mtx(files["matrix"], counts.T)
    with pytest.raises(DataError, match="UMIcounts.mtx: found 30 x 20, expected 20 genes x 30 cells"):
        threeca.load(files, THREECA)
    files["matrix"].write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="UMIcounts.mtx: not a readable MatrixMarket file"):
        threeca.load(files, THREECA)
    files["matrix"].write_bytes(
        b"%%MatrixMarket matrix coordinate integer general\n20 30 999999999999999\n1 1 1\n"
    )
    with pytest.raises(DataError, match="UMIcounts.mtx: not a readable MatrixMarket file"):
        threeca.load(files, THREECA)
    write_mtx(files["matrix"], counts / 2, field="real")
    with pytest.raises(DataError, match="UMIcounts.mtx has .* non-integer values"):
        threeca.load(files, THREECA)
    files["cells"].write_text("cell,sample\nA,B\n")
    with pytest.raises(DataError, match="Cells.csv: column 'cell_name' is missing, found cell, sample"):
        threeca.load(files, THREECA)


# Single Cell Expression Atlas

GXA = {
    "obs": {"label": look_alikes.MS_LABEL, "batch": look_alikes.MS_BATCH, "split": "Factor Value[disease]"},
    "options": {
        "unlabelled": "drop",
        "reference": ["normal"],
        "drop_cells": {look_alikes.MS_LABEL: ["T cell"]},
    },
}


@pytest.fixture
def gxa_files(tmp_path: Path) -> tuple[dict[str, Path], np.ndarray]:
    """One cell in five is a T cell, one in five has no type; three counts are fractions."""
    types = ["phagocyte", "SST-expressing interneuron", "astrocyte", "T cell", "none"]
    counts, label = look_alikes.draw(40, 20, types, seed=1)
    label[label == "none"] = None
    counts = counts.astype(float)
    counts[1, 2], counts[5, 5], counts[7, 9] = 1.4, 2.6, 0.4
    cells = np.array([f"SAMEA100-{i:016}" for i in range(40)])
    design = pd.DataFrame(
        {
            "Assay": cells,
            "Sample Characteristic[organism]": "Homo sapiens",
            look_alikes.MS_BATCH: [f"C{i % 4}" for i in range(40)],
            "Factor Value[disease]": np.where(np.arange(40) % 4 < 2, "normal", "multiple sclerosis"),
            look_alikes.MS_LABEL: label,
        }
    )
    more = design.iloc[:1].assign(Assay="SAMEA100-filtered")  # the design also has cells that were filtered
    pd.concat([more, design.iloc[::-1]]).to_csv(tmp_path / "design.tsv", sep="\t", index=False)
    ids = look_alikes.ensembl(20)
    (tmp_path / "rows").write_text("".join(f"{i}\t{i}\n" for i in ids))
    (tmp_path / "cols").write_text("".join(f"{cell}\n" for cell in cells))
    (tmp_path / "hgnc.txt").write_text(
        "hgnc_id\tsymbol\tensembl_gene_id\n"
        + "".join(f"HGNC:{i}\tGENE{i}\t{ids[i]}\n" for i in range(18))
        + "HGNC:98\tNOID\t\nHGNC:99\tAGAIN\tENSG00000000003\n"
    )
    files = {name: tmp_path / name for name in ("rows", "cols")}
    files |= {"design": tmp_path / "design.tsv", "symbols": tmp_path / "hgnc.txt"}
    return files | {"matrix": write_mtx(tmp_path / "counts.mtx", counts, field="real")}, counts


def test_gxa(gxa_files, assert_tidy) -> None:
    files, counts = gxa_files
    adata = gxa.load(files, GXA)
    found = check_tidy(adata, "test", {"n_obs": 24, "n_vars": 20, "labels": 3, "batches": 4})
    assert found["splits"] == {"reference": 12, "query": 12}
    assert_tidy(adata, obs=["label", "batch", "split"], gene_id=True)
    keep = np.arange(40) % 5 < 3
    assert (adata.layers["counts"].toarray() == np.round(counts[keep])).all()
    assert list(adata.obs_names) == [f"SAMEA100-{i:016}" for i in np.flatnonzero(keep)]
    assert list(adata.obs["split"]) == [("reference", "query")[i % 4 // 2] for i in np.flatnonzero(keep)]
    assert list(adata.var_names) == [*look_alikes.symbols(18), *look_alikes.ensembl(20)[18:]]
    assert list(adata.var["gene_id"]) == look_alikes.ensembl(20)
    facts = adata.uns["recipe"]
    assert facts["rounded_share"] == pytest.approx(3 / np.count_nonzero(counts[keep]))
    assert (facts["genes_without_symbol"], facts["dropped_cells"], facts["dropped_unlabelled"]) == (2, 8, 8)
    assert "differ" in facts["fallback"]


def test_gxa_without_symbols_has_ids(gxa_files) -> None:
    files, _ = gxa_files
    del files["symbols"]
    adata = gxa.load(files, GXA)
    assert list(adata.var_names) == list(adata.var["gene_id"]) == look_alikes.ensembl(20)


def test_gxa_names_what_is_wrong(gxa_files) -> None:
    files, counts = gxa_files
    normalised = counts / counts.sum(1, keepdims=True) * 1e6
    write_mtx(files["matrix"], normalised, field="real")
    with pytest.raises(DataError, match=r"counts.mtx: \d+\.\d% of the values are fractions; expected"):
        gxa.load(files, GXA)
    write_mtx(files["matrix"], counts, field="real")
    files["symbols"].write_text("hgnc_id\tsymbol\tensembl_id\n")
    with pytest.raises(DataError, match="column 'ensembl_gene_id' is missing; did you mean 'ensembl_id'"):
        gxa.load(files, GXA)
    design = pd.read_csv(files["design"], sep="\t")
    design.iloc[2:].to_csv(files["design"], sep="\t", index=False)
    with pytest.raises(DataError, match="design.tsv: 1 of 40 cells of the matrix are not there, first"):
        gxa.load(files, GXA)
    design.rename(columns={"Assay": "Cell"}).to_csv(files["design"], sep="\t", index=False)
    with pytest.raises(DataError, match="design.tsv: column 'Assay' is missing"):
        gxa.load(files, GXA)


# GEO

GEO = {
    "obs": {"label": "MajorCluster", "batch": "patient"},
    "values": "lognorm",
    "options": {"query": ["esca"], "keep_obs": ["cancer", "tissue"]},
}


@pytest.fixture
def geo_files(tmp_path: Path) -> dict[str, Path]:
    """Three cancers; each has genes of its own and numbers its types in its own way."""
    files = {}
    for seed, (name, n) in enumerate({"paad": 12, "thca": 9, "esca": 15}.items()):
        counts, label = look_alikes.draw(n, 20, ["Mono_CD14", "Macro_SPP1", "cDC2_CD1C"], seed=seed)
        cells = [f"AAAC{i}-1-{i % 2}" for i in range(n)]
        genes = [g for g in look_alikes.symbols(20) if g != f"GENE{seed + 4}"]
        shown = pd.DataFrame(look_alikes.log_normalise(counts, 20), columns=look_alikes.symbols(20))[genes]
        shown.index = pd.Index(cells, name="index")
        metadata = pd.DataFrame(
            {
                "percent_mito": 0.05,
                "n_counts": counts.sum(1),
                "batch": 1,
                "library_id": f"{name}-T",
                "cancer": name.upper(),
                "patient": [f"{name.upper()}.P{i % 2}" for i in range(n)],
                "tissue": ["T" if i % 3 else "N" for i in range(n)],
                "n_genes": (counts > 0).sum(1),
                "MajorCluster": [f"M{seed + 7:02}_{t}" for t in label],
                "source": "ZhangLab",
                "tech": "10X5",
                "UMAP1": 0.0,
                "UMAP2": 0.0,
            },
            index=pd.Index(cells, name="index"),
        )
        for kind, table in (("expression", shown), ("metadata", metadata.iloc[::-1])):
            files[f"{name}_{kind}"] = tmp_path / f"{name}_{kind}"  # compressed whatever its name
            files[f"{name}_{kind}"].write_bytes(gzip.compress(table.to_csv().encode()))
    return files


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
        with pytest.raises(DataError, match=message) as caught:
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
    fails("paad_metadata: cell 'AAAC11-1-1' is there twice")


def test_fallbacks_say_that_they_are() -> None:
    for module in (threeca, gxa, geo_myeloid):
        assert "fallback for" in module.__doc__
