"""The headline tables in the paper's form: a row per method, a column per dataset and metric.

Pure functions from ``summary.csv`` to one long table (`cells`) and from there to four formats. Bold is the
highest mean among rows that may be compared: real methods in their repaired mode, at declared or tuned
parameters, with every seed. It is no test; the verdicts are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from great_tables import GT, loc, style

from workflow.present import IMPL_TITLES, KIND_TITLES, METRIC_TITLES
from workflow.statistics import ROUNDING_NOISE

#: Groups of rows, in the order of the table.
GROUPS = {
    "ours": "SC-MAMBA2",
    "foundation": "Foundation models",
    "deep": "Deep learning",
    "classical": "Classical methods",
    "trivial": "Controls, which learn nothing",
    "oracle": "Ceiling, which reads the labels",
}
CONTROLS = ("trivial", "oracle")
#: Signs in a table and what they mean; LaTeX has no such letters.
NOT_ALIKE, BEATS = "†", "▲"
LATEX = {"†": r"$^\dagger$", "▲": r"$\blacktriangle$", "±": r"$\pm$", "–": "--", "×": r"$\times$"}


@dataclass(frozen=True)
class Headline:
    """A headline table, ready to be written.

    Attributes
    ----------
    task, title, caption
        Words; the title says what the table lacks.
    notes
        What the signs mean, and what sets rows apart.
    cells
        One line per method, dataset and metric (see `cells`).
    """

    task: str
    title: str
    caption: str
    notes: list[str]
    cells: pd.DataFrame


def cells(
    summary: pd.DataFrame,
    metrics: Sequence[tuple[str, str]],
    published: pd.DataFrame,
    apart: Mapping[tuple[str, str], str],
) -> pd.DataFrame:
    """Return one line per method, dataset and metric of a headline table, in the order of the table.

    Parameters
    ----------
    summary
        The lines of ``summary.csv`` for one task.
    metrics
        The (metric, metric_impl) pairs to show.
    published
        ``published.csv``; its rows of kind ``paper`` stand beside ours.
    apart
        Why a (dataset, method) pair may not be compared with the others: changed parameters, reduced scale.

    Returns
    -------
    pandas.DataFrame
        The columns of ``summary.csv``, ``published``, ``apart`` (a reason, or empty), ``best`` (the highest
        mean among at least two comparable rows) and ``beats_best`` (a control that reaches it).
    """
    order = {pair: i for i, pair in enumerate(metrics)}
    pairs = list(zip(summary["metric"], summary["metric_impl"], strict=True))
    table = summary[[pair in order for pair in pairs]].reset_index(drop=True)
    table["_metric"] = [order[pair] for pair in pairs if pair in order]
    said = published[published["source_kind"] == "paper"]
    values = said.drop_duplicates(["dataset", "method", "metric"]).set_index(["dataset", "method", "metric"])
    keys = pd.MultiIndex.from_frame(table[["dataset", "method", "metric"]])
    table["published"] = values["value"].reindex(keys).to_numpy()
    seeds = table.groupby(["dataset", "metric"])["n_seeds"].transform("max")
    reasons = []
    for line, most in zip(table.to_dict("records"), seeds, strict=True):
        why = [apart.get((line["dataset"], line["method"]), "")]
        if np.isfinite(line["mean"]) and line["n_seeds"] < most:
            why.append(f"{line['n_seeds']} of {most} seeds")
        if line["mode"] != "repaired":
            why.append(f"mode {line['mode']}")
        reasons.append("; ".join(filter(None, why)))
    table["apart"] = reasons

    table["best"] = table["beats_best"] = False
    for _, group in table.groupby(["dataset", "metric", "metric_impl"]):
        control = group["kind"].isin(CONTROLS)
        alike = group[~control & (group["apart"] == "") & group["mean"].notna()]
        if len(alike) > 1:
            best = alike["mean"].max()
            table.loc[alike.index[alike["mean"] >= best - ROUNDING_NOISE], "best"] = True
            reach = group.index[(group["kind"] == "trivial") & (group["mean"] >= best - ROUNDING_NOISE)]
            table.loc[reach, "beats_best"] = True

    first = table[table["_metric"] == 0].groupby("method")["mean"].mean()
    table["_group"] = table["kind"].map({kind: i for i, kind in enumerate(GROUPS)})
    table["_level"] = table["method"].map(-first).fillna(np.inf)
    datasets = {name: i for i, name in enumerate(summary["dataset"].unique())}
    table["_dataset"] = table["dataset"].map(datasets)
    by = ["_group", "_level", "method", "_dataset", "_metric"]
    return table.sort_values(by, ignore_index=True, kind="stable").drop(columns=["_metric", *by[:2], by[3]])


def number(line: Mapping) -> str:
    """Write a mean and half of its interval, and the sign of a control that reaches the best method."""
    if not np.isfinite(line["mean"]):
        return "–"
    text = f"{line['mean']:.3f}"
    half = (line["high"] - line["low"]) / 2
    if np.isfinite(half) and half > 0:
        text += f" ± {half:.3f}"
    return f"{text} {BEATS}" if line["beats_best"] else text


def caption(table: pd.DataFrame) -> str:
    """Say what stands in the cells, and how small a difference these seeds could show."""
    seeds = sorted(set(table.loc[table["n_seeds"] > 0, "n_seeds"].astype(int)))
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}" if seeds else "no"
    words = [f"Mean over {many} seeds"]
    kinds = set(table["interval"].dropna())
    units = "seeds and cells" if "hierarchical" in kinds else "seeds"
    if "hierarchical" in kinds:
        words[0] += " ± half of the 95 % interval (bootstrap over seeds and cells)"
    elif kinds & {"t"}:
        words[0] += " ± half of the 95 % t interval over seeds (none where all seeds agree)"
    shown = []
    for metric, group in table.groupby("metric", sort=False):
        mde = group.loc[~group["kind"].isin(CONTROLS), "mde"].dropna()
        if len(mde):
            low, high = f"{mde.min():.3f}", f"{mde.max():.3f}"
            span = low if low == high else f"{low} to {high}"
            shown.append(f"{METRIC_TITLES.get(str(metric), metric)} {span}")
    if shown:
        words.append(
            f"Smallest difference that these {units} would show with 80 % power, by method: "
            + ", ".join(shown)
        )
    rules = {impl: IMPL_TITLES[impl] for impl in table["metric_impl"] if impl in IMPL_TITLES}
    if "avg_bio" in set(table["metric"]) and rules:
        words.append(f"AvgBIO clusters with {', '.join(rules.values())}")
    return ". ".join(words) + ". Higher is better; 0 to 1."


def notes(table: pd.DataFrame) -> list[str]:
    """Explain the signs that stand in the table, and only these."""
    said = []
    if table["best"].any():
        said.append(
            "Bold: highest mean among real methods, at declared or tuned parameters, with every seed. "
            "It is no test; the verdicts are."
        )
    if table["beats_best"].any():
        said.append(f"{BEATS} a control that reaches the bold value.")
    for (title, why), mine in table[table["apart"] != ""].groupby(["title", "apart"], sort=False):
        on = mine["dataset"].unique()
        where = "" if len(on) == table["dataset"].nunique() else f" on {', '.join(on)}"
        said.append(f"{NOT_ALIKE} {title}{where}: {why}; out of the comparison.")
    if table["published"].notna().any():
        said.append("Paper: the value that the paper prints for this method.")
    return said


def build(
    task: str,
    summary: pd.DataFrame,
    metrics: Sequence[tuple[str, str]],
    published: pd.DataFrame,
    apart: Mapping[tuple[str, str], str],
    lacks: str = "",
) -> Headline:
    """Make the headline table of a task; ``lacks`` (see :func:`workflow.gate.lacks`) joins its title."""
    variant = summary["variant"].fillna("") != ""  # of a defect or conflict; modes and arms are rows
    table = cells(summary[(summary["task"] == task) & ~variant], metrics, published, apart)
    title = f"{task.capitalize()}: methods on datasets"
    return Headline(task, f"{title} ({lacks})" if lacks else title, caption(table), notes(table), table)


def wide(table: pd.DataFrame, datasets: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lay the cells out for people: text, and which of it is bold.

    Returns
    -------
    text
        ``Method``, ``Group`` and a column (dataset title, metric title) for each dataset and metric; a
        column ``Paper`` follows where the paper prints a value.
    bold
        Booleans in the same shape.
    """
    methods = table[["method", "title", "kind"]].drop_duplicates("method").set_index("method")
    signs = table.groupby("method")["apart"].agg(lambda reasons: (reasons != "").any())
    names = [f"{t} {NOT_ALIKE}" if signs[m] else t for m, t in methods["title"].items()]
    text = pd.DataFrame({("", "Method"): names}, index=methods.index)
    text[("", "Group")] = methods["kind"].map(GROUPS)
    for (dataset, metric), group in table.groupby(["dataset", "metric"], sort=False):
        head = (datasets.get(dataset, dataset), METRIC_TITLES.get(metric, metric))
        lines = group.set_index("method")
        shown = pd.Series({m: number(line) for m, line in lines.iterrows()})
        text[head] = shown.reindex(text.index).fillna("–")
        if lines["published"].notna().any():
            said = lines["published"].reindex(text.index)
            # two metrics of one dataset would otherwise share the name of the column
            text[(head[0], f"{head[1]}, paper")] = [f"{v:.3f}" if np.isfinite(v) else "" for v in said]
    text.columns = pd.MultiIndex.from_tuples(text.columns)
    bold = pd.DataFrame(False, index=text.index, columns=text.columns)
    for line in table[table["best"]].to_dict("records"):
        head = (
            datasets.get(line["dataset"], line["dataset"]),
            METRIC_TITLES.get(line["metric"], line["metric"]),
        )
        bold.loc[line["method"], [head]] = True
    return text, bold


def to_great_table(headline: Headline, datasets: Mapping[str, str], header: bool = True) -> GT:
    """Return the table as great_tables knows it; its ids begin with ``headline-<task>``.

    Without ``header`` it has neither title nor caption, for a page that sets them itself.
    """
    text, bold = wide(headline.cells, datasets)
    plain = text.reset_index(drop=True)
    keys = [f"c{i}" for i in range(len(text.columns))]
    plain.columns = pd.Index(keys)
    heads = list(text.columns)
    gt = GT(plain, rowname_col=keys[0], groupname_col=keys[1], id=f"headline-{headline.task}")
    gt = gt.tab_stubhead("Method")
    if header:
        gt = gt.tab_header(headline.title, headline.caption)
    for dataset in dict.fromkeys(head[0] for head in heads[2:]):
        mine = [key for key, head in zip(keys, heads, strict=True) if head[0] == dataset]
        gt = gt.tab_spanner(dataset, mine, id=f"{headline.task}-{mine[0]}")
    gt = gt.cols_label({key: head[1] for key, head in zip(keys[2:], heads[2:], strict=True)})
    gt = gt.cols_align("right", keys[2:])
    for key, head in zip(keys[2:], heads[2:], strict=True):
        rows = [i for i, yes in enumerate(bold[head]) if yes]
        if rows:
            gt = gt.tab_style(style.text(weight="bold"), loc.body(key, rows))
    for note in headline.notes:
        gt = gt.tab_source_note(note)
    return gt


def to_markdown(headline: Headline, datasets: Mapping[str, str]) -> str:
    """Return a Markdown section."""
    text, bold = wide(headline.cells, datasets)
    shown = text.where(~bold, "**" + text + "**").drop(columns=[("", "Group")])
    shown.insert(1, ("", "Kind"), [KIND_TITLES[k] for k in _kinds(headline.cells)])
    shown.columns = pd.Index([": ".join(filter(None, head)) for head in shown.columns])
    shown = shown.replace({r"\|": r"\\|"}, regex=True)
    below = "".join(f"- {note}\n" for note in headline.notes)
    return f"## {headline.title}\n\n{headline.caption}\n\n{shown.to_markdown(index=False)}\n\n{below}"


def _kinds(table: pd.DataFrame) -> list[str]:
    return list(table.drop_duplicates("method")["kind"])


def to_latex(headline: Headline, datasets: Mapping[str, str]) -> str:
    """Return a LaTeX table; it needs the packages booktabs and amssymb, and graphicx to fit the page."""
    text, bold = wide(headline.cells, datasets)
    groups = text.pop(("", "Group"))
    bold = bold.drop(columns=[("", "Group")])
    text = text.map(_latex)
    text = text.where(~bold, r"\textbf{" + text + "}")
    text.columns = pd.MultiIndex.from_tuples([(_latex(a), _latex(b)) for a, b in text.columns])
    body = text.style.hide(axis="index").to_latex(
        hrules=True, column_format="l" + "r" * (text.shape[1] - 1), multicol_align="c"
    )
    lines = body.splitlines()
    first = lines.index(r"\midrule") + 1
    rows = []
    for line, (before, group) in zip(lines[first:], zip([None, *groups], groups, strict=False), strict=False):
        if group != before:
            rows += [r"\addlinespace"] if before else []
            rows.append(rf"\multicolumn{{{text.shape[1]}}}{{l}}{{\textit{{{_latex(group)}}}}} \\")
        rows.append(line)
    body = "\n".join([*lines[:first], *rows, *lines[first + len(groups) :]])
    said = _latex(" ".join([headline.title + ".", headline.caption, *headline.notes]))
    return (
        "% needs \\usepackage{booktabs,amssymb,graphicx}\n"
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{said}}}\n\\label{{tab:headline-{headline.task}}}\n"
        f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body}\n}}\n"
        "\\end{table}\n"
    )


def _latex(text: str) -> str:
    """Escape what LaTeX reads as a command, and write signs that its fonts lack as commands."""
    escapes = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escapes |= {letter: f"\\{letter}" for letter in "&%$#_{}"} | {"<": "$<$", ">": "$>$"} | LATEX
    return "".join(escapes.get(letter, letter) for letter in text)
