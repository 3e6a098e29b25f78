"""What tables and figures share: names, summaries over seeds, and words for what did not run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow import tasks
from workflow.declarations import WORKFLOW, load_methods, load_yaml
from workflow.files import read_json

#: What people call a metric. Every one lies in [0, 1] and higher is better.
METRIC_TITLES = {
    "avg_bio": "AvgBIO",
    "avg_batch": "AvgBATCH",
    "ilisi": "iLISI",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "balanced_accuracy": "Balanced accuracy",
}
#: What distinguishes the implementations that stand side by side.
IMPL_TITLES = {
    "scib-1.1.5": "Louvain ×20",
    "scib-1.1.7": "Leiden ×10",
    "scib-metrics": "k-means",
}
KIND_TITLES = {
    "ours": "SC-MAMBA2",
    "foundation": "foundation model",
    "deep": "deep",
    "classical": "classical",
    "trivial": "control",
    "oracle": "oracle",
}
#: Okabe and Ito's colours, distinguishable with every common colour blindness.
KIND_COLOURS = {
    "ours": "#D55E00",
    "foundation": "#CC79A7",
    "deep": "#0072B2",
    "classical": "#009E73",
    "trivial": "#7F7F7F",
    "oracle": "#000000",
}
VERDICT_SIGNS = {
    "REPRODUCED": "✔", "SUPPORTED": "✔", "DIRECTION ONLY": "◐", "VALUE ONLY": "◐", "TIE": "=",
    "REVERSED": "✘", "NOT REPRODUCED": "✘", "INCONSISTENT": "≠", "INCONCLUSIVE": "?",
    "NOT TESTABLE": "∅", "NOT RUN": "–",
}  # fmt: skip


#: The verdicts in the order of the page: what holds, what holds in part, what fails, what is open. A
#: class is a colour; a sign or a shape in the cell says the same without it.
VERDICT_CLASSES = {
    "REPRODUCED": "holds",
    "SUPPORTED": "holds",
    "DIRECTION ONLY": "partly",
    "VALUE ONLY": "partly",
    "TIE": "partly",
    "REVERSED": "fails",
    "NOT REPRODUCED": "fails",
    "INCONSISTENT": "fails",
    "INCONCLUSIVE": "open",
    "NOT TESTABLE": "open",
    "NOT RUN": "open",
}


def titles(metric: str, impl: str) -> str:
    """Return the column title of a metric; the clustering rule stands in it where it matters."""
    title = METRIC_TITLES.get(metric, metric)
    return f"{title} ({IMPL_TITLES[impl]})" if metric == "avg_bio" else title


def declared() -> tuple[dict, dict]:
    """Return the datasets and the methods that are declared, modes and variants among these."""
    return load_yaml(WORKFLOW / "datasets.yaml", "datasets"), load_methods()


def dataset_title(name: str, entry: dict) -> str:
    """Return the title of a dataset; labels of our making are called derived wherever it stands."""
    return entry["title"] + (", derived labels" if entry.get("labels") == "derived" else "")


def read_scores(paths: Iterable[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read what the score step wrote.

    Parameters
    ----------
    paths
        The Parquet file of each method; the records of its runs stand beside it as JSON.

    Returns
    -------
    rows
        One row per run, metric and unit.
    runs
        One row per run, whatever became of it.
    """
    files = [Path(path) for path in paths]
    frames = [pd.read_parquet(path) for path in files]
    rows = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    records = [run for path in files for run in read_json(path.with_suffix(".json"))]
    runs = pd.DataFrame(records)
    for column in ("info", "seconds", "cpu_seconds", "peak_memory_mb", "peak_gpu_memory_mb"):
        if column not in runs:
            runs[column] = None
    runs["info"] = [info if isinstance(info, dict) else {} for info in runs["info"]]
    numbers = ["seconds", "cpu_seconds", "peak_memory_mb", "peak_gpu_memory_mb"]
    runs[numbers] = runs[numbers].astype(float)
    return rows, runs


def read_units(paths: Iterable[str | Path]) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Read the predictions of cells beside the scores, by (task, dataset, method); where there are some."""
    found = {}
    for path in map(Path, paths):
        table = pd.read_parquet(path.with_suffix(".units.parquet"))
        if len(table):
            found[(path.parents[1].name, path.parent.name, path.stem)] = table
    return found


def without_probes(runs: pd.DataFrame) -> pd.DataFrame:
    """Take out of time and energy what a run spent on this suite's own questions, which serve no result.

    Parameters
    ----------
    runs
        Records of runs; ``info["probe_seconds"]`` says how long a method was busy with probes (other epochs,
        other orders of the genes).

    Returns
    -------
    pandas.DataFrame
        The same runs. Of probes only the wall clock is known: all else loses the same share as the time.
    """
    runs = runs.copy()
    probes = pd.Series([info.get("probe_seconds", 0.0) for info in runs["info"]], runs.index, dtype=float)
    share = 1 - (probes / runs["seconds"].astype(float)).clip(0, 1)
    for column in ("seconds", "cpu_seconds", "gpu_seconds", "cpu_energy_wh", "gpu_energy_wh"):
        if column in runs:
            runs[column] = runs[column].astype(float) * share
    return runs


def method_note(runs: pd.DataFrame) -> str:
    """Return what must stand beside a method's name: its scale, and every changed parameter."""
    notes = list(dict.fromkeys(info["scale"] for info in runs["info"] if info.get("scale")))[:1]
    first = runs.iloc[0]
    for key, declared_value in first["changed_params"].items():
        notes.append(f"{key} {first['params'][key]}, not {declared_value}")
    return "; ".join(notes)


def trouble(runs: pd.DataFrame) -> str:
    """Return why runs gave no value: one phrase per distinct status, empty if all are ok."""
    bad = runs[runs["status"] != "ok"]
    # why a dataset cannot be had may fill a page, and the summary says it whole
    short = bad["reason"].map(lambda text: textwrap.shorten(text, 200, placeholder=" …"))
    reason = bad["reason"].where(bad["status"] != "no_data", short)
    words = (bad["why"].where(bad["why"] != "", bad["status"]) + ": " + reason).unique()
    return "; ".join(words)


def published(dataset: str, metric: str) -> dict[str, float]:
    """Return the value that the paper gives for each method on a dataset."""
    table = pd.read_csv(WORKFLOW / "published.csv")
    mine = (table["dataset"] == dataset) & (table["metric"] == metric)
    mine &= table["source_kind"] == "paper"
    return dict(zip(table.loc[mine, "method"], table.loc[mine, "value"], strict=True))


def results_table(summary: pd.DataFrame, runs: pd.DataFrame, task: str, dataset: str) -> pd.DataFrame:
    """Summarise one dataset: a line per method, the best headline first, failed methods last.

    A mode of a method is a line; variants of defects and conflicts stand in the sensitivity table only.

    Parameters
    ----------
    summary
        What the judge step wrote: every method's means with their intervals.
    runs
        One record per run.
    task, dataset
        Which.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``title``, ``kind``, ``note``; ``runs``, of which ``runs_ok`` and ``not_applicable``;
        ``trouble``: why the others gave no value; for each headline
        metric ``<metric>|<impl>`` with ``_low`` and ``_high`` (95 % interval); median
        ``seconds`` (without the suite's own probes) and ``peak_memory_mb``; ``published``: the paper's
        value of the first headline metric.
    """
    _, methods = declared()
    summary = summary[(summary["task"] == task) & (summary["dataset"] == dataset)]
    means = summary.set_index(["method", "metric", "metric_impl"])[["mean", "low", "high"]]
    runs = runs[(runs["task"] == task) & (runs["dataset"] == dataset)]
    headline = tasks.get(task).HEADLINE
    said = published(dataset, headline[0][0])
    lines = []
    for method, mine in runs.groupby("method", sort=False):
        if methods[method].get("variant"):
            continue
        ok = without_probes(mine[mine["status"] == "ok"])
        line: dict[str, Any] = {
            "method": method,
            "title": methods[method]["title"],
            "kind": methods[method]["kind"],
            "note": method_note(mine),
            "runs_ok": len(ok),
            "not_applicable": int((mine["status"] == "not_applicable").sum()),
            "runs": len(mine),
            "trouble": trouble(mine),
            "seconds": ok["seconds"].median() if len(ok) else np.nan,
            "peak_memory_mb": ok["peak_memory_mb"].median() if len(ok) else np.nan,
            "published": said.get(method, np.nan),
        }
        for metric, impl in headline:
            mean, low, high = means.loc[(method, metric, impl)]
            key = f"{metric}|{impl}"
            line |= {key: mean, f"{key}_low": low, f"{key}_high": high}
        lines.append(line)
    first = "|".join(headline[0])
    return pd.DataFrame(lines).sort_values(first, ascending=False, ignore_index=True, kind="stable")
