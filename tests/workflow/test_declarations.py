"""Declarations: what a typo gets, and that the plan is what was declared."""

from __future__ import annotations

import copy

import pytest
import yaml
from support import ROOT, entry, method_entry

from workflow.declarations import WORKFLOW, DeclarationError, Run, check, load_plan, load_yaml

SCHEMAS = sorted(p.name.split(".")[0] for p in (WORKFLOW / "schemas").glob("*.yaml"))


@pytest.fixture
def config() -> dict:
    """The demonstration's configuration, merged as Snakemake merges it."""
    base = load_yaml(WORKFLOW / "config.yaml", "config")
    demo = load_yaml(WORKFLOW / "demo.yaml", "config")
    select = base["select"] | demo["select"]
    return base | demo | {"select": select}


def nodes(schema, path=""):
    if isinstance(schema, dict):
        yield path, schema
        for key, value in schema.items():
            yield from nodes(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from nodes(value, f"{path}[{index}]")


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_describe_every_key_and_admit_no_other(name):
    schema = yaml.safe_load((WORKFLOW / f"schemas/{name}.schema.yaml").read_text())
    for path, node in nodes(schema):
        for key, value in (node.get("properties") or {}).items() if "type" in node else ():
            assert value.get("description"), f"{name}{path}: {key} has no description"
        if node.get("type") == "object" and ("properties" in node or "patternProperties" in node):
            assert node.get("additionalProperties") is False, f"{name}{path} admits unknown keys"


@pytest.mark.parametrize(
    "table",
    ["config", "demo", "small", "sensitivity", "datasets", "methods", "claims", "defects", "conflicts"],
)
def test_what_the_repository_declares_is_valid(table):
    schema = "config" if table in ("demo", "small", "sensitivity") else table
    assert load_yaml(WORKFLOW / f"{table}.yaml", schema)


def wrong(config: dict, change) -> str:
    changed = copy.deepcopy(config)
    change(changed)
    with pytest.raises(DeclarationError) as caught:
        load_plan(changed)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(on_failur="stop"), ["on_failur", "did you mean 'on_failure'?"]),
        (lambda c: c.update(on_failure="stopp"), ["on_failure", "'stopp'", "did you mean 'stop'?"]),
        (lambda c: c["select"].update(sedes=[1]), ["select", "'sedes'", "did you mean 'seeds'?"]),
        (
            lambda c: c["select"].update(datasets=["pbmc_cit"]),
            ["select.datasets", "'pbmc_cit'", "did you mean 'pbmc_cite'?"],
        ),
        (
            lambda c: c["select"]["methods"].update(integration=["harmny"]),
            ["select.methods.integration", "'harmny'", "did you mean 'harmony'?"],
        ),
        (
            lambda c: c["select"]["methods"].update(annotation=["harmony"]),
            ["select.methods.annotation", "does not declare the task 'annotation'", "integration"],
        ),
        (
            lambda c: c["select"]["methods"].update(integrations=["pca"]),
            ["select.methods", "'integrations'", "did you mean 'integration'?"],
        ),
        (
            lambda c: c["select"]["methods"].pop("annotation"),
            ["no method for the task 'annotation'"],
        ),
        (lambda c: c["select"].update(seeds=["one"]), ["select.seeds.0", "integer", "'one'"]),
        (lambda c: c["select"].pop("seeds"), ["select", "key 'seeds' is missing"]),
        (
            lambda c: c.update(params={"scvi": {"integration": {"max_epoch": 3}}}),
            ["params.scvi.integration", "'max_epoch'", "did you mean 'max_epochs'?"],
        ),
        (
            lambda c: c.update(params={"scvi": {"integration": {"max_epochs": "80"}}}),
            ["params.scvi.integration.max_epochs", "found the text '80', expected a number", "(400)"],
        ),
        (
            lambda c: c.update(params={"scmamba2": {"integration": {"include_zero_genes": 1}}}),
            ["params.scmamba2.integration.include_zero_genes", "found 1, expected true or false"],
        ),
        (
            lambda c: c.update(params={"scmamba2": {"integration": {"epochs": True}}}),
            ["params.scmamba2.integration.epochs", "found True, expected a number"],
        ),
        (
            lambda c: c.update(params={"logistic_l1": {"annotation": {"C": 1}}}),
            ["params.logistic_l1.annotation.C", "found 1, expected a list"],
        ),
        (
            lambda c: c.update(params={"logistic_l1": {"annotation": {"C": [1, "1e-3"]}}}),
            ["params.logistic_l1.annotation.C", "found the text '1e-3', expected a number"],
        ),
        (lambda c: c.update(params={"scvy": {}}), ["params", "'scvy'", "did you mean 'scvi'?"]),
        (lambda c: c.update(resources={"pka": {}}), ["resources", "'pka'", "did you mean 'pca'?"]),
    ],
)
def test_an_error_is_one_line_with_key_found_and_closest(config, change, words):
    message = wrong(config, change)
    for word in words:
        assert word in message


def test_an_error_names_the_file_of_several_that_are_merged(config, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("on_failures: stop\n")
    with pytest.raises(DeclarationError, match=r"mine\.yaml: top level: unknown key 'on_failures'"):
        load_plan(config, [WORKFLOW / "config.yaml", mine])


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(DeclarationError, match=r"twice\.yaml: key 'a' stands twice \(line 3\)"):
        load_yaml(path)


def test_broken_yaml_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(DeclarationError, match=r"broken\.yaml: not valid YAML"):
        load_yaml(path)
    with pytest.raises(DeclarationError, match=r"absent\.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml")


def test_a_typo_stops_the_workflow_before_any_rule(bench):
    bench.config(["pbmc68k"], {"annotation": ["majorty"]}, [0])
    ended = bench.run()
    assert ended.returncode != 0
    text = ended.stdout + ended.stderr
    assert "unknown method 'majorty'; did you mean 'majority'?" in text
    assert not (bench.folder / "out").exists()


def test_the_plan_is_the_product_of_the_selection(config):
    plan = load_plan(config)
    expected = {
        Run(task, dataset, method, seed)
        for dataset in config["select"]["datasets"]
        for task in plan.datasets[dataset]["tasks"]
        for method in config["select"]["methods"][task]
        for seed in config["select"]["seeds"]
    }
    assert set(plan.runs) == expected
    assert len(plan.runs) == len(expected)


def test_parameters_come_from_the_entry_then_the_configuration(config):
    plan = load_plan(config | {"params": {"scvi": {"integration": {"max_epochs": 7}}}})
    declared = plan.methods["scvi"]["tasks"]["integration"]
    params = plan.params("scvi", "integration", "pbmc_cite")
    assert params == declared | {"max_epochs": 7}
    assert plan.changed_params("scvi", "integration", "pbmc_cite") == {"max_epochs": declared["max_epochs"]}
    assert plan.changed_params("pca", "integration", "pbmc_cite") == {}


def test_a_number_is_a_number_whatever_its_type(config):
    changed = {"harmony": {"integration": {"theta": 1.5, "sigma": 1}}}
    params = load_plan(config | {"params": changed}).params("harmony", "integration", "pbmc_cite")
    assert (params["theta"], params["sigma"]) == (1.5, 1)


@pytest.mark.parametrize("table", ["datasets", "methods"])
def test_two_entries_of_one_title_are_refused(bench, table):
    taken = {"datasets": "10x PBMC 10k (pbmc8k + pbmc4k)", "methods": "Harmony"}[table]
    twin = entry("file:x.h5ad") if table == "datasets" else method_entry("")
    bench.script("twin", "")
    bench.declare(table, twin=twin | {"title": taken})
    bench.config(["pbmc68k"], {"annotation": ["majority"]}, [0])
    ended = bench.run("-n")
    assert ended.returncode != 0
    owner = {"datasets": "pbmc10k", "methods": "harmony"}[table]
    said = f"workflow/{table}.yaml: twin.title: {taken!r} is the title of {owner!r} too"
    assert said in ended.stdout + ended.stderr


def test_resources_come_from_the_configuration_first(config):
    plan = load_plan(config | {"resources": {"all": {"threads": 3}, "scvi": {"gpu": 0}}})
    assert plan.limit("pca", "threads") == 3
    assert plan.limit("scvi", "gpu") == 0
    assert plan.limit("scvi", "mem_mb") == plan.methods["scvi"]["mem_mb"]


def test_every_script_has_an_entry_and_every_entry_a_script():
    methods = load_yaml(WORKFLOW / "methods.yaml", "methods")
    declared = {entry.get("script", name) for name, entry in methods.items()}
    scripts = [p for p in (ROOT / "baselines").iterdir() if p.suffix in (".py", ".R")]
    written = {p.stem for p in scripts if not p.stem.startswith("_")}
    assert declared == written


def test_a_dataset_without_recipe_and_columns_is_refused_before_any_rule(bench):
    without = entry("file:cells.h5ad")
    del without["obs"]
    bench.declare("datasets", cells=without)
    bench.config(["pbmc68k"], {"annotation": ["majority"]}, [0])
    ended = bench.run("-n")
    assert ended.returncode != 0
    assert "cells: needs a recipe, or obs with batch and label" in ended.stdout + ended.stderr


def test_a_bad_name_is_the_one_that_is_named(tmp_path):
    good = method_entry("Good")
    with pytest.raises(DeclarationError, match="name 'Boom' must match"):
        check({"fine": good, "Boom": good}, "methods", "methods")


@pytest.mark.parametrize("kind", ["script", "entry"])
def test_a_script_or_env_that_is_missing_is_named(bench, kind):
    changed = {} if kind == "script" else {"env": "bensh"}
    bench.declare("methods", newcomer=method_entry("Newcomer", **changed))
    if kind == "entry":
        bench.script("newcomer", "")
    bench.config(["pbmc68k"], {"annotation": ["majority"]}, [0])
    ended = bench.run("-n")
    assert ended.returncode != 0
    missing = "no baselines/newcomer.py" if kind == "script" else "no envs/bensh.yaml"
    assert missing in ended.stdout + ended.stderr
