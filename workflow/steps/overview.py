"""Step 7e: draw what spans data sets: the claims as a forest plot, and the methods' ranks in each task."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from workflow import tasks
from workflow.drawing import ONE_COLUMN, SMALL, STYLE, TWO_COLUMNS, heading, notice, plain, save
from workflow.present import (
    KIND_COLOURS,
    KIND_TITLES,
    METRIC_TITLES,
    VERDICT_SIGNS,
    dataset_title,
    declared,
    titles,
)

#: Colour (Okabe and Ito) and marker of a verdict: it holds, holds in part, fails, or is open.
LOOKS = {
    "holds": ("#009E73", "o"),
    "holds in part": ("#0072B2", "D"),
    "fails": ("#D55E00", "X"),
    "open": ("#7F7F7F", "s"),
}
GROUPS = {
    "REPRODUCED": "holds", "SUPPORTED": "holds",
    "DIRECTION ONLY": "holds in part", "VALUE ONLY": "holds in part", "TIE": "holds in part",
    "REVERSED": "fails", "NOT REPRODUCED": "fails", "INCONSISTENT": "fails",
    "INCONCLUSIVE": "open", "NOT TESTABLE": "open", "NOT RUN": "open",
}  # fmt: skip
#: Colours and markers of data sets; neither alone has to tell them apart.
POINT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
POINTS = [(POINT_COLOURS[i % 6], "osD^vP"[(i + i // 6) % 6]) for i in range(36)]
DATASETS_FOR_CD = 5  # with fewer, a critical difference says nothing but that there are few


def comparable(claims: pd.DataFrame) -> pd.Series:
    """Whether ours may be held against the paper's value: both are there, and nothing departs from it."""
    departs = claims["departures"].fillna("") != ""
    return claims["paper_value"].notna() & claims["ours"].notna() & ~departs


def with_difference(claims: pd.DataFrame) -> pd.Series:
    """Whether subject and comparator were both run: there is a difference with limits, or a plain one."""
    return claims["delta"].notna()


def claim_label(claim: pd.Series) -> str:
    """Name a claim in a line: its id, its data set and its metric."""
    metric = METRIC_TITLES.get(claim["metric"], claim["metric"])
    dataset = f" {claim['dataset']}," if isinstance(claim["dataset"], str) else ""
    mode = claim.get("mode")
    mode = f" ({mode})" if isinstance(mode, str) and mode not in ("", "repaired") else ""
    return f"{claim['claim_id']}{dataset} {metric}{mode}"


def difference_panel(
    ax: plt.Axes, lines: pd.DataFrame, centre: str, shift: str | None, limits: tuple[str, str]
) -> None:
    """Draw a difference and its interval for each claim; ``shift`` is a column that is subtracted first."""
    ax.axvline(0, color="0.3", lw=0.8, zorder=1)
    for y, (_, claim) in enumerate(lines.iterrows()):
        minus = claim[shift] if shift else 0.0
        colour, marker = LOOKS[GROUPS[claim["verdict"]]]
        low, high = claim[limits[0]] - minus, claim[limits[1]] - minus
        if np.isfinite([low, high]).all():
            ax.plot([low, high], [y, y], color=colour, lw=1.3, zorder=2)
        ax.plot(claim[centre] - minus, y, marker, color=colour, ms=4.5, mec="white", mew=0.4, zorder=3)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    plain(ax, "x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def verdict_column(ax: plt.Axes, lines: pd.DataFrame) -> None:
    """Write sign and verdict of each claim at the right end of its line."""
    for y, verdict in enumerate(lines["verdict"]):
        colour, _ = LOOKS[GROUPS[verdict]]
        ax.annotate(
            f"{VERDICT_SIGNS[verdict]} {verdict}", (1, y), xytext=(4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=SMALL, color=colour,
        )  # fmt: skip


def without_numbers(claims: pd.DataFrame, width: int) -> str:
    """List the claims that have no place in a panel, by verdict."""
    lines = []
    for verdict, mine in claims.groupby("verdict", sort=False):
        names = ", ".join(dict.fromkeys(mine["claim_id"]))
        number = mine["claim_id"].nunique()
        words = f"{VERDICT_SIGNS[verdict]} {verdict} ({number}): {names}"
        lines += textwrap.wrap(words, width, subsequent_indent="    ")
    return "\n".join(lines)


def why_nothing_comparable(claims: pd.DataFrame) -> str:
    """Say why no claim is held against the paper's value."""
    stated = claims[claims["paper_value"].notna()]
    run = stated[stated["ours"].notna()]
    if run.empty:
        return "no claim for which the paper states a value was run in this selection"
    departures = sorted({word for text in run["departures"].fillna("") for word in text.split("; ") if word})
    return f"values were run, but none as in the paper: {', '.join(departures)}"


def draw_forest(claims: pd.DataFrame) -> plt.Figure:
    """Ours minus published, then subject minus comparator with the claimed margin, a line per claim."""
    first, second = claims[comparable(claims)], claims[with_difference(claims)]
    # the efficiency of an encoder is no score between 0 and 1 and has figures of its own
    rest = claims.drop(index=first.index.union(second.index))
    panels = [(name, lines) for name, lines in (("first", first), ("second", second)) if len(lines)]
    listed = without_numbers(rest, 118)
    list_height = 0.135 * (listed.count("\n") + 2) if listed else 0.0
    n_lines = sum(len(lines) for _, lines in panels)
    title = "Claims: differences and verdicts"
    if not panels:
        words = f"No claim has a number. {why_nothing_comparable(claims).capitalize()}."
        return notice(title, words)
    height = 0.175 * n_lines + 0.75 * len(panels) + 0.85 + list_height
    fig, axes = plt.subplots(
        len(panels),
        1,
        figsize=(TWO_COLUMNS, height),
        height_ratios=[len(lines) + 0.3 for _, lines in panels],
        squeeze=False,
        layout="constrained",
    )
    seeds = sorted(set(pd.concat([lines["n_seeds"] for _, lines in panels]).astype(int)))
    n = f"n = {seeds[0]} seeds" if len(seeds) == 1 else "n: seeds"
    notes = [f"{n}; line: 95 % interval (none: one seed, or the same on every seed)"]
    if first.empty:
        notes.append(f"Ours minus published: not drawn; {why_nothing_comparable(claims)}")
    heading(fig, title, "\n".join(textwrap.fill(note, 118) for note in notes))
    handles = []
    for ax, (name, lines) in zip(axes[:, 0], panels, strict=True):
        labels = [claim_label(claim) for _, claim in lines.iterrows()]
        if len(seeds) > 1:
            labels = [f"{label}, n = {n:.0f}" for label, n in zip(labels, lines["n_seeds"], strict=True)]
        if name == "first":
            difference_panel(ax, lines, "ours", "paper_value", ("ours_low", "ours_high"))
            ax.set_xlabel("ours − published (metric, 0 to 1)", fontsize=7)
        else:
            difference_panel(ax, lines, "delta", None, ("delta_low", "delta_high"))
            ax.set_xlabel("subject − comparator (metric, 0 to 1)", fontsize=7)
            margins = lines["claimed_margin"].to_numpy(dtype=float)
            known = np.isfinite(margins)
            if known.any():
                ax.plot(margins[known], np.flatnonzero(known), "|", color="k", ms=9, mew=1.2, zorder=4)
                handles.append(Line2D([], [], ls="", marker="|", color="k", ms=8, label="claimed margin"))
            pairs = zip(labels, lines["subject"], lines["comparator"], strict=True)
            labels = [f"{label}: {subject} − {other}" for label, subject, other in pairs]
        ax.set_yticks(range(len(lines)), [textwrap.shorten(text, 74, placeholder="…") for text in labels])
        ax.tick_params(labelsize=SMALL)
        verdict_column(ax, lines)
    used = [group for group in LOOKS if group in {GROUPS[v] for _, lines in panels for v in lines["verdict"]}]
    handles = [
        *(Line2D([], [], ls="", marker=LOOKS[g][1], color=LOOKS[g][0], ms=5, label=g) for g in used),
        *handles,
    ]
    keys = fig.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=SMALL
    )
    if listed:
        keys.set_title(f"Claims without a difference:\n{listed}\n", prop=FontProperties(size=SMALL))
        keys.set_alignment("left")
    return fig


def nemenyi(k: int, n: int, level: float = 0.95) -> float:
    """Critical difference of mean ranks by Nemenyi's test.

    Parameters
    ----------
    k
        Methods.
    n
        Data sets.
    level
        Confidence level.

    Returns
    -------
    float
        ``q sqrt(k (k + 1) / (6 n))``, q being the quantile of the studentised range for k groups and
        infinitely many degrees of freedom, divided by sqrt(2).

    Notes
    -----
    Formula and table of q: Demšar (2006), "Statistical comparisons of classifiers over multiple data sets",
    Journal of Machine Learning Research 7, 1-30. Data sets count as independent draws, which a chosen
    collection is not; so it describes and tests nothing.
    """
    q = stats.studentized_range.ppf(level, k, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(k * (k + 1) / (6 * n)))


def ranks(rows: pd.DataFrame, runs: pd.DataFrame, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank the methods on each data set of a task by the mean of the headline metric; 1 is best.

    Parameters
    ----------
    rows, runs
        Scores and runs; rows of the level ``run`` count. Oracles, which read the answers, take no part.
    task
        Name of the task.

    Returns
    -------
    table
        Methods (the best mean rank first) x data sets. Equal values share their mean rank; methods without
        a value share the last ranks. Data sets on which nothing has a value are left out.
    missing
        Boolean, like ``table``: where a method has no value.
    """
    metric, impl = tasks.get(task).HEADLINE[0]
    methods = runs.loc[(runs["task"] == task) & (runs["kind"] != "oracle"), "method"].unique()
    rows = rows[(rows["task"] == task) & (rows["unit_level"] == "run")]
    rows = rows[(rows["metric"] == metric) & (rows["metric_impl"] == impl)]
    means = rows.pivot_table(index="method", columns="dataset", values="value", aggfunc="mean")
    means = means.reindex(methods).dropna(axis=1, how="all")
    # sums of equal values may differ by rounding
    table = means.round(12).rank(ascending=False, na_option="bottom")
    order = table.mean(axis=1).sort_values(kind="stable").index
    return table.loc[order], means.isna().loc[order]


def draw_ranks(
    table: pd.DataFrame,
    missing: pd.DataFrame,
    kinds: Mapping[str, str],
    names: Mapping[str, str],
    called: Mapping[str, str],
    metric_title: str,
    title: str,
) -> plt.Figure:
    """Draw the mean rank of each method as a bar, and its rank on each data set as a point.

    Parameters
    ----------
    table, missing
        What :func:`ranks` returns. A point without a value is hollow.
    kinds, names
        Kind and title of each method.
    called
        Title of each data set.
    metric_title, title
        Words for the metric, and for the heading.
    """
    if table.empty or not len(table.columns):
        return notice(title, "No method of this selection has a value.", ONE_COLUMN)
    k, n = table.shape
    wide = n > 1
    fig, ax = plt.subplots(
        figsize=(TWO_COLUMNS if wide else ONE_COLUMN, 0.22 * k + 1.25 + 0.1 * (n >= DATASETS_FOR_CD)),
        layout="constrained",
    )
    means = table.mean(axis=1)
    if wide:
        below = (
            f"by {metric_title}, mean over seeds; bar: mean rank over n = {n} data sets; a point per data set"
        )
    else:
        below = f"by {metric_title}, mean over seeds, on {called[table.columns[0]]}\n"
        below += "one data set (n = 1): a plain ranking, without a spread"
        below = "\n".join(textwrap.fill(line, 62) for line in below.split("\n"))
    if missing.to_numpy().any():
        below += (
            "; hollow: no value, so a shared last rank"
            if wide
            else "\nhollow: no value, so a shared last rank"
        )
    step = 0.6 / max(n - 1, 1)
    for y, method in enumerate(table.index):
        colour = KIND_COLOURS[kinds[method]]
        ax.barh(y, means[method] - 0.5, left=0.5, height=0.72, color=colour, alpha=0.22, lw=0, zorder=1)
        ax.plot([means[method]] * 2, [y - 0.36, y + 0.36], color=colour, lw=2, zorder=2)
        for i, dataset in enumerate(table.columns):
            point, marker = POINTS[i % len(POINTS)] if wide else (colour, "o")
            face = "white" if missing.loc[method, dataset] else point
            offset = (i - (n - 1) / 2) * step if wide else 0.0
            ax.plot(
                table.loc[method, dataset], y + offset, marker, ms=3.6, mfc=face, mec=point, mew=0.8, zorder=3
            )
    ax.set_yticks(range(k), [names[method] for method in table.index])
    for tick, method in zip(ax.get_yticklabels(), table.index, strict=True):
        tick.set_color(KIND_COLOURS[kinds[method]])
    ax.set(xlim=(0.5, k + 0.5), ylim=(k - 0.45, -0.55))
    ax.set_xlabel("rank (1 is best)", fontsize=7)
    ax.set_xticks(range(1, k + 1, -(-k // (20 if wide else 10))))  # numbers of two digits need room
    ax.tick_params(labelsize=7)
    ax.tick_params(axis="y", length=0)
    plain(ax, "x")
    if n >= DATASETS_FOR_CD:
        distance = nemenyi(k, n)
        below += f"\nCD: critical difference of mean ranks (Nemenyi, 5 %) {distance:.2f}, descriptive only"
        ax.set_ylim(k - 0.45, -1.5)
        ax.plot([1, 1 + distance], [-1, -1], color="k", lw=1.2, marker="|", ms=6)
        ax.text(1 + distance, -1, "  CD, descriptive", va="center", fontsize=SMALL)
    heading(fig, title, below)
    handles = [
        Line2D([], [], color=KIND_COLOURS[kind], lw=3, label=KIND_TITLES[kind])
        for kind in KIND_COLOURS
        if kind in {kinds[method] for method in table.index}
    ]
    if wide:
        handles += [
            Line2D([], [], ls="", marker=POINTS[i % len(POINTS)][1], color=POINTS[i % len(POINTS)][0], ms=4,
                   label=textwrap.shorten(called[dataset], 34, placeholder="…"))
            for i, dataset in enumerate(table.columns)
        ]  # fmt: skip
    ncols = 3 if wide else 2
    fig.legend(handles=handles, loc="outside lower left", ncols=ncols, frameon=False, fontsize=SMALL)
    return fig


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="rows.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="runs.csv")
    parser.add_argument("--claims", type=Path, required=True, help="claims.csv")
    parser.add_argument("--forest", type=Path, required=True, help="PNG to write; SVG stands beside it")
    parser.add_argument("--ranks", type=Path, nargs="+", required=True, help="PNG to write: <task>_ranks.png")
    args = parser.parse_args()

    rows, runs = pd.read_parquet(args.rows), pd.read_csv(args.runs)
    datasets, methods = declared()
    runs = runs[[not methods[name].get("variant") for name in runs["method"]]]
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    save(draw_forest(pd.read_csv(args.claims)), args.forest)
    used = set(runs["dataset"])
    called = {name: dataset_title(name, entry) for name, entry in datasets.items() if name in used}
    kinds = {name: entry["kind"] for name, entry in methods.items()}
    names = {name: entry["title"] for name, entry in methods.items()}
    for path in args.ranks:
        task = path.stem.removesuffix("_ranks")
        table, missing = ranks(rows, runs, task)
        title = f"Ranks of the methods: {task}"
        save(
            draw_ranks(table, missing, kinds, names, called, titles(*tasks.get(task).HEADLINE[0]), title),
            path,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
