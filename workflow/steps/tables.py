"""Step 7a: the tables, as CSV for machines, Markdown, HTML and LaTeX for people, and the closing summary."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from workflow import gate, headline, html_tables, tasks
from workflow.declarations import WORKFLOW
from workflow.efficiency.analysis import OURS, PASSES, TITLES, efficiency_table, readable_curves
from workflow.files import atomic, read_json, write_text
from workflow.present import (
    KIND_TITLES,
    VERDICT_CLASSES,
    VERDICT_SIGNS,
    dataset_title,
    declared,
    read_scores,
    results_table,
    titles,
)

#: Shorter column titles for a terminal.
SHORT_TITLES = {
    "AvgBIO (Louvain ×20)": "AvgBIO Louvain",
    "AvgBIO (Leiden ×10)": "AvgBIO Leiden",
    "AvgBIO (k-means)": "AvgBIO k-means",
    "Macro precision": "Macro prec.",
    "Balanced accuracy": "Bal. acc.",
}


#: Stands where every seed gave the same value, in place of an interval of no width.
SAME = "(=)"
SAME_MEANS = f"{SAME} deterministic: the same on every seed, no interval over seeds."


def number(mean: float, low: float, high: float) -> str:
    """Write a mean and the half-width of its interval; a dash where there is no value."""
    if not np.isfinite(mean):
        return "–"
    if not np.isfinite(low):
        return f"{mean:.3f}"
    return f"{mean:.3f} {SAME}" if low == high else f"{mean:.3f} ± {(high - low) / 2:.3f}"


def runs_ok(ok: int, not_applicable: int, runs: int) -> str:
    """Count runs; one of which the method said that it cannot do the dataset is no failure."""
    if not_applicable and not_applicable == runs:
        return "not applicable"
    able = f"{ok} of {runs - not_applicable}"
    return f"{able}, {not_applicable} not applicable" if not_applicable else able


def duration(seconds: float) -> str:
    """Write seconds as people read them."""
    if not np.isfinite(seconds):
        return "–"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def readable(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Turn a results table into text: one column per thing that a person looks at."""
    out = pd.DataFrame()
    out["Method"] = table["title"]
    out["Kind"] = table["kind"].map(KIND_TITLES)
    for metric, impl in tasks.get(task).HEADLINE:
        key = f"{metric}|{impl}"
        columns = zip(table[key], table[f"{key}_low"], table[f"{key}_high"], strict=True)
        out[titles(metric, impl)] = [number(*v) for v in columns]
    if table["published"].notna().any():
        title = f"{titles(*tasks.get(task).HEADLINE[0])}, published"
        out[title] = [f"{v:.3f}" if np.isfinite(v) else "–" for v in table["published"]]
    counts = table[["runs_ok", "not_applicable", "runs"]].itertuples(index=False)
    out["Runs ok"] = [runs_ok(*count) for count in counts]
    out["Time"] = table["seconds"].map(duration)
    out["Peak memory"] = [f"{v:.0f} MB" if np.isfinite(v) else "–" for v in table["peak_memory_mb"]]
    notes = zip(table["note"], table["trouble"], strict=True)
    out["Note"] = ["; ".join(part for part in pair if part) for pair in notes]
    return out


def row_classes(kinds: pd.Series) -> list[str]:
    """Return how the row of each kind of method looks: ours stands out, controls stand back."""
    return ["ours" if kind == "ours" else KIND_TITLES[kind].split()[0] for kind in kinds]


def markdown(text: pd.DataFrame, title: str, caption: str) -> str:
    """Return a Markdown section; a note stands in the cell of the name that it belongs to."""
    text = text.replace({r"\|": "\\\\|"}, regex=True)
    if "Note" in text:
        name = text.columns[0]
        notes = [f" ({n})" if n else "" for n in text["Note"]]
        text = text.assign(**{name: text[name] + notes}).drop(columns="Note")
    return f"## {title}\n\n{caption}\n\n{text.to_markdown(index=False)}\n"


def claims_text(claims: pd.DataFrame) -> pd.DataFrame:
    """Turn the verdicts into text."""

    def ours(row: pd.Series) -> str:
        if not np.isfinite(row["ours"]):
            return "–"
        if row["ours"] > 1 and not np.isfinite(row["ours_low"]):  # a count, not a score
            return f"{row['ours']:,.0f}"
        return number(row["ours"], row["ours_low"], row["ours_high"])

    def difference(row: pd.Series) -> str:
        if not np.isfinite(row["delta"]):
            return "–"
        if not np.isfinite(row["delta_low"]):
            return f"{row['delta']:+.3f}"
        if row["delta_low"] == row["delta_high"]:
            return f"{row['delta']:+.3f} {SAME}"
        return f"{row['delta']:+.3f} [{row['delta_low']:+.3f}, {row['delta_high']:+.3f}]"

    departures = [f", {d.replace('; ', ', ')}" if d else "" for d in claims["departures"].fillna("")]
    trivial = [
        f"beaten by the control {name}" if beaten is True or beaten == "True" else ""
        for name, beaten in zip(claims["best_trivial"], claims["beaten_by_trivial"], strict=True)
    ]
    notes = zip(claims["reason"].fillna(""), trivial, strict=True)
    return pd.DataFrame(
        {
            "Claim": claims["claim_id"] + ": " + claims["text"],
            "Dataset": claims["dataset"].fillna(""),
            "Metric": claims["metric"].fillna(""),
            "Paper": [f"{v:.3f}" if np.isfinite(v) else "–" for v in claims["paper_value"]],
            "Ours": [ours(row) for _, row in claims.iterrows()],
            "Difference [95 %]": [difference(row) for _, row in claims.iterrows()],
            "Against": claims["comparator"].fillna(""),
            "Verdict": [
                f"{VERDICT_SIGNS[v]} {v}{d}" for v, d in zip(claims["verdict"], departures, strict=True)
            ],
            "Note": ["; ".join(filter(None, pair)) for pair in notes],
        }
    )


def write(
    folder: Path,
    stem: str,
    title: str,
    caption: str,
    csv: pd.DataFrame,
    text: pd.DataFrame,
    classes: list[str],
) -> None:
    """Write one table as CSV, Markdown and HTML."""
    with atomic(folder / f"{stem}.csv") as part:
        csv.to_csv(part, index=False)
    write_text(folder / f"{stem}.md", markdown(text, title, caption))
    table = html_tables.great_table(text, stem, title, caption, classes)
    write_text(folder / f"{stem}.html", html_tables.page(table, title))


def headlines_of(
    summary: pd.DataFrame, rows: pd.DataFrame, runs: pd.DataFrame, names: dict[str, str]
) -> list[headline.Headline]:
    """Return the headline table of each task; its title says which rows it lacks.

    Parameters
    ----------
    summary, rows, runs
        What the judge step wrote.
    names
        Title of each dataset.
    """
    published = pd.read_csv(WORKFLOW / "published.csv")
    rows = rows[["dataset", "method", "departures"]].drop_duplicates()
    apart: dict[tuple[str, str], str] = {}
    for dataset, method, departures in rows.fillna("").itertuples(index=False):
        # what is true of the dataset is true of all its rows, which stay comparable; so do rows that were
        # tuned, because every method had as many trials
        parts = departures.split("; ")
        own = [part for part in parts if part and "dataset" not in part and part != "tuned parameters"]
        if own:
            apart[(dataset, method)] = ", ".join(own)
    tables = []
    for task in summary["task"].unique():
        mine = summary[summary["task"] == task]
        lacks = gate.lacks(gate.missing(summary, runs, task), names, mine["dataset"].nunique())
        metrics = tasks.get(task).PAPER_TABLE
        tables.append(headline.build(task, mine, metrics, published, apart, lacks))
    return tables


def write_headline(folder: Path, table: headline.Headline, names: dict[str, str]) -> None:
    """Write a headline table in its four forms."""
    stem = f"headline_{table.task}"
    with atomic(folder / f"{stem}.csv") as part:
        table.cells.to_csv(part, index=False)
    write_text(folder / f"{stem}.md", headline.to_markdown(table, names))
    write_text(folder / f"{stem}.tex", headline.to_latex(table, names))
    great = headline.to_great_table(table, names)
    write_text(folder / f"{stem}.html", html_tables.page(great, table.title))


def console_table(text: pd.DataFrame, title: str, columns: list[str]) -> Table:
    """Return a table for a terminal; claims and verdicts may wrap, numbers never do."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        left = column in ("Method", "Claim", "On", "Verdict")
        table.add_column(
            column, justify="left" if left else "right", no_wrap=column not in ("Claim", "Verdict")
        )
    for _, row in text.iterrows():
        table.add_row(*(row[column] for column in columns))
    return table


def failures(runs: pd.DataFrame) -> list[str]:
    """Return a line for each run that gave no value; for a dataset that cannot be had, one line for all."""
    bad = runs[runs["status"] != "ok"]
    no_data = bad[bad["status"] == "no_data"]
    lines = [
        f"{dataset}: no_data: {reason} ({len(mine)} {'run' if len(mine) == 1 else 'runs'})"
        for (dataset, reason), mine in no_data.groupby(["dataset", "reason"], sort=False)
    ]
    for _, run in bad[bad["status"] != "no_data"].iterrows():
        lines.append(f"{run['run_id']}: {run['why'] or run['status']}: {run['reason']}")
    return lines


def summary(
    sections: list[tuple[str, pd.DataFrame, pd.Series]],
    claims: pd.DataFrame,
    runs: pd.DataFrame,
    results: Path,
) -> str:
    """Return the text that ends a run: results, verdicts, what failed, and where everything lies.

    A section is a title, the text of a results table, and the note of each of its methods.
    """
    console = Console(width=120, record=True, file=io.StringIO(), highlight=False)
    for title, text, notes in sections:
        hidden = ("Kind", "Note", "Peak memory")
        shown = [column for column in text.columns if column not in hidden]
        short = text.rename(columns=SHORT_TITLES)
        console.print(console_table(short, title, [SHORT_TITLES.get(c, c) for c in shown]))
        for method, note in zip(text["Method"], notes, strict=True):
            if note:  # what failed stands below, once
                console.print(f"  {method}: {note}", style="dim", markup=False)
        console.print()
    decided = claims_text(claims[~claims["verdict"].isin(["NOT RUN", "NOT TESTABLE"])])
    # A claim that rests on no dataset is told apart by what it is about.
    decided["On"] = decided["Dataset"].where(decided["Dataset"] != "", decided["Metric"])
    console.print(console_table(decided, "Verdicts", ["Claim", "On", "Difference [95 %]", "Verdict"]))
    count = claims["verdict"].value_counts()
    waiting = [f"{count[v]} {v}" for v in ("NOT RUN", "NOT TESTABLE") if v in count]
    if waiting:
        console.print(f"and {', '.join(waiting)}; {results}/tables/claims.md says why")
    if SAME in console.export_text(clear=False):
        console.print(SAME_MEANS, style="dim")
    ok, not_applicable = (int((runs["status"] == word).sum()) for word in ("ok", "not_applicable"))
    able = f"{ok} of {len(runs) - not_applicable} runs ok"
    apart = f", {not_applicable} not applicable" if not_applicable else ""
    console.print(f"\n{able}{apart}", style="bold")
    for line in failures(runs):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    console.print(f"page     {results}/index.html\ntables   {results}/tables/\nfigures  {results}/figures/")
    return console.export_text()


def caption_of(n_seeds: int) -> str:
    """Say what stands in the cells of a results table."""
    if n_seeds == 1:
        cells = "One seed, so there is no interval"
    else:
        cells = f"Mean over {n_seeds} seeds ± half of its 95 % interval (of labels: over seeds and cells)"
        cells += f". {SAME_MEANS[:-1]}"
    return f"{cells}. Higher is better, range 0 to 1. Time and peak memory: median of one run."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--claims", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True, help="summary.csv of the judge step")
    parser.add_argument("--efficiency", type=Path, nargs="?", help="measurements.json, if it was measured")
    parser.add_argument("--results", type=Path, required=True, help="folder of this selection")
    args = parser.parse_args()

    folder = args.results / "tables"
    rows, runs = read_scores(args.scores)
    claims, summaries = pd.read_csv(args.claims), pd.read_csv(args.summary)
    datasets, _ = declared()
    sections = []
    for task, dataset in runs[["task", "dataset"]].drop_duplicates().itertuples(index=False):
        table = results_table(summaries, runs, task, dataset)
        text = readable(table, task)
        title = f"{dataset_title(dataset, datasets[dataset])}: {task}"
        caption = caption_of(runs.loc[runs["dataset"] == dataset, "seed"].nunique())
        caption += " " + datasets[dataset].get("note", "")
        write(folder, f"{task}_{dataset}", title, caption, table, text, row_classes(table["kind"]))
        sections.append((title, text, table["note"]))
    names = {name: dataset_title(name, entry) for name, entry in datasets.items()}
    for made in headlines_of(summaries, rows, runs, names):
        write_headline(folder, made, names)
    if args.efficiency:
        record = read_json(args.efficiency)
        table, text, caption = efficiency_table(record)
        css = ["ours" if name == TITLES[OURS] else "" for name in text["Method"]]
        write(folder, "efficiency", "Efficiency", caption, table, text, css)
        for what in record["settings"]["passes"]:
            curves = readable_curves(record, what, "time")
            sections.append((f"Efficiency: time per cell, {PASSES[what]}", curves, curves["Note"]))
    waiting = claims["verdict"].map({"NOT TESTABLE": 1, "NOT RUN": 2}).fillna(0)
    claims = claims.iloc[np.argsort(waiting, kind="stable")]
    text = claims_text(claims)
    caption = (
        "One line per claim, dataset and metric, decided ones first. Claims of the paper have the ids A, B, "
        "M, P and R; S are questions of this suite. Verdicts are computed from the rows of this run, with "
        'two exceptions: where the note says "no run enters this verdict", statements of the paper are '
        "compared with each other and with a number that we counted without a run; and NOT TESTABLE was "
        "declared before the runs. Difference: subject minus the comparator against which it fares worst, "
        f"paired by seed. {SAME_MEANS}"
    )
    classes = [VERDICT_CLASSES[verdict] for verdict in claims["verdict"]]
    write(folder, "claims", "Verdicts", caption, claims, text, classes)
    write_text(folder / "summary.txt", summary(sections, claims, runs, args.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
