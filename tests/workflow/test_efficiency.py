"""Efficiency: the peers are what they claim, measuring records what happens, verdicts follow from numbers."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import ROOT, entry

from workflow.declarations import WORKFLOW, DeclarationError, check, load_yaml
from workflow.efficiency import NEEDS, worker
from workflow.efficiency.analysis import (
    PASSES,
    TITLES,
    crossover,
    efficiency_table,
    judge_efficiency,
    long_table,
    readable_curves,
    slope,
)
from workflow.efficiency.models import BUILDERS, parameters, segment_sums
from workflow.steps import efficiency, efficiency_figure
from workflow.steps.efficiency import measure, projected, reason_to_skip

CLAIMS = {claim["id"]: claim for claim in load_yaml(WORKFLOW / "claims.yaml", "claims")}
LENGTHS = [1000, 2000, 4000, 8000]
SETTINGS = {
    "models": ["scmamba2", "attention", "attention_equal_parameters"], "lengths": LENGTHS,
    "passes": ["forward"], "d_model": 512, "n_layers": 1, "tokens": None, "repeats": 3,
    "slope_from": 1000, "limit_s": 9, "limit_mb": 900, "gpu": 0, "threads": 1,
}  # fmt: skip


def cell(model, length, seconds, status="ok", reason="", batch=1):
    record = {"model": model, "pass": "forward", "length": length, "batch": batch, "status": status}
    seconds = [seconds, seconds * 1.5] if status == "ok" else []
    record |= {"reason": reason, "seconds": [10 * s for s in seconds], "cpu_seconds": seconds}
    return efficiency.summarised(record | {"peak_memory_mb": length / 100})


def record(power=1.0, at_1000=(0.4, 0.4), device="cpu", lengths=LENGTHS, **changed):
    """Ours takes length^power ms; attention is quadratic with the given times, in s, at 1,000 tokens."""
    cells = [cell("scmamba2", n, 1e-3 * n**power) for n in lengths]
    for model, start in zip(SETTINGS["models"][1:], at_1000, strict=True):
        cells += [cell(model, n, start * (n / 1000) ** 2) for n in lengths]
    facts = {"device": device, "threads": 1, "precision": "float32", "hardware": {"cpu": "test"}}
    return {"settings": SETTINGS | changed, "measurements": cells} | facts


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("length", [1, 63, 64, 130])
def test_two_passes_give_what_our_model_gives(length):
    torch.manual_seed(0)
    ours, theirs = (BUILDERS[name](64, 2).double() for name in ("scmamba2", "two_pass"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, length, 64, dtype=torch.float64)
    assert (ours(x) - theirs(x)).abs().max() < 1e-10


def test_the_mixer_of_transformers_gives_what_our_model_gives():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours, theirs = (BUILDERS[name](64, 2) for name in ("scmamba2", "transformers"))
    theirs.load_state_dict({k.replace(".mamba", ""): v for k, v in ours.state_dict().items()})
    x = torch.randn(1, 300, 64)
    assert (ours(x) - theirs(x)).abs().max() < 1e-4


def test_segment_sums_are_sums_of_segments():
    got = segment_sums(torch.tensor([1.0, 2.0, 3.0]))
    inf = -np.inf
    assert got.tolist() == [[0, inf, inf], [2, 0, inf], [5, 3, 0]]


@pytest.mark.parametrize("d_model", [64, 128, 512])
def test_attention_of_equal_parameters_has_them(d_model):
    ours = parameters(BUILDERS["scmamba2"](d_model, 2))
    assert parameters(BUILDERS["attention_equal_parameters"](d_model, 2)) == pytest.approx(ours, rel=0.005)
    assert parameters(BUILDERS["attention"](d_model, 2)) > 1.3 * ours


def test_attention_sees_every_token_and_no_order():
    torch.manual_seed(0)
    model, x = BUILDERS["attention"](64, 1).double(), torch.randn(1, 9, 64, dtype=torch.float64)
    order = torch.randperm(9)
    assert (model(x)[:, order] - model(x[:, order])).abs().max() < 1e-12
    changed = x.clone()
    changed[0, -1, 0] += 1
    assert (model(x) - model(changed)).abs().amax(-1).min() > 1e-6


def test_every_model_has_a_title_a_look_and_a_place_in_the_schema():
    schema = load_yaml(WORKFLOW / "schemas/config.schema.yaml")["properties"]["efficiency"]["properties"]
    assert set(BUILDERS) == set(TITLES) == set(efficiency_figure.LOOKS)
    assert set(schema["models"]["items"]["enum"]) == set(BUILDERS)
    assert set(schema["passes"]["items"]["enum"]) == set(PASSES)
    assert set(load_yaml(WORKFLOW / "config.yaml")["efficiency"]) == set(schema)
    with pytest.raises(DeclarationError, match="did you mean 'two_pass'"):
        check({"efficiency": {"models": ["two_passes"]}}, "config", "mine", partial=True)


# ---------------------------------------------------------------- measuring


@pytest.mark.parametrize(("passes", "gradients"), [("forward", False), ("forward_backward", True)])
def test_a_pass_has_gradients_or_none(passes, gradients):
    model, x = BUILDERS["scmamba2"](64, 1), torch.randn(1, 10, 64, requires_grad=True)
    worker.make_call(model, x, passes, False)()
    assert {p.grad is not None for p in [x, *model.parameters()]} == {gradients}


@pytest.fixture
def settings():
    return SETTINGS | {"d_model": 64, "lengths": [128, 64], "repeats": 2}


def test_every_cell_is_measured_and_what_is_missing_is_a_row(settings, monkeypatch):
    settings |= {"models": ["scmamba2", "transformers"], "passes": list(PASSES), "tokens": 128}
    monkeypatch.setitem(NEEDS, "transformers", "no_such_package")
    records = measure(settings, 1, 0)
    keys = [(r["pass"], r["model"], r["length"], r["batch"]) for r in records]
    cells = [(p, m, n, 128 // n) for p in PASSES for m in settings["models"] for n in (64, 128)]
    assert keys == cells
    for r in records:
        if r["model"] == "transformers":
            assert (r["status"], r["reason"]) == ("not_installed", "no_such_package is not installed here")
            assert r["seconds_median"] is None
            continue
        assert (r["status"], r["reason"], r["device"]) == ("ok", "", "cpu")
        assert len(r["seconds"]) == len(r["cpu_seconds"]) == 2
        assert 0 < r["seconds_min"] <= r["seconds_median"]
    assert len({r["parameters"] for r in records if r["status"] == "ok"}) == 1


def test_memory_is_that_of_the_measurement_and_has_a_limit(settings):
    """Forward and backward of a wide attention layer at 4,096 tokens hold more than 25 MB of activations."""
    settings |= {"models": ["attention"], "passes": ["forward_backward"], "lengths": [4096], "repeats": 1}
    (free,) = measure(settings, 1, 0)
    least = 4 * 4096 * 64 * 4 / 2**20 * 3  # three activations of the feed-forward part
    assert least < free["peak_memory_mb"] < 40 * least
    (full,) = measure(settings | {"limit_mb": 4}, 1, 0)
    assert full["status"] == "out_of_memory", full["reason"]


BROKEN = """
import json, os, sys, time
import torch
from workflow.efficiency import NEEDS, models
from workflow.steps.efficiency import measure

def broken(name):
    class Broken(torch.nn.Linear):
        def forward(self, x):
            if x.shape[1] > 64:
                {
                    "attention": lambda: int("a head too many"),
                    "attention_equal_parameters": lambda: os.kill(os.getpid(), 9),
                    "two_pass": lambda: time.sleep(60),
                    "transformers": lambda: torch.empty(10**14),
                }[name]()
            return super().forward(x)
    return lambda d_model, n_layers: Broken(d_model, d_model)

models.BUILDERS.update({name: broken(name) for name in list(models.BUILDERS)[1:]})
NEEDS.clear()
if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]), 1, 0)))
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Models that fail in every way at more than 64 tokens; the processes import this script again."""
    script = tmp_path_factory.mktemp("broken") / "broken.py"
    script.write_text(BROKEN)
    settings = SETTINGS | {"models": list(BUILDERS), "lengths": [64, 128, 256], "d_model": 64, "limit_s": 5}
    said = subprocess.run(
        [sys.executable, script, json.dumps(settings)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("model", "status", "reason"),
    [
        ("scmamba2", "ok", ""),
        ("attention", "failed", "ValueError: invalid literal for int() with base 10: 'a head too many'"),
        ("attention_equal_parameters", "failed", "the process ended by SIGKILL"),
        ("two_pass", "timeout", "no answer within 5 s"),
        ("transformers", "out_of_memory", "allocate"),
    ],
)
def test_what_goes_wrong_is_a_status_with_a_reason_and_costs_its_own_cells_only(
    broken, model, status, reason
):
    first, second, third = (r for r in broken if r["model"] == model)
    assert (first["status"], first["reason"]) == ("ok", "")
    assert second["status"] == status
    assert reason in second["reason"]
    if status == "ok":
        assert third["status"] == "ok"
    else:
        after = f"{status.replace('_', ' ')} at 128 tokens"
        assert (third["status"], third["reason"]) == ("skipped", after)


def test_a_process_that_died_between_two_turns_is_a_failure(settings):
    task = settings | {"model": "attention", "pass": "forward", "length": 64, "batch": 1}
    one = efficiency.Worker(multiprocessing.get_context("forkserver"), task)
    one.warm_up(60)
    assert one.ok
    one.process.kill()
    one.process.join()
    one.turn(60)
    assert (one.record["status"], one.record["reason"]) == ("failed", "the process ended by SIGKILL")


@pytest.mark.parametrize(
    ("history", "length", "cost"),
    [
        ([], 100, 0),
        ([(10, 3.0)], 40, 12),
        ([(10, 1.0), (20, 4.0)], 40, 16),
        ([(10, 1.0), (20, 16.0)], 40, 64),  # no power above 2
        ([(10, 1.0), (20, 1.0)], 40, 2),  # nor below 1
    ],
)
def test_projection(history, length, cost):
    assert projected(history, length) == pytest.approx(cost)


def test_what_would_take_too_long_or_too_much_is_skipped():
    earlier = [cell("attention", n, 1e-7 * n**2) for n in (1000, 2000)]  # wall: ten times that
    assert reason_to_skip(earlier, 4000, 1, 17, 50) == ""
    assert "about 16 s expected at 4,000 tokens, the limit is 15 s" in reason_to_skip(
        earlier, 4000, 1, 15, 50
    )
    assert "about 40 MB expected" in reason_to_skip(earlier, 4000, 1, 17, 39)
    assert "about 80 MB expected" in reason_to_skip(earlier, 4000, 2, 90, 50)
    skipped = cell("attention", 4000, 0, "skipped", "about 16 s expected")
    assert reason_to_skip([*earlier, skipped], 8000, 1, 15, 50) == "about 16 s expected"


# ---------------------------------------------------------------- analysis


def test_slope_of_a_power_law_is_its_power():
    fit = slope(LENGTHS, [3e-6 * n**1.7 for n in LENGTHS])
    assert fit == pytest.approx((1.7, 1.7, 1.7, 4), abs=1e-9)


def test_slope_has_the_interval_of_student():
    """Four points at logs 0..3 with residuals +-e: slope 1 +- t(.975, 2) * s / sqrt(5)."""
    e = 0.1
    values = np.exp(np.arange(4) + e * np.array([1, -1, -1, 1]))
    half = 4.302653 * np.sqrt(4 * e**2 / 2) / np.sqrt(5)
    assert slope(np.exp(np.arange(4)), values) == pytest.approx((1, 1 - half, 1 + half, 4), rel=1e-6)


def test_slope_leaves_out_short_lengths_and_gaps():
    values = [9.0, 1.0, np.nan, 4.0]
    fit = slope(LENGTHS, values, start=2000)
    assert (fit.value, fit.n) == (pytest.approx(1.0), 2)
    assert np.isnan([fit.low, fit.high]).all()
    assert np.isnan(slope([10], [1]).value)


@pytest.mark.parametrize(
    ("theirs", "kind", "length"),
    [
        ([2, 2, 2], "faster", np.nan),
        ([0.5, 0.5, 0.5], "slower", np.nan),
        ([0.5, 2, 4], "from", 200),
        ([np.nan, 0.5, 2], "from", 400),
        ([2, 0.5, 0.5], "until", 200),
        ([2, 0.5, 2], "several", 400),
    ],
)
def test_crossover_is_where_straight_lines_meet_in_a_log_log_plot(theirs, kind, length):
    """From half to twice the time between 100 and 400 tokens: they meet at the geometric mean, 200."""
    lengths = [100, 400, 1600] if "400" not in str(length) else [50, 200, 800]
    found = crossover(lengths, [1, 1, 1], theirs)
    assert found.kind == kind
    assert found.length == pytest.approx(length, nan_ok=True)


def test_crossover_needs_a_common_length():
    with pytest.raises(ValueError, match="no length at which both"):
        crossover([1, 2], [1, np.nan], [np.nan, 1])


@pytest.mark.parametrize(("threads", "device", "wall"), [(1, "cpu", 1), (2, "cpu", 10), (1, "A GPU", 10)])
def test_processor_time_counts_on_one_thread_of_a_cpu(threads, device, wall):
    table = long_table(record() | {"threads": threads, "device": device})
    first = table.iloc[0]
    assert first["seconds_per_cell"] == pytest.approx(wall * 1.0)
    assert first["median_seconds_per_cell"] == pytest.approx(wall * 1.25)
    attention = table[table["model"] == "attention"]["times_ours"]
    assert attention.tolist() == pytest.approx([0.4, 0.8, 1.6, 3.2])


def test_costs_are_those_of_one_cell():
    given = record()
    given["measurements"][0] = cell("scmamba2", 1000, 8.0, batch=4)
    first = long_table(given).iloc[0]
    assert (first["seconds_per_cell"], first["memory_mb_per_cell"]) == (2.0, 2.5)
    assert first["cells_per_second"] == 0.5


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("power", "verdict"), [(1.0, "SUPPORTED"), (1.14, "SUPPORTED"), (1.16, "NOT REPRODUCED")]
)
def test_linear(power, verdict):
    line = judge_efficiency(CLAIMS["M4a"], "forward", record(power))
    assert (line["verdict"], line["ours"]) == (verdict, pytest.approx(power))
    assert "attention, equal width with the power 2.00" in line["reason"]


def test_linear_with_a_wide_interval_is_open():
    given = record()
    given["measurements"][3] = cell("scmamba2", 8000, 20.0)
    assert judge_efficiency(CLAIMS["M4a"], "forward", given)["verdict"] == "INCONCLUSIVE"
    few = record(lengths=LENGTHS[:2])
    assert judge_efficiency(CLAIMS["M4a"], "forward", few)["verdict"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("at_1000", "verdict", "words"),
    [
        ((2, 2), "SUPPORTED", "2 to 16 times as fast, faster at every length"),
        ((2, 0.5), "DIRECTION ONLY", "equal parameters: 0.5 to 4 times as fast, faster from about 2,000"),
        ((0.01, 2), "NOT REPRODUCED", "slower at every length"),
    ],
)
def test_faster_than_attention(at_1000, verdict, words):
    line = judge_efficiency(CLAIMS["M4b"], "forward", record(at_1000=at_1000))
    assert line["verdict"] == verdict
    assert words in line["reason"]


def test_equal_times_are_a_tie():
    line = judge_efficiency(CLAIMS["M4b"], "forward", record(2.0, at_1000=(1010, 990)))
    assert line["verdict"] == "TIE"


def test_a_rival_that_did_not_run_leaves_the_claim_open():
    given = record(at_1000=(2, 2))
    reason = "about 99 s expected at 1,000 tokens, the limit is 9 s"
    given["measurements"][8:] = [cell("attention_equal_parameters", n, 0, "skipped", reason) for n in LENGTHS]
    line = judge_efficiency(CLAIMS["M4b"], "forward", given)
    assert line["verdict"] == "INCONCLUSIVE"
    said = f"not compared with attention, equal parameters: skipped from 1,000 tokens: {reason}"
    assert said in line["reason"]


def test_lengths_that_a_rival_did_not_reach_are_named():
    given = record(at_1000=(2, 2))
    given["measurements"][7] = cell("attention", 8000, 0, "out_of_memory", "CUDA out of memory")
    line = judge_efficiency(CLAIMS["M4b"], "forward", given)
    assert line["verdict"] == "SUPPORTED"
    assert "(1,000 to 4,000 tokens), out of memory from 8,000 tokens" in line["reason"]


@pytest.mark.parametrize("name", ["M4a", "M4b"])
def test_without_a_measurement_of_ours_the_claim_did_not_run(name):
    line = judge_efficiency(CLAIMS[name], "forward", None)
    assert (line["verdict"], line["reason"]) == ("NOT RUN", "the task efficiency is not in this selection")
    given = record()
    given["measurements"][:4] = [cell("scmamba2", n, 0, "failed", "ValueError: no") for n in LENGTHS]
    line = judge_efficiency(CLAIMS[name], "forward", given)
    assert (line["verdict"], line["reason"]) == ("NOT RUN", "failed from 1,000 tokens: ValueError: no")


@pytest.mark.parametrize(
    ("changed", "reduced"),
    [
        ({"device": "A GPU", "lengths": [1000, 60_000]}, False),
        ({"device": "A GPU", "lengths": [1000, 6000]}, True),
        ({"device": "A GPU", "lengths": [1000, 60_000], "d_model": 256}, True),
        ({"device": "cpu", "lengths": [1000, 60_000]}, True),
    ],
)
def test_reduced_scale(changed, reduced):
    line = judge_efficiency(CLAIMS["M4b"], "forward", record(at_1000=(2, 2), **changed))
    assert line["departures"] == ("at reduced scale" if reduced else "")


# ---------------------------------------------------------------- what people see


def test_the_table_has_a_row_per_model_and_says_what_is_missing():
    given = record()
    given["measurements"][7] = cell("attention", 8000, 0, "timeout", "no answer within 9 s")
    text = readable_curves(given, "forward", "time").set_index("Method")
    ours = text.loc["SC-MAMBA2"]
    assert ours[["1,000", "8,000"]].tolist() == ["1.00 s", "8.00 s"]
    assert ours["Power of T"] == "1.00 [1.00, 1.00]"
    rival = text.loc["attention, equal width"]
    assert (rival["1,000"], rival["8,000"]) == ("400 ms", "–")
    assert rival["Note"] == "timeout from 8,000 tokens: no answer within 9 s"
    long, text, caption = efficiency_table(given)
    assert (len(long), len(text)) == (12, 6)
    assert "width 512, 1 layer, batch 1, test, 1 thread, float32, processor time" in caption


def test_the_figure_shows_every_model_its_slope_and_the_crossover(tmp_path):
    given = record()
    given["measurements"][8:] = [cell("attention_equal_parameters", n, 0, "not_installed") for n in LENGTHS]
    efficiency_figure.save(efficiency_figure.draw(given), tmp_path / "efficiency.png")
    assert (tmp_path / "efficiency.png").stat().st_size > 10_000
    drawn = (tmp_path / "efficiency.svg").read_text()
    for words in ("SC-MAMBA2: slope 1.00", "width: slope 2.00", "parameters: not installed", "T ≈ 2,500"):
        assert words in drawn


@pytest.mark.slow
def test_the_task_runs_in_the_workflow(bench, cells):
    """From a configuration to verdict, table and figure; without the task its claims say so."""
    cells.write_h5ad(bench.folder / "cells.h5ad")
    bench.declare("datasets", cells=entry("file:cells.h5ad"))
    block = {"lengths": [64, 128, 256], "d_model": 64, "repeats": 1, "gpu": 0, "slope_from": 64}
    chosen = ["cells"], {"integration": ["pca"]}, [0]
    bench.config(*chosen)
    assert bench.run("out/claims.csv").returncode == 0
    claims = (bench.folder / "out/claims.csv").read_text()
    assert claims.count("the task efficiency is not in this selection") == 4
    bench.config(*chosen, efficiency=block)
    ended = bench.run("out/tables/summary.txt", "out/figures/efficiency.png")
    assert ended.returncode == 0, ended.stderr
    summary = (bench.folder / "out/tables/summary.txt").read_text()
    assert "Efficiency: time per cell, forward + backward" in summary
    claims = (bench.folder / "out/tables/claims.md").read_text()
    assert re.search(r"M4a: .*64 to 256.*power of time, forward", claims)
    assert "M4b" in (bench.folder / "out/claims.csv").read_text()
    assert "transformers is not installed" in (bench.folder / "out/tables/efficiency.html").read_text()
