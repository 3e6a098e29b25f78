"""What a run costs, from made-up records whose sums can be done by hand, and the step on files."""

from __future__ import annotations

import json
import subprocess
import sys
from doctest import testmod

import numpy as np
import pandas as pd
import pytest
from support import ROOT

import workflow.costs
from workflow.costs import COLUMNS, best_trivial, costs, costs_text, of_card, per_hundredth, run_costs
from workflow.declarations import load_yaml
from workflow.files import write_json
from workflow.steps.costs import compare_clocks

COST = {
    "currency": "EUR",
    "cpu_hour": 0.1,
    "gpu_hour": {"default": 2.0, "H100": 4.0},
    "watts_per_core": 10,
    "gpu_watts": {"default": 500, "H100": 700},
}
TITLES = {"ours": "Ours", "pca": "PCA", "random": "Random", "oracle": "Oracle", "broken": "Broken"}
HEADLINES = {"integration": ("avg_bio", "scib-1.1.5")}


def record(method="ours", kind="ours", seed=0, **changed) -> dict:
    """A run of one hour on one core."""
    return {
        "run_id": f"integration/cells/{method}/{seed}",
        "task": "integration",
        "dataset": "cells",
        "method": method,
        "kind": kind,
        "mode": "repaired",
        "seed": seed,
        "status": "ok",
        "seconds": 3600.0,
        "cpu_seconds": 3600.0,
        "peak_memory_mb": 1000.0,
        "peak_gpu_memory_mb": None,
        "gpu": 0,
        "hardware": {"cpu": "CPU", "cores": 4, "gpus": ["NVIDIA H100 80GB HBM3"]},
        "info": {"n_parameters": 1000},
        "resumed": False,
    } | changed


def row(method: str, value: float, seed: int = 0, **changed) -> dict:
    return {
        "task": "integration",
        "dataset": "cells",
        "method": method,
        "seed": seed,
        "metric": "avg_bio",
        "metric_impl": "scib-1.1.5",
        "unit_level": "run",
        "value": value,
    } | changed


def table(runs: list[dict], rows: list[dict]) -> pd.DataFrame:
    """Costs of made-up runs, by method."""
    return costs(pd.DataFrame(rows), pd.DataFrame(runs), COST, TITLES, HEADLINES).set_index("method")


def test_the_doctests_hold():
    assert testmod(workflow.costs).failed == 0


def test_what_was_not_measured_is_estimated_and_called_so():
    one = run_costs(pd.DataFrame([record()]), COST).iloc[0]
    assert one["energy_kwh"] == pytest.approx(0.010)  # one core hour at 10 W
    assert one["money"] == pytest.approx(0.1)
    assert not one["measured"]
    assert one["device"] == "CPU"  # the card is there but was not used


def test_a_card_is_paid_and_counted():
    one = run_costs(pd.DataFrame([record(gpu=2, gpu_seconds=7200.0)]), COST).iloc[0]
    assert one["gpu_hours"] == 2
    assert one["money"] == pytest.approx(0.1 + 2 * 4.0)
    assert one["energy_kwh"] == pytest.approx(0.010 + 2 * 0.7)
    assert one["device"] == "NVIDIA H100 80GB HBM3"
    # a record without gpu_seconds says how many cards it held
    assert run_costs(pd.DataFrame([record(gpu=2)]), COST).iloc[0]["gpu_hours"] == 2


@pytest.mark.parametrize(
    ("gpu", "cpu_wh", "gpu_wh", "kwh", "measured"),
    [
        (0, 25.0, None, 0.025, True),
        (1, 25.0, 300.0, 0.325, True),
        (1, None, 300.0, 0.310, False),  # the core's part is an estimate, so the sum is one
        (1, 25.0, None, 0.725, False),
    ],
)
def test_a_measurement_takes_the_place_of_its_estimate(gpu, cpu_wh, gpu_wh, kwh, measured):
    run = record(gpu=gpu, gpu_seconds=3600.0 * gpu, cpu_energy_wh=cpu_wh, gpu_energy_wh=gpu_wh)
    one = run_costs(pd.DataFrame([run]), COST).iloc[0]
    assert one["energy_kwh"] == pytest.approx(kwh)
    assert one["measured"] == measured


def test_a_hundredth_above_the_best_trivial_method():
    kinds = {"ours": "ours", "pca": "trivial", "random": "trivial", "oracle": "oracle"}
    values = {"ours": 0.75, "pca": 0.70, "random": 0.20, "oracle": 0.99}
    found = table([record(m, k) for m, k in kinds.items()], [row(m, v) for m, v in values.items()])
    assert list(found.reset_index()[COLUMNS]) == COLUMNS
    ours = found.loc["ours"]
    assert (ours["best_trivial"], ours["best_trivial_value"]) == ("pca", 0.70)
    assert ours["gain"] == pytest.approx(0.05)
    assert ours["money_per_001"] == pytest.approx(0.1 / 5)
    assert ours["seconds_per_001"] == pytest.approx(3600 / 5)
    assert ours["energy_per_001"] == pytest.approx(0.010 / 5)
    assert np.isinf(found.loc["pca", "money_per_001"])  # nothing above itself
    assert np.isinf(found.loc["random", "seconds_per_001"])
    assert np.isnan(found.loc["oracle", "money_per_001"])  # it reads the answers


def test_the_gain_of_rounding_is_none():
    assert np.isinf(per_hundredth(1.0, 1e-16))
    assert np.isnan(per_hundredth(1.0, np.nan))


def test_without_a_trivial_method_there_is_no_gain():
    assert best_trivial(pd.Series({"a": 0.5}), pd.Series({"a": "deep"}))[0] == ""
    found = table([record()], [row("ours", 0.7)])
    assert np.isnan(found.loc["ours", "money_per_001"])
    assert costs_text(found.reset_index())["Money per +0.01"].tolist() == ["–"]


def test_rows_of_other_levels_and_metrics_do_not_count():
    rows = [
        row("ours", 0.5),
        row("ours", 0.9, unit_level="epoch"),
        row("ours", 0.9, metric_impl="scib-1.1.7"),
    ]
    assert table([record()], rows).loc["ours", "headline"] == 0.5


def test_failed_and_resumed_runs_do_not_count():
    runs = [
        record(seed=0, seconds=100.0),
        record(seed=1, seconds=1.0, status="failed"),
        record(seed=2, seconds=1.0, resumed=True),
        record(
            "broken", "deep", status="failed", seconds=None, cpu_seconds=None, peak_memory_mb=None, info={}
        ),
        record("pca", "trivial", resumed=True, seconds=7.0),
    ]
    found = table(runs, [row("ours", 0.5)])
    assert (found.loc["ours", "n_runs"], found.loc["ours", "seconds"]) == (1, 100.0)
    assert found.loc["pca", "seconds"] == 7.0  # there is no other
    broken = found.loc["broken"]
    assert (broken["n_runs"], broken["energy_kind"], broken["device"]) == (0, "", "")
    assert np.isnan(broken["seconds"]) and np.isnan(broken["money"])


def test_the_probes_of_the_suite_cost_a_method_nothing():
    """A quarter of the hour went into probes: time, CPU time and measured energy lose a quarter."""
    run = record(info={"probe_seconds": 900.0}, cpu_energy_wh=20.0)
    ours = table([run], [row("ours", 0.5)]).loc["ours"]
    assert (ours["seconds"], ours["cpu_hours"]) == (2700.0, 0.75)
    assert ours["energy_kwh"] == pytest.approx(0.015)
    assert ours["money"] == pytest.approx(0.075)


def test_medians_over_runs():
    runs = [record(seed=s, seconds=t, cpu_seconds=t) for s, t in enumerate([3600.0, 7200.0, 36000.0])]
    found = table(runs, [row("ours", v, seed=s) for s, v in enumerate([0.1, 0.2, 0.6])])
    assert found.loc["ours", "cpu_hours"] == 2
    assert found.loc["ours", "headline"] == pytest.approx(0.3)
    assert found.loc["ours", "n_parameters"] == 1000


def test_the_longest_name_that_fits_sets_the_price():
    prices = {"default": 1.0, "NVIDIA": 2.0, "a100-sxm4-80gb": 3.0}
    assert of_card(prices, "NVIDIA A100-SXM4-80GB") == 3.0
    assert of_card(prices, "NVIDIA A100-PCIE-40GB") == 2.0
    assert of_card(prices, "Another") == 1.0


def test_the_text_says_what_a_reader_needs():
    runs = [record(), record("pca", "trivial"), record("broken", "deep", status="failed")]
    text = costs_text(table(runs, [row("ours", 0.75), row("pca", 0.7)]).reset_index()).set_index("Method")
    ours = text.loc["Ours"]
    assert ours["Time"] == "60.0 min"
    assert ours["Energy"] == "10 Wh (estimate)"
    assert ours["Money"] == "0.10 EUR"
    assert ours["Money per +0.01"] == "0.020 EUR"
    assert ours["Above the best control"] == "+0.050"
    assert ours["AvgBIO"] == "0.750"
    assert text.loc["PCA", "Money per +0.01"] == text.loc["PCA", "Time per +0.01"] == "∞"
    assert text.loc["Broken", "Energy"] == text.loc["Broken", "Money"] == "–"
    assert "Task" not in text and "GPU time" not in text  # one task, no card
    assert all(isinstance(cell, str) for cell in text.to_numpy().ravel())


def test_clocks_that_disagree_are_named(tmp_path):
    runs = pd.DataFrame([record(seed=0, seconds=10.0), record(seed=1, seconds=10.0), record(seed=2)])
    for seed, seconds in ((0, 10.5), (1, 3.0)):
        folder = tmp_path / f"integration/cells/ours/{seed}"
        folder.mkdir(parents=True)
        (folder / "benchmark.tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t-\n")
    words = compare_clocks(runs, tmp_path)
    assert len(words) == 2
    assert "ours/1/benchmark.tsv: 3.0 s, but run.json beside it says 10.0 s" in words[0]
    assert words[1].startswith("2 runs timed twice")


def test_the_step_writes_the_table(tmp_path):
    """With the prices of config.yaml, on records as the score step leaves them."""
    runs = [record(m, k, info={}) for m, k in (("pca", "trivial"), ("harmony", "classical"))]
    for run, value in zip(runs, (0.5, 0.6), strict=True):
        path = tmp_path / f"{run['method']}.parquet"
        pd.DataFrame([row(run["method"], value)]).to_parquet(path)
        write_json(path.with_suffix(".json"), [run])
    command = [sys.executable, "-m", "workflow.steps.costs", "--scores"]
    command += [str(tmp_path / "pca.parquet"), str(tmp_path / "harmony.parquet")]
    command += ["--runs-folder", str(tmp_path), "--costs", str(tmp_path / "costs.csv")]
    command += ["--cost", json.dumps(load_yaml(ROOT / "workflow/config.yaml", "config")["cost"])]
    subprocess.run(command, check=True, cwd=ROOT)
    found = pd.read_csv(tmp_path / "costs.csv")
    assert list(found.columns) == COLUMNS
    assert found.set_index("method").loc["harmony", "seconds_per_001"] == pytest.approx(360)
    assert np.isinf(found.set_index("method").loc["pca", "money_per_001"])
