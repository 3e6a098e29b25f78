"""The CITE-seq demo data: the committed file, the script that makes it, and the recipe."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from workflow.recipes import pbmc_cite

CONTENT_DIGEST = "84047818aed289d5534d12c342dadb6fc6f1a6927e9c46d71d14752fd1dbf1a9"
LABELS = {"B", "CD14 monocyte", "CD4 T", "CD8 T", "NK", "ungated"}


@pytest.fixture
def script(demo_file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pbmc_cite", demo_file.with_name("make_pbmc_cite.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_sdist(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_committed_file(demo_file: Path, script: ModuleType) -> None:
    assert demo_file.stat().st_size < 2_000_000
    readme = demo_file.with_name("README.md").read_text()
    assert hashlib.sha256(demo_file.read_bytes()).hexdigest() in readme
    assert CONTENT_DIGEST in readme
    adata = ad.read_h5ad(demo_file)
    assert adata.shape == (400, 15792)
    assert script.content_digest(adata) == CONTENT_DIGEST
    assert adata.obsm["protein"].shape == (400, 14)
    assert set(pbmc_cite.GATES) <= set(adata.obsm["protein"])
    assert adata.obs["batch"].value_counts().to_dict() == {"pbmc_5k": 200, "pbmc_10k": 200}


@pytest.mark.filterwarnings("ignore")  # the source files are written in an old way
def test_script_remakes_the_file(script: ModuleType, shared_data, tmp_path: Path) -> None:
    members = {
        f"{script.FOLDER}/{name}": shared_data(f"pbmc_cite/{name}").read_bytes()
        for name, _ in script.MEMBERS.values()
    }
    sdist = write_sdist(tmp_path / "sdist.tar.gz", members)
    outs = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for out in outs:
        script.main(["--sdist", str(sdist), "--out", str(out)])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert script.content_digest(ad.read_h5ad(outs[0])) == CONTENT_DIGEST


def test_script_checks_what_it_reads(script: ModuleType, tmp_path: Path) -> None:
    name = f"{script.FOLDER}/{script.MEMBERS['pbmc_5k'][0]}"
    with pytest.raises(ValueError, match="found sha256 .*, expected 83f2c7d1"):
        script.read_members(write_sdist(tmp_path / "a.tar.gz", {name: b"other"}))
    with pytest.raises(ValueError, match="found no member"):
        script.read_members(write_sdist(tmp_path / "b.tar.gz", {"x": b"other"}))
    (tmp_path / "c.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="found no usable tar.gz"):
        script.read_members(tmp_path / "c.tar.gz")


def test_recipe_is_tidy_and_proteins_are_gone(demo_file: Path, assert_tidy) -> None:
    adata = pbmc_cite.load({"cells": demo_file})
    assert_tidy(adata, batches=True)
    assert adata.shape == (400, 15792)
    assert set(adata.obs["label"].cat.categories) == LABELS
    stored = ad.read_h5ad(demo_file)
    assert (adata.layers["counts"] != stored.X.astype(np.float32)).nnz == 0
    assert list(adata.var_names) == list(stored.var_names)
    facts = adata.uns["recipe"]
    assert facts["label_source"] == "derived"
    assert sum(key.startswith("threshold_") for key in facts) == 2 * len(pbmc_cite.GATES)


def test_each_type_has_enough_cells_in_each_batch(demo_file: Path) -> None:
    obs = pbmc_cite.load({"cells": demo_file}).obs
    table = pd.crosstab(obs["label"], obs["batch"])
    assert table.loc["CD4 T"].to_dict() == {"pbmc_5k": 85, "pbmc_10k": 70}
    assert (table.drop("ungated") >= 10).all(axis=None)
    assert table.loc["ungated"].sum() < 0.1 * len(obs)


@pytest.mark.parametrize("batch", ["pbmc_5k", "pbmc_10k", None])
def test_rna_markers_agree_with_the_protein_gates(demo_file: Path, batch: str | None) -> None:
    adata = pbmc_cite.load({"cells": demo_file})
    if batch is not None:
        adata = adata[adata.obs["batch"] == batch]
    depth = np.asarray(adata.layers["counts"].sum(axis=1)).ravel()
    markers = {
        "CD3E": {"CD4 T", "CD8 T"},
        "CD8A": {"CD8 T"},
        "MS4A1": {"B"},
        "LYZ": {"CD14 monocyte"},
        "CD14": {"CD14 monocyte"},
        "NKG7": {"NK"},
        "GNLY": {"NK"},
    }
    for gene, types in markers.items():
        values = np.log1p(adata[:, gene].layers["counts"].toarray().ravel() / depth * 1e4)
        mean = pd.Series(values).groupby(adata.obs["label"].to_numpy()).mean()
        top = mean.sort_values(ascending=False)
        assert set(top.index[: len(types)]) == types, (gene, top.to_dict())
        assert top.iloc[len(types) - 1] > 1.2 * top.iloc[len(types)], (gene, top.to_dict())


def test_agreement_with_gates_made_elsewhere(demo_file: Path, shared_data) -> None:
    other = ad.read_h5ad(shared_data("pbmc_cite/pbmc_cite_2batch_gated.h5ad"))
    adata = pbmc_cite.load({"cells": demo_file})
    assert list(adata.var_names) == list(other.var_names)
    assert (adata.layers["counts"] != other.X).nnz == 0
    names = {"CD14 mono": "CD14 monocyte", "other": "ungated"}
    theirs = other.obs["celltype_gated"].astype(str).replace(names).to_numpy()
    assert (theirs == adata.obs["label"].astype(str).to_numpy()).mean() >= 0.99


def test_otsu() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(1, 0.2, 300), rng.normal(5, 0.2, 50)
    values = np.concatenate([low, high])
    threshold = pbmc_cite.otsu(values)
    assert low.max() < threshold < high.min()
    assert threshold == pytest.approx((low.max() + high.min()) / 2, abs=0.1)
    assert pbmc_cite.otsu(values[::-1]) == threshold
    assert pbmc_cite.otsu(np.array([0.0, 1.0])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="found a single value"):
        pbmc_cite.otsu(np.ones(5))


@pytest.mark.parametrize(
    ("positive", "label"),
    [
        ("CD3 CD4", "CD4 T"),
        ("CD3 CD8a", "CD8 T"),
        ("CD3 CD8a CD56", "CD8 T"),
        ("CD3 CD4 CD8a", "ungated"),
        ("CD3", "ungated"),
        ("CD4", "ungated"),
        ("CD19", "B"),
        ("CD14 CD4", "CD14 monocyte"),
        ("CD56", "NK"),
        ("CD56 CD8a", "NK"),
        ("CD3 CD4 CD19", "ungated"),
        ("CD3 CD4 CD14", "ungated"),
        ("CD14 CD19", "ungated"),
        ("", "ungated"),
    ],
)
def test_gate_precedence(positive: str, label: str) -> None:
    table = pd.DataFrame([[name in positive.split() for name in pbmc_cite.GATES]])
    table.columns = pd.Index(pbmc_cite.GATES)
    assert pbmc_cite.gate(table).tolist() == [label]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:-1], "found 399 cells x 15792 genes, expected 400 x 15792"),
        (lambda a: a.obsm.clear(), "obsm key 'protein' is missing"),
        (lambda a: a.obsm["protein"].pop("CD3"), "found no column CD3, expected"),
        (lambda a: a.obs.pop("batch"), "obs key 'batch' is missing"),
    ],
)
def test_wrong_content_is_named(demo_file: Path, tmp_path: Path, change, message: str) -> None:
    adata = ad.read_h5ad(demo_file)
    changed = change(adata)
    path = tmp_path / "wrong.h5ad"
    (changed if isinstance(changed, ad.AnnData) else adata).write_h5ad(path)
    with pytest.raises(ValueError, match=f"wrong.h5ad: .*{message}"):
        pbmc_cite.load({"cells": path})
