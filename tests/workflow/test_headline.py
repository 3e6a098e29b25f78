"""Headline tables from made-up means: what is bold, what stands apart, and that four formats agree."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from workflow import headline

METRICS = [("accuracy", "sklearn"), ("macro_f1", "sklearn-union")]
NAMES = {"ms": "Multiple sclerosis", "toy": "Toy_set & <b>"}


def line(method: str, kind: str, dataset: str, mean: float, metric=METRICS[0], **changed) -> dict:
    half = changed.pop("half", 0.01)
    return {
        "task": "annotation", "dataset": dataset, "method": method, "title": changed.pop("title", method),
        "kind": kind, "mode": "repaired", "variant_of": "", "variant": "",
        "metric": metric[0], "metric_impl": metric[1], "mean": mean, "low": mean - half, "high": mean + half,
        "n_seeds": 5, "sd": 0.01, "interval": "t", "mde": 0.02, "chance": 0.1, "ceiling": 1.0,
    } | changed  # fmt: skip


@pytest.fixture
def summary() -> pd.DataFrame:
    return pd.DataFrame(
        [
            line("scmamba2", "ours", "ms", 0.86, title="SC-MAMBA2"),
            line("scmamba2", "ours", "ms", 0.70, METRICS[1], title="SC-MAMBA2"),
            line("knn", "classical", "ms", 0.88),
            line("knn", "classical", "ms", 0.60, METRICS[1]),
            line("logistic", "classical", "ms", 0.80),
            line("logistic", "classical", "ms", np.nan, METRICS[1], n_seeds=0),
            line("majority", "trivial", "ms", 0.90, half=0.0),
            line("majority", "trivial", "ms", 0.10, METRICS[1]),
            line("truth", "oracle", "ms", 1.0),
            line("truth", "oracle", "ms", 1.0, METRICS[1]),
        ]
    )


PUBLISHED = pd.DataFrame(
    {
        "dataset": ["ms", "ms"],
        "method": ["scmamba2", "scmamba2"],
        "metric": ["accuracy", "accuracy"],
        "value": [0.869, 0.1],
        "source_kind": ["paper", "other"],
    }
)


def cells(summary, apart=None) -> pd.DataFrame:
    return headline.cells(summary, METRICS, PUBLISHED, apart or {})


def best(table: pd.DataFrame, metric: str = "accuracy") -> set[str]:
    return set(table.loc[table["best"] & (table["metric"] == metric), "method"])


def test_bold_is_the_best_real_method_and_never_a_control(summary):
    table = cells(summary)
    assert best(table) == {"knn"}
    assert best(table, "macro_f1") == {"scmamba2"}
    assert set(table.loc[table["beats_best"], "method"]) == {"majority"}  # the oracle is no control


def test_bold_needs_rows_that_may_be_compared(summary):
    assert best(cells(summary, {("ms", "knn"): "at reduced scale"})) == {"scmamba2"}
    two_apart = {("ms", "knn"): "at reduced scale", ("ms", "scmamba2"): "changed parameters"}
    assert best(cells(summary, two_apart)) == set()  # one row alone is not the best of anything
    fewer = summary.assign(n_seeds=summary["n_seeds"].where(summary["method"] != "knn", 3))
    table = cells(fewer)
    assert best(table) == {"scmamba2"}
    assert set(table.loc[table["method"] == "knn", "apart"]) == {"3 of 5 seeds"}
    released = summary.assign(mode=summary["mode"].where(summary["method"] != "knn", "released"))
    assert best(cells(released)) == {"scmamba2"}


def test_rows_stand_in_groups_and_the_paper_beside_them(summary):
    text, bold = headline.wide(cells(summary), NAMES)
    assert list(text[("", "Method")]) == ["SC-MAMBA2", "knn", "logistic", "majority", "truth"]
    assert list(text[("", "Group")].unique()) == [
        headline.GROUPS[k] for k in ("ours", "classical", "trivial", "oracle")
    ]
    assert list(text.columns[2:]) == [
        (NAMES["ms"], "Accuracy"),
        (NAMES["ms"], "Accuracy, paper"),
        (NAMES["ms"], "Macro F1"),
    ]
    assert text.loc["scmamba2"].tolist()[2:] == ["0.860 ± 0.010", "0.869", "0.700 ± 0.010"]
    assert text.loc["majority", (NAMES["ms"], "Accuracy")] == "0.900 ▲"  # no interval: the same on every seed
    assert text.loc["logistic", (NAMES["ms"], "Macro F1")] == "–"
    assert bold.loc["knn", (NAMES["ms"], "Accuracy")]


def test_variants_of_defects_stand_elsewhere_and_modes_and_arms_here(summary):
    more = [
        line("scmamba2_d13", "ours", "ms", 0.99, variant_of="scmamba2", variant="D-13"),
        line("scmamba2_scratch", "ours", "ms", 0.5, variant_of="scmamba2"),
        line("scmamba2_released", "ours", "ms", 0.99, variant_of="scmamba2", mode="released"),
    ]
    table = headline.build("annotation", pd.concat([summary, pd.DataFrame(more)]), METRICS, PUBLISHED, {})
    methods = set(table.cells["method"])
    assert {"scmamba2_released", "scmamba2_scratch"} <= methods and "scmamba2_d13" not in methods
    assert best(table.cells) == {"knn"}


def test_the_title_says_what_is_missing_and_the_caption_what_could_be_shown(summary):
    table = headline.build("annotation", summary, METRICS, PUBLISHED, {}, "incomplete: lacks linear SVM")
    assert table.title == "Annotation: methods on datasets (incomplete: lacks linear SVM)"
    assert "Mean over 5 seeds ± half of the 95 % t interval" in table.caption
    assert "with 80 % power, by method: Accuracy 0.020, Macro F1 0.020" in table.caption
    assert any(note.startswith("▲ a control") for note in table.notes)


class Texts(HTMLParser):
    """The text of each cell of a table body."""

    def __init__(self):
        super().__init__()
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_every_format_holds_every_number(summary):
    toy = summary.assign(dataset="toy", mean=summary["mean"] - 0.05)
    both = pd.concat([summary, toy], ignore_index=True)
    table = headline.build("annotation", both, METRICS, PUBLISHED, {("toy", "knn"): "at reduced scale"})
    numbers = [f"{mean:.3f}" for mean in both["mean"].dropna()]
    html = headline.to_great_table(table, NAMES).as_raw_html()
    parsed = Texts()
    parsed.feed(html)
    markdown, latex = headline.to_markdown(table, NAMES), headline.to_latex(table, NAMES)
    for text in (" ".join(parsed.cells), markdown, latex):
        assert sorted(set(re.findall(r"\d\.\d{3}", text))) == sorted({*numbers, "0.869", "0.010", "0.020"})
    assert "<b>" not in html.replace("&lt;b&gt;", "") and "Toy_set &amp; &lt;b&gt;" in html
    assert html == headline.to_great_table(table, NAMES).as_raw_html()
    assert "**0.880 ± 0.010**" in markdown and "font-weight: bold" in html


def test_latex_is_balanced_and_escaped(summary):
    toy = summary.assign(dataset="toy")
    table = headline.build(
        "annotation", toy, METRICS, PUBLISHED, {("toy", "knn"): "100 % of_it"}, "lacks x_y"
    )
    latex = headline.to_latex(table, NAMES)
    assert latex.isascii()
    assert r"Toy\_set \& $<$b$>$" in latex and r"100 \% of\_it" in latex and r"lacks x\_y" in latex
    unescaped = re.sub(r"\\[{}]", "", latex)
    assert unescaped.count("{") == unescaped.count("}")
    rows = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    body = [row for row in rows if "multicolumn" not in row and "addlinespace" not in row]
    assert len(body) == 5 and {len(re.findall(r"(?<!\\)&", row)) for row in body} == {2}
    groups = [row for row in rows if "multicolumn" in row]
    assert [row.split("textit{")[1].split("}")[0] for row in groups] == [
        headline.GROUPS[k] for k in ("ours", "classical", "trivial", "oracle")
    ]
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(rule) == 1
    assert rows.index(groups[0]) == 0 and body[0].startswith("SC-MAMBA2")
