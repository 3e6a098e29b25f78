"""Audits: known ways in which a benchmark of this kind misleads, each checked on what is at hand.

An audit is a pure function of a :class:`Case`: one task on one dataset, and what its methods gave. It
returns findings: a result, a number, and a sentence that says what was measured and no more. ``warn`` means
that a reader must know it before reading the numbers; ``not applicable`` says why there is nothing to check.

``L1`` to ``L19`` are threats that the literature on single-cell benchmarks names; ``A1`` to ``A7`` are checks
of this suite on itself. They stand in three modules by what they look at: :mod:`~workflow.audits.data`,
:mod:`~workflow.audits.scores` and :mod:`~workflow.audits.conduct`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from workflow import tasks

PASS, WARN, NOT_APPLICABLE = "pass", "warn", "not applicable"
COLUMNS = ["code", "task", "dataset", "method", "check", "result", "value", "sentence"]
MODULES = ("data", "scores", "conduct")
#: Differences of the headline metric that the suite calls none (the margins of its equivalence tests).
MARGIN = {"integration": 0.02, "annotation": 0.01}
KINDS_OF_CONTROLS = ("trivial", "oracle")


class Finding(NamedTuple):
    """What an audit found, of the dataset or of one method."""

    result: str
    value: float | None
    sentence: str
    method: str = ""


@dataclass
class Case:
    """One task on one dataset, and everything that an audit may look at.

    Attributes
    ----------
    task, dataset
        Names.
    entry
        Of datasets.yaml.
    methods
        Of methods.yaml, by name.
    prepared
        The record of the prepare step.
    given, solution
        What it wrote; None where the dataset could not be had.
    rows, runs
        Rows (one per run, metric and unit) and records of all methods on this dataset.
    units
        Truth and prediction of each query cell and seed, by method (annotation).
    fetched
        For each source what the fetch step knows of it.
    room
        What :mod:`workflow.room` measured.
    corpus
        Folder of a pre-training corpus, if one is given.
    """

    task: str
    dataset: str
    entry: dict
    methods: dict[str, dict]
    prepared: dict
    given: ad.AnnData | None
    solution: ad.AnnData | None
    rows: pd.DataFrame
    runs: pd.DataFrame
    units: dict[str, pd.DataFrame] = field(default_factory=dict)
    fetched: dict[str, dict] = field(default_factory=dict)
    room: dict = field(default_factory=dict)
    corpus: Path | None = None

    def __post_init__(self) -> None:
        # a variant is a defect switched on, for the sensitivity table; results are those of the others
        kept = [name for name, entry in self.methods.items() if not entry.get("variant")]
        self.rows = self.rows[self.rows["method"].isin(kept) & self.rows["value"].notna()]
        self.runs = self.runs[self.runs["method"].isin(kept)]

    @property
    def headline(self) -> tuple[str, str]:
        """Metric and implementation that tables show first."""
        return tasks.get(self.task).HEADLINE[0]

    @property
    def margin(self) -> float:
        return MARGIN[self.task]

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels that methods are not shown: of all cells (integration), of the query (annotation)."""
        assert self.solution is not None
        return self.solution.obs["label"].to_numpy(dtype=str)

    @cached_property
    def hidden(self) -> np.ndarray:
        """Which cells of the input they belong to, bool."""
        assert self.given is not None
        if self.task == "annotation":
            return (self.given.obs["split"] == "query").to_numpy()
        return np.ones(self.given.n_obs, dtype=bool)

    @property
    def ok(self) -> pd.DataFrame:
        """Runs that gave a value."""
        return self.runs[self.runs["status"] == "ok"]

    def title(self, method: str) -> str:
        return self.methods[method]["title"]

    def level(self, level: str, metric: str | None = None, impl: str | None = None) -> pd.DataFrame:
        """Return the rows of a level; of the headline metric unless another is named."""
        if metric is None:
            metric, impl = self.headline
        rows = self.rows
        keep = (rows["unit_level"] == level) & (rows["metric"] == metric)
        return rows[keep & (rows["metric_impl"] == impl)] if impl else rows[keep]

    def scores(self, metric: str | None = None, impl: str | None = None) -> pd.Series:
        """Return the value of each run, indexed by method and seed."""
        return self.level("run", metric, impl).set_index(["method", "seed"])["value"]

    def means(self, metric: str | None = None, impl: str | None = None) -> pd.Series:
        """Return the mean over seeds of each method, the best first."""
        means = self.scores(metric, impl).groupby(level="method", sort=False).mean()
        return means.sort_values(ascending=False, kind="stable")

    def kind(self, method: str) -> str:
        return self.methods[method]["kind"]

    def trained(self) -> dict[str, pd.DataFrame]:
        """Return the ok runs of each method that tells the story of its training."""
        told = self.ok[np.array([bool((info or {}).get("history")) for info in self.ok["info"]], dtype=bool)]
        return {str(method): runs for method, runs in told.groupby("method", sort=False)}


Audit = Callable[[Case], "Finding | Iterable[Finding]"]
AUDITS: dict[str, tuple[str, Audit]] = {}


def audit(code: str, check: str) -> Callable[[Audit], Audit]:
    """Enter a function under its code, with a short title."""

    def enter(function: Audit) -> Audit:
        AUDITS[code] = (check, function)
        return function

    return enter


def absent(sentence: str) -> Finding:
    """Return the finding that there is nothing to check."""
    return Finding(NOT_APPLICABLE, None, sentence)


def verdict(fine: bool) -> str:
    return PASS if fine else WARN


def points(difference: float) -> str:
    """Write a difference of a metric in points of a hundred."""
    return f"{100 * difference:.1f} points"


def codes() -> list[str]:
    """Return all codes in order: L1 to L19, A1 to A7."""
    for module in MODULES:
        importlib.import_module(f"workflow.audits.{module}")
    return sorted(AUDITS, key=lambda code: (code[0] != "L", int(code[1:])))


def run_audits(case: Case) -> pd.DataFrame:
    """Run every audit.

    Parameters
    ----------
    case
        What to audit. Where its dataset could not be prepared, every audit is not applicable and says why.

    Returns
    -------
    pandas.DataFrame
        The columns `COLUMNS`: one line for each audit, more where it looks at each method.
    """
    lines = []
    for code in codes():
        check, function = AUDITS[code]
        if case.given is None or case.solution is None:
            found: Iterable[Finding] = [absent(f"The dataset could not be had: {case.prepared['reason']}.")]
        else:
            answer = function(case)
            found = [answer] if isinstance(answer, Finding) else list(answer)
        for finding in found or [absent("No run of a method gave a value to look at.")]:
            line: dict = {"code": code, "task": case.task, "dataset": case.dataset, "method": finding.method}
            line |= {"check": check, "result": finding.result, "value": finding.value}
            lines.append(line | {"sentence": finding.sentence})
    return pd.DataFrame(lines, columns=COLUMNS).astype({"value": float})
