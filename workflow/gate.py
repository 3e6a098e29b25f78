"""The release gate: a headline table that lacks a baseline which could embarrass the paper is no result.

Pure functions. Which rows a table must have stands beside its metrics: ``MUST_HAVE`` of each module in
:mod:`workflow.tasks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from workflow import tasks


class Missing(NamedTuple):
    """A row that a headline table must have and has not, or has without a value."""

    task: str
    dataset: str
    name: str
    methods: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        named = " or ".join(self.methods)
        return f"{self.task} on {self.dataset}: no value for {self.name} ({named}): {self.why}"


def _why(runs: pd.DataFrame, task: str, dataset: str, methods: Sequence[str]) -> str:
    """Say why none of the methods gave a value, as their runs tell it."""
    mine = runs[(runs["task"] == task) & (runs["dataset"] == dataset) & runs["method"].isin(methods)]
    if mine.empty:
        return "not in this selection"
    bad = mine[mine["status"] != "ok"]
    if bad.empty and _from_scratch(mine, task):
        return "it was trained from scratch (pretrained: false)"
    if bad.empty:
        return "its runs ended well and gave no finite score"
    first = bad.iloc[0]
    words = [first["why"] if pd.notna(first["why"]) else "", first["reason"]]
    return ": ".join(str(w) for w in [words[0] or first["status"], words[1]] if pd.notna(w) and w)


def _from_scratch(runs: pd.DataFrame, task: str) -> set[tuple[str, str]]:
    """Return the (dataset, method) pairs whose published weights the configuration has switched off."""
    if "changed_params" not in runs:
        return set()
    # each a dict, or the text of one, from runs.csv
    off = np.array(["'pretrained'" in str(changed) for changed in runs["changed_params"]], dtype=bool)
    mine = runs[off & (runs["task"] == task).to_numpy()]
    return set(zip(mine["dataset"], mine["method"], strict=True))


def missing(
    summary: pd.DataFrame,
    runs: pd.DataFrame,
    task: str,
    must_have: Sequence[tuple[str, Sequence[str]]] | None = None,
) -> list[Missing]:
    """Return what the headline table of a task lacks, dataset by dataset.

    A method whose weights are switched off (``pretrained: false``) counts as its arm from scratch.

    Parameters
    ----------
    summary
        ``summary.csv``: a row counts if it has a finite mean of the task's first headline metric.
    runs
        ``runs.csv``, which says why a row has no value.
    task
        Its name.
    must_have
        Pairs of a name for people and the methods that satisfy it; the task's own where left out.
    """
    module = tasks.get(task)
    metric, impl = module.HEADLINE[0]
    asked = module.MUST_HAVE if must_have is None else must_have
    mine = summary[summary["task"] == task]
    found = mine[(mine["metric"] == metric) & (mine["metric_impl"] == impl)]
    found = found[np.isfinite(found["mean"].astype(float))]
    there = set(zip(found["dataset"], found["method"], strict=True))
    scratch = there & _from_scratch(runs, task)
    there = (there - scratch) | {(dataset, f"{method}_scratch") for dataset, method in scratch}
    return [
        Missing(task, dataset, name, tuple(methods), _why(runs, task, dataset, methods))
        for dataset in mine["dataset"].unique()
        for name, methods in asked
        if not any((dataset, method) in there for method in methods)
    ]


def lacks(rows: Sequence[Missing], titles: dict[str, str], n_datasets: int) -> str:
    """Put what is missing into the words that stand in a title; empty if nothing is.

    A row that is missing on every dataset is named alone, else together with the datasets.
    """
    by_name: dict[str, list[str]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(titles.get(row.dataset, row.dataset))
    words = [
        name if len(on) == n_datasets else f"{name} on {' and '.join(on)}" for name, on in by_name.items()
    ]
    return f"incomplete: lacks {', '.join(words)}" if words else ""
