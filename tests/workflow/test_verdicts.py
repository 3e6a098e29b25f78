"""Every branch of the verdicts."""

import itertools

import numpy as np
import pandas as pd
import pytest
import recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workflow.comparisons import Evidence
from workflow.declarations import WORKFLOW, load_methods, load_yaml
from workflow.statistics import Interval, mean_t_interval, minimal_detectable_effect
from workflow.steps.judge import summarise
from workflow.verdicts import (
    COLUMNS,
    HEADLINE,
    Selection,
    direction_verdict,
    judge,
    margin_verdict,
    overall_verdict,
    value_verdict,
)

NAN = float("nan")
ROWS = (
    "run_id task dataset method method_kind mode seed metric metric_impl unit_level unit_id value "
    "n_units departures"
).split()
RUNS = "task dataset method seed status why reason".split()
DATASETS = {"pbmc_cite", "pbmc68k", "pbmc10k"}
METHODS = {
    "random_embedding", "label_onehot", "pca", "harmony", "scvi", "scmamba2", "majority", "knn",
    "logistic",
}  # fmt: skip
KINDS = {"random_embedding": "trivial", "label_onehot": "oracle", "scmamba2": "ours"}
CLAIM = {
    "id": "B1", "source": "paper", "text": "SC-MAMBA2 is better.", "where": "results",
    "task": "integration", "dataset": "pbmc10k", "metric": "avg_bio", "comparator": ["pca"],
    "paper_value": 0.8, "comparator_value": 0.7, "margin": 0.1, "margin_kind": "abs",
    "rounding": 0.0005, "delta_eq": 0.02, "min_seeds": 5,
}  # fmt: skip
QUESTION = {key: CLAIM[key] for key in ("where", "task", "metric", "comparator", "delta_eq", "min_seeds")} | {
    "id": "S1",
    "source": "suite",
    "text": "Is SC-MAMBA2 better?",
    "dataset": "any",
}
JITTER = np.array([-0.004, 0.002, 0.0, 0.005, -0.003])


def tables(values, *, departures="", mode="repaired", metric="avg_bio", dataset="pbmc10k"):
    """Rows and runs from {method: one value per seed}."""
    rows, runs = [], []
    for method, numbers in values.items():
        for seed, value in enumerate(numbers):
            rows.append([
                f"{method}-{seed}", "integration", dataset, method, KINDS.get(method, "classical"),
                mode, seed, metric, HEADLINE[metric], "run", "all", value, 100, departures,
            ])  # fmt: skip
            runs.append(["integration", dataset, method, seed, "ok", "", ""])
    return pd.DataFrame(rows, columns=ROWS), pd.DataFrame(runs, columns=RUNS)


def failed(method, why="timeout", reason="limit of 60 min", status="failed", seed=0):
    record = ["integration", "pbmc10k", method, seed, status, why, reason]
    return pd.DataFrame([record], columns=RUNS)


def everything(datasets=("pbmc10k",), methods=METHODS):
    return set(itertools.product(["integration"], datasets, methods))


def judged(claims, rows, runs, selected, units=None, **more):
    evidence = Evidence(rows, runs, units or {}, draws=2000)
    return judge(
        claims, Selection(evidence, frozenset(DATASETS), frozenset(METHODS), frozenset(selected), **more)
    )


def verdict(claim, rows, runs, selected=None):
    selected = everything() if selected is None else selected
    table = judged([claim], rows, runs, selected)
    assert len(table) == 1
    return table.iloc[0]


def around(mean, spread=1.0):
    return mean + spread * JITTER


# ---------------------------------------------------------------- the single rules


@pytest.mark.parametrize(
    ("interval", "paper", "word"),
    [
        (Interval(0.80, 0.79, 0.81, 5, 0.01), 0.805, "MATCH"),
        (Interval(0.80, 0.79, 0.81, 5, 0.01), 0.8104, "MATCH"),  # by rounding of the paper
        (Interval(0.80, 0.79, 0.81, 5, 0.01), 0.815, "NEAR"),
        (Interval(0.80, 0.79, 0.81, 5, 0.01), 0.85, "LOWER"),
        (Interval(0.80, 0.79, 0.81, 5, 0.01), 0.75, "HIGHER"),
        (Interval(0.80, 0.70, 0.90, 5, 0.1), 0.80, "WIDE"),
        (Interval(0.80, 0.70, 0.90, 5, 0.1), 0.95, "LOWER"),
        (Interval(0.80, NAN, NAN, 1, NAN), 0.80, "WIDE"),
        (Interval(NAN, NAN, NAN, 0, NAN), 0.80, None),
        (Interval(0.80, 0.79, 0.81, 5, 0.01), None, None),
        (Interval(0.80, 0.79, 0.81, 5, 0.01), NAN, None),
    ],
)
def test_value(interval, paper, word):
    assert value_verdict(interval, paper, 0.0005, 0.02) == word


@pytest.mark.parametrize(
    ("at_95", "at_90", "word"),
    [
        ((0.01, 0.05), (0.015, 0.045), "SUPPORTED"),
        ((-0.05, -0.01), (-0.045, -0.015), "REVERSED"),
        ((-0.021, 0.01), (-0.018, 0.008), "TIE"),
        ((0.001, 0.004), (0.002, 0.003), "TIE"),  # above 0 for sure, and too small to count
        ((-0.004, -0.001), (-0.003, -0.002), "TIE"),
        ((0.0001, 0.0001), (0.0001, 0.0001), "TIE"),  # deterministic
        ((0.03, 0.03), (0.03, 0.03), "SUPPORTED"),
        ((-0.03, -0.03), (-0.03, -0.03), "REVERSED"),
        ((0.001, 0.03), (0.003, 0.025), "SUPPORTED"),
        ((0.0, 0.0), (0.0, 0.0), "TIE"),
        ((-0.05, 0.05), (-0.04, 0.04), "INCONCLUSIVE"),
        ((-0.01, 0.05), (0.0, 0.04), "INCONCLUSIVE"),
        ((NAN, NAN), (NAN, NAN), "INCONCLUSIVE"),
    ],
)
def test_direction(at_95, at_90, word):
    def interval(limits):
        return Interval(sum(limits) / 2, *limits, 5, 0.01)

    assert direction_verdict(interval(at_95), interval(at_90), 0.02) == word


@pytest.mark.parametrize(
    ("limits", "margin", "kind", "word"),
    [
        ((0.01, 0.03), 0.02, "abs", "yes"),
        ((0.01, 0.03), 0.05, "abs", "no"),
        ((-0.05, 0.09), 0.02, "abs", "wide"),
        ((0.01, 0.03), 0.05, "rel", "yes"),  # 5 % of 0.5 is 0.025
        ((0.01, 0.03), 0.015, "rel", "no"),
        ((0.01, 0.03), 0.05, "unspecified", "yes"),
        ((0.01, 0.03), 0.5, "unspecified", "no"),
        ((0.01, 0.03), None, "abs", None),
        ((NAN, NAN), 0.02, "abs", None),
    ],
)
def test_margin(limits, margin, kind, word):
    difference = Interval(sum(limits) / 2, *limits, 5, 0.01)
    assert margin_verdict(difference, 0.5, margin, kind, 0.02) == word


@pytest.mark.parametrize(
    ("value", "direction", "word"),
    [
        ("MATCH", "SUPPORTED", "REPRODUCED"),
        ("NEAR", "SUPPORTED", "REPRODUCED"),
        ("HIGHER", "SUPPORTED", "DIRECTION ONLY"),
        ("LOWER", "SUPPORTED", "DIRECTION ONLY"),
        ("WIDE", "SUPPORTED", "DIRECTION ONLY"),
        (None, "SUPPORTED", "DIRECTION ONLY"),
        ("MATCH", "TIE", "VALUE ONLY"),
        ("NEAR", "REVERSED", "VALUE ONLY"),
        ("LOWER", "REVERSED", "NOT REPRODUCED"),
        ("HIGHER", "TIE", "NOT REPRODUCED"),
        ("WIDE", "TIE", "NOT REPRODUCED"),
        (None, "REVERSED", "NOT REPRODUCED"),
        ("MATCH", "INCONCLUSIVE", "INCONCLUSIVE"),
        ("LOWER", "INCONCLUSIVE", "INCONCLUSIVE"),
        (None, "INCONCLUSIVE", "INCONCLUSIVE"),
        ("MATCH", None, "REPRODUCED"),
        ("NEAR", None, "REPRODUCED"),
        ("LOWER", None, "NOT REPRODUCED"),
        ("HIGHER", None, "NOT REPRODUCED"),
        ("WIDE", None, "INCONCLUSIVE"),
        (None, None, "INCONCLUSIVE"),
    ],
)
def test_overall(value, direction, word):
    assert overall_verdict(value, direction) == word


# ---------------------------------------------------------------- claims that ran


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "direction", "word"),
    [
        (around(0.80), around(0.70, -1), "MATCH", "SUPPORTED", "REPRODUCED"),
        (around(0.81), around(0.70, -1), "NEAR", "SUPPORTED", "REPRODUCED"),
        (around(0.90), around(0.70, -1), "HIGHER", "SUPPORTED", "DIRECTION ONLY"),
        (around(0.80), around(0.90, -1), "MATCH", "REVERSED", "VALUE ONLY"),
        (around(0.80), around(0.80, -1), "MATCH", "TIE", "VALUE ONLY"),
        (around(0.60), around(0.70, -1), "LOWER", "REVERSED", "NOT REPRODUCED"),
        (around(0.80), around(0.80, -20), "MATCH", "INCONCLUSIVE", "INCONCLUSIVE"),
        (around(0.80, 30), around(0.80, -1), "WIDE", "INCONCLUSIVE", "INCONCLUSIVE"),
    ],
)
def test_a_claim_of_the_paper(ours, theirs, value, direction, word):
    line = verdict(CLAIM, *tables({"scmamba2": ours, "pca": theirs}))
    assert line["value_verdict"] == value
    assert line["direction_verdict"] == direction
    assert line["verdict"] == word
    assert line["ours"] == pytest.approx(np.mean(ours))
    assert line["comparator_value_ours"] == pytest.approx(np.mean(theirs))
    assert line["delta"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (line["n_seeds"], line["metric_impl"]) == (5, "scib-1.1.5")
    assert line["reason"] == ""


def test_columns_and_types():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    claims = load_yaml(WORKFLOW / "claims.yaml", "claims")
    table = judged(claims, rows, runs, everything())
    assert list(table.columns) == COLUMNS
    assert table["verdict"].notna().all()
    assert table["n_seeds"].dtype.kind == "i"
    assert list(table["departures"].unique()) == [""]
    assert table["delta"].dtype == float


def test_every_shipped_claim_gets_a_verdict_without_any_result():
    claims = load_yaml(WORKFLOW / "claims.yaml", "claims")
    rows, runs = tables({})
    table = judged(claims, rows, runs, set())
    assert set(table["claim_id"]) == {claim["id"] for claim in claims}
    assert set(table["verdict"]) == {"NOT RUN", "NOT TESTABLE", "INCONSISTENT", "VALUE ONLY"}
    assert (table["reason"] != "").all()
    assert len(table[table["claim_id"] == "A9"]) == 12
    assert list(table.loc[table["claim_id"] == "A8", "claimed_margin"]) == [0.041, 0.043]
    reasons = table.set_index("claim_id")["reason"]
    assert set(reasons["M4b"]) == {"the task efficiency is not in this selection"}
    assert reasons["P3"] == "dataset norman is not prepared"
    assert "0.724 to 0.821 is 13.4 percent (9.7 points), but the text says 5 to 10" in reasons["T2"]
    assert reasons["S1"] == "no dataset of the task integration is in this selection"


def test_question_is_decided_on_every_dataset_of_the_task_in_the_selection():
    one = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    two = tables({"scmamba2": around(0.6), "pca": around(0.7, -1)}, dataset="pbmc68k")
    rows, runs = (pd.concat(pair) for pair in zip(one, two, strict=True))
    selected = everything(("pbmc10k", "pbmc68k")) | {("annotation", "pbmc_cite", "knn")}
    table = judged([QUESTION], rows, runs, selected)
    words = table.set_index("dataset")["verdict"].to_dict()
    assert words == {"pbmc10k": "SUPPORTED", "pbmc68k": "REVERSED"}
    assert table["value_verdict"].isna().all()


def test_a_list_of_metrics_gives_a_row_for_each():
    claim = CLAIM | {"metric": ["avg_bio", "avg_batch"], "margin": [0.1, 0.2]}
    del claim["paper_value"], claim["comparator_value"]
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    table = judged([claim], rows, runs, everything())
    assert list(table["metric"]) == ["avg_bio", "avg_batch"]
    assert list(table["claimed_margin"]) == [0.1, 0.2]
    assert list(table["verdict"]) == ["DIRECTION ONLY", "NOT RUN"]


def test_a_claim_without_comparator_rests_on_its_value():
    claim = {k: v for k, v in CLAIM.items() if "compar" not in k and "margin" not in k}
    line = verdict(claim, *tables({"scmamba2": around(0.8)}))
    assert (line["verdict"], line["direction_verdict"]) == ("REPRODUCED", None)
    line = verdict(claim, *tables({"scmamba2": around(0.8)[:3]}))
    assert line["verdict"] == "INCONCLUSIVE"
    assert line["reason"] == "3 of 5 seeds that the claim asks for"
    line = verdict(claim, *tables({"scmamba2": around(0.8)}, departures="at reduced scale"))
    assert line["verdict"] == "INCONCLUSIVE"


# ---------------------------------------------------------------- several comparators


def test_a_claim_must_hold_against_each_comparator():
    claim = CLAIM | {"comparator": ["pca", "harmony"]}
    ours = around(0.8)
    line = verdict(claim, *tables({"scmamba2": ours, "pca": around(0.6, -1), "harmony": around(0.7, -1)}))
    assert (line["comparator"], line["verdict"]) == ("harmony", "REPRODUCED")
    line = verdict(claim, *tables({"scmamba2": ours, "pca": around(0.6, -1), "harmony": around(0.9, -1)}))
    assert (line["comparator"], line["direction_verdict"]) == ("harmony", "REVERSED")


def test_the_chance_that_one_of_several_comparators_wins_is_counted():
    """The claim must hold against each, so each is a chance to reverse it: p times their number."""
    values = {"scmamba2": around(0.8), "pca": around(0.83, -4.6), "scvi": around(0.7, -1)}
    one = verdict(CLAIM | {"comparator": ["pca"]}, *tables(values))
    assert one["direction_verdict"] == "REVERSED"
    assert 0.025 < one["p_value"] < 0.05
    both = verdict(CLAIM | {"comparator": ["pca", "scvi"]}, *tables(values))
    assert both["p_value"] == pytest.approx(2 * one["p_value"])
    assert both["direction_verdict"] == "INCONCLUSIVE"
    assert both["comparator"] == "pca"


@pytest.mark.parametrize("rivals", [["pca", "scvi"], ["scvi", "pca"]])
def test_a_rival_that_repeats_one_number_does_not_hide_the_p_value_of_another(rivals):
    values = {"scmamba2": [0.8, 0.8, 0.8, 0.8, 0.8], "pca": [0.6] * 5, "scvi": around(0.7, 5)}
    line = verdict(CLAIM | {"comparator": rivals}, *tables(values))
    assert line["p_holm"] == line["p_value"] > 0
    assert line["direction_verdict"] == "SUPPORTED"


def test_a_relative_advantage_over_a_comparator_at_0_leaves_the_declared_margin():
    claim = CLAIM | {"margin": 0.1, "margin_kind": "rel"}
    line = verdict(claim, *tables({"scmamba2": around(0.8), "pca": [0.0] * 5}))
    assert line["direction_verdict"] == "SUPPORTED"


def test_a_comparator_that_is_missing_leaves_the_claim_open():
    claim = CLAIM | {"comparator": ["pca", "scgpt"]}
    line = verdict(claim, *tables({"scmamba2": around(0.8), "pca": around(0.7, -1)}))
    assert (line["direction_verdict"], line["verdict"]) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert line["reason"] == "not compared with scgpt: method scgpt is not in the suite yet"
    line = verdict(claim, *tables({"scmamba2": around(0.8), "pca": around(0.9, -1)}))
    assert line["direction_verdict"] == "REVERSED"  # one that beats us is enough


def test_without_any_comparator_the_comparison_did_not_run_but_our_number_stays():
    claim = CLAIM | {"comparator": ["scgpt"]}
    line = verdict(claim, *tables({"scmamba2": around(0.8)}))
    assert (line["verdict"], line["value_verdict"]) == ("NOT RUN", "MATCH")
    assert line["ours"] == pytest.approx(0.8)
    assert np.isnan(line["delta"])


# ---------------------------------------------------------------- scale, mode, trivial baselines


def test_a_departure_from_the_paper_suppresses_the_value_and_caps_the_verdict():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)}, departures="at reduced scale")
    line = verdict(CLAIM, rows, runs)
    assert line["departures"] == "at reduced scale"
    assert line["value_verdict"] is None
    assert (line["verdict"], line["reason"]) == ("DIRECTION ONLY", "")


def test_departures_of_all_that_are_compared_are_named_and_of_no_other():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1), "harmony": around(0.6)})
    rows.loc[rows["method"] == "harmony", "departures"] = "at reduced scale"
    line = verdict(CLAIM, rows, runs)
    assert (line["verdict"], line["departures"]) == ("REPRODUCED", "")
    rows.loc[rows["method"] != "harmony", "departures"] = "not the paper's dataset"
    rows.loc[rows["method"] == "pca", "departures"] += "; changed parameters"
    line = verdict(CLAIM, rows, runs)
    assert line["departures"] == "not the paper's dataset; changed parameters"
    assert line["verdict"] == "DIRECTION ONLY"


def test_a_question_keeps_its_word_whatever_departs():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)}, departures="at reduced scale")
    line = verdict(QUESTION, rows, runs)
    assert (line["verdict"], line["departures"]) == ("SUPPORTED", "at reduced scale")


def test_other_implementations_and_units_do_not_count():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    others = [
        rows.assign(metric_impl="scib-metrics", value=0.2),
        rows.assign(unit_level="label", value=0.3),
    ]
    pd.testing.assert_series_equal(
        verdict(CLAIM, rows, runs), verdict(CLAIM, pd.concat([rows, *others]), runs)
    )
    line = verdict(CLAIM, others[0], runs)
    assert line["verdict"] == "NOT RUN"
    assert "without a finite avg_bio (scib-1.1.5)" in line["reason"]


def test_a_trivial_baseline_that_beats_us_is_named_and_an_oracle_is_not():
    values = {
        "scmamba2": around(0.8), "pca": around(0.7, -1), "random_embedding": [0.81] * 5,
        "label_onehot": [0.99] * 5,
    }  # fmt: skip
    line = verdict(CLAIM, *tables(values))
    assert (line["best_trivial"], line["beaten_by_trivial"]) == ("random_embedding", True)
    assert line["best_trivial_value"] == pytest.approx(0.81)
    # equal means are no defeat, whatever the rounding of their sums
    values |= {"scmamba2": [0.1] * 5, "pca": [0.0] * 5, "random_embedding": [0.1 + 2e-17] * 5}
    assert verdict(CLAIM, *tables(values))["beaten_by_trivial"] is False
    values |= {"scmamba2": around(0.8), "random_embedding": [0.1] * 5}
    assert verdict(CLAIM, *tables(values))["beaten_by_trivial"] is False
    del values["random_embedding"]
    line = verdict(CLAIM, *tables(values))
    assert (line["best_trivial"], line["beaten_by_trivial"]) == ("", None)


@pytest.mark.parametrize(
    ("theirs", "word", "note"),
    [
        ([0.7] * 5, "SUPPORTED", "deterministic: no interval over seeds"),
        ([0.9] * 5, "REVERSED", "deterministic: no interval over seeds"),
        ([0.8] * 5, "TIE", "deterministic: no interval over seeds"),
        (
            [0.7999] * 5,
            "TIE",
            "deterministic: no interval over seeds; "
            "the difference lies above 0, but up to 0.02 counts as equal",
        ),
    ],
)
def test_deterministic_methods_have_no_interval(theirs, word, note):
    line = verdict(QUESTION, *tables({"scmamba2": [0.8] * 5, "pca": theirs}))
    assert (line["verdict"], line["reason"]) == (word, note)
    assert np.isnan(line["p_value"])


def test_the_same_difference_of_methods_that_vary_is_not_called_deterministic():
    line = verdict(QUESTION, *tables({"scmamba2": around(0.8), "pca": around(0.7)}))
    assert line["reason"] == "the same difference on every seed: no interval over seeds"


def test_a_sure_but_tiny_difference_is_a_tie_and_says_where_it_lies():
    line = verdict(QUESTION, *tables({"scmamba2": around(0.71, 0.1), "pca": around(0.7, -0.1)}))
    assert (line["verdict"], line["delta_low"] > 0) == ("TIE", True)
    assert line["reason"] == "the difference lies above 0, but up to 0.02 counts as equal"
    line = verdict(QUESTION, *tables({"scmamba2": around(0.69, 0.1), "pca": around(0.7, -0.1)}))
    assert line["reason"] == "the difference lies below 0, but up to 0.02 counts as equal"


@pytest.mark.parametrize(
    ("kind", "margin", "ours", "word"),
    [
        ("abs", 0.015, 0.715, "SUPPORTED"),  # just what the paper claims cannot be a tie
        ("abs", 0.015, 0.705, "TIE"),
        ("abs", 0.1, 0.715, "TIE"),
        ("rel", 0.02, 0.715, "SUPPORTED"),  # 2 % of 0.7 is 0.014
        ("unspecified", 0.02, 0.708, "SUPPORTED"),
        ("abs", None, 0.715, "TIE"),
    ],
)
def test_an_advantage_that_the_paper_claims_is_no_tie_however_small(kind, margin, ours, word):
    claim = CLAIM | {"margin": margin, "margin_kind": kind, "paper_value": ours}
    line = verdict(claim, *tables({"scmamba2": around(ours, 0.01), "pca": around(0.7, -0.01)}))
    assert line["direction_verdict"] == word
    assert line["verdict"] == ("REPRODUCED" if word == "SUPPORTED" else "VALUE ONLY")


# ---------------------------------------------------------------- what did not run


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"comparator": ["scgpt"]}, "not compared with scgpt: method scgpt is not in the suite"),
        ({"subject": "tosica"}, "method tosica is not in the suite yet"),
        ({"dataset": "ms"}, "dataset ms is not in the suite yet"),
        ({"dataset": "pbmc68k"}, "dataset pbmc68k is not in this selection"),
        ({"subject": "scvi"}, "method scvi is not in this selection"),
        ({"metric": "pearson_delta"}, "metric pearson_delta is not in the suite yet"),
        ({"subgroup": "combo_seen0"}, "subgroup combo_seen0 is not in the suite yet"),
    ],
)
def test_reasons_for_not_run(change, reason):
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    selected = everything(methods={"scmamba2", "pca"})
    line = verdict(CLAIM | change, rows, runs, selected)
    assert line["verdict"] == "NOT RUN"
    assert line["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("failed", "scvi failed on pbmc10k (timeout: limit of 60 min)"),
        ("not_applicable", "scvi is not applicable to pbmc10k (timeout: limit of 60 min)"),
        ("not_run", "scvi did not run on pbmc10k (timeout: limit of 60 min)"),
    ],
)
def test_a_run_that_did_not_end_well_is_quoted(status, words):
    rows, runs = tables({"scmamba2": around(0.8)})
    runs = pd.concat([runs, failed("scvi", status=status)])
    line = verdict(CLAIM | {"comparator": ["scvi"]}, rows, runs)
    assert (line["verdict"], line["reason"]) == ("NOT RUN", f"not compared with scvi: {words}")
    assert verdict(CLAIM | {"subject": "scvi"}, rows, runs)["reason"] == words


def test_a_missing_reason_leaves_no_empty_brackets():
    rows, runs = tables({"pca": around(0.7)})
    line = verdict(CLAIM, rows, pd.concat([runs, failed("scmamba2", NAN, None)]))
    assert line["reason"] == "scmamba2 failed on pbmc10k"
    assert verdict(CLAIM, rows, runs)["reason"] == "scmamba2 has no run on pbmc10k"


def test_too_few_common_seeds_are_inconclusive():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)[:2]})
    line = verdict(CLAIM, rows, runs)
    assert (line["direction_verdict"], line["verdict"]) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert line["reason"] == "2 of 5 seeds that the claim asks for"
    assert line["n_seeds"] == 2
    assert np.isfinite(line["delta_low"])  # the numbers stay
    one = verdict(CLAIM, *tables({"scmamba2": [0.8], "pca": [0.7]}))
    assert one["verdict"] == "INCONCLUSIVE"


def test_no_common_seed_is_inconclusive():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    rows.loc[rows["method"] == "pca", "seed"] += 100
    line = verdict(CLAIM, rows, runs)
    assert (line["verdict"], line["n_seeds"]) == ("INCONCLUSIVE", 0)
    assert np.isnan(line["p_value"])


def test_runs_that_gave_no_value_are_told():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    runs = pd.concat([runs, failed("pca", seed=5)])
    line = verdict(CLAIM, rows, runs)
    assert line["verdict"] == "REPRODUCED"
    assert line["reason"].startswith("5 of 6 runs of pca gave a value: pca failed on pbmc10k")


def test_two_values_for_one_seed_are_an_error():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1)})
    with pytest.raises(ValueError, match="scmamba2 on pbmc10k has two values of avg_bio"):
        verdict(CLAIM, pd.concat([rows, rows]), runs)


# ---------------------------------------------------------------- not testable


@pytest.mark.parametrize("reason", ["weights", "data", "spec", "compute"])
def test_not_testable_shows_no_number(reason):
    claim = CLAIM | {"not_testable": {"reason": reason, "because": "It cannot be had."}}
    line = verdict(claim, *tables({"scmamba2": around(0.8), "pca": around(0.7, -1)}))
    assert line["verdict"] == "NOT TESTABLE"
    assert line["reason"] == f"{reason}: It cannot be had"
    assert np.isnan(line["ours"])
    assert line["direction_verdict"] is None


def test_too_little_power_keeps_the_numbers():
    claim = CLAIM | {"not_testable": {"reason": "power", "because": "Too few units."}}
    line = verdict(claim, *tables({"scmamba2": around(0.8), "pca": around(0.7, -1)}))
    assert (line["verdict"], line["direction_verdict"]) == ("NOT TESTABLE", "SUPPORTED")
    assert line["ours"] == pytest.approx(0.8)
    line = verdict(claim, *tables({}))
    assert line["reason"] == "power: Too few units; scmamba2 has no run on pbmc10k"


# ---------------------------------------------------------------- properties

MIRROR = {"SUPPORTED": "REVERSED", "REVERSED": "SUPPORTED"}
scores = st.floats(0, 1).map(lambda x: round(x, 3))
seeds = st.lists(st.tuples(scores, scores), min_size=5, max_size=7)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_swapping_subject_and_comparator_mirrors_the_direction(pairs):
    ours, theirs = zip(*pairs, strict=True)
    rows, runs = tables({"scmamba2": ours, "pca": theirs})
    there = verdict(QUESTION, rows, runs)
    back = verdict(QUESTION | {"subject": "pca", "comparator": ["scmamba2"]}, rows, runs)
    assert back["verdict"] == MIRROR.get(there["verdict"], there["verdict"])
    assert back["delta"] == pytest.approx(-there["delta"], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["scmamba2", "pca"]), st.sampled_from([NAN, np.inf, -np.inf]), seeds)
def test_nan_never_gives_a_verdict(method, bad, pairs):
    ours, theirs = zip(*pairs, strict=True)
    rows, runs = tables({"scmamba2": ours, "pca": theirs})
    rows.loc[rows["method"] == method, "value"] = bad
    for claim in (CLAIM, QUESTION):
        line = verdict(claim, rows, runs)
        assert line["verdict"] == "NOT RUN"
        assert line["direction_verdict"] is None
        assert line["beaten_by_trivial"] is None
        assert f"{method} ran on pbmc10k without a finite avg_bio" in line["reason"]


@given(st.lists(st.one_of(scores, st.just(NAN)), max_size=6), st.one_of(scores, st.just(NAN)))
def test_nan_never_matches_a_value(values, paper):
    word = value_verdict(mean_t_interval(values), paper, 0.0005, 0.02)
    usable = np.isfinite(paper) and np.isfinite(values).any()
    assert (word is not None) == bool(usable)


@given(
    st.floats(-1, 1), st.floats(0.001, 0.5), st.integers(2, 30), st.integers(1, 1000), st.floats(0.001, 0.1)
)
def test_more_data_never_turns_supported_into_reversed_without_the_mean_changing_sign(
    mean, sd, n, factor, equal
):
    """More seeds around the same mean narrow the interval; the word can move, but never across 0."""

    def word(count):
        def at(level):
            half = sd / np.sqrt(count) * stats.t.ppf((1 + level) / 2, count - 1)
            return Interval(mean, mean - half, mean + half, count, sd)

        return direction_verdict(at(0.95), at(0.90), equal)

    few, many = word(n), word(n * factor + 1)
    assert {few, many} != {"SUPPORTED", "REVERSED"}
    for found in (few, many):
        assert found != "SUPPORTED" or mean > 0
        assert found != "REVERSED" or mean < 0


# ---------------------------------------------------------------- cells as units


def cells(shares, n=400, seed_noise=0.02, types=3):
    """Rows, runs and predictions of annotation runs; ``shares``: how many cells each method gets right."""
    rng = np.random.default_rng(0)
    truth = rng.choice([f"type{i}" for i in range(types)], n)
    hard = rng.random(n)
    rows, runs, units = [], [], {}
    for k, (method, share) in enumerate(shares.items()):
        parts = []
        for seed in range(5):
            noise = np.random.default_rng([k, seed]).normal(0, seed_noise, n)
            wrong = np.array([f"type{(int(t[-1]) + 1) % types}" for t in truth])
            predicted = np.where(hard + noise < share, truth, wrong)
            names = [f"cell{i}" for i in range(n)]
            parts.append(
                pd.DataFrame({"seed": seed, "unit_id": names, "truth": truth, "predicted": predicted})
            )
            rows.append([
                f"{method}-{seed}", "annotation", "pbmc10k", method, KINDS.get(method, "classical"),
                "repaired", seed, "accuracy", "sklearn", "run", "", np.mean(predicted == truth), n, "",
            ])  # fmt: skip
            runs.append(["annotation", "pbmc10k", method, seed, "ok", "", ""])
        units["annotation", "pbmc10k", method] = pd.concat(parts)
    return pd.DataFrame(rows, columns=ROWS), pd.DataFrame(runs, columns=RUNS), units


ACCURACY = QUESTION | {
    "task": "annotation",
    "metric": "accuracy",
    "dataset": "pbmc10k",
    "comparator": ["knn"],
}


def on_cells(shares, claim=ACCURACY, **more):
    rows, runs, units = cells(shares, **more)
    selected = set(itertools.product(["annotation"], ["pbmc10k"], METHODS))
    return judged([claim], rows, runs, selected, units).iloc[0]


def test_where_cells_are_units_the_interval_knows_of_them():
    """Seeds alone agree to .005; 400 cells leave some .02 of doubt about what other cells would give."""
    line = on_cells({"scmamba2": 0.85, "knn": 0.75})
    assert line["interval"] == "hierarchical"
    assert 0.03 < line["ours_high"] - line["ours_low"] < 0.10
    assert line["verdict"] == "SUPPORTED"
    assert line["mcnemar"] == "better in 5, worse in 0 of 5 seeds"
    assert 0 < line["cliffs_delta"] < 0.2
    assert line["superiority"] == 1.0
    assert line["p_sign_flip"] == pytest.approx(2 / 2**5)  # five seeds cannot say more


def test_few_cells_leave_open_what_seeds_alone_would_call_decided():
    """All five seeds agree, but the 30 cells are the same ones each time."""
    line = on_cells({"scmamba2": 0.88, "knn": 0.75}, n=30, seed_noise=0.0)
    assert (line["interval"], line["verdict"]) == ("hierarchical", "INCONCLUSIVE")
    line = on_cells({"scmamba2": 0.88, "knn": 0.75}, n=15, seed_noise=0.0)
    assert line["interval"] == "t"  # too few cells to resample
    assert line["verdict"] == "INCONCLUSIVE"
    assert line["reason"].startswith("15 cells are too few to decide anything")


def test_swapping_mirrors_on_cells_too():
    shares = {"scmamba2": 0.82, "knn": 0.80}
    there = on_cells(shares)
    back = on_cells(shares, ACCURACY | {"subject": "knn", "comparator": ["scmamba2"]})
    assert back["verdict"] == MIRROR.get(there["verdict"], there["verdict"])
    assert back["delta"] == pytest.approx(-there["delta"])
    assert back["delta_low"] == pytest.approx(-there["delta_high"])
    assert back["p_value"] == pytest.approx(there["p_value"])
    assert back["cliffs_delta"] == pytest.approx(-there["cliffs_delta"])
    assert back["superiority"] == pytest.approx(1 - there["superiority"])


def test_predictions_of_other_cells_are_refused():
    rows, runs, units = cells({"scmamba2": 0.85, "knn": 0.75})
    theirs = units["annotation", "pbmc10k", "knn"]
    for changed, words in (
        (theirs[theirs["unit_id"] != "cell3"], "scmamba2 and knn on pbmc10k were not scored on"),
        (theirs.assign(truth="type0"), "with the same labels"),
        (theirs[(theirs["unit_id"] != "cell3") | (theirs["seed"] != 1)], "seed 1 lacks 1 of 400"),
    ):
        evidence = Evidence(rows, runs, units | {("annotation", "pbmc10k", "knn"): changed}, draws=100)
        with pytest.raises(ValueError, match=words):
            evidence.compare("annotation", "pbmc10k", "accuracy", "scmamba2", "knn")


def test_power_speaks_of_seeds_and_of_cells():
    line = on_cells({"scmamba2": 0.85, "knn": 0.75})
    half = (line["delta_high"] - line["delta_low"]) / 2
    assert half < line["mde"] < 2 * half
    assert line["seeds_needed"] == np.inf  # .02 (delta_eq): these 400 cells cannot show it with any number
    line = verdict(QUESTION, *tables({"scmamba2": around(0.8, 3), "pca": around(0.7, -3)}))
    assert 2 <= line["seeds_needed"] < 100


# ---------------------------------------------------------------- several tests, several modes


def test_holms_correction_runs_over_the_claims_of_a_task():
    """One difference with p near .03 is decided when asked alone, and open beside four that say nothing."""
    differences = np.array([0.03, 0.055, 0.02, 0.09, 0.06])
    values = {"scmamba2": 0.5 + differences, "pca": [0.5] * 5}
    rows, runs = tables(values)
    alone = verdict(QUESTION, rows, runs)
    assert (alone["verdict"], alone["p_holm"]) == ("SUPPORTED", pytest.approx(alone["p_value"]))
    noise = {"scvi": 0.5 + np.array([0.1, -0.1, 0.05, -0.08, 0.02])}
    rows, runs = tables(values | noise)
    others = [QUESTION | {"id": f"S{k}", "comparator": ["scvi"]} for k in range(2, 12)]
    table = judged([QUESTION, *others], rows, runs, everything())
    one = table.set_index("claim_id").loc["S1"]
    assert one["verdict"] == "INCONCLUSIVE"
    assert one["p_holm"] == pytest.approx(11 * one["p_value"])
    assert "after Holm's correction for 11 claims" in one["reason"]
    # claims of the paper are another family
    table = judged(
        [QUESTION, *(CLAIM | {"id": c["id"], "comparator": ["scvi"]} for c in others)],
        rows,
        runs,
        everything(),
    )
    assert table.iloc[0]["verdict"] == "SUPPORTED"


@pytest.mark.parametrize(
    ("repaired", "released", "paper", "only"),
    [
        (0.6, 0.8, None, True),
        (0.8, 0.8, None, False),
        (0.6, 0.6, None, False),
        (0.6, None, 0.8, None),  # without released runs nothing is said about them
        (0.71, 0.8, None, None),  # that the repaired mode is undecided is no difference between the two
    ],
)
def test_a_claim_that_holds_in_released_mode_only_is_called_so(repaired, released, paper, only):
    values = {"scmamba2": around(repaired, 3 if repaired == 0.71 else 1), "pca": around(0.7, -1)}
    values |= {"scmamba2_released": around(released)} if released else {}
    values |= {"scmamba2_paper": around(paper)} if paper else {}
    values |= {"scmamba2_scratch": around(0.9)}  # an arm has no say in it
    rows, runs = tables(values)
    METHODS.update(["scmamba2_released", "scmamba2_paper", "scmamba2_scratch"])
    line = verdict(QUESTION, rows, runs, everything(methods=values))
    assert line["only_released"] is only
    words = {0.6: "REVERSED", 0.71: "INCONCLUSIVE", 0.8: "SUPPORTED", None: ""}
    assert line["verdict"] == words[repaired]
    assert (line["verdict_released"], line["verdict_paper"]) == (words[released], words[paper])


# ---------------------------------------------------------------- evidence


def test_every_mode_is_corrected_for_as_many_claims():
    """A rival's own claim, of which there is no released mode, counts in the family all the same."""
    METHODS.update(["scmamba2_released"])
    spread = np.array([0.03, 0.055, 0.02, 0.09, 0.06])
    rows, runs = tables({"scmamba2": 0.5 + spread, "scmamba2_released": 0.5 + spread, "pca": [0.5] * 5,
                         "scvi": 0.5 + np.array([0.1, -0.1, 0.05, -0.08, 0.02])})  # fmt: skip
    others = [QUESTION | {"id": f"S{k}", "subject": "scvi"} for k in range(2, 12)]
    table = judged([QUESTION, *others], rows, runs, everything()).set_index("claim_id")
    assert table.loc["S1", ["verdict", "verdict_released"]].tolist() == ["INCONCLUSIVE"] * 2
    assert set(table["verdict_released"]) == {"INCONCLUSIVE", ""}


def test_the_query_of_a_claim_finds_its_rows():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1), "scvi": around(0.9)})
    line = verdict(CLAIM, rows, runs)
    found = rows.query(line["rows"])
    assert set(found["method"]) == {"scmamba2", "pca"}
    assert len(found) == 10
    assert (
        line["files"] == "scores/integration/pbmc10k/scmamba2.parquet scores/integration/pbmc10k/pca.parquet"
    )
    assert line["command"] == "snakemake --cores all"


def test_the_reason_for_not_testable_is_a_word():
    claims = load_yaml(WORKFLOW / "claims.yaml", "claims")
    table = judged(claims, *tables({}), set())
    refused = table[table["verdict"] == "NOT TESTABLE"]
    assert set(refused["not_testable"]) == {"spec", "power"}
    assert (table.loc[table["verdict"] != "NOT TESTABLE", "not_testable"] == "").all()


def test_chance_and_ceiling_stand_beside_ours():
    rows, runs = tables({"scmamba2": around(0.8), "pca": around(0.7, -1), "label_onehot": [0.95] * 5})
    shuffled = rows[rows["method"] == "scmamba2"].assign(unit_level="permuted", value=0.15)
    line = verdict(CLAIM, pd.concat([rows, shuffled]), runs)
    assert (line["chance"], line["ceiling"]) == (pytest.approx(0.15), pytest.approx(0.95))
    line = on_cells({"scmamba2": 0.85, "knn": 0.75})
    assert np.isnan(line["ceiling"])


def test_a_method_is_summarised_with_the_chance_and_ceiling_of_each_implementation():
    rows, runs = tables({"scmamba2": around(0.8), "label_onehot": [0.95] * 5})
    shuffled = rows[rows["method"] == "scmamba2"].assign(unit_level="permuted", value=0.15)
    by_kmeans = rows.assign(metric_impl="scib-metrics", value=rows["value"] - 0.3)
    methods = load_methods()
    evidence = Evidence(pd.concat([rows, shuffled, by_kmeans]), runs.assign(variant_of=""))
    table = summarise(evidence, methods).set_index(["method", "metric", "metric_impl"])
    searched = table.loc[("scmamba2", "avg_bio", "scib-1.1.5")]
    assert (searched["chance"], searched["ceiling"]) == (pytest.approx(0.15), pytest.approx(0.95))
    other = table.loc[("scmamba2", "avg_bio", "scib-metrics")]
    assert np.isnan(other["chance"])  # shuffled labels were scored by the search alone
    assert other["ceiling"] == pytest.approx(0.65)


def test_the_power_of_a_table_knows_of_cells():
    rows, runs, units = cells({"scmamba2": 0.85, "knn": 0.75}, seed_noise=0.0)
    evidence = Evidence(rows, runs, units, draws=500)
    estimate = evidence.estimate("annotation", "pbmc10k", "accuracy", "knn")
    assert estimate.interval.sd == 0  # the same on every seed, and yet 400 cells are not all cells
    of_cells = np.sqrt(0.75 * 0.25 / 400)
    assert estimate.mde == pytest.approx(np.sqrt(2) * 2.8 * of_cells, rel=0.1)
    seeds = Evidence(rows, runs).estimate("annotation", "pbmc10k", "accuracy", "knn")
    assert np.isnan(seeds.mde)
    rows, runs = tables({"scvi": around(0.7)})
    found = Evidence(rows, runs).estimate("integration", "pbmc10k", "avg_bio", "scvi")
    expected = minimal_detectable_effect(np.sqrt(2) * found.interval.sd, 5)
    assert found.mde == pytest.approx(expected)


# ---------------------------------------------------------------- the fixture


def test_the_recorded_rows_cover_every_verdict(tmp_path):
    _, claims, summary = recorded.results(tmp_path)
    assert set(claims["verdict"]) == set(recorded.VERDICTS)
    named = claims[claims["text"].str.contains(": [A-Z]")]
    for line in named.itertuples():
        assert line.verdict in line.text
    assert {"claims.csv", "summary.csv", "runs.csv", "rows.parquet", "scores"} <= {
        p.name for p in tmp_path.iterdir()
    }
    assert set(summary["interval"]) == {"t", "hierarchical"}
