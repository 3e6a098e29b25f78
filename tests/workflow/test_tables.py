"""Tables and summaries from made-up rows: what a reader sees."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from workflow import html_tables
from workflow.comparisons import Evidence
from workflow.declarations import load_methods
from workflow.present import method_note, published, read_scores, results_table, trouble
from workflow.steps.judge import summarise
from workflow.steps.score import describe
from workflow.steps.tables import (
    caption_of,
    claims_text,
    duration,
    failures,
    markdown,
    number,
    readable,
    runs_ok,
    summary,
)


def record(method: str, seed: int, status: str = "ok", **more) -> dict:
    return {
        "run_id": f"integration/pbmc10k/{method}/{seed}",
        "task": "integration",
        "dataset": "pbmc10k",
        "method": method,
        "kind": {"pca": "trivial", "scvi": "deep", "scmamba2": "ours"}[method],
        "mode": "repaired",
        "seed": seed,
        "status": status,
        "why": "",
        "reason": "",
        "params": {"max_epochs": 4},
        "changed_params": {},
        "info": {},
        "seconds": 10.0 + seed,
        "cpu_seconds": 9.0,
        "peak_memory_mb": 100.0,
        "peak_gpu_memory_mb": None,
        "gpu": 0,
        "hardware": {"cpu": "test", "cores": 2, "gpus": []},
        "commit": "0",
        "finished": "now",
    } | more


RECORDS = {
    "pca": [record("pca", 0), record("pca", 1)],
    "scmamba2": [
        record("scmamba2", s, info={"scale": "small | tiny", "reduced_scale": True}) for s in (0, 1)
    ],
    "scvi": [
        record("scvi", 0, changed_params={"max_epochs": 400}),
        record("scvi", 1, "failed", why="timeout", reason="stopped after <60> s", info=None),
    ],
}
VALUES = {"pca": [0.7, 0.7], "scmamba2": [0.8, 0.9], "scvi": [0.75]}


@pytest.fixture
def scores(tmp_path):
    """Files as the score step writes them."""
    paths = []
    for method, records in RECORDS.items():
        rows = []
        for run, value in zip(records, VALUES[method], strict=False):
            unit = {"unit_level": "run", "unit_id": "", "value": value, "n_units": 9}
            rows.append(describe(run, "full") | unit | {"metric": "avg_bio", "metric_impl": "scib-1.1.5"})
        pd.DataFrame(rows).to_parquet(tmp_path / f"{method}.parquet")
        (tmp_path / f"{method}.json").write_text(json.dumps(records))
        paths.append(tmp_path / f"{method}.parquet")
    return read_scores(paths)


@pytest.fixture
def table(scores):
    summary = summarise(Evidence(*scores), load_methods())
    return results_table(summary, scores[1], "integration", "pbmc10k")


def test_methods_are_ordered_by_the_headline_and_none_is_lost(table):
    assert list(table["method"]) == ["scmamba2", "scvi", "pca"]
    assert list(table["runs_ok"]) == [2, 1, 2]
    assert list(table["runs"]) == [2, 2, 2]
    assert table["avg_bio|scib-1.1.5"].tolist() == pytest.approx([0.85, 0.75, 0.7])


def test_intervals_are_those_of_student(table):
    """Two values .8 and .9: half-width t(.975, 1) * sd / sqrt(2) = 12.706 * .0707 / 1.414."""
    row = table.iloc[0]
    half = (row["avg_bio|scib-1.1.5_high"] - row["avg_bio|scib-1.1.5_low"]) / 2
    assert half == pytest.approx(0.6353, abs=1e-3)
    assert np.isnan(table.iloc[1]["avg_bio|scib-1.1.5_low"])  # one seed has no interval


def test_the_published_value_stands_beside_ours(table):
    text = readable(table, "integration").set_index("Method")
    column = "AvgBIO (Louvain ×20), published"
    assert text.loc["SC-MAMBA2", column] == "0.836"
    assert text.loc["scVI", column] == "–"
    assert published("pbmc10k", "avg_bio")["scmamba2"] == 0.836
    assert published("pbmc_cite", "avg_bio") == {}


def test_scale_changes_and_failures_stand_in_the_methods_cell(table, scores):
    text = readable(table, "integration").set_index("Method")
    assert text.loc["SC-MAMBA2", "Note"] == "small | tiny"
    assert text.loc["scVI", "Note"] == "max_epochs 4, not 400; timeout: stopped after <60> s"
    assert text.loc["scVI", "Runs ok"] == "1 of 2"
    runs = scores[1]
    assert trouble(runs[runs["method"] == "scvi"]) == "timeout: stopped after <60> s"
    assert method_note(runs[runs["method"] == "pca"]) == ""


def test_pages_escape_what_a_log_may_hold(table):
    text = readable(table, "integration")
    page = html_tables.page(html_tables.great_table(text, "x"), "<Title>")
    assert "<title>&lt;Title&gt;</title>" in page
    assert "stopped after &lt;60&gt; s" in page and "<60>" not in page
    lines = markdown(text, "Title", "Caption").splitlines()
    ours = next(line for line in lines if line.startswith("| SC-MAMBA2"))
    assert ours.replace("\\|", "").count("|") == lines[4].count("|")


def test_numbers_stand_at_the_right_and_words_at_the_left():
    shown = pd.DataFrame(
        {
            "Method": ["a", "b"],
            "Data": ["10x PBMC", "10x BMMC"],
            "Score": ["0.500 ± 0.100", "–"],
            "Time": ["2.1 ms", "90 s"],
            "Interval": ["[−0.1, +0.2]", ""],
            "Runs": ["2 of 3", "not applicable"],
        }
    )
    page = html_tables.bare(html_tables.great_table(shown, "x"))
    heads = dict(re.findall(r'gt_(left|right)"[^>]*id="x-(\w+)"', page)[i][::-1] for i in range(6))
    right = [name for name, side in heads.items() if side == "right"]
    assert len(heads) == 6 and right == ["Score", "Time", "Interval"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.5, 0.4, 0.6), "0.500 ± 0.100"),
        ((0.5, np.nan, np.nan), "0.500"),
        ((0.5, 0.5, 0.5), "0.500 (=)"),
        ((np.nan, np.nan, np.nan), "–"),
    ],
)
def test_numbers(values, shown):
    assert number(*values) == shown


def test_durations():
    assert [duration(s) for s in (3.14, 119, 600, np.nan)] == ["3.1 s", "119.0 s", "10.0 min", "–"]


@pytest.mark.parametrize(
    ("counts", "shown"),
    [((2, 0, 3), "2 of 3"), ((2, 1, 3), "2 of 2, 1 not applicable"), ((0, 3, 3), "not applicable")],
)
def test_a_run_that_is_not_applicable_is_counted_apart(counts, shown):
    assert runs_ok(*counts) == shown


@pytest.mark.parametrize(
    ("in_paper", "more", "departures"),
    [
        ("full", {}, ""),
        ("part", {}, "part of the paper's dataset"),
        ("no", {}, "not the paper's dataset"),
        ("full", {"changed_params": {"a": 1}}, "changed parameters"),
        ("full", {"changed_params": {"a": 1}, "tuned_params": ["a"]}, "tuned parameters"),
        (
            "full",
            {"changed_params": {"a": 1, "b": 2}, "tuned_params": ["a"]},
            "changed parameters; tuned parameters",
        ),
        ("full", {"info": {"reduced_scale": True}}, "at reduced scale"),
        (
            "no",
            {"changed_params": {"a": 1}, "info": {"reduced_scale": True}},
            "not the paper's dataset; changed parameters; at reduced scale",
        ),
    ],
)
def test_each_departure_from_the_paper_has_its_own_words(in_paper, more, departures):
    assert describe(record("scvi", 0, **more), in_paper)["departures"] == departures


def test_captions_count_seeds():
    assert caption_of(1).startswith("One seed, so there is no interval. Higher")
    assert caption_of(3).startswith("Mean over 3 seeds ± half of its 95 % interval (of labels: over")


def test_a_dataset_that_cannot_be_had_gives_its_reason_once():
    bad = [record(m, s, "no_data", reason="no such file") for m in ("pca", "scvi") for s in (0, 1)]
    bad.append(record("scvi", 2, "failed", why="timeout", reason="slow"))
    assert failures(pd.DataFrame(bad)) == [
        "pbmc10k: no_data: no such file (4 runs)",
        "integration/pbmc10k/scvi/2: timeout: slow",
    ]


def test_the_summary_counts_runs_and_names_what_failed(table, scores, tmp_path):
    from workflow.declarations import WORKFLOW, load_yaml
    from workflow.verdicts import Selection, judge

    rows, runs = scores
    selected = set(zip(runs["task"], runs["dataset"], runs["method"], strict=True))
    methods = frozenset({"pca", "scvi", "scmamba2"})
    claims = judge(
        load_yaml(WORKFLOW / "claims.yaml", "claims"),
        Selection(Evidence(rows, runs), frozenset({"pbmc10k"}), methods, frozenset(selected)),
    )
    claims.to_csv(tmp_path / "claims.csv", index=False)
    claims = pd.read_csv(tmp_path / "claims.csv")  # as the step reads them
    runs = pd.concat([runs, runs.iloc[:1].assign(status="not_applicable", reason="no", run_id="x")])
    text = summary([("A dataset", readable(table, "integration"), table["note"])], claims, runs, tmp_path)
    assert "5 of 6 runs ok, 1 not applicable" in text
    assert "integration/pbmc10k/scvi/1: timeout: stopped after <60> s" in text
    assert text.count("stopped after <60> s") == 1
    assert "NOT TESTABLE" in text
    shown = claims_text(claims)
    assert len(shown) == len(claims)
    assert shown["Verdict"].str.len().min() > 3
    # PCA gave .7 twice, SC-MAMBA2 .8 and .9 at a scale of its own
    assert "0.700 (=)" in text
    assert "(=) deterministic: the same on every seed, no interval over seeds." in text
    line = shown[shown["Claim"].str.startswith("S1:")].iloc[0]
    assert line["Verdict"] == "? INCONCLUSIVE, at reduced scale"


def test_the_note_of_a_verdict_says_what_beat_the_subject():
    line = {"claim_id": "S1", "text": "Does it?", "dataset": "x", "metric": "avg_bio", "comparator": "pca"}
    line |= {"paper_value": np.nan, "ours": 0.4, "ours_low": 0.3, "ours_high": 0.5, "delta": np.nan}
    line |= {"verdict": "TIE", "departures": "", "best_trivial": "pca", "beaten_by_trivial": True}
    notes = claims_text(pd.DataFrame([line | {"reason": ""}, line | {"reason": "a reason"}]))["Note"]
    assert list(notes) == ["beaten by the control pca", "a reason; beaten by the control pca"]


def test_a_difference_without_an_interval_shows_none(scores):
    from workflow.declarations import WORKFLOW, load_yaml
    from workflow.verdicts import Selection, judge

    rows, runs = scores
    question = next(c for c in load_yaml(WORKFLOW / "claims.yaml", "claims") if c["id"] == "S1")

    def difference(rows: pd.DataFrame) -> str:
        selected = set(zip(runs["task"], runs["dataset"], runs["method"], strict=True))
        names = (frozenset({"pbmc10k"}), frozenset({"pca", "scmamba2"}), frozenset(selected))
        claims = judge([question], Selection(Evidence(rows, runs), *names))
        return claims_text(claims)["Difference [95 %]"][0]

    assert difference(rows[rows["seed"] == 0]) == "+0.100"
    assert difference(rows.assign(value=rows["value"].where(rows["seed"] == 0, 0.7))).count("[") == 1
    assert difference(rows.assign(value=0.7)) == "+0.000 (=)"
