"""The registers of defects and conflicts: complete, and in step with methods.yaml and claims.yaml."""

from __future__ import annotations

import re

import pytest

from workflow.declarations import WORKFLOW, DeclarationError, check, load_methods, load_register, load_yaml

DEFECTS, CONFLICTS = load_register("defects"), load_register("conflicts")
METHODS = load_yaml(WORKFLOW / "methods.yaml", "methods")
TOGGLED = [item for item in [*DEFECTS, *CONFLICTS] if "toggle" in item]


def test_every_defect_and_conflict_stands_in_its_register():
    assert [item["id"] for item in DEFECTS] == [f"D-{n:02d}" for n in range(1, 29)]
    assert [item["id"] for item in CONFLICTS] == [f"X{n}" for n in range(1, 21)]


def test_what_the_suite_can_run_has_a_toggle():
    toggled = {item["id"] for item in TOGGLED}
    assert toggled == {"D-11", "D-12", "D-13", "D-14", "D-15", "D-24", "D-25", "X1", "X4"}
    built = {"integration", "annotation"}
    for item in DEFECTS:
        if (
            item["type"] in ("numbers", "selection")
            and item["id"] not in toggled
            and built & set(item["tasks"])
        ):
            assert "known without a run" in item["no_toggle"], item["id"]


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_a_mode_has_on_exactly_the_toggles_that_say_so(mode):
    for item in TOGGLED:
        changed = METHODS[item["method"]]["modes"][mode]
        on = [
            (task, key) in [(t, k) for t, params in changed.items() for k in params]
            and changed[task][key] == value
            for task, params in item["toggle"].items()
            for key, value in params.items()
        ]
        assert all(on) if mode in item["in_modes"] else not any(on), item["id"]


def test_the_paper_mode_follows_the_text_only_where_a_conflict_says_so():
    toggled = {
        (task, key): value
        for item in CONFLICTS
        if "paper" in item.get("in_modes", [])
        for task, params in item["toggle"].items()
        for key, value in params.items()
    }
    changed = METHODS["scmamba2"]["modes"]["paper"]
    assert {
        (task, key): value for task, params in changed.items() for key, value in params.items()
    } == toggled


@pytest.mark.parametrize("item", TOGGLED, ids=lambda item: item["id"])
def test_a_toggle_is_a_variant_of_the_tasks_it_concerns(item):
    name = f"{item['method']}_{item['id'].lower().replace('-', '')}"
    entry = load_methods()[name]
    assert entry["variant"] == item["id"]
    assert set(entry["tasks"]) == set(item["toggle"]) <= set(item.get("tasks", item["toggle"]))
    for task, params in item["toggle"].items():
        assert entry["tasks"][task].items() >= params.items()
        declared = METHODS[item["method"]]["tasks"][task]
        assert all(declared[key] != value for key, value in params.items())


def test_a_change_reads_as_the_subject_of_a_sentence():
    for item in TOGGLED:
        assert re.fullmatch(r"[A-Z][a-z]+ing .*[^,.]", item["change"]), item["id"]


def test_conflicts_name_claims_that_exist_and_arithmetic_that_is_there():
    claims = {claim["id"]: claim for claim in load_yaml(WORKFLOW / "claims.yaml", "claims")}
    for item in CONFLICTS:
        assert set(item.get("claims", [])) <= set(claims), item["id"]
    decided = {item["id"]: item.get("claims", []) for item in CONFLICTS}
    for number, key in (("X16", "arithmetic"), ("X17", "arithmetic"), ("X18", "counts")):
        assert [key in claims[name] for name in decided[number]] == [True], number
    assert all("statements" in claims[name] for number in ("X7", "X8", "X9") for name in decided[number])
    assert all(decided[number] for number in ("X7", "X8", "X9"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tpye": "numbers"}, "unknown key 'tpye'; did you mean 'type'?"),
        ({"type": "crush"}, "found 'crush'; did you mean 'crash'?"),
        ({"no_toggle": "there is one, though"}, "valid under each of"),
        ({"toggle": None}, "toggle"),
        ({"method": None}, "'method' is a dependency of 'toggle'"),
    ],
)
def test_a_wrong_entry_is_told(change, words):
    good = next(item for item in DEFECTS if item["id"] == "D-13")
    wrong = {k: v for k, v in (good | change).items() if v is not None}
    with pytest.raises(DeclarationError) as caught:
        check([wrong], "defects", "workflow/defects.yaml")
    assert words in str(caught.value)
