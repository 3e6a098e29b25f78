"""Seurat in R: it reads what anndata writes, anndata reads what it writes, and its methods do their work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors
from support import ROOT, make_cells

from workflow import tasks
from workflow.contract import check_output
from workflow.declarations import load_methods
from workflow.steps.run_method import r_versions
from workflow.tidy import log_normalize

SCRIPT = ROOT / "baselines/seurat.R"
METHODS = load_methods()
LACKS = [name for name, version in r_versions(METHODS["seurat"]["packages"]).items() if version is None]
if LACKS and os.environ.get("NEEDS_SEURAT"):
    raise RuntimeError(f"this job is there to test Seurat, and {', '.join(LACKS)} is not installed")
pytestmark = pytest.mark.skipif(bool(LACKS), reason=f"{', '.join(LACKS)} is not installed")

#: The reading and writing of the script, without its command line.
FUNCTIONS = f"""
lines <- readLines("{SCRIPT}")
eval(parse(text = lines[seq_len(grep("the command line", lines) - 1)]))
"""


def in_r(code: str) -> str:
    """Run code after the functions of the script; return what it prints."""
    ended = subprocess.run(["Rscript", "--vanilla", "-e", FUNCTIONS + code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def given(task: str, n: int = 120, **changed) -> tuple[ad.AnnData, ad.AnnData]:
    """Synthetic cells of three types in two batches, whose second batch has other genes high."""
    cells = make_cells(n=n, genes=60)
    shifted = cells.layers["counts"].toarray()
    shifted[(cells.obs["batch"] == "b1").to_numpy(), :20] += 6
    cells.layers["counts"] = cells.X = sp.csr_matrix(shifted)
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    settings = {
        "integration": {"n_top_genes": 60},
        "annotation": {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}},
    }
    return tasks.get(task).make_io(cells, settings[task] | changed)[:2]


def run(adata: ad.AnnData, folder, method="seurat", task="integration", code=0, **params) -> str:
    """Run the script by hand; return what it says."""
    adata.write_h5ad(folder / "input.h5ad")
    params = METHODS[method]["tasks"][task] | params
    command = ["Rscript", "--vanilla", str(SCRIPT), "--task", task, "--input", str(folder / "input.h5ad")]
    command += ["--output", str(folder / "output.h5ad"), "--params", json.dumps(params), "--seed", "0"]
    ended = subprocess.run([*command, "--threads", "1", "--gpu", "0"], capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    if code == 0:
        check_output(task, folder / "input.h5ad", folder / "output.h5ad")
    else:
        assert not (folder / "output.h5ad").exists()
    return ended.stderr


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_r_reads_what_anndata_writes(tmp_path, form):
    adata, _ = given("annotation", n=12)
    adata.X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x.toarray()}[form](adata.X)
    adata.var["highly_variable"] = np.arange(60) % 2 == 0
    adata.obs_names = [f"cell é {i}" for i in range(12)]
    adata.write_h5ad(tmp_path / "input.h5ad")
    in_r(f"""
    given <- read_input("{tmp_path}/input.h5ad", "train")
    write.csv(t(as.matrix(given$X)), "{tmp_path}/X.csv")
    write.csv(data.frame(cell = given$cells, given$obs), "{tmp_path}/obs.csv")
    """)
    found = pd.read_csv(tmp_path / "X.csv", index_col=0).to_numpy()
    wanted = adata[:, adata.var["highly_variable"]].X
    assert np.allclose(found, wanted.toarray() if sp.issparse(wanted) else wanted, atol=1e-6)
    obs = pd.read_csv(tmp_path / "obs.csv", index_col=0)
    assert list(obs["cell"]) == list(adata.obs_names)
    for name in ("split", "label", "batch"):
        mine, theirs = obs[name].to_numpy(object), adata.obs[name].to_numpy(object)
        assert all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(mine, theirs, strict=True)), name


def test_anndata_reads_what_r_writes(tmp_path):
    path = tmp_path / "output.h5ad"
    in_r(f"""
    write_output("{path}", c("a", "b"), list(n_genes = 3, bridge = list("x")), embedding = matrix(1:6 + 0, 2))
    """)
    adata = ad.read_h5ad(path)
    assert (adata.obsm["X_emb"] == [[1, 3, 5], [2, 4, 6]]).all() and list(adata.obs_names) == ["a", "b"]
    assert json.loads(adata.uns["info"]) == {"n_genes": 3, "bridge": ["x"]}
    in_r(f'write_output("{path}", c("a", "b"), list(n_genes = 3), labels = c("T", "B"))')
    assert list(ad.read_h5ad(path).obs["label_pred"]) == ["T", "B"]


def other_batch(points: np.ndarray, batch: np.ndarray) -> float:
    """Share of the ten nearest cells that are of another batch."""
    nearest = NearestNeighbors(n_neighbors=11).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    return float((batch[nearest] != batch[:, None]).mean())


@pytest.mark.parametrize("method", ["seurat", "seurat_rpca"])
def test_batches_mix_and_types_do_not(tmp_path, method):
    from sklearn.decomposition import PCA

    adata, solution = given("integration")
    run(adata, tmp_path, method)
    output = ad.read_h5ad(tmp_path / "output.h5ad")
    batch, label = (solution.obs[name].to_numpy(str) for name in ("batch", "label"))
    points = output.obsm["X_emb"]
    before = PCA(20, random_state=0).fit_transform(adata.X.toarray())
    assert other_batch(points, batch) > other_batch(before, batch) + 0.2
    assert other_batch(points, label) < 0.3
    info = json.loads(output.uns["info"])
    assert info["n_genes"] == 60 and info["n_anchors"] > 10 and info["k_weight"] <= 100
    assert any("k.weight lowered from 100" in text for text in info["bridge"])


def test_labels_are_transferred_and_the_run_repeats(tmp_path):
    adata, solution = given("annotation")
    run(adata, tmp_path, task="annotation")
    first = ad.read_h5ad(tmp_path / "output.h5ad").obs["label_pred"].to_numpy(str)
    assert (first == solution.obs["label"].to_numpy(str)).mean() > 0.9
    run(adata, tmp_path, task="annotation")
    assert (first == ad.read_h5ad(tmp_path / "output.h5ad").obs["label_pred"].to_numpy(str)).all()


def test_it_runs_without_counts_without_batches_and_with_a_class_of_one_cell(tmp_path):
    adata, _ = given("annotation")
    del adata.layers["counts"], adata.obs["batch"]
    reference = np.flatnonzero((adata.obs["split"] == "reference").to_numpy())
    labels = adata.obs["label"].astype(object)
    labels.iloc[reference[0]] = "one of a kind"
    adata.obs["label"] = labels.astype("category")
    run(adata, tmp_path, task="annotation")


def one_batch(adata: ad.AnnData) -> None:
    adata.obs["batch"] = "b0"


def no_batch(adata: ad.AnnData) -> None:
    del adata.obs["batch"]


def nan(adata: ad.AnnData) -> None:
    adata.X.data[0] = np.nan


def one_label(adata: ad.AnnData) -> None:
    adata.obs["label"] = pd.Categorical(np.where(adata.obs["split"] == "query", None, "a"))


@pytest.mark.parametrize(
    ("change", "task", "code", "message"),
    [
        (one_batch, "integration", 99, "there is one batch only"),
        (no_batch, "integration", 1, "obs column 'batch' is missing"),
        (nan, "integration", 1, "X holds 1 value that is not finite"),
        (one_label, "annotation", 99, "the reference has one label only"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(tmp_path, change, task, code, message):
    adata, _ = given(task, n=60)
    change(adata)
    said = run(adata, tmp_path, task=task, code=code).strip().splitlines()
    assert message in said[0] and len(said) <= 2


def test_a_batch_of_few_cells_is_refused_by_name(tmp_path):
    adata, _ = given("integration", n=60)
    batch = adata.obs["batch"].astype(object)
    batch.iloc[:4] = "few"
    adata.obs["batch"] = batch.astype("category")
    assert "batch 'few' has 4 cells" in run(adata, tmp_path, code=99)


def test_the_job_for_it_needs_apt_only():
    text = (ROOT / ".ci/seurat").read_text()
    assert "r-cran-seurat r-cran-hdf5r" in text and "NEEDS_SEURAT=1" in text
    assert os.access(ROOT / ".ci/seurat", os.X_OK) and shutil.which("bash")
