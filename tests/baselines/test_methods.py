"""Every method, arm by arm, on tiny data: the contract, the seed, what is hidden, bad input and odd cells.

A method in Python runs as `python -m` would run it, but in this process, where imports are paid once; one in
R is a process. What is not installed skips and says so.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import published
import pytest
import torch
from support import ROOT, make_cells

from workflow import tasks
from workflow.contract import check_output
from workflow.declarations import load_methods, script_of
from workflow.steps.run_method import NOT_APPLICABLE, r_versions, versions
from workflow.tidy import log_normalize

#: Every row of methods.yaml and every arm; modes and defects are the same code with other values.
METHODS = {
    name: entry
    for name, entry in load_methods().items()
    if not entry.get("variant") and entry.get("mode", "repaired") == "repaired"
}
CASES = [(name, task) for name, entry in METHODS.items() for task in entry["tasks"]]
#: What makes a script quick enough for a test; every other parameter is as declared.
QUICK: dict[str, dict] = {
    "scvi": {"max_epochs": 2},
    "scanvi": {"scvi_epochs": 2, "max_epochs": 2},
    "logistic": {"C": [0.1, 10]},
    "scmamba2": {
        "d_model": 32, "n_layers": 1, "epochs": 1, "max_length": 61, "trace_every": 0, "probe_orders": 0,
    },
    "scgpt": {"embsize": 16, "nheads": 2, "d_hid": 16, "nlayers": 1, "n_layers_cls": 1, "epochs": 1},
    "tosica": {"embed_dim": 8, "depth": 1, "num_heads": 2, "batch_size": 4, "epochs": 1},
    "scbert": {
        "d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "hidden": 16, "epochs": 1, "accumulate": 2,
    },
}  # fmt: skip
#: Methods whose result another seed must change; the oracle's noise is drawn, too. All others repeat exactly.
RANDOM = {
    "random_embedding", "label_onehot", "shuffled_labels", "harmony", "scvi", "scanvi", "stratified_random",
    "gradient_boosting", "scgpt", "scgpt_scratch", "scgpt_zero_shot", "tosica", "scbert", "scbert_scratch",
    "scmamba2", "scmamba2_scratch", "scmamba2_untrained", "scmamba2_frozen_untrained",
}  # fmt: skip
#: Scripts that model counts: not applicable where there are none.
MODELS_COUNTS = {"scvi", "scanvi"}
#: Scripts whose library asks for cells without any count to be filtered out, by name.
REFUSES_EMPTY_CELLS = {"scmamba2"}
#: Scripts that a batch too few makes not applicable.
NEEDS_BATCHES = {"harmony", "seurat"}
#: Writers of the files that a run starts from, by the dataset that brings them.
FILES: dict[str, Callable[..., dict[str, Path]]] = {
    "checkpoint_scmamba2": published.scmamba2,
    "checkpoint_scgpt": published.scgpt,
    "checkpoint_scbert": published.scbert,
    "gene_sets_tosica": published.tosica,
}
SETTINGS = {
    "integration": {"n_top_genes": 48},
    "annotation": {"n_top_genes": 48, "split": {"kind": "stratified", "query_fraction": 0.4, "seed": 0}},
}
GENES = 60


def io_of(task: str, cells: ad.AnnData, **changed) -> tuple[ad.AnnData, ad.AnnData]:
    """Return input and solution of synthetic cells."""
    cells.obs["label"] = cells.obs["cell_type"].astype(str)
    if "batch" not in cells.obs and task == "integration":
        cells.obs["batch"] = "b0"
    log_normalize(cells)
    return tasks.get(task).make_io(cells, SETTINGS[task] | changed)[:2]


def noisy(n: int = 90) -> ad.AnnData:
    """Types that are hard to tell apart, so that chance shows in labels too."""
    cells = make_cells(n=n, genes=GENES)
    rng = np.random.default_rng(0)
    wrong = rng.random(n) < 0.4
    labels = cells.obs["cell_type"].to_numpy(str)
    cells.obs["cell_type"] = np.where(wrong, rng.permutation(labels), labels)
    return cells


def why_not(name: str) -> str:
    """Say what a method lacks to run here; empty if nothing."""
    entry = METHODS[name]
    ask = r_versions if script_of(name, entry).suffix == ".R" else versions
    missing = [package for package, version in ask(entry["packages"]).items() if version is None]
    return f"{', '.join(missing)} not installed" if missing else ""


LACKS = {name: why_not(name) for name in METHODS}


class Ended(Exception):
    """A method ended with an exit code, and said something."""

    def __init__(self, code: int, said: str):
        super().__init__(f"exit code {code}: {said}")
        self.code, self.said = code, said


class Runner:
    """Runs methods on inputs, in a folder of its own, and remembers what it has run already."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.done: dict[tuple, tuple[np.ndarray, dict]] = {}

    def __call__(
        self,
        name: str,
        task: str,
        given: ad.AnnData,
        solution: ad.AnnData,
        seed: int = 0,
        known: list[str] | None = None,
    ) -> tuple[np.ndarray, dict]:
        """Return the result and the info of a run; ``known`` are the genes of the files it starts from."""
        if LACKS[name]:
            pytest.skip(LACKS[name])
        entry, folder = METHODS[name], self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        given.write_h5ad(folder / "input.h5ad")
        script = script_of(name, entry)
        params = dict(entry["tasks"][task] or {})
        params |= {k: v for k, v in QUICK.get(script.stem, {}).items() if k in params}
        params |= entry.get("changes", {}).get(task, {})
        words = ["--task", task, "--input", str(folder / "input.h5ad")]
        words += ["--output", str(folder / "output.h5ad"), "--params", json.dumps(params)]
        words += ["--seed", str(seed), "--threads", "1", "--gpu", "0"]
        if entry["kind"] == "oracle":
            solution.write_h5ad(folder / "solution.h5ad")
            words += ["--solution", str(folder / "solution.h5ad")]
        if params.get(entry.get("files_when", "pretrained")):
            words += [
                "--files",
                json.dumps(self.files(entry, params, folder, known or list(given.var_names))),
            ]
        self.start(script, words, folder)
        check_output(task, folder / "input.h5ad", folder / "output.h5ad")
        output = ad.read_h5ad(folder / "output.h5ad")
        result = output.obsm["X_emb"] if task == "integration" else output.obs["label_pred"].to_numpy(str)
        return np.asarray(result), json.loads(output.uns["info"])

    def files(self, entry: dict, params: dict, folder: Path, known: list[str]) -> dict:
        files = {}
        for dataset in entry.get("files", []):
            more = params if dataset == "checkpoint_scbert" else {}
            files[dataset] = {k: str(v) for k, v in FILES[dataset](folder, known, **more).items()}
        return files

    def start(self, script: Path, words: list[str], folder: Path) -> None:
        """Run a script as the suite does: an empty working folder, and random streams that nobody seeded."""
        if script.suffix == ".R":
            ended = subprocess.run(
                ["Rscript", "--vanilla", str(script), *words], cwd=folder, capture_output=True, text=True
            )
            if ended.returncode:
                lines = ended.stderr.strip().splitlines()
                said = [line for line in lines if line.startswith("Error")] or lines[-1:]
                raise Ended(ended.returncode, said[0])
            return
        torch.seed()
        np.random.seed(None)
        (folder / "scratch").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), *words])
            patch.chdir(folder / "scratch")
            try:
                runpy.run_module(f"baselines.{script.stem}", run_name="__main__", alter_sys=True)
            except SystemExit as ended:
                raise Ended(int(ended.code or 0), "") from ended

    def usual(self, name: str, task: str, seed: int = 0) -> tuple[np.ndarray, dict]:
        """The run of a method on the usual cells, once."""
        key = (name, task, seed)
        if key not in self.done:
            self.done[key] = self(name, task, *io_of(task, noisy()), seed=seed)
        return self.done[key]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"))


def refuses(error: Exception, capsys, *words: str) -> None:
    """Assert that a method refused in one sentence that has one of the words."""
    if isinstance(error, Ended):
        assert error.code == NOT_APPLICABLE, error
        said = (capsys.readouterr().err.strip().splitlines() or [error.said])[-1]
    else:
        assert isinstance(error, ValueError), repr(error)
        said = str(error)
    assert "\n" not in said and any(word in said for word in words), said


# ---------------------------------------------------------------- the contract, the seed, what is hidden


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_output_keeps_the_contract_and_hidden_labels_change_nothing(name, task, run):
    """The second run has the same seed and other answers, so it shows that the first repeats, too."""
    first, info = run.usual(name, task)
    assert type(info["n_genes"]) is int and 0 <= info["n_genes"] <= GENES
    assert all(isinstance(text, str) for text in info.get("bridge", []))
    cells = noisy()
    given, solution = io_of(task, cells)
    solution.obs["label"] = np.random.default_rng(1).permutation(solution.obs["label"].to_numpy(str))
    again, _ = run(name, task, given, solution)
    if METHODS[name]["kind"] == "oracle":
        assert (first != again).any(), "the oracle reads the answers"
    else:
        assert (first == again).all(), "the same seed gave another result, or an answer was read"


@pytest.mark.parametrize(("name", "task"), CASES)
def test_another_seed_changes_what_is_drawn_and_nothing_else(name, task, run):
    first, _ = run.usual(name, task)
    others = [run.usual(name, task, seed=1)[0]]
    if name in RANDOM and (others[0] == first).all():  # labels may agree by chance
        others.append(run.usual(name, task, seed=2)[0])
    changed = [(other != first).any() for other in others]
    assert any(changed) == (name in RANDOM), f"{name} is {'' if name in RANDOM else 'not '}said to be random"


# ---------------------------------------------------------------- odd cells


@pytest.mark.parametrize(("name", "task"), CASES)
def test_few_odd_cells_are_survived(name, task, run):
    """34 cells; a class of one reference cell; a cell without counts; two constant genes; no batches."""
    cells = make_cells(n=34, genes=GENES)
    counts = cells.layers["counts"].toarray()
    counts[:, :2] = [0, 1]
    if script_of(name, METHODS[name]).stem not in REFUSES_EMPTY_CELLS:
        counts[3] = 0
    cells.X = cells.layers["counts"] = type(cells.X)(counts)
    labels = cells.obs["cell_type"].astype(str).to_numpy(object)
    labels[8] = "one of a kind"
    cells.obs["cell_type"] = labels
    given, solution = io_of(task, cells)
    if task == "annotation":
        del given.obs["batch"]
        assert (given.obs["label"] == "one of a kind").sum() == 1
    result, _ = run(name, task, given, solution)
    assert len(result) == solution.n_obs


@pytest.mark.parametrize(("name", "task"), CASES)
def test_cells_without_counts_are_read_from_x_or_refused(name, task, run, capsys):
    given, solution = io_of(task, make_cells(n=60, genes=GENES))
    del given.layers["counts"]
    if script_of(name, METHODS[name]).stem in MODELS_COUNTS:
        with pytest.raises((Ended, ValueError)) as error:
            run(name, task, given, solution)
        refuses(error.value, capsys, "counts")
    else:
        run(name, task, given, solution)


@pytest.mark.parametrize("name", [name for name, task in CASES if task == "integration"])
def test_one_batch_alone_is_embedded_or_refused(name, run, capsys):
    given, solution = io_of("integration", make_cells(n=60, genes=GENES))
    given.obs["batch"] = pd.Categorical(["b0"] * 60)
    if script_of(name, METHODS[name]).stem in NEEDS_BATCHES:
        with pytest.raises((Ended, ValueError)) as error:
            run(name, "integration", given, solution)
        refuses(error.value, capsys, "batch")
    else:
        run(name, "integration", given, solution)


@pytest.mark.parametrize("name", [name for name, task in CASES if task == "annotation"])
def test_one_label_alone_is_given_or_refused(name, run, capsys):
    given, solution = io_of("annotation", make_cells(n=60, genes=GENES))
    reference = (given.obs["split"] == "reference").to_numpy()
    given.obs["label"] = pd.Categorical(np.where(reference, "a", None))
    try:
        result, _ = run(name, "annotation", given, solution)
    except (Ended, ValueError) as error:
        refuses(error, capsys, "class", "label")
    else:
        assert set(result) == {"a"}


#: Runs that start from files.
STARTS = [
    (name, task)
    for name, task in CASES
    if METHODS[name].get("files")
    and METHODS[name]["tasks"][task].get(METHODS[name].get("files_when", "pretrained"))
]


@pytest.mark.parametrize("share", [0.5, 0.0])
@pytest.mark.parametrize(("name", "task"), STARTS)
def test_genes_that_the_files_do_not_know_are_left_out_or_refused(name, task, share, run, capsys):
    """Half of the genes known; or one gene of them all, less than two of a hundred."""
    given, solution = io_of(task, make_cells(n=60, genes=GENES))
    names = list(given.var_names)
    n = max(1, int(share * GENES))
    given.var_names = names[:n] + [f"NOBODY-KNOWS-{k}" for k in range(GENES - n)]
    try:
        _, info = run(name, task, given, solution, known=names)
    except (Ended, ValueError) as error:
        assert share == 0, error
        refuses(error, capsys, "gene")
    else:
        # a token of TOSICA's that no gene set makes is joined to all genes
        assert info["n_genes"] <= n or METHODS[name].get("script", name) == "tosica"


# ---------------------------------------------------------------- bad input


def nan(adata: ad.AnnData) -> None:
    adata.X.data[5] = np.nan


def lacks(column: str) -> Callable[[ad.AnnData], None]:
    return lambda adata: adata.obs.drop(columns=column, inplace=True)


def no_reference(adata: ad.AnnData) -> None:
    adata.obs["split"] = "query"


def unlabelled(adata: ad.AnnData) -> None:
    adata.obs["label"] = np.where(np.arange(adata.n_obs) < 20, None, adata.obs["label"])


BAD = [
    ("integration", nan, "X holds 1 value that is not finite"),
    ("integration", lacks("batch"), "obs column 'batch' is missing"),
    ("annotation", nan, "X holds 1 value that is not finite"),
    ("annotation", lacks("split"), "obs column 'split' is missing"),
    ("annotation", lacks("label"), "obs column 'label' is missing"),
    ("annotation", no_reference, "no cell is 'reference'"),
    ("annotation", unlabelled, "reference cells have no label"),
]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_bad_input_is_refused_in_one_sentence(name, task, run):
    for kind, spoil, message in BAD:
        if kind != task:
            continue
        given, solution = io_of(task, make_cells(n=60, genes=GENES))
        spoil(given)
        with pytest.raises((ValueError, Ended)) as error:
            run(name, task, given, solution)
        assert message in str(error.value), f"{name} says of {message}: {error.value}"


# ---------------------------------------------------------------- the scripts


def test_easy_cells_are_annotated(run):
    """On cells whose types have genes of their own, rivals are near the ceiling and controls are not."""
    given, solution = io_of("annotation", make_cells(n=90, genes=GENES))
    truth = solution.obs["label"].to_numpy(str)
    right = {
        name: (run(name, "annotation", given, solution)[0] == truth).mean()
        for name in ("majority", "knn", "logistic_l2")
    }
    assert right["knn"] > 0.95 and right["logistic_l2"] > 0.95 and right["majority"] < 0.5


SCRIPTS = {script_of(name, entry): entry for name, entry in METHODS.items() if "variant_of" not in entry}
IN_PYTHON = sorted(path for path in SCRIPTS if path.suffix == ".py")


@pytest.mark.parametrize("script", IN_PYTHON, ids=lambda path: path.stem)
def test_a_script_has_a_function_for_each_task_that_its_entries_declare(script):
    tree = ast.parse(script.read_text())
    written = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} & set(tasks.NAMES)
    mine = [entry for name, entry in METHODS.items() if script_of(name, entry) == script]
    assert written == {task for entry in mine for task in entry["tasks"]}


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda path: path.name)
def test_what_is_declared_is_read_and_what_is_read_is_declared(script):
    """Every parameter stands in the script as a word, and every ``params["word"]`` is declared."""
    text = script.read_text()
    for other in re.findall(r"^from baselines\.(\w+) import", text, re.M):  # whose function it uses
        text += script.with_name(f"{other}.py").read_text()
    mine = [entry for name, entry in METHODS.items() if script_of(name, entry) == script]
    declared = {key for entry in mine for params in entry["tasks"].values() for key in params or {}}
    if script.suffix == ".py":
        nodes = list(ast.walk(ast.parse(text)))
        read = {
            node.slice.value
            for node in nodes
            if isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and ast.unparse(node.value) in ("params", "given.params")
        }
        assert read <= declared
    if script.stem != "scmamba2" and "**params" not in text and "**given.params" not in text:  # hands all on
        unread = {key for key in declared if key not in text and key != "feature_scope"}
        assert not unread


def test_harmony_runs_with_the_settings_of_its_paper():
    declared = METHODS["harmony"]["tasks"]["integration"]
    paper = {"theta": 2, "lamb": 1, "sigma": 0.1, "max_iter_harmony": 10, "max_iter_kmeans": 20}
    paper |= {"epsilon_cluster": 1e-5, "epsilon_harmony": 1e-4}
    assert {key: declared[key] for key in paper} == paper
    assert (ROOT / "baselines/harmony.py").exists()
