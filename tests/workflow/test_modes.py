"""Modes, and variants of a defect or conflict: what they are called, and which parameter wins."""

from __future__ import annotations

import copy

import pytest
import yaml
from support import method_entry

import workflow.declarations as declarations
from workflow.declarations import WORKFLOW, DeclarationError, load_methods, load_plan, load_yaml

DEFECT = {
    "id": "D-01",
    "type": "numbers",
    "where": "somewhere",
    "defect": "Something is wrong there.",
    "effect": "other numbers",
    "repaired": "mended",
    "tasks": ["integration"],
    "method": "model",
    "change": "Doing it wrongly",
    "toggle": {"integration": {"wrong": True}},
    "in_modes": ["released"],
}


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Put a small method table, defects and conflicts in place of the repository's."""

    def place(model: dict | None = None, defects: list | None = None, **more: dict):
        params = {"size": 8, "wrong": False, "way": "mean", "probes": 3, "clip": 1.0}
        entry = method_entry("Model", kind="ours", script="scmamba2") | {
            "tasks": {"integration": dict(params), "annotation": dict(params)},
            "modes": {"released": {"integration": {"wrong": True, "clip": None}}},
            "variants": {"probes": 0},
        }
        (tmp_path / "schemas").mkdir(exist_ok=True)
        for schema in (WORKFLOW / "schemas").glob("*.yaml"):
            (tmp_path / "schemas" / schema.name).write_text(schema.read_text())
        for name in ("datasets", "conflicts"):
            (tmp_path / f"{name}.yaml").write_text((WORKFLOW / f"{name}.yaml").read_text())
        (tmp_path / "recipes").symlink_to(WORKFLOW / "recipes")
        conflict = DEFECT | {"id": "X1", "topic": "it", "text": "so", "code": "thus", "action": "as the code"}
        conflict = {
            k: v for k, v in conflict.items() if k not in ("type", "defect", "effect", "repaired", "tasks")
        }
        conflict |= {"toggle": {"integration": {"way": "sum"}}, "in_modes": []}
        tables = {
            "methods": {"model": entry | (model or {}), **more},
            "defects": [DEFECT] if defects is None else defects,
            "conflicts": [conflict],
        }
        for name, table in tables.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
        monkeypatch.setattr(declarations, "WORKFLOW", tmp_path)

    return place


def plan_of(*methods: str, **more):
    select = {"datasets": ["pbmc_cite"], "methods": {"integration": list(methods)}, "seeds": [0]}
    config = {"pathvars": {"results": "out"}, "select": select, "on_failure": "record"}
    return load_plan(config | more)


def test_each_mode_and_toggle_is_a_method_with_the_keys_of_its_base(declare):
    declare()
    methods = load_methods()
    assert list(methods) == ["model", "model_released", "model_d01", "model_x1"]
    assert "variant_of" not in methods["model"]
    for name in ("model_released", "model_d01", "model_x1"):
        entry = methods[name]
        assert (entry["script"], entry["env"], entry["kind"], entry["variant_of"]) == (
            "scmamba2", "bench", "ours", "model",
        )  # fmt: skip
        assert not {"modes", "variants"} & set(entry)
    kept = [(methods[n]["title"], methods[n]["mode"], methods[n]["variant"]) for n in list(methods)[1:]]
    assert kept == [
        ("Model (released)", "released", ""),
        ("Model (D-01)", "repaired", "D-01"),
        ("Model (X1)", "repaired", "X1"),
    ]


def test_a_mode_serves_only_the_tasks_that_it_names(declare):
    declare()
    assert list(load_methods()["model_released"]["tasks"]) == ["integration"]


def test_a_mode_changes_its_parameters_and_no_other(declare):
    declare()
    plan = plan_of("model", "model_released", "model_d01")
    repaired = plan.params("model", "integration", "pbmc_cite")
    assert repaired == {"size": 8, "wrong": False, "way": "mean", "probes": 3, "clip": 1.0}
    released = plan.params("model_released", "integration", "pbmc_cite")
    assert released == repaired | {"wrong": True, "clip": None}
    variant = plan.params("model_d01", "integration", "pbmc_cite")
    assert variant == repaired | {"wrong": True, "probes": 0}
    for name in ("model", "model_released", "model_d01"):
        assert plan.changed_params(name, "integration", "pbmc_cite") == {}


def test_a_change_of_the_base_holds_in_its_modes_but_not_against_what_they_are(declare):
    declare()
    changed = {"model": {"integration": {"size": 2, "wrong": False, "clip": 0.5}}}
    plan = plan_of("model", "model_released", params=changed)
    params = plan.params("model_released", "integration", "pbmc_cite")
    assert (params["size"], params["wrong"], params["clip"]) == (2, True, None)
    assert plan.changed_params("model_released", "integration", "pbmc_cite") == {"size": 8}
    assert plan.changed_params("model", "integration", "pbmc_cite") == {"size": 8, "clip": 1.0}


def test_a_change_of_the_mode_itself_wins_and_is_told(declare):
    declare()
    changed = {
        "model": {"integration": {"size": 2}},
        "model_released": {"integration": {"size": 4, "wrong": False}},
    }
    plan = plan_of("model", "model_released", params=changed)
    params = plan.params("model_released", "integration", "pbmc_cite")
    assert (params["size"], params["wrong"]) == (4, False)
    told = plan.changed_params("model_released", "integration", "pbmc_cite")
    assert told == {"size": 8, "wrong": True}
    assert plan.params("model", "integration", "pbmc_cite")["size"] == 2


def test_an_override_for_a_dataset_holds_in_a_mode_too(declare):
    declare({"overrides": {"pbmc_cite": {"size": 16, "wrong": False}}})
    plan = plan_of("model", "model_released")
    params = plan.params("model_released", "integration", "pbmc_cite")
    assert (params["size"], params["wrong"]) == (16, True)
    assert plan.changed_params("model_released", "integration", "pbmc_cite") == {}


def test_resources_of_the_base_hold_in_its_modes(declare):
    declare()
    resources = {"all": {"mem_mb": 111}, "model": {"mem_mb": 222}, "model_x1": {"mem_mb": 333}}
    plan = plan_of("model", "model_released", "model_x1", resources=resources)
    found = [plan.limit(name, "mem_mb") for name in ("model", "model_released", "model_x1")]
    assert found == [222, 222, 333]


def test_both_arms_of_a_defect_with_a_base_have_it(declare):
    defect = DEFECT | {"base": {"integration": {"size": 3}}}
    declare(defects=[defect])
    methods = load_methods()
    assert methods["model_d01_base"]["changes"] == {"integration": {"probes": 0, "size": 3}}
    assert methods["model_d01"]["changes"] == {"integration": {"probes": 0, "size": 3, "wrong": True}}
    assert methods["model_d01"]["compared_with"] == "model_d01_base"
    assert methods["model_d01_base"]["compared_with"] == "model"
    assert methods["model_d01_base"]["variant"] == "D-01"


@pytest.mark.parametrize(
    ("model", "defect", "words"),
    [
        (
            {"modes": {"released": {"integration": {"wrnog": True}}}},
            {},
            ["methods.yaml: model.modes.released", "unknown parameter 'wrnog'", "did you mean 'wrong'?"],
        ),
        (
            {"modes": {"released": {"integration": {"size": "big"}}}},
            {},
            ["model.modes.released: integration.size", "found the text 'big', expected a number"],
        ),
        (
            {"modes": {"released": {"integrations": {"size": 1}}}},
            {},
            ["model.modes.released: integrations", "did you mean 'integration'?"],
        ),
        (
            {"modes": {"released": {"integration": {"size": 8}}}},
            {},
            ["model.modes.released", "integration.size is 8 without it, too"],
        ),
        ({"modes": {"relaesed": {}}}, {}, ["model.modes", "'relaesed'", "did you mean 'released'?"]),
        (
            {},
            {"toggle": {"integration": {"wrnog": True}}},
            ["defects.yaml: D-01.toggle", "unknown parameter 'wrnog'", "did you mean 'wrong'?"],
        ),
        (
            {},
            {"toggle": {"integration": {"wrong": False}}},
            ["D-01.toggle", "wrong is False without it, too"],
        ),
        ({}, {"method": "modle"}, ["D-01.method", "unknown method 'modle'", "did you mean 'model'?"]),
        ({}, {"base": {"annotation": {"size": 3}}}, ["D-01", "must name the same tasks"]),
    ],
)
def test_a_wrong_mode_or_toggle_is_one_line_with_the_closest(declare, model, defect, words):
    declare(model, [DEFECT | defect])
    with pytest.raises(DeclarationError) as caught:
        load_methods()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_variant_may_not_take_the_name_of_a_method(declare):
    declare(model_d01=method_entry("Another"))
    with pytest.raises(DeclarationError, match="'model_d01' stands in workflow/methods.yaml already"):
        load_methods()


def test_an_id_that_stands_twice_is_refused(declare):
    declare(defects=[DEFECT, copy.deepcopy(DEFECT)])
    with pytest.raises(DeclarationError, match="D-01 stands twice"):
        load_methods()


def test_an_unknown_variant_gets_the_closest(declare):
    declare()
    with pytest.raises(
        DeclarationError, match="unknown method 'model_relased'; did you mean 'model_released'"
    ):
        plan_of("model", "model_relased")


def test_a_variant_needs_what_it_is_compared_with(declare):
    declare()
    plan_of("model_released")  # a mode is a result of its own
    with pytest.raises(DeclarationError, match="'model_d01' needs 'model' beside it"):
        plan_of("model_released", "model_d01")


def test_the_repository_has_both_modes_of_scmamba2_for_both_tasks():
    methods = load_methods()
    for mode in ("paper", "released"):
        assert set(methods[f"scmamba2_{mode}"]["tasks"]) == {"integration", "annotation"}
        assert methods[f"scmamba2_{mode}"]["mode"] == mode


@pytest.mark.parametrize("file", ["demo", "sensitivity"])
def test_small_sizes_hold_in_every_mode_and_the_released_mini_batch_stays(file):
    base, top = (load_yaml(WORKFLOW / f"{name}.yaml", "config") for name in ("config", file))
    plan = load_plan(base | top | {"select": base["select"] | top["select"]})
    for task, dataset in plan.pairs:
        for name, entry in plan.methods.items():
            if entry.get("variant_of") == "scmamba2" and task in entry["tasks"]:
                sizes = [
                    plan.params(n, task, dataset)[k]
                    for n in (name, "scmamba2")
                    for k in ("d_model", "n_layers")
                ]
                assert sizes[:2] == sizes[2:], name
        assert plan.params("scmamba2_released", task, dataset)["batch_size"] == 1


def test_the_sensitivity_run_has_the_demonstrations_data_and_sizes_and_every_variant():
    demo, mine = (load_yaml(WORKFLOW / f"{name}.yaml", "config") for name in ("demo", "sensitivity"))
    assert mine["select"]["datasets"] == demo["select"]["datasets"]
    sizes = [{t: p | {"epochs": 0} for t, p in file["params"]["scmamba2"].items()} for file in (mine, demo)]
    assert sizes[0] == sizes[1]  # only the epochs are fewer
    for task, names in mine["select"]["methods"].items():
        ours = {n: e for n, e in load_methods().items() if e.get("variant_of") == "scmamba2"}
        variants = {n for n, e in ours.items() if not e["arm"] and task in e["tasks"]}
        assert variants <= set(names), task


ARMS = {
    "scratch": {"title": "from scratch", "integration": {"wrong": True}, "note": "Without weights."},
    "small": {"title": "small", "kind": "trivial", "annotation": {"size": 1}, "integration": {"size": 1}},
}


def test_an_arm_is_a_row_of_its_own_for_the_tasks_that_it_names(declare):
    declare({"arms": ARMS})
    methods = load_methods()
    scratch, small = methods["model_scratch"], methods["model_small"]
    assert (scratch["title"], scratch["arm"], scratch["note"]) == (
        "Model (from scratch)", "scratch", "Without weights.",
    )  # fmt: skip
    assert (scratch["mode"], scratch["variant"], scratch["variant_of"]) == ("repaired", "", "model")
    assert list(scratch["tasks"]) == ["integration"] and list(small["tasks"]) == ["annotation", "integration"]
    assert (scratch["kind"], small["kind"]) == ("ours", "trivial")
    assert methods["model_released"]["arm"] == "" and "arms" not in scratch
    plan = plan_of("model_scratch", params={"model": {"integration": {"size": 2}}})
    params = plan.params("model_scratch", "integration", "pbmc_cite")
    assert (params["size"], params["wrong"]) == (2, True), "what is changed of the method holds in its arms"


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"title": "a", "integration": {"sise": 1}},
            "arms.it: integration: unknown parameter 'sise'.*'size'",
        ),
        ({"title": "a", "integration": {"size": 8}}, "arms.it: integration.size is 8 without it, too"),
        ({"integration": {"size": 1}}, "key 'title' is missing"),
        ({"title": "a", "intgration": {}}, "unknown key 'intgration'; did you mean 'integration'"),
    ],
)
def test_a_wrong_arm_is_one_line(declare, arm, message):
    declare({"arms": {"it": arm}})
    with pytest.raises(DeclarationError, match=message):
        load_methods()


def test_files_are_asked_for_only_by_runs_that_start_from_them(declare):
    params = {"size": 8, "wrong": False, "way": "mean", "probes": 3, "clip": 1.0, "pretrained": True}
    tasks = {"integration": params, "annotation": params}
    arms = {"scratch": {"title": "from scratch", "integration": {"pretrained": False}}}
    declare({"tasks": tasks, "files": ["checkpoint_scgpt"], "arms": arms})
    plan = plan_of("model", "model_scratch", data="selected")
    assert plan.files("model", "integration", "pbmc_cite") == ["checkpoint_scgpt"]
    assert plan.files("model_scratch", "integration", "pbmc_cite") == []
    assert plan.to_download == ["pbmc_cite", "checkpoint_scgpt"]
    assert plan_of("model_scratch", data="selected").to_download == ["pbmc_cite"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoint_scgpt", "no task has the parameter 'pretrained'"),
        ("checkpoint_scgtp", "unknown dataset 'checkpoint_scgtp'; did you mean"),
    ],
)
def test_files_need_a_dataset_and_a_parameter(declare, name, message):
    declare({"files": [name]})
    with pytest.raises(DeclarationError, match=message):
        plan_of("model")
