"""The figures across data sets, from made-up claims and rows."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from workflow import tasks
from workflow.drawing import STYLE, save
from workflow.present import VERDICT_SIGNS
from workflow.steps.overview import GROUPS, LOOKS, comparable, draw_forest, draw_ranks, nemenyi, ranks

HEAD = tasks.get("integration").HEADLINE[0]
KINDS = {
    "scmamba2": "ours",
    "scvi": "deep",
    "harmony": "classical",
    "pca": "trivial",
    "label_onehot": "oracle",
}


def claim(claim_id: str, verdict: str, **changed) -> dict:
    return {
        "claim_id": claim_id,
        "task": "integration",
        "dataset": "pbmc10k",
        "metric": "avg_bio",
        "mode": "repaired",
        "subject": "scmamba2",
        "comparator": "scgpt",
        "paper_value": np.nan,
        "ours": np.nan,
        "ours_low": np.nan,
        "ours_high": np.nan,
        "n_seeds": 0,
        "delta": np.nan,
        "delta_low": np.nan,
        "delta_high": np.nan,
        "claimed_margin": np.nan,
        "verdict": verdict,
        "departures": np.nan,
    } | changed


DIFFERENCE = {"delta": 0.02, "delta_low": 0.01, "delta_high": 0.03, "n_seeds": 5, "claimed_margin": 0.015}
VALUE = {"paper_value": 0.8, "ours": 0.81, "ours_low": 0.79, "ours_high": 0.83}


def words_in(fig) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(Text))


def test_every_verdict_has_a_colour_and_a_shape():
    assert set(GROUPS) == set(VERDICT_SIGNS)
    assert set(GROUPS.values()) == set(LOOKS)
    assert len(set(LOOKS.values())) == len({colour for colour, _ in LOOKS.values()}) == len(LOOKS)


def test_no_claim_is_dropped():
    claims = pd.DataFrame(
        [
            claim("B1", "REPRODUCED", **DIFFERENCE, **VALUE),
            claim("B2", "NOT RUN"),
            claim("M1", "INCONSISTENT", dataset=np.nan, ours=6e8),
            claim("S1", "REVERSED", **DIFFERENCE | {"delta": -0.1}, departures="not the paper's dataset"),
        ]
    )
    words = words_in(draw_forest(claims))
    assert "– NOT RUN (1): B2" in words
    assert "≠ INCONSISTENT (1): M1" in words
    for text in ("B1 pbmc10k", "S1 pbmc10k", "✔ REPRODUCED", "✘ REVERSED", "claimed margin", "n = 5 seeds"):
        assert text in words, text


def test_both_panels_show_the_right_differences():
    fig = draw_forest(pd.DataFrame([claim("B1", "REPRODUCED", **DIFFERENCE, **VALUE)]))
    first, second = fig.axes
    drawn = [[list(np.round(line.get_xdata(), 6)) for line in ax.lines[1:]] for ax in (first, second)]
    assert drawn[0] == [[-0.01, 0.03], [0.01]]  # interval and value, minus 0.8
    assert drawn[1] == [[0.01, 0.03], [0.02], [0.015]]  # and the claimed margin


def test_a_run_that_departs_from_the_paper_is_not_held_against_it():
    there = pd.DataFrame(
        [claim("B1", "TIE", **VALUE), claim("B2", "TIE", **VALUE, departures="at reduced scale")]
    )
    assert comparable(there).tolist() == [True, False]
    words = words_in(draw_forest(there.iloc[1:].assign(**DIFFERENCE)))
    assert "not drawn; values were run, but none as in the paper: at reduced scale" in words
    assert "ours − published" not in words


def test_claims_without_any_number_give_a_figure_that_says_so():
    words = words_in(draw_forest(pd.DataFrame([claim("B2", "NOT RUN", paper_value=0.8)])))
    assert "No claim has a number" in words
    assert "no claim for which the paper states a value was run" in words.replace("\n", " ").lower()


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_critical_difference_agrees_with_the_published_table(k, q):
    """Table 5 of Demšar (2006): critical values of the two-tailed Nemenyi test at 0.05."""
    n = 7
    assert nemenyi(k, n) == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * n)), rel=3e-4)


def scored(values: dict[str, dict[str, float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Synthetic rows and runs: a value per data set and method."""
    rows = [
        {"task": "integration", "dataset": d, "method": m, "seed": 0, "metric": HEAD[0],
         "metric_impl": HEAD[1], "unit_level": "run", "value": v}
        for d, of in values.items() for m, v in of.items()
    ]  # fmt: skip
    runs = [
        {"task": "integration", "dataset": d, "method": m, "kind": KINDS[m]} for d in values for m in KINDS
    ]
    return pd.DataFrame(rows), pd.DataFrame(runs)


def test_ranks_share_ties_and_put_what_is_missing_last():
    table, missing = ranks(
        *scored(
            {
                "one": {"scmamba2": 0.1, "scvi": 0.5, "harmony": 0.5, "pca": 0.9, "label_onehot": 1.0},
                "two": {"scmamba2": 0.9, "scvi": 0.5},
            }
        ),
        "integration",
    )
    assert "label_onehot" not in table.index
    assert table["one"].to_dict() == {"pca": 1, "scvi": 2.5, "harmony": 2.5, "scmamba2": 4}
    assert table["two"].to_dict() == {"scmamba2": 1, "scvi": 2, "harmony": 3.5, "pca": 3.5}
    assert missing["two"].to_dict() == {"scmamba2": False, "scvi": False, "harmony": True, "pca": True}
    assert table.mean(axis=1).is_monotonic_increasing


def rank_figure(n: int):
    rng = np.random.default_rng(0)
    values = {f"set{i}": {m: float(rng.random()) for m in KINDS} for i in range(n)}
    called = {name: f"Data {name}" for name in values}
    return draw_ranks(
        *ranks(*scored(values), "integration"), KINDS, {m: m for m in KINDS}, called, "AvgBIO", "Title"
    )


def test_a_critical_difference_wants_five_data_sets_and_is_called_descriptive():
    assert "CD" not in words_in(rank_figure(4))
    assert "descriptive only" in words_in(rank_figure(5))


def test_one_data_set_gives_a_plain_ranking():
    words = words_in(rank_figure(1))
    assert "a plain ranking" in words and "mean rank" not in words


def test_numbers_of_ranks_do_not_run_into_each_other():
    methods = [f"m{i}" for i in range(23)]
    table = pd.DataFrame({"set": range(1, 24)}, index=methods)
    kinds, names = dict.fromkeys(methods, "deep"), {m: m for m in methods}
    fig = draw_ranks(table, table < 0, kinds, names, {"set": "Data set"}, "AvgBIO", "Title")
    fig.draw_without_rendering()
    ticks = fig.axes[0].get_xticklabels()
    assert ticks[0].get_text() == "1"
    boxes = [tick.get_window_extent() for tick in ticks]
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_nothing_to_rank_gives_a_figure_that_says_so():
    rows, runs = scored({"one": {"pca": 0.5}})
    table, missing = ranks(rows.iloc[:0], runs, "integration")
    assert "No method" in words_in(draw_ranks(table, missing, KINDS, {}, {}, "AvgBIO", "Title"))


def test_the_same_tables_give_the_same_bytes(tmp_path):
    plt.rcParams.update(STYLE)
    claims = pd.DataFrame([claim("B1", "REPRODUCED", **DIFFERENCE, **VALUE), claim("B2", "NOT RUN")])
    for turn in ("first", "second"):
        save(draw_forest(claims), tmp_path / f"{turn}_forest.png")
        save(rank_figure(6), tmp_path / f"{turn}_ranks.png")
    for name in ("forest.png", "forest.svg", "ranks.png", "ranks.svg"):
        assert (tmp_path / f"first_{name}").read_bytes() == (tmp_path / f"second_{name}").read_bytes(), name
