"""The sensitivity table: known effects in synthetic rows, and one sentence for each."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from workflow.declarations import load_methods, load_register
from workflow.sensitivity import COLUMNS, headline, sensitivity
from workflow.statistics import paired_difference

METHODS = load_methods()
REGISTER = [*load_register("defects"), *load_register("conflicts")]
SEEDS = range(3)


def rows_of(
    method: str, values, metric="avg_bio", impl="scib-1.1.5", level="run", unit="", task="integration"
):
    """Synthetic scores of a method, one value per seed."""
    return [
        {
            "task": task, "dataset": "cells", "method": method, "seed": seed, "metric": metric,
            "metric_impl": impl, "unit_level": level, "unit_id": unit, "value": value,
        }
        for seed, value in zip(SEEDS, values, strict=True)
    ]  # fmt: skip


def runs_of(*methods: str, task="integration", **changed) -> list[dict]:
    """Synthetic records of runs, all ok unless ``changed`` says otherwise."""
    ok = {"status": "ok", "why": "", "reason": "", "params": {}, "changed_params": {}, "info": {}}
    return [
        ok | {"task": task, "dataset": "cells", "method": method, "seed": seed} | changed
        for method in methods
        for seed in SEEDS
    ]


def table(rows: list[dict], runs: list[dict]) -> pd.DataFrame:
    found = sensitivity(pd.DataFrame(rows), pd.DataFrame(runs), METHODS, REGISTER)
    assert list(found.columns) == COLUMNS
    assert found["sentence"].str.match(r"[A-Z].*\.$").all()
    assert not found["sentence"].str.contains("nan|None").any()
    return found


BASE, BETTER = [0.50, 0.52, 0.54], [0.60, 0.61, 0.65]


def test_a_defect_is_compared_with_its_base_by_seed():
    rows = [*rows_of("scmamba2", BASE), *rows_of("scmamba2_d13", BETTER)]
    (row,) = table(rows, runs_of("scmamba2", "scmamba2_d13")).query("metric == 'avg_bio'").to_dict("records")
    expected, _ = paired_difference(pd.Series(BETTER), pd.Series(BASE))
    assert (row["effect"], row["low"], row["high"], row["n_seeds"]) == pytest.approx(expected[:4])
    assert (row["base_value"], row["variant_value"]) == pytest.approx((0.52, 0.62))
    assert (row["kind"], row["id"], row["method"]) == ("defect", "D-13", "scmamba2")
    assert (row["base"], row["variant"]) == ("scmamba2", "scmamba2_d13")
    assert row["sentence"] == (
        "Hiding the value of <cls> like that of a gene changes AvgBIO by +0.100 [+0.075, +0.125]: "
        "more than noise between seeds."
    )


def test_a_defect_with_a_base_of_its_own_is_compared_with_that():
    rows = [
        *rows_of("scmamba2", [0.9] * 3),
        *rows_of("scmamba2_d12_base", BASE),
        *rows_of("scmamba2_d12", [0.49, 0.53, 0.54]),
    ]
    found = table(rows, runs_of("scmamba2", "scmamba2_d12_base", "scmamba2_d12")).query("metric == 'avg_bio'")
    (row,) = found.to_dict("records")
    assert (row["base"], row["base_value"]) == ("scmamba2_d12_base", pytest.approx(0.52))
    assert row["effect"] == pytest.approx(0, abs=1e-12)
    assert row["sentence"].startswith("Padding unknown genes instead of leaving them out changes AvgBIO by")
    assert row["sentence"].endswith("cannot be told from noise.")


def test_modes_and_conflicts_have_rows_and_what_did_not_run_has_none():
    names = ["scmamba2", "scmamba2_released", "scmamba2_x1"]
    rows = [row for name in names for row in rows_of(name, BASE)]
    found = table(rows, runs_of(*names)).query("metric == 'avg_bio'")
    assert list(zip(found["kind"], found["id"], strict=True)) == [("mode", "released"), ("conflict", "X1")]
    assert (found["effect"] == 0).all()
    assert found["sentence"].str.endswith("0: no change on any seed.").all()


def test_an_arm_is_another_model_and_no_way_to_compute():
    names = ["scmamba2", "scmamba2_scratch", "scmamba2_released"]
    rows = [row for name in names for row in rows_of(name, BASE)]
    found = table(rows, runs_of(*names)).query("metric == 'avg_bio'")
    assert list(found["variant"]) == ["scmamba2_released"]


def test_seeds_that_one_side_lacks_do_not_count():
    rows = [*rows_of("scmamba2", BASE), *rows_of("scmamba2_d13", [0.6, np.nan, 0.65])]
    row = table(rows, runs_of("scmamba2", "scmamba2_d13")).iloc[0]
    assert row["n_seeds"] == 2
    assert (row["base_value"], row["variant_value"]) == pytest.approx((0.52, 0.625))


def test_a_variant_that_failed_says_why_and_has_no_number():
    failed = {"status": "failed", "why": "error", "reason": "the loss is not finite"}
    runs = runs_of("scmamba2") + runs_of("scmamba2_x1", **failed)
    row = table(rows_of("scmamba2", BASE), runs).iloc[0]
    assert row[["effect", "low", "high", "variant_value"]].isna().all()
    assert row["n_seeds"] == 0
    assert "no AvgBIO to compare on any seed" in row["sentence"]
    assert "3 of 3 runs of the variant gave no value: error: the loss is not finite" in row["sentence"]


def test_one_seed_has_no_interval():
    rows = rows_of("scmamba2", BASE)[:1] + rows_of("scmamba2_d13", BETTER)[:1]
    row = table(rows, runs_of("scmamba2", "scmamba2_d13")).iloc[0]
    assert (row["effect"], row["n_seeds"]) == (pytest.approx(0.1), 1)
    assert np.isnan(row["low"])
    assert "one seed" in row["sentence"]


def test_other_changes_between_the_two_arms_are_told():
    changed = {"params": {"epochs": 7, "mask_cls": False, "trace_every": 1}, "changed_params": {"epochs": 30}}
    mine = {"params": {"epochs": 2, "mask_cls": True, "trace_every": 0}, "changed_params": {"epochs": 30}}
    runs = runs_of("scmamba2", **changed) + runs_of("scmamba2_d13", **mine)
    row = table([*rows_of("scmamba2", BASE), *rows_of("scmamba2_d13", BETTER)], runs).iloc[0]
    assert row["sentence"].endswith("; besides, epochs is 2 and not 7 (changed parameters).")


def test_implementations_of_a_metric_are_compared_on_the_same_outputs():
    rows = [
        *rows_of("pca", [0.5] * 3),
        *rows_of("pca", [0.4] * 3, impl="scib-1.1.7"),
        *rows_of("scmamba2_d13", BASE),
        *rows_of("scmamba2_d13", BASE, impl="scib-1.1.7"),
    ]
    found = table(rows, runs_of("pca", "scmamba2_d13"))
    (row,) = found.to_dict("records")  # variants of a defect are not scored twice
    assert (row["kind"], row["id"], row["method"], row["base"]) == (
        "metric",
        "scib-1.1.7",
        "pca",
        "scib-1.1.5",
    )
    assert row["effect"] == pytest.approx(-0.1)
    assert (
        "by Leiden ×10 instead of Louvain ×20 changes AvgBIO by -0.100 on every seed alike" in row["sentence"]
    )


def test_label_sets_of_macro_f1_are_compared_with_the_union():
    rows = [
        *rows_of("knn", BASE, "macro_f1", "sklearn-union", task="annotation"),
        *rows_of("knn", BETTER, "macro_f1", "sklearn-query", task="annotation"),
    ]
    row = table(rows, runs_of("knn", task="annotation")).iloc[0]
    assert (row["kind"], row["id"], row["base"]) == ("labels", "sklearn-query", "sklearn-union")
    assert row["effect"] == pytest.approx(0.1)


def test_epochs_are_compared_with_the_one_that_was_kept():
    by_epoch = {"1": [0.2, 0.3, 0.4], "2": [0.7, 0.52, 0.5], "10": BASE}
    rows = rows_of("scmamba2", [value + 0.001 for value in BASE])  # the trace has fewer digits
    for epoch, values in by_epoch.items():
        rows += rows_of("scmamba2", values, level="epoch", unit=epoch)
    found = table(rows, runs_of("scmamba2", info={"selected_epoch": 10})).set_index("id")
    assert list(found.index) == ["first", "last", "best-possible"]
    assert (found["kind"] == "epoch").all()
    assert found.loc["first", "effect"] == pytest.approx(-0.22)
    assert found.loc["last", "effect"] == 0  # epoch 10, by number and not by text
    assert found.loc["best-possible", "effect"] == pytest.approx(0.2 / 3)  # 0.7, then 0.52 = 0.52, then 0.54
    assert found.loc["best-possible", "variant"] == "best-possible: epochs 2, 2, 10"
    assert found.loc["first", "base"] == "selected epochs 10"
    assert "which nobody may do" in found.loc["best-possible", "sentence"]


def test_without_a_trace_of_the_kept_epoch_its_own_scores_are_the_base():
    rows = rows_of("scmamba2", BASE) + rows_of("scmamba2", BETTER, level="epoch", unit="2")
    found = table(rows, runs_of("scmamba2", info={"selected_epoch": 3})).set_index("id")
    assert found.loc["last", "base_value"] == pytest.approx(0.52)
    assert found.loc["last", "effect"] == pytest.approx(0.1)


def test_the_spread_over_orders_is_a_mean_over_seeds():
    rows = rows_of("scmamba2", BASE)
    orders = np.array([[0.40, 0.50, 0.60], [0.50, 0.50, 0.50], [0.42, 0.54, 0.60]])
    for order, values in enumerate(orders.T):
        rows += rows_of("scmamba2", values, level="order", unit=str(order))
    found = table(rows, runs_of("scmamba2")).set_index("id")
    assert found.loc["sd", "effect"] == pytest.approx(orders.std(axis=1, ddof=1).mean())
    assert found.loc["range", "effect"] == pytest.approx(np.ptp(orders, axis=1).mean())
    assert found.loc["mean", "effect"] == pytest.approx(orders.mean() - 0.52)
    assert (found["variant"] == "3 random orders").all()


def test_values_that_are_missing_have_no_row_and_no_sentence():
    missing = [np.nan] * 3
    rows = rows_of("scmamba2", missing) + rows_of("scmamba2", missing, impl="scib-1.1.7")
    for level, unit in (("epoch", "1"), ("epoch", "2"), ("order", "0"), ("order", "1")):
        rows += rows_of("scmamba2", missing, level=level, unit=unit)
    assert table(rows_of("pca", BASE) + rows, runs_of("scmamba2")).empty
    rows += rows_of("scmamba2", [0.5, np.nan, 0.6], level="epoch", unit="3")
    rows = [row for row in rows if row["unit_level"] != "run"] + rows_of("scmamba2", BASE)
    found = table(rows, runs_of("scmamba2", info={"selected_epoch": 3})).set_index("id")
    assert (found["n_seeds"] == 2).all()
    assert found.loc["best-possible", "variant"] == "best-possible: epochs 3"


def test_a_table_without_rows_has_its_columns():
    rows = pd.DataFrame(columns=list(rows_of("pca", BASE)[0])).astype({"value": float})
    found = sensitivity(rows, pd.DataFrame(runs_of("pca", status="no_data")), METHODS, REGISTER)
    assert list(found.columns) == COLUMNS and found.empty


def test_the_headline_of_each_task_is_two_metrics():
    assert headline("integration") == [("avg_bio", "scib-1.1.5"), ("avg_batch", "scib")]
    assert headline("annotation") == [("accuracy", "sklearn"), ("macro_f1", "sklearn-union")]


def test_the_step_writes_what_the_function_returns(tmp_path, monkeypatch):
    from workflow.steps import sensitivity as step

    paths = []
    for method, values in (("scmamba2", BASE), ("scmamba2_d13", BETTER)):
        paths.append(str(tmp_path / f"{method}.parquet"))
        pd.DataFrame(rows_of(method, values)).to_parquet(paths[-1])
        (tmp_path / f"{method}.json").write_text(json.dumps(runs_of(method)))
    target = tmp_path / "sensitivity.csv"
    monkeypatch.setattr("sys.argv", ["sensitivity", "--scores", *paths, "--table", str(target)])
    assert step.main() == 0
    found = pd.read_csv(target)
    assert list(found.columns) == COLUMNS
    assert found["id"].tolist() == ["D-13", "D-13"]  # AvgBATCH was not scored, and says so
    assert found["effect"].notna().tolist() == [True, False]
