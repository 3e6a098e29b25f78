"""What the documents promise is there: commands, files, numbers."""

from __future__ import annotations

import re

import pytest
import yaml
from support import ROOT

from workflow.declarations import WORKFLOW, check, load_plan, load_yaml
from workflow.present import VERDICT_SIGNS
from workflow.steps.inventory import document

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "baselines/README.md", "results/README.md"]
TEXT = {name: (ROOT / name).read_text() for name in DOCUMENTS}


def demo():
    base, top = (load_yaml(WORKFLOW / f"{name}.yaml", "config") for name in ("config", "demo"))
    return load_plan(base | top | {"select": base["select"] | top["select"]})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", TEXT[name], re.M)) <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_exist(name):
    rooms = "workflow|baselines|scmamba2|envs|tests"
    paths = re.findall(rf"[`(]((?:{rooms})/[\w./-]+)[`)]", TEXT[name])
    missing = [p for p in paths if not (ROOT / p).exists() and "mine" not in p]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_that_are_run_exist(name):
    for module in re.findall(r"python -m (workflow\.[\w.]+|baselines\.[\w.]+)", TEXT[name]):
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.exists() or "mine" in module, module


def test_the_readme_counts_the_demonstration_right():
    plan = demo()
    assert f'"{len(plan.runs)} of {len(plan.runs)} runs ok"' in TEXT["README.md"]
    words = {3: "three", 2: "two"}
    assert f"{len({run.method for run in plan.runs})} methods" in TEXT["README.md"]
    assert f"{words[len(plan.seeds)]} seeds" in TEXT["README.md"]
    assert f"{words[len(plan.pairs)]} tasks" in TEXT["README.md"]


def test_the_readme_explains_every_verdict_once():
    assert sorted(re.findall(r"^\| ([A-Z][A-Z ]+) \|", TEXT["README.md"], re.M)) == sorted(VERDICT_SIGNS)


def test_every_changed_parameter_of_the_demonstration_differs():
    """A parameter that the configuration repeats would only hide what was changed."""
    plan = demo()
    for method, tasks in plan.config["params"].items():
        for task, params in tasks.items():
            declared = plan.methods[method]["tasks"][task]
            assert {k for k, v in params.items() if declared[k] == v} == set(), (method, task)


def test_the_schema_of_methods_covers_the_readmes_example():
    example = re.search(r"```yaml\n(mine:.*?)```", TEXT["baselines/README.md"], re.S)[1]
    entry = yaml.safe_load(example)
    check(entry, "methods", "the example")  # raises where a key is unknown or missing
    assert list(entry) == ["mine"]


def test_the_catalogue_of_datasets_is_what_the_declarations_say():
    """If not: make catalogue."""
    declared = load_yaml(WORKFLOW / "datasets.yaml", "datasets")
    written = TEXT["results/README.md"].partition("workflow/datasets.yaml -->\n")[2]
    assert written == "\n".join(document(declared)) + "\n"
