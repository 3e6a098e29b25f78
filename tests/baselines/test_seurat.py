"""Seurat in R: it reads what anndata writes, anndata reads what it writes, and its methods do their work.

What holds for every method, R or Python, is in test_methods.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from support import ROOT, make_cells

from workflow import tasks
from workflow.contract import check_output
from workflow.declarations import load_methods
from workflow.recipes import pbmc68k, pbmc_cite
from workflow.steps.run_method import r_versions
from workflow.tidy import log_normalize

SCRIPT = ROOT / "baselines/seurat.R"
METHODS = load_methods()
LACKS = [name for name, version in r_versions(METHODS["seurat"]["packages"]).items() if version is None]
if LACKS and os.environ.get("NEEDS_SEURAT"):
    raise RuntimeError(f"this job is there to test Seurat, and {', '.join(LACKS)} is not installed")
pytestmark = pytest.mark.skipif(bool(LACKS), reason=f"{', '.join(LACKS)} is not installed")


def in_r(code: str) -> str:
    """Run code after the functions of the script; return what it prints."""
    command = ["Rscript", "--vanilla", "-e", f'source("{SCRIPT}")\n{code}']
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def given(task: str, n: int = 120, batches: int = 2, **changed) -> tuple[ad.AnnData, ad.AnnData]:
    """Synthetic cells of three types, of which one batch has other genes high."""
    cells = make_cells(n=n, genes=60, batches=batches)
    shifted = cells.layers["counts"].toarray()
    shifted[(cells.obs["batch"] == "b1").to_numpy(), :20] += 6
    cells.layers["counts"] = cells.X = sp.csr_matrix(shifted)
    return make_io(task, cells, **changed)


def make_io(task: str, cells: ad.AnnData, **changed) -> tuple[ad.AnnData, ad.AnnData]:
    if "cell_type" in cells.obs:
        cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    settings = {
        "integration": {"n_top_genes": 60},
        "annotation": {"n_top_genes": 60, "split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}},
    }
    return tasks.get(task).make_io(cells, settings[task] | changed)[:2]


def run(adata: ad.AnnData, folder, method="seurat", task="integration", code=0, env=None, **params):
    """Run the script by hand; return its output, or what it says where it ends with another code."""
    adata.write_h5ad(folder / "input.h5ad")
    params = METHODS[method]["tasks"][task] | METHODS[method].get("changes", {}).get(task, {}) | params
    command = ["Rscript", "--vanilla", str(SCRIPT), "--task", task, "--input", str(folder / "input.h5ad")]
    command += ["--output", str(folder / "output.h5ad"), "--params", json.dumps(params), "--seed", "0"]
    command += ["--threads", "1", "--gpu", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}))
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == ""
    if code:
        assert os.listdir(folder) == ["input.h5ad"]
        return ended.stderr
    assert ended.stderr == ""
    check_output(task, folder / "input.h5ad", folder / "output.h5ad")
    return ad.read_h5ad(folder / "output.h5ad")


def info_of(output: ad.AnnData) -> dict:
    return json.loads(output.uns["info"])


# ---------------------------------------------------------------- files


def test_r_reads_what_anndata_writes(tmp_path):
    """In csr, csc and dense form, five cells at a time; cells without values; missing values; odd names."""
    adata, _ = given("annotation", n=12)
    values = adata.X.toarray()
    values[5:10] = 0  # a whole block without values
    adata.var["highly_variable"] = np.arange(60) % 2 == 0
    adata.var["highly_variable_all"] = np.arange(60) % 3 == 0
    adata.obs_names = [f"cell é {i}" for i in range(12)]
    forms = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}
    for form, make in forms.items():
        adata.X = make(values)
        adata.write_h5ad(tmp_path / f"{form}.h5ad")
    in_r(f"""
    formals(genes_by_cells)$cells_at_once <- 5
    for (form in c("csr", "csc", "dense")) for (scope in c("train", "all")) {{
      given <- read_input(paste0("{tmp_path}/", form, ".h5ad"), "annotation", scope)
      stopifnot(is(given$X, "dgCMatrix"))
      write.csv(t(as.matrix(given$X)), paste0("{tmp_path}/", form, scope, ".csv"))
    }}
    write.csv(data.frame(given[c("cells", "split", "label")]), "{tmp_path}/obs.csv")
    """)
    for form in forms:
        for scope, every in (("train", 2), ("all", 3)):
            found = pd.read_csv(tmp_path / f"{form}{scope}.csv", index_col=0).to_numpy()
            assert np.allclose(found, values[:, ::every], atol=1e-6), (form, scope)
    obs = pd.read_csv(tmp_path / "obs.csv", index_col=0)
    assert list(obs["cells"]) == list(adata.obs_names)
    for name in ("split", "label"):
        theirs = adata.obs[name].astype(object)
        assert (obs[name].isna().to_numpy() == theirs.isna().to_numpy()).all()
        assert (obs[name].dropna().to_numpy() == theirs.dropna().to_numpy()).all()


def test_r_reads_strings_that_may_be_missing(tmp_path):
    adata, _ = given("annotation", n=12)
    labels = adata.obs["label"].astype("string")
    adata.obs["label"] = labels
    with ad.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "input.h5ad", convert_strings_to_categoricals=False)
    with h5py.File(tmp_path / "input.h5ad") as file:
        assert "mask" in file["obs/label"]
    said = in_r(f'cat(read_input("{tmp_path}/input.h5ad", "annotation", "train")$label, sep = "\\n")')
    assert said.splitlines() == list(labels.fillna("NA"))


def test_anndata_reads_what_r_writes(tmp_path):
    path = tmp_path / "output.h5ad"
    in_r(f"""
    write_output("{path}", c("a", "b"), list(n_genes = 3, bridge = list("x")), embedding = matrix(1:6 + 0, 2))
    write_output("{tmp_path}/labels.h5ad", c("a", "b"), list(n_genes = 3), labels = c("T", "\\u03b2 cell"))
    """)
    adata = ad.read_h5ad(path)
    assert (adata.obsm["X_emb"] == [[1, 3, 5], [2, 4, 6]]).all() and list(adata.obs_names) == ["a", "b"]
    assert info_of(adata) == {"n_genes": 3, "bridge": ["x"]}
    assert list(ad.read_h5ad(tmp_path / "labels.h5ad").obs["label_pred"]) == ["T", "β cell"]
    assert not list(tmp_path.glob("*.part"))


# ---------------------------------------------------------------- what Seurat does


def test_the_suites_values_are_those_of_normalize_data(tmp_path):
    adata, _ = given("integration", n=30)
    adata.layers["values"] = adata.X
    adata.X = adata.layers["counts"]  # to be normalised there
    adata.write_h5ad(tmp_path / "counts.h5ad")
    in_r(f"""
    need_seurat()
    object <- CreateSeuratObject(read_input("{tmp_path}/counts.h5ad", "integration", "train")$X)
    object <- NormalizeData(object, verbose = FALSE)
    write.csv(t(as.matrix(GetAssayData(object))), "{tmp_path}/X.csv")
    """)
    found = pd.read_csv(tmp_path / "X.csv", index_col=0).to_numpy()
    assert np.allclose(found, adata.layers["values"].toarray(), atol=1e-5)


def other_share(points: np.ndarray, group: np.ndarray) -> float:
    """Share of the ten nearest cells that are of another group."""
    nearest = NearestNeighbors(n_neighbors=11).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    return float((group[nearest] != group[:, None]).mean())


@pytest.fixture(scope="module")
def two_batches() -> tuple[ad.AnnData, ad.AnnData]:
    """Real cells: 200 of each of two batches, whose types are known but for a few."""
    cells = pbmc_cite.load({"cells": ROOT / "workflow/demo_data/pbmc_cite.h5ad"})
    return make_io("integration", cells, n_top_genes=600)


@pytest.mark.parametrize("method", ["seurat", "seurat_rpca"])
def test_batches_mix_and_types_do_not(tmp_path, two_batches, method):
    adata, solution = two_batches
    output = run(adata, tmp_path, method)
    batch, label = (solution.obs[name].to_numpy(str) for name in ("batch", "label"))
    before = PCA(30, random_state=0).fit_transform(adata[:, adata.var["highly_variable"]].X.toarray())
    after = output.obsm["X_emb"]
    assert other_share(after, batch) > other_share(before, batch) + 0.1
    assert other_share(after, label) < other_share(before, label) + 0.05
    info = info_of(output)
    assert info["n_genes"] == 600 and info["n_anchors"] > 100 and after.shape == (400, 30)


def test_labels_of_real_cells_are_transferred(tmp_path):
    cells = pbmc68k.load({"cells": Path(sc.__file__).parent / "datasets/10x_pbmc68k_reduced.h5ad"})
    adata, solution = make_io("annotation", cells, n_top_genes=765)
    predicted = run(adata, tmp_path, task="annotation").obs["label_pred"].to_numpy(str)
    truth = solution.obs["label"].to_numpy(str)
    assert (predicted == truth).mean() > 0.7 > 2 * pd.Series(truth).value_counts(normalize=True).iloc[0]


def test_labels_are_transferred_whatever_they_are_called(tmp_path):
    """Names that Seurat would change as names of features, in a locale without the letters."""
    adata, solution = given("annotation")
    names = {"type 0": "A_B", "type 1": "A-B", "type 2": "β cell (CD4+), 2"}
    adata.obs["label"] = adata.obs["label"].map(names).astype("category")
    output = run(adata, tmp_path, task="annotation", env={"LC_ALL": "C"})
    truth = solution.obs["label"].astype(str).map(names).to_numpy(str)
    assert (output.obs["label_pred"].to_numpy(str) == truth).mean() > 0.9
    assert info_of(output)["bridge"] == ["genes and normalisation are the suite's, the same for every method"]


def test_a_small_batch_lowers_what_it_must_and_says_so(tmp_path):
    adata, _ = given("integration", n=240, batches=4)
    batch = adata.obs["batch"].astype(object)
    batch.iloc[:12] = "few"
    adata.obs["batch"] = batch.astype("category")
    bridge = " ".join(info_of(run(adata, tmp_path))["bridge"])
    assert "dims lowered from 30 to 11" in bridge and "k.score lowered from 30 to 11" in bridge
    assert "k.weight lowered from 100 to " in bridge and "k.anchor" not in bridge
    batch.iloc[3:12] = "b0"
    adata.obs["batch"] = batch.astype("category")
    (tmp_path / "output.h5ad").unlink()
    assert "batch 'few' has 3 cells" in run(adata, tmp_path, code=99)


def test_k_weight_is_lowered_to_the_cells_in_anchors_and_no_further():
    """With a stand-in that fails as IntegrateData does."""
    said = in_r("""
    IntegrateData <- function(anchors, dims, k.weight, verbose) {
      for (anchored in anchors) (function(anchors.cells2) {
        if (length(anchors.cells2) < k.weight) stop("number of items to replace")
      })(seq_len(anchored))
      if (length(anchors) == 0) stop("something else")
      k.weight
    }
    for (anchored in list(200, 54, c(60, 41, 80))) cat(integrate(anchored, 1:3, 100)$k_weight, "")
    for (anchored in list(2, NULL)) {
      cat(tryCatch(integrate(anchored, 1:3, 100), error = conditionMessage), "\\n")
    }
    """)
    first, _, rest = said.partition("a batch has")
    assert first.split() == ["100", "54", "41"]
    assert "2 cells in anchors" in rest and "something else" in rest


# ---------------------------------------------------------------- what it refuses


def test_another_version_of_seurat_is_not_called_by_this_name():
    said = in_r("""
    packageVersion <- function(name) package_version("5.0.1")
    library <- function(...) NULL
    cat(tryCatch(need_seurat(), error = conditionMessage))
    """)
    assert said.startswith("found Seurat 5 with SeuratObject 5; expected version 4 of both")


def no_batch_for_two(adata: ad.AnnData) -> None:
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(adata.n_obs) > 1)


def no_genes(adata: ad.AnnData) -> None:
    del adata.var["highly_variable"]


BAD = [
    (no_batch_for_two, {}, "obs column 'batch': 2 cells have no batch"),
    (no_genes, {}, "var column 'highly_variable' is missing"),
    (None, {"reduction": "rlsi"}, "reduction must be cca or rpca, not 'rlsi'"),
]


@pytest.mark.parametrize(("change", "params", "message"), BAD)
def test_bad_input_ends_in_one_line(tmp_path, change, params, message):
    adata, _ = given("integration", n=60)
    if change:
        change(adata)
    said = run(adata, tmp_path, code=1, **params)
    assert said.startswith("Error: ") and said.count("\n") == 1 and message in said


def test_a_command_line_that_is_wrong_ends_in_one_line(tmp_path):
    (tmp_path / "no.h5ad").write_text("this is no h5ad file")
    files = ["--input", str(tmp_path / "no.h5ad"), "--output", str(tmp_path / "output.h5ad")]
    integration = ["--task", "integration"]
    declared = ["--params", json.dumps(METHODS["seurat"]["tasks"]["integration"])]
    for words, message in [
        ([], "--task is missing"),
        (["--task", "perturbation", *files, *declared], "--task must be integration or annotation"),
        ([*integration, *files, "--params", "{}"], "--params lacks reduction, dims, k_anchor"),
        ([*integration, *files, "--params", "{"], "--params is not JSON"),
        ([*integration, *files, *declared], "no.h5ad is not a readable h5ad file"),
        ([*integration, "--input", "/no/such", *files[2:], *declared], "there is no file /no/such"),
    ]:
        ended = subprocess.run(["Rscript", "--vanilla", str(SCRIPT), *words], capture_output=True, text=True)
        assert ended.returncode == 1 and message in ended.stderr, ended.stderr
        assert ended.stderr.startswith("Error: ") and ended.stderr.count("\n") == 1, ended.stderr


def test_the_job_for_it_needs_apt_only():
    text = (ROOT / ".ci/seurat").read_text()
    assert "r-cran-seurat r-cran-hdf5r" in text and "NEEDS_SEURAT=1" in text
    assert os.access(ROOT / ".ci/seurat", os.X_OK) and shutil.which("bash")
