"""SC-MAMBA2 never sees an answer: not on disk, and not through what it traces of each epoch.

Runs the script as the suite does, under a hook that hears of every file that Python or HDF5 opens.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
from support import ROOT, make_cells

from baselines import _io, scmamba2
from workflow import tasks
from workflow.contract import check_output
from workflow.tidy import log_normalize

SETTINGS = {
    "integration": {"n_top_genes": 40},
    "annotation": {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}},
}
PARAMS = {
    "d_model": 32, "n_layers": 1, "d_state": 16, "headdim": 32, "epochs": 3, "batch_size": 16,
    "learning_rate": 0.003, "trace_every": 1, "probe_orders": 2,
}  # fmt: skip

#: Runs a module as a script; writes each path that is opened to a file. h5py opens files in C, which no audit
#: hook of Python hears, so its one way into C is wrapped.
WATCHED = """
import json, os, runpy, sys
listing, module, *sys.argv[1:] = sys.argv[1:]
opened = []
sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name in ("open", "os.listdir") else None)
import h5py
real = h5py.h5f.open
def listen(name, *args, **options):
    opened.append(os.fsdecode(name))
    return real(name, *args, **options)
h5py.h5f.open = listen
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    with open(listing, "w") as file:
        json.dump(opened, file)
"""


#: Put before it: killed as soon as the second epoch is traced.
KILLED = """
import os, pathlib, signal
move = pathlib.Path.replace
def replace(path, target):
    move(path, target)
    if pathlib.Path(target).name == "epoch_2.npy":
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = replace
"""


@pytest.fixture(params=tasks.NAMES, scope="module")
def case(request, tmp_path_factory):
    """Task, a folder with the input and its answers as the prepare step leaves them, and a run."""
    folder = tmp_path_factory.mktemp(request.param)
    adata = make_cells(n=60)
    adata.obs["label"] = adata.obs["cell_type"]
    log_normalize(adata)
    given, solution, _ = tasks.get(request.param).make_io(adata, SETTINGS[request.param])
    (folder / "data").mkdir()
    given.write_h5ad(folder / "data/input.h5ad")
    solution.write_h5ad(folder / "data/solution.h5ad")
    (folder / "scores").mkdir()
    (folder / "scores/scmamba2.parquet").write_bytes(b"what it scored")
    return request.param, folder, run(request.param, folder, "usual")


def by_hand(task, folder, **params) -> tuple[np.ndarray, _io.Given]:
    """Call the method without a process of its own; return its result, and what it was given."""
    adata = ad.read_h5ad(folder / "data/input.h5ad")
    given = _io.Given(adata, PARAMS | params, seed=0, threads=1, gpu=0, resume=None)
    return getattr(scmamba2, task)(given), given


def command(task, folder, name, method="scmamba2", params=PARAMS, **more) -> list[str]:
    """The suite's command line, watched; the output goes to a folder of its own."""
    (folder / name).mkdir(exist_ok=True)
    arguments = {
        "--task": task,
        "--input": folder / "data/input.h5ad",
        "--output": folder / name / "output.h5ad",
        "--params": json.dumps(params),
    } | more
    words = [str(word) for pair in arguments.items() for word in pair]
    return [sys.executable, "-c", WATCHED, str(folder / name / "opened.json"), f"baselines.{method}", *words]


def run(task, folder, name, *args, **more) -> tuple[ad.AnnData, ad.AnnData, list[str]]:
    """Return output, probes and what was opened."""
    ended = subprocess.run(
        command(task, folder, name, *args, **more), cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    parts = [folder / name / f"{part}.h5ad" for part in ("output", "probes")]
    found = [ad.read_h5ad(part) if part.exists() else None for part in parts]
    return (*found, json.loads((folder / name / "opened.json").read_text()))


def arrays(adata: ad.AnnData) -> dict:
    """All values of all cells, by name."""
    return {
        **{k: np.asarray(v) for k, v in adata.obsm.items()},
        **{k: v.to_numpy(str) for k, v in adata.obs.items()},
    }


def same(one, other) -> bool:
    """Whether outputs and probes of two runs are equal to the last bit."""
    pairs = [(arrays(a), arrays(b)) for a, b in zip(one[:2], other[:2], strict=True)]
    return all(a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a) for a, b in pairs)


def test_no_answer_is_opened_and_none_matters(case, tmp_path):
    task, folder, usual = case
    opened = usual[2]
    assert str(folder / "data/input.h5ad") in opened, "the hook hears h5py"
    assert not [path for path in opened if "solution" in path or "scores" in path]
    assert str(folder / "data") not in opened, "its folder is not searched either"

    shutil.copytree(folder / "data", tmp_path / "data")
    solution = ad.read_h5ad(tmp_path / "data/solution.h5ad")
    labels = solution.obs["label"].to_numpy(str)
    solution.obs["label"] = np.random.default_rng(0).permutation(labels)
    assert (solution.obs["label"].to_numpy(str) != labels).any()
    solution.write_h5ad(tmp_path / "data/solution.h5ad")
    assert same(run(task, tmp_path, "permuted"), usual)
    (tmp_path / "data/solution.h5ad").unlink()
    assert same(run(task, tmp_path, "absent"), usual), "neither is there, nor are scores"


def test_the_hook_hears_who_opens_the_answers(case):
    task, folder, _ = case
    if task != "integration":
        pytest.skip("the oracle integrates")
    answers = {"--solution": folder / "data/solution.h5ad"}
    _, _, opened = run(task, folder, "oracle", "label_onehot", {"noise_sd": 0.1}, **answers)
    assert str(folder / "data/solution.h5ad") in opened


def test_what_a_run_leaves(case):
    task, folder, (output, found, _) = case
    check_output(task, folder / "data/input.h5ad", folder / "usual/output.h5ad")
    epochs, others = ["epoch_1", "epoch_2", "epoch_3"], ["order_0", "order_1", "padding", "cls_last"]
    assert arrays(found).keys() == {*epochs, *others}
    info = json.loads(output.uns["info"])
    assert len(info["history"]) == 3 and info["probe_seconds"] > 0
    (result,) = arrays(output).values()
    kept = arrays(found)[f"epoch_{info['selected_epoch']}"]
    assert (kept == result).all(), "the kept epoch gave what the run gives"
    if task == "integration":
        assert info["selected_epoch"] == 3
        np.testing.assert_allclose(found.obsm["padding"], result, atol=2e-6)
    else:
        losses = [row["valid_loss"] for row in info["history"]]
        assert info["selected_epoch"] == losses.index(min(losses)) + 1
        assert (found.obs["padding"].to_numpy(str) == result).all()


def test_fewer_probes_change_no_result(case):
    task, folder, usual = case
    (result,) = arrays(usual[0]).values()
    fewer, given = by_hand(task, folder, trace_every=2, probe_orders=1)
    assert list(given.probes) == ["epoch_2", "epoch_3", "order_0", "padding", "cls_last"], "the last always"
    none, given = by_hand(task, folder, trace_every=0, probe_orders=0)
    assert not given.probes and (none == result).all() and (fewer == result).all()
    _, given = by_hand(task, folder, trace_every=3, probe_orders=0, epochs=9, patience=1, learning_rate=0.1)
    last = len(given.info["history"])
    assert last < 9 and f"epoch_{last}" in given.probes, "the last, though it came before its time"


def test_probes_of_a_run_before_go(tmp_path, monkeypatch):
    make_cells(n=20).write_h5ad(tmp_path / "input.h5ad")
    words = ["x", "--task", "integration", "--input", f"{tmp_path}/input.h5ad"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", f"{tmp_path}/output.h5ad"])

    def method(given, probes):
        given.probes |= probes
        return np.ones((20, 2))

    _io.main(integration=lambda given: method(given, {"padding": np.ones((20, 2))}))
    assert (tmp_path / "probes.h5ad").exists()
    with pytest.raises(ValueError, match="returned 3 rows, expected 20, as padding"):
        _io.main(integration=lambda given: method(given, {"padding": np.ones((3, 2))}))
    _io.main(integration=lambda given: method(given, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.h5ad", "output.h5ad"]


def test_a_killed_run_loses_no_epoch(case):
    task, folder, usual = case
    resume = folder / "killed/resume"
    resume.mkdir(parents=True)
    words = command(task, folder, "killed")
    # killed when the trace of the second epoch is there, and its checkpoint is not
    words[2] = KILLED + words[2]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(path.name for path in resume.glob("epoch*")) == ["epoch_1.npy", "epoch_2.npy"]
    assert same(run(task, folder, "killed"), usual)


def test_known_genes(case):
    """A share of the genes is outside the vocabulary: left out, or <pad> amid the others (D-12)."""
    task, folder, usual = case
    share = {"known_genes": 0.75, "trace_every": 0, "probe_orders": 1}
    (drop, given), (pad, _) = (by_hand(task, folder, oov=oov, **share) for oov in ("drop", "pad"))
    assert given.info["gene_coverage"] == 0.75
    if task == "integration":  # of 40 genes in a cell 10 are gone, or pads
        assert np.abs(drop - pad).max() > 1e-3
        assert np.abs(drop - usual[0].obsm["X_emb"]).max() > 1e-3
    assert (by_hand(task, folder, oov="pad", **share)[0] == pad).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"known_genes": 0}, "known_genes must be above 0 and at most 1, not 0"),
        ({"known_genes": "all"}, "known_genes must be above 0 and at most 1, not 'all'"),
        ({"trace_every": -1}, "trace_every must be a whole number of at least 0, not -1"),
        ({"probe_orders": 2.5}, "probe_orders must be a whole number of at least 0, not 2.5"),
    ],
)
def test_wrong_parameters_are_named(case, wrong, message):
    with pytest.raises(ValueError, match=message):
        by_hand(*case[:2], **wrong)
