"""The figures of one dataset, from made-up rows: what a reader could miss is said in them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from workflow import tasks
from workflow.drawing import STYLE, TWO_COLUMNS, notice, save, spread
from workflow.steps.confusion import chosen, confusion, labels_of
from workflow.steps.confusion import draw as draw_confusion
from workflow.steps.figures import (
    cost_of_selection,
    draw_cost,
    draw_epochs,
    draw_headline,
    epoch_traces,
    marked_epochs,
    of_results,
    pareto,
)


@pytest.mark.parametrize(
    ("values", "arrows"),
    [([0.97, 0.98, 0.999], ">"), ([0.001, 0.02, 0.05], "<"), ([0.1, 0.9], "<>"), ([0.5, 0.51, 0.52], "")],
)
def test_an_interval_that_leaves_the_range_says_so(values, arrows):
    seeds = range(len(values))
    runs = pd.DataFrame(
        {"method": "scvi", "kind": "deep", "seed": seeds, "status": "ok", "why": "", "reason": ""}
    )
    rows = pd.concat(
        pd.DataFrame({"method": "scvi", "metric": m, "metric_impl": i, "value": values, "seed": seeds})
        for m, i in tasks.get("annotation").HEADLINE
    )
    fig = draw_headline(rows, runs, "annotation", "pbmc68k", {"scvi": "scVI"}, "Title")
    points = [c.get_offsets() for c in fig.axes[0].collections if isinstance(c, PathCollection)]
    drawn = [offsets[0][0] for offsets in points if len(offsets) == 1]
    # one point by itself is an arrow (dots stand for all seeds together): at 0 to the left, at 1 to the right
    assert sorted(drawn) == sorted({"<": 0, ">": 1}[arrow] for arrow in arrows)
    assert ("interval goes on" in [t.get_text() for t in fig.legends[0].get_texts()]) == bool(arrows)


def test_names_of_four_lines_do_not_run_into_each_other():
    methods = [f"m{i}" for i in range(6)]
    runs = pd.DataFrame(
        {"method": methods, "kind": "deep", "seed": 0, "status": "ok", "why": "", "reason": ""}
    )
    rows = pd.concat(
        pd.DataFrame({"method": methods, "metric": m, "metric_impl": i, "value": 0.5, "seed": 0})
        for m, i in tasks.get("annotation").HEADLINE
    )
    names = dict.fromkeys(methods, "Name\n" + "parameters from scratch changed " * 3)
    fig = draw_headline(rows, runs, "annotation", "pbmc68k", names, "Title")
    fig.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in fig.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(low.y1 < high.y0 for low, high in zip(boxes, boxes[1:], strict=False))


# ---------------------------------------------------------------- epochs, cost, confusion: synthetic rows

NAMES = {"scmamba2": "SC-MAMBA2", "scvi": "scVI", "pca": "PCA", "label_onehot": "Oracle"}
KINDS = {"scmamba2": "ours", "scvi": "deep", "pca": "trivial", "label_onehot": "oracle"}
HEAD = tasks.get("integration").HEADLINE[0]


def run_of(method: str, seed: int = 0, **changed) -> dict:
    return {
        "method": method,
        "kind": KINDS[method],
        "seed": seed,
        "status": "ok",
        "seconds": 10.0,
        "peak_memory_mb": 500.0,
        "peak_gpu_memory_mb": np.nan,
        "info": {},
    } | changed


def row_of(method: str, value: float, seed: int = 0, level: str = "run", unit: str = "") -> dict:
    about = {"metric": HEAD[0], "metric_impl": HEAD[1], "unit_level": level, "unit_id": unit}
    return {"method": method, "seed": seed, "value": value} | about


def traced() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A model of three epochs on two seeds: the last is selected, the second would have been better."""
    history = [{"epoch": e, "valid_loss": loss} for e, loss in ((1, 3.0), (2, 2.0), (3, 1.5))]
    runs = [run_of("scmamba2", s, info={"history": history, "selected_epoch": 3}) for s in (0, 1)]
    rows = [
        row_of("scmamba2", value + 0.01 * seed, seed, "epoch", str(epoch))
        for seed in (0, 1)
        for epoch, value in ((1, 0.2), (2, 0.6), (3, 0.5))
    ]
    return pd.DataFrame(rows), pd.DataFrame([*runs, run_of("pca")])


def words_in(fig) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in fig.findobj(Text))


def test_epochs_are_joined_by_seed_and_number():
    rows, runs = traced()
    traces = epoch_traces(rows, runs, *HEAD)
    assert list(traces) == ["scmamba2"]  # PCA has no epochs
    one = traces["scmamba2"].query("seed == 1")
    assert one["epoch"].tolist() == [1, 2, 3]
    assert one["valid_loss"].tolist() == [3.0, 2.0, 1.5]
    assert one["score"].tolist() == pytest.approx([0.21, 0.61, 0.51])
    assert marked_epochs(one) == {"first": 1, "last": 3, "best possible": 2, "selected": 3}
    assert cost_of_selection(traces["scmamba2"]) == "selected 0.505, best possible 0.605"


def test_epochs_without_scores_show_the_loss_and_say_what_is_missing():
    rows, runs = traced()
    fig = draw_epochs(rows.iloc[:0], runs, "integration", NAMES, "Title")
    assert "no score of single epochs" in words_in(fig).replace("\n", " ")
    assert len(fig.axes[0].lines) > 2
    assert "best possible" not in words_in(fig)


def test_without_epochs_the_figure_says_so():
    rows, runs = traced()
    fig = draw_epochs(rows.iloc[:0], runs.iloc[-1:], "integration", NAMES, "Title")
    assert "No run of this selection tells" in words_in(fig)


def costly() -> tuple[pd.DataFrame, pd.DataFrame]:
    values = {"scmamba2": (0.5, 100.0), "scvi": (0.7, 10.0), "pca": (0.6, 2.0), "label_onehot": (0.99, 1.0)}
    runs = [run_of(m, s, seconds=t) for m, (_, t) in values.items() for s in (0, 1)]
    rows = [row_of(m, v + 0.01 * s, s) for m, (v, _) in values.items() for s in (0, 1)]
    return pd.DataFrame(rows), pd.DataFrame(runs)


def test_cost_names_every_method_with_time_and_memory():
    fig = draw_cost(*costly(), "integration", NAMES, "Title")
    words = words_in(fig)
    for name in ("SC-MAMBA2: 100.0 s, 500 MB", "scVI: 10.0 s, 500 MB", "PCA: 2.0 s, 500 MB"):
        assert name in words
    lines = {line.get_label(): line for line in fig.legends[0].get_lines()}
    assert {"best control", "nothing is both faster and better"} <= lines.keys()
    level = [line for line in fig.axes[0].lines if line.get_linestyle() == "--"]
    assert level[0].get_ydata()[0] == pytest.approx(0.605)  # the mean of PCA


def test_the_front_holds_what_nothing_beats_in_both():
    points = pd.DataFrame(
        {"name": list("abcde"), "seconds": [1, 2, 3, 3, 4], "value": [0.5, 0.4, 0.7, 0.6, 0.7]}
    )
    assert pareto(points)["name"].tolist() == ["a", "c"]


def test_variants_of_one_defect_stand_in_no_figure():
    methods = {"a": {}, "a_released": {"variant_of": "a", "variant": ""}, "a_d13": {"variant": "D-13"}}
    assert of_results(methods, methods) == ["a", "a_released"]


UNITS = pd.DataFrame(
    {
        "seed": [0, 0, 0, 1, 1, 1],
        "unit_id": ["x", "y", "z"] * 2,
        "truth": ["B", "B", "T"] * 2,
        "predicted": ["B", "T", "T", "B", "B", "NK"],
    }
)


def test_confusion_is_the_mean_over_seeds_of_rows_that_sum_to_one():
    labels = list(labels_of(UNITS).index)
    assert labels_of(UNITS).to_dict() == {"B": 2, "T": 1, "NK": 0}  # cells, not cells times seeds
    matrix = confusion(UNITS, labels)
    np.testing.assert_allclose(matrix[:2], [[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]])
    assert np.isnan(matrix[2]).all()  # no query cell is an NK cell


def test_confusion_takes_ours_the_best_rival_and_the_best_control():
    values = {"scmamba2": 0.5, "scmamba2_released": 0.9, "knn": 0.6, "logistic_l2": 0.8, "majority": 0.1}
    kinds = dict(zip(values, ["ours", "ours", "classical", "classical", "trivial"], strict=True))
    methods = {m: {"kind": k} | ({"variant_of": "scmamba2"} if "_rel" in m else {}) for m, k in kinds.items()}
    metric, impl = tasks.get("annotation").HEADLINE[0]
    rows = pd.DataFrame(
        {"method": m, "value": v, "metric": metric, "metric_impl": impl, "unit_level": "run"}
        for m, v in values.items()
    )
    panels = chosen(rows, methods)
    assert {role: name for role, (name, _) in panels.items()} == {
        "SC-MAMBA2": "scmamba2",
        "best rival": "logistic_l2",
        "best control": "majority",
    }
    assert chosen(rows.iloc[:0], methods) == {}
    methods["scmamba2_released"]["arm"] = "x"  # an arm stands in where the method itself has no value
    alone = chosen(rows[rows["method"] != "scmamba2"], methods)
    assert (alone["SC-MAMBA2"][0], alone["best rival"][0]) == ("scmamba2_released", "logistic_l2")
    assert chosen(rows, methods)["SC-MAMBA2"][0] == "scmamba2"
    without = rows.assign(value=rows["value"].where(rows["method"] != "majority"))
    assert list(chosen(without, methods)) == ["SC-MAMBA2", "best rival"]


def draw_each() -> dict:
    rows, runs = traced()
    panels = {"SC-MAMBA2": ("scmamba2", 0.5), "best control": ("pca", 0.1)}
    return {
        "epochs": draw_epochs(rows, runs, "integration", NAMES, "Title"),
        "cost": draw_cost(*costly(), "integration", NAMES, "Title"),
        "confusion": draw_confusion({"scmamba2": UNITS, "pca": UNITS}, panels, NAMES, "Title"),
        "notice": notice("Title", "Why there is nothing."),
    }


def test_the_same_rows_give_the_same_bytes(tmp_path):
    plt.rcParams.update(STYLE)
    for turn in ("first", "second"):
        for name, fig in draw_each().items():
            save(fig, tmp_path / f"{turn}_{name}.png")
    for name in ("epochs", "cost", "confusion", "notice"):
        for suffix in ("png", "svg"):
            one, other = (tmp_path / f"{turn}_{name}.{suffix}" for turn in ("first", "second"))
            assert one.read_bytes() == other.read_bytes(), f"{name}.{suffix}"


def test_figures_are_as_wide_as_a_page_and_no_text_is_tiny():
    plt.rcParams.update(STYLE)
    for name, fig in draw_each().items():
        assert fig.get_size_inches()[0] <= TWO_COLUMNS + 1e-9, name
        small = [t.get_text() for t in fig.findobj(Text) if t.get_text().strip() and t.get_fontsize() < 6]
        assert not small, name
        plt.close(fig)


@pytest.mark.parametrize(
    "wanted", [[0.5, 0.5, 0.5], [0.0, 0.01, 1.0], [0.98, 0.99, 1.0], [0.2], [], [0.1, 0.9]]
)
def test_labels_are_moved_apart_and_stay_inside(wanted):
    places = spread(wanted, 0.2, 0.0, 1.0)
    assert len(places) == len(wanted)
    assert all(b - a >= 0.2 - 1e-12 for a, b in zip(places, places[1:], strict=False))
    assert all(-1e-12 <= place <= 1 + 1e-12 for place in places)
    if wanted in ([0.2], [0.1, 0.9]):
        assert places == wanted  # nothing moves without need
