"""Every method on tiny data: it keeps the contract, repeats itself, and lives from its declaration."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
from support import ROOT, make_cells

from baselines import _io
from workflow import tasks
from workflow.contract import check_output
from workflow.declarations import WORKFLOW, load_yaml
from workflow.tidy import log_normalize

METHODS = load_yaml(WORKFLOW / "methods.yaml", "methods")
CASES = [(name, task) for name, entry in METHODS.items() for task in entry["tasks"]]
#: What makes a method quick enough for a test; every other parameter is as declared.
QUICK = {
    "scvi": {"max_epochs": 2},
    "scmamba2": {"pretrained": False, "d_model": 32, "n_layers": 1, "epochs": 2, "max_length": 41},
    "logistic_l1": {"C": [0.1, 10]},
    "logistic_l2": {"C": [0.1, 10]},
}
#: Methods that are not applicable where there are no counts.
MODELS_COUNTS = {"scvi"}
SETTINGS = {
    "integration": {"n_top_genes": 40},
    "annotation": {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folder with input.h5ad and solution.h5ad of each task."""
    folder = tmp_path_factory.mktemp("inputs")
    for task in tasks.NAMES:
        adata = make_cells(n=90)
        adata.obs["label"] = adata.obs["cell_type"]
        log_normalize(adata)
        given, solution, _ = tasks.get(task).make_io(adata, SETTINGS[task])
        (folder / task).mkdir()
        given.write_h5ad(folder / task / "input.h5ad")
        solution.write_h5ad(folder / task / "solution.h5ad")
    return folder


def run(name: str, task: str, inputs, output, seed: int = 0) -> ad.AnnData:
    """Run a method by hand, as baselines/README.md says."""
    entry = METHODS[name]
    params = dict(entry["tasks"][task] or {})
    params |= {k: v for k, v in QUICK.get(name, {}).items() if k in params}
    command = [sys.executable, "-m", f"baselines.{entry.get('script', name)}", "--task", task]
    command += ["--input", str(inputs / task / "input.h5ad"), "--output", str(output)]
    command += ["--params", json.dumps(params), "--seed", str(seed)]
    if entry["kind"] == "oracle":
        command += ["--solution", str(inputs / task / "solution.h5ad")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ad.read_h5ad(output)


def result(output: ad.AnnData, task: str) -> np.ndarray:
    if task == "integration":
        return np.asarray(output.obsm["X_emb"])
    return output.obs["label_pred"].to_numpy(dtype=str)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_method_keeps_the_contract_and_repeats_itself(name, task, inputs, tmp_path):
    first = run(name, task, inputs, tmp_path / "a.h5ad")
    check_output(task, inputs / task / "input.h5ad", tmp_path / "a.h5ad")
    again = run(name, task, inputs, tmp_path / "b.h5ad")
    assert (result(first, task) == result(again, task)).all(), "the same seed gave another result"


@pytest.fixture(scope="module")
def without_counts():
    """Input and solution of each task for cells that came log-normalised."""
    parts = {}
    for task in tasks.NAMES:
        adata = make_cells(n=60)
        adata.obs["label"] = adata.obs["cell_type"]
        log_normalize(adata)
        del adata.layers["counts"]
        parts[task] = tasks.get(task).make_io(adata, SETTINGS[task] | {"n_top_genes": 40})[:2]
    return parts


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_method_copes_with_cells_without_counts(name, task, without_counts, capsys):
    """It works on X, or says in a line that it cannot."""
    given, solution = without_counts[task]
    entry = METHODS[name]
    module = importlib.import_module(f"baselines.{entry.get('script', name)}")
    params = dict(entry["tasks"][task] or {})
    params |= {k: v for k, v in QUICK.get(name, {}).items() if k in params}
    call = _io.Given(given.copy(), params, seed=0, threads=1, gpu=0, resume=None)
    if entry["kind"] == "oracle":
        call.solution = solution
    if name in MODELS_COUNTS:
        with pytest.raises(SystemExit) as ended:
            getattr(module, task)(call)
        assert ended.value.code == _io.NOT_APPLICABLE
        assert "counts" in capsys.readouterr().err
        return
    found = np.asarray(getattr(module, task)(call))
    if task == "integration":
        assert len(found) == given.n_obs and np.isfinite(found).all() and np.ptp(found, axis=0).any()
    else:
        assert len(found) == solution.n_obs
        assert set(found) <= set(given.obs["label"].dropna())


@pytest.mark.parametrize(("name", "task"), [("random_embedding", "integration"), ("scmamba2", "integration")])
def test_another_seed_gives_another_result(name, task, inputs, tmp_path):
    first = run(name, task, inputs, tmp_path / "a.h5ad", seed=0)
    other = run(name, task, inputs, tmp_path / "b.h5ad", seed=1)
    assert not np.allclose(result(first, task), result(other, task))


def test_easy_cells_are_annotated_and_integrated(inputs, tmp_path):
    """On cells whose types have genes of their own, rivals are near the ceiling and the floor is not."""
    truth = ad.read_h5ad(inputs / "annotation/solution.h5ad").obs["label"].to_numpy(dtype=str)
    right = {
        name: (
            result(run(name, "annotation", inputs, tmp_path / f"{name}.h5ad"), "annotation") == truth
        ).mean()
        for name in ("majority", "knn", "logistic_l2")
    }
    assert right["knn"] > 0.95
    assert right["logistic_l2"] > 0.95
    assert right["majority"] < 0.5


@pytest.mark.parametrize("name", sorted({e.get("script", n) for n, e in METHODS.items()}))
def test_a_script_has_a_function_for_each_task_that_its_entries_declare(name):
    tree = ast.parse((ROOT / f"baselines/{name}.py").read_text())
    written = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} & set(tasks.NAMES)
    declared = {
        task for n, entry in METHODS.items() if entry.get("script", n) == name for task in entry["tasks"]
    }
    assert written == declared


def test_harmony_runs_with_the_settings_of_its_paper():
    declared = METHODS["harmony"]["tasks"]["integration"]
    paper = {"theta": 2, "lamb": 1, "sigma": 0.1, "max_iter_harmony": 10, "max_iter_kmeans": 20}
    paper |= {"epsilon_cluster": 1e-5, "epsilon_harmony": 1e-4}
    assert {key: declared[key] for key in paper} == paper
