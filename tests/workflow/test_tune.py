"""Tuning: the same number of tries for everybody, on the reference alone, and what is chosen is told."""

from __future__ import annotations

import anndata as ad
import pytest
import yaml
from support import Bench, entry, make_cells, method_entry

from workflow import tasks
from workflow.declarations import DeclarationError, load_plan
from workflow.files import read_json, write_json
from workflow.steps import tune
from workflow.steps.tune import candidates, hide
from workflow.tidy import log_normalize

SETTINGS = {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}}

#: Nearest neighbour if `good`, else the commonest label; crashes for another word.
SCRIPT = """
import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from baselines import _io

def annotation(given):
    given.info["n_genes"] = given.adata.n_vars
    labels = given.reference.obs["label"].astype(str)
    if given.params["way"] == "bad":
        return np.repeat(labels.mode()[0], given.query.n_obs)
    if given.params["way"] != "good":
        raise ValueError("no such way")
    model = KNeighborsClassifier(1).fit(_io.dense(given.reference.X), labels)
    return model.predict(_io.dense(given.query.X))

if __name__ == "__main__":
    _io.main(annotation=annotation)
"""


def given_cells() -> ad.AnnData:
    cells = make_cells()
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    return tasks.get("annotation").make_io(cells, SETTINGS)[0]


def test_candidates_start_with_the_given_values_and_do_not_repeat():
    params, space = {"a": 1, "b": "x", "c": 0}, {"a": [1, 2, 3], "b": ["x", "y"]}
    tries = candidates(params, space, 4, seed=0)
    assert tries[0] == params and len(tries) == 4
    assert len({(t["a"], t["b"]) for t in tries}) == 4 and {t["c"] for t in tries} == {0}
    assert tries == candidates(params, space, 4, seed=0)
    assert tries != candidates(params, space, 4, seed=1)
    assert len(candidates(params, space, 99, seed=0)) == 6, "all that there are"
    assert len(candidates(params | {"a": 9}, space, 99, seed=0)) == 7, "and one of its own"


def test_the_query_takes_no_part_and_hidden_labels_are_hidden():
    given = given_cells()
    part, solution, facts = hide(given, 0.3, seed=0)
    reference = given.obs_names[given.obs["split"] == "reference"]
    assert list(part.obs_names) == list(reference)
    hidden = (part.obs["split"] == "query").to_numpy()
    assert part.obs["label"][hidden].isna().all() and part.obs["label"][~hidden].notna().all()
    assert (
        solution.obs["label"].to_numpy() == given.obs.loc[solution.obs_names, "label"].to_numpy(str)
    ).all()
    truth = given.obs.loc[solution.obs_names, "label"].to_numpy(str)
    assert (solution.obs["label"].to_numpy() == truth).all()
    assert facts == {"n_reference": 21, "n_query": 9}
    with pytest.raises(ValueError, match="hides none of the 30 cells"):
        hide(given, 0.01, seed=0)


@pytest.mark.slow
def test_what_is_chosen_on_the_reference_runs_on_the_query(bench: Bench, cells):
    cells.write_h5ad(bench.folder / "cells.h5ad")
    bench.declare("datasets", cells=entry("file:cells.h5ad", "annotation"))
    bench.script("tuned", SCRIPT)
    space = {"annotation": {"way": ["bad", "good", "broken"]}}
    method = method_entry("Tuned", "annotation", tasks={"annotation": {"way": "bad"}}, tuning=space)
    bench.declare("methods", tuned=method)
    bench.config(["cells"], {"annotation": ["tuned", "majority"]}, [0, 1])
    path = bench.folder / "test.yaml"
    config = yaml.safe_load(path.read_text()) | {"tuning": {"trials": 3, "query_fraction": 0.3, "seed": 0}}
    path.write_text(yaml.safe_dump(config))
    ended = bench.run()
    assert ended.returncode == 0, ended.stderr

    tuned = read_json(bench.folder / "out/tuning/annotation/cells/tuned/tuned.json")
    assert tuned["chosen"] == {"way": "good"} and tuned["trials"][0]["params"] == {"way": "bad"}
    values = {trial["params"]["way"]: trial["value"] for trial in tuned["trials"]}
    assert values["good"] == 1.0 and values["bad"] == pytest.approx(1 / 3) and values["broken"] is None
    record = read_json(bench.folder / "out/runs/annotation/cells/tuned/1/run.json")
    assert (record["params"], record["changed_params"]) == ({"way": "good"}, {"way": "bad"})
    assert (record["tuned_params"], record["tuning_trials"]) == (["way"], 3)
    other = read_json(bench.folder / "out/runs/annotation/cells/majority/0/run.json")
    assert (other["tuning_trials"], other["changed_params"], other["tuned_params"]) == (0, {}, [])
    headline = (bench.folder / "out/tables/headline_annotation.md").read_text()
    assert "out of the comparison" not in headline, "tuning is not what sets a row apart"
    assert not (bench.folder / "out/tuning/annotation/cells/majority").exists()
    assert "Tuned" in (bench.folder / "out/tables/annotation_cells.html").read_text()

    trial = bench.folder / "out/tuning/annotation/cells/tuned/trials/0/run.json"
    before = trial.stat().st_mtime_ns
    (bench.folder / "out/tuning/annotation/cells/tuned/tuned.json").unlink()
    assert bench.run().returncode == 0
    assert trial.stat().st_mtime_ns == before, "a trial that is done is not run again"


@pytest.mark.parametrize(("fraction", "status", "reason"), [
    (0.01, "failed", "query_fraction 0.01 hides none of the 30 cells of the reference"),
    (0.3, "not_installed", "no-such-package not installed in this environment"),
])  # fmt: skip
def test_a_tuning_that_cannot_be_is_a_record(tmp_path, monkeypatch, fraction, status, reason):
    given_cells().write_h5ad(tmp_path / "input.h5ad")
    write_json(tmp_path / "prepared.json", {"status": "ok", "reason": ""})
    words = ["--task", "annotation", "--dataset", "cells", "--method", "knn", "--params", '{"k": 1}']
    words += ["--space", '{"k": [1, 2]}', "--trials", "1", "--seed", "0", "--fraction", str(fraction)]
    words += ["--prepared", str(tmp_path / "prepared.json"), "--record", str(tmp_path / "tuned.json")]
    words += ["--", "--script", "knn", "--kind", "classical", "--mode", "repaired"]
    words += ["--packages=no-such-package"]
    monkeypatch.setattr("workflow.steps.tune.ON_FAILURE", "record")
    monkeypatch.setattr("sys.argv", ["tune", *words])
    assert tune.main() == 0
    record = read_json(tmp_path / "tuned.json")
    assert (record["status"], record["reason"], record["chosen"]) == (status, reason, {})


def test_what_may_be_tuned_is_checked(tmp_path, monkeypatch):
    import workflow.declarations as declarations

    table = yaml.safe_load((declarations.WORKFLOW / "methods.yaml").read_text())
    table["knn"]["tuning"] = {"annotation": {"n_neighbors": [5, "many"]}}
    folder = tmp_path / "workflow"
    folder.mkdir()
    for path in declarations.WORKFLOW.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "methods.yaml").unlink()
    (folder / "methods.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(declarations, "WORKFLOW", folder)
    select = {"datasets": ["pbmc68k"], "methods": {"annotation": ["knn"]}, "seeds": [0]}
    config = {"pathvars": {"results": "out"}, "select": select, "on_failure": "record"}
    with pytest.raises(DeclarationError, match="knn.tuning.annotation.n_neighbors: found the text 'many'"):
        load_plan(config)


def test_an_arm_keeps_what_it_is():
    select = {"datasets": ["pbmc68k"], "methods": {"annotation": ["knn"]}, "seeds": [0]}
    config = {"pathvars": {"results": "out"}, "select": select, "on_failure": "record"}
    config |= {"tuning": {"trials": 2, "query_fraction": 0.2, "seed": 0}}
    plan = load_plan(config)
    plan.methods["knn"] |= {"tuning": {"annotation": {"n_neighbors": [5, 9], "n_components": [10, 20]}}}
    plan.methods["arm"] = plan.methods["knn"] | {"changes": {"annotation": {"n_neighbors": 1}}}
    assert plan.space("knn", "annotation") == {"n_neighbors": [5, 9], "n_components": [10, 20]}
    assert plan.space("arm", "annotation") == {"n_components": [10, 20]}
    assert plan.space("knn", "integration") == {}
    config["tuning"]["trials"] = 0
    assert plan.space("knn", "annotation") == {}
