"""The release gate: complete tables pass, and each row that is missing has one line."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from workflow import gate, tasks
from workflow.steps import gate as step

MUST_HAVE = [("PCA", ["pca"]), ("scGPT", ["scgpt", "scgpt_zero_shot"])]


def summary(values: dict[tuple[str, str], float | None], task: str = "integration") -> pd.DataFrame:
    """Made-up means of the first headline metric."""
    metric, impl = tasks.get(task).HEADLINE[0]
    lines = [(task, dataset, method, metric, impl, mean) for (dataset, method), mean in values.items()]
    return pd.DataFrame(lines, columns=["task", "dataset", "method", "metric", "metric_impl", "mean"])


def runs(*lines: tuple) -> pd.DataFrame:
    columns = ["task", "dataset", "method", "status", "why", "reason"]
    return pd.DataFrame([("integration", *line) for line in lines], columns=columns)


def test_a_complete_table_lacks_nothing():
    there = summary({("x", "pca"): 0.5, ("x", "scgpt"): 0.6})
    assert gate.missing(there, runs(), "integration", MUST_HAVE) == []
    assert gate.lacks([], {}, 1) == ""


def test_any_of_the_named_methods_satisfies_a_row():
    there = summary({("x", "pca"): 0.5, ("x", "scgpt_zero_shot"): 0.6})
    assert gate.missing(there, runs(), "integration", MUST_HAVE) == []


def test_a_row_without_a_value_is_missing_and_says_why():
    there = summary({("x", "pca"): 0.5, ("x", "scgpt"): None})
    failed = runs(("x", "pca", "ok", "", ""), ("x", "scgpt", "failed", "timeout", "stopped after 60 s"))
    (row,) = gate.missing(there, failed, "integration", MUST_HAVE)
    assert (row.name, row.dataset, row.why) == ("scGPT", "x", "timeout: stopped after 60 s")
    assert str(row) == (
        "integration on x: no value for scGPT (scgpt or scgpt_zero_shot): timeout: stopped after 60 s"
    )


@pytest.mark.parametrize("read", [dict, str])
def test_a_model_without_its_weights_is_the_one_from_scratch(read):
    must_have = [("scGPT fine-tuned", ["scgpt"]), ("scGPT from scratch", ["scgpt_scratch"])]
    there = summary({("x", "scgpt"): 0.6})
    ran = runs(("x", "scgpt", "ok", "", ""))
    for changed, lacking in (({}, "from scratch"), ({"pretrained": True, "epochs": 15}, "fine-tuned")):
        (row,) = gate.missing(there, ran.assign(changed_params=[read(changed)]), "integration", must_have)
        assert row.name == f"scGPT {lacking}"
    assert row.why == "it was trained from scratch (pretrained: false)"


def test_a_score_that_is_not_the_headline_does_not_count():
    there = summary({("x", "pca"): 0.5, ("x", "scgpt"): 0.6})
    there.loc[there["method"] == "scgpt", "metric_impl"] = "scib-metrics"
    ended_well = runs(("x", "scgpt", "ok", None, None))
    (row,) = gate.missing(there, ended_well, "integration", MUST_HAVE)
    assert row.why == "its runs ended well and gave no finite score"


def test_a_title_names_datasets_only_where_others_have_the_row():
    there = summary({("x", "pca"): 0.5, ("y", "pca"): None})
    rows = gate.missing(there, runs(), "integration", MUST_HAVE)
    assert gate.lacks(rows, {"y": "Set Y"}, 2) == "incomplete: lacks scGPT, PCA on Set Y"


@pytest.mark.parametrize("task", tasks.NAMES)
def test_each_task_says_which_rows_it_must_have(task):
    must_have = tasks.get(task).MUST_HAVE
    assert len({name for name, _ in must_have}) == len(must_have) >= 9
    assert all(methods for _, methods in must_have)


def call(monkeypatch, folder) -> int:
    record = folder / "gate.txt"
    monkeypatch.setattr(sys, "argv", ["gate", "--results", str(folder), "--record", str(record)])
    return step.main()


def test_the_command_fails_with_one_line_per_missing_row(tmp_path, monkeypatch, capsys):
    must_have = tasks.get("integration").MUST_HAVE
    values = {("x", methods[0]): 0.5 for _, methods in must_have}
    del values[("x", "hvg_raw")], values[("x", "scgpt")]
    summary(values).to_csv(tmp_path / "summary.csv", index=False)
    runs(("x", "pca", "ok", "", "")).to_csv(tmp_path / "runs.csv", index=False)
    assert call(monkeypatch, tmp_path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "integration on x: no value for scGPT fine-tuned (scgpt): not in this selection",
        "integration on x: no value for raw genes (hvg_raw): not in this selection",
        "gate: 2 rows are missing from the headline tables",
    ]
    assert not (tmp_path / "gate.txt").exists()


def test_the_command_passes_a_complete_table(tmp_path, monkeypatch):
    values = {("x", methods[-1]): 0.5 for _, methods in tasks.get("annotation").MUST_HAVE}
    summary(values, "annotation").to_csv(tmp_path / "summary.csv", index=False)
    runs().to_csv(tmp_path / "runs.csv", index=False)
    assert call(monkeypatch, tmp_path) == 0
    assert (tmp_path / "gate.txt").read_text().startswith("The headline tables have every row")


def test_the_command_says_what_is_not_there(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path) == 1
    assert capsys.readouterr().err.strip().endswith("summary.csv: not there; run the selection first")


def test_a_selection_without_a_task_does_not_pass(tmp_path, monkeypatch, capsys):
    """An empty summary has no missing row, and no table either."""
    summary({}).to_csv(tmp_path / "summary.csv", index=False)
    runs().to_csv(tmp_path / "runs.csv", index=False)
    assert call(monkeypatch, tmp_path) == 1
    assert "no task" in capsys.readouterr().err
