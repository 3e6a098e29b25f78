"""Turn tidy results into one verdict for each claim, data set and metric.

The rules, for a claim that a subject beats its comparators on a metric where higher is better:

value      MATCH (the paper's value lies in our interval), NEAR (within ``delta_eq`` of our mean),
           HIGHER or LOWER (ours is), WIDE (the interval is longer than ``4 * delta_eq``).
direction  of the paired difference: TIE (its 90 % interval lies so close to 0 that the two count as
           equal, see `equal_up_to`), else SUPPORTED (the 95 % interval lies above 0), REVERSED
           (below), else INCONCLUSIVE.
margin     is the claimed advantage inside the interval of ours: yes, no, or wide.
verdict    REPRODUCED, DIRECTION ONLY, VALUE ONLY, NOT REPRODUCED, INCONCLUSIVE, NOT TESTABLE,
           NOT RUN or INCONSISTENT; for a question of the suite the word of the direction.

A claim that consists of statements about one quantity is judged by the statements alone, without a
run (`judge_statements`). Where every seed gives the same difference the interval has no width and
says nothing about chance; `reason` says so. A missing or NaN number never turns into a verdict: its
place stays empty and `reason` says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workflow.efficiency.analysis import judge_efficiency
from workflow.statistics import ROUNDING_NOISE, Interval, mean_t_interval, paired_difference

#: The implementation of each metric that verdicts rest on; the others serve as sensitivity rows.
HEADLINE: dict[str, str] = {
    "avg_bio": "scib-1.1.5",
    "avg_batch": "scib",
    "accuracy": "sklearn",
    "macro_precision": "sklearn-union",
    "macro_recall": "sklearn-union",
    "macro_f1": "sklearn-union",
}

#: Two statements of the paper about one quantity may differ by this share of the larger one.
STATEMENT_TOLERANCE = 0.05

COLUMNS = [
    "claim_id", "source", "text", "task", "dataset", "metric", "metric_impl", "subject",
    "comparator", "paper_value", "ours", "ours_low", "ours_high", "n_seeds",
    "comparator_value_ours", "delta", "delta_low", "delta_high", "p_value", "claimed_margin",
    "value_verdict", "direction_verdict", "margin_verdict", "verdict", "reason",
    "departures", "best_trivial", "best_trivial_value", "beaten_by_trivial",
]  # fmt: skip

#: From the word that a claim can least afford to the one that it asks for.
_SEVERITY = ["REVERSED", "TIE", "INCONCLUSIVE", "SUPPORTED"]
_STATUS = {
    "failed": "failed on",
    "not_applicable": "is not applicable to",
    "not_installed": "is not installed, so it did not run on",
    "no_data": "found no data for",
    "not_run": "did not run on",
}


class Comparison(NamedTuple):
    """The subject against one comparator, over the seeds that both have."""

    method: str
    mean: float
    difference: Interval
    p_value: float
    equal_up_to: float
    deterministic: bool
    direction: str


def value_verdict(ours: Interval, paper_value: float | None, rounding: float, delta_eq: float) -> str | None:
    """Set the paper's value beside our interval; None where one of them is missing."""
    if paper_value is None or not np.isfinite([paper_value, ours.mean]).all():
        return None
    if not np.isfinite([ours.low, ours.high]).all():
        return "WIDE"  # one seed has no interval
    if ours.low - rounding <= paper_value <= ours.high + rounding:
        return "MATCH" if ours.width <= 4 * delta_eq else "WIDE"
    if abs(ours.mean - paper_value) <= delta_eq:
        return "NEAR"
    return "HIGHER" if ours.mean > paper_value else "LOWER"


def claimed_advantages(margin: float | None, kind: str, comparator: float) -> list[float]:
    """The advantage in the paper's words as a difference: one number for each reading of the words."""
    if margin is None:
        return []
    readings = {"abs": [margin], "rel": [margin * comparator]}
    return readings.get(kind, [margin, margin * comparator])


def equal_up_to(delta_eq: float, claimed: Iterable[float]) -> float:
    """The largest difference that counts as a tie: ``delta_eq``, or half of the claimed advantage.

    The paper claims some advantages that are smaller than ``delta_eq`` (.015 of AvgBIO, at .02). With
    ``delta_eq`` alone, the better such an advantage were measured the surer it would be called a tie.
    """
    return min([delta_eq, *(advantage / 2 for advantage in claimed)])


def direction_verdict(at_95: Interval, at_90: Interval, equal: float) -> str:
    """Read the direction off the intervals of one paired difference.

    TIE is the test of equivalence at 5 %: both one-sided tests reject exactly if the 90 % interval
    lies inside the margin ``equal`` (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680). It
    comes first, because a narrow interval lies on one side of 0 however small the difference is.
    """
    if -equal <= at_90.low and at_90.high <= equal:
        return "TIE"
    if at_95.low > 0:
        return "SUPPORTED"
    if at_95.high < 0:
        return "REVERSED"
    return "INCONCLUSIVE"


def margin_verdict(
    difference: Interval, comparator: float, margin: float | None, kind: str, delta_eq: float
) -> str | None:
    """Is the claimed advantage inside the interval of ours? None where a number is missing."""
    if margin is None or not np.isfinite([difference.low, difference.high, comparator]).all():
        return None
    claimed = claimed_advantages(margin, kind, comparator)
    if not any(difference.low <= value <= difference.high for value in claimed):
        return "no"
    return "yes" if difference.width <= 4 * delta_eq else "wide"


def overall_verdict(value: str | None, direction: str | None) -> str:
    """Combine the words on value and direction; None means that the claim has no such part."""
    matches = value in ("MATCH", "NEAR")
    if direction is None:
        if matches:
            return "REPRODUCED"
        return "NOT REPRODUCED" if value in ("HIGHER", "LOWER") else "INCONCLUSIVE"
    if direction == "SUPPORTED":
        return "REPRODUCED" if matches else "DIRECTION ONLY"
    if direction == "INCONCLUSIVE":
        return "INCONCLUSIVE"
    return "VALUE ONLY" if matches else "NOT REPRODUCED"


def arithmetic_note(claim: Mapping[str, Any]) -> str:
    """Compute the gain between the paper's two values and set it beside the gain in its words."""
    low, high = claim["arithmetic"]["percent"]
    base, value = claim["comparator_value"], claim["paper_value"]
    percent = 100 * (value - base) / base
    says = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    fits = low - 0.005 <= percent <= high + 0.005  # the words have two decimals at most
    link = "which agrees with" if fits else "but the text says"
    points = f"{100 * (value - base):.1f} points"
    return f"{base:g} to {value:g} is {percent:.3g} percent ({points}), {link} {says} percent"


def judge_statements(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the values that the paper gives for one quantity, and ours where there is one: no run."""
    values = [s["value"] for s in claim["statements"]]
    apart = (max(values) - min(values)) / max(values)
    said = ", ".join(f"{s['value']:,} ({s['where']})" for s in claim["statements"])
    notes = ["no run enters this verdict", f"the paper says {said}: up to {100 * apart:.2g} percent apart"]
    line: dict[str, Any] = {"verdict": "INCONSISTENT" if apart > STATEMENT_TOLERANCE else "NOT RUN"}
    if "computed" in claim:
        ours = line["ours"] = sum(claim["computed"]["parts"])
        notes.append(f"ours is {ours:,} ({claim['computed']['how']})")
        if apart <= STATEMENT_TOLERANCE:
            # a number that holds is no run: REPRODUCED stays out of reach
            near = all(abs(v - ours) <= STATEMENT_TOLERANCE * max(v, ours) for v in values)
            line["value_verdict"] = "NEAR" if near else "HIGHER" if ours > max(values) else "LOWER"
            line["verdict"] = "VALUE ONLY" if near else "NOT REPRODUCED"
    return line | {"reason": "; ".join([*notes, *([claim["note"]] if "note" in claim else [])])}


@dataclass(frozen=True)
class _Results:
    """The tables, with the questions that a verdict asks of them."""

    rows: pd.DataFrame
    runs: pd.DataFrame
    datasets: frozenset[str]
    methods: frozenset[str]
    selected: frozenset[tuple[str, str, str]]
    mode: str

    def cut(self, task: str, dataset: str, metric: str) -> pd.DataFrame:
        """Finite rows of the headline implementation, one value for each run."""
        rows = self.rows
        keep = (rows["task"] == task) & (rows["dataset"] == dataset) & (rows["metric"] == metric)
        keep &= (rows["metric_impl"] == HEADLINE.get(metric)) & (rows["unit_level"] == "run")
        keep &= (rows["mode"] == self.mode) & np.isfinite(rows["value"].astype(float))
        cut = rows[keep]
        twice = cut[cut.duplicated(["method", "seed"])]
        if len(twice):
            one = twice.iloc[0]
            raise ValueError(
                f"{one['method']} on {dataset} has two values of {metric} for seed {one['seed']}"
            )
        return cut

    def absent(self, task: str, dataset: str, metric: str, method: str) -> str:
        """Why there is no value, as one sentence; empty if there is one."""
        if not dataset:
            return f"task {task} is not in the suite yet"
        if dataset not in self.datasets:
            return f"dataset {dataset} is not in the suite yet"
        if method not in self.methods:
            return f"method {method} is not in the suite yet"
        if metric not in HEADLINE:
            return f"metric {metric or 'of this claim'} is not in the suite yet"
        if not any((task, dataset) == (t, d) for t, d, _ in self.selected):
            return f"dataset {dataset} is not in this selection"
        if (task, dataset, method) not in self.selected:
            return f"method {method} is not in this selection"
        cut = self.cut(task, dataset, metric)
        if (cut["method"] == method).any():
            return ""
        return self.trouble(task, dataset, metric, method)

    def trouble(self, task: str, dataset: str, metric: str, method: str) -> str:
        """Why a run gave no value: the first that did not end well, as one sentence."""
        mine = self.records(task, dataset, method)
        bad = mine[mine["status"] != "ok"].sort_values("seed")
        if mine.empty:
            return f"{method} has no run on {dataset}"
        if bad.empty:
            what = f"{metric} ({HEADLINE[metric]}, mode {self.mode})"
            return f"{method} ran on {dataset} without a finite {what}"
        first = bad.iloc[0]
        status = _STATUS.get(first["status"], f"is {first['status']} on")
        why = ": ".join(str(w) for w in (first["why"], first["reason"]) if w and pd.notna(w))
        return f"{method} {status} {dataset}" + (f" ({why})" if why else "")

    def records(self, task: str, dataset: str, method: str) -> pd.DataFrame:
        """The runs of a method on a data set, whatever became of them."""
        runs = self.runs
        mine = (runs["task"] == task) & (runs["dataset"] == dataset) & (runs["method"] == method)
        return runs[mine]


def _by_seed(cut: pd.DataFrame, method: str) -> pd.Series:
    mine = cut[cut["method"] == method]
    return pd.Series(mine["value"].to_numpy(float), index=mine["seed"].to_numpy())


def _compare(
    cut: pd.DataFrame, subject: str, other: str, claim: Mapping[str, Any], margin: float | None
) -> Comparison:
    a, b = _by_seed(cut, subject), _by_seed(cut, other)
    at_95, p_value = paired_difference(a, b)
    at_90, _ = paired_difference(a, b, level=0.90)
    claimed = claimed_advantages(margin, claim.get("margin_kind", "abs"), float(b.mean()))
    equal = equal_up_to(claim["delta_eq"], claimed)
    enough = at_95.n >= claim["min_seeds"]
    word = direction_verdict(at_95, at_90, equal) if enough else "INCONCLUSIVE"
    same = bool(at_95.sd == 0 and a.nunique() == b.nunique() == 1)
    return Comparison(other, float(b.mean()), at_95, p_value, equal, same, word)


def _trivial(cut: pd.DataFrame, subject: str, ours: float) -> dict[str, Any]:
    """The best baseline that learns nothing (an oracle is not one), and whether it beats us."""
    trivial = cut[(cut["method_kind"] == "trivial") & (cut["method"] != subject)]
    if trivial.empty:
        return {}
    means = trivial.groupby("method")["value"].mean().astype(float)
    best, value = str(means.idxmax()), float(means.max())
    return {
        "best_trivial": best,
        "best_trivial_value": value,
        "beaten_by_trivial": bool(value > ours + ROUNDING_NOISE),
    }


def _measured(
    claim: Mapping[str, Any], dataset: str, metric: str, margin: float | None, results: _Results
) -> dict[str, Any]:
    """Judge a claim by its runs."""
    task, subject = claim["task"], claim.get("subject", "scmamba2")
    others = claim.get("comparator", [])
    why_not = results.absent(task, dataset, metric, subject)
    if not why_not and "subgroup" in claim:
        why_not = f"subgroup {claim['subgroup']} is not in the suite yet"
    if why_not:
        return {"verdict": "NOT RUN", "reason": why_not}

    cut = results.cut(task, dataset, metric)
    ours = mean_t_interval(_by_seed(cut, subject))
    line: dict[str, Any] = dict(ours=ours.mean, ours_low=ours.low, ours_high=ours.high)
    line |= {"n_seeds": ours.n} | _trivial(cut, subject, ours.mean)
    absent = {other: results.absent(task, dataset, metric, other) for other in others}
    ran = [other for other in others if not absent[other]]
    notes = [f"not compared with {other}: {why}" for other, why in absent.items() if why]
    departures = "; ".join(cut.loc[cut["method"].isin([subject, *ran]), "departures"].unique())
    line["departures"] = "; ".join(dict.fromkeys(filter(None, departures.split("; "))))
    delta_eq = claim.get("delta_eq", 0.0)
    if not line["departures"]:
        rounding = claim.get("rounding", 0.0)
        line["value_verdict"] = value_verdict(ours, claim.get("paper_value"), rounding, delta_eq)
    value = line.get("value_verdict")

    n, asked = ours.n, claim.get("min_seeds", 2)
    if ran:
        # the comparator against which the claim fares worst speaks for all
        compared = [_compare(cut, subject, other, claim, margin) for other in ran]
        worst = min(compared, key=lambda c: (_SEVERITY.index(c.direction), c.difference.mean))
        delta, n = worst.difference, worst.difference.n
        kind = claim.get("margin_kind", "abs")
        direction = worst.direction
        if direction == "SUPPORTED" and len(ran) < len(others):
            direction = "INCONCLUSIVE"
        line |= dict(comparator=worst.method, comparator_value_ours=worst.mean, n_seeds=n)
        line |= dict(delta=delta.mean, delta_low=delta.low, delta_high=delta.high)
        line |= dict(p_value=worst.p_value, direction_verdict=direction)
        line["margin_verdict"] = margin_verdict(delta, worst.mean, margin, kind, delta_eq)
        line["verdict"] = overall_verdict(value, direction)
        if claim["source"] == "suite":
            line["verdict"] = direction
        if delta.sd == 0:
            what = "deterministic" if worst.deterministic else "the same difference on every seed"
            notes.append(f"{what}: no interval over seeds")
        if direction == "TIE" and (delta.low > 0 or delta.high < 0):
            sign = "above" if delta.low > 0 else "below"
            notes.append(f"the difference lies {sign} 0, but up to {worst.equal_up_to:g} counts as equal")
    elif others:
        line["verdict"] = "NOT RUN"
    else:
        line["verdict"] = overall_verdict(value, None) if n >= asked else "INCONCLUSIVE"
    if n < asked:
        notes.append(f"{n} of {asked} seeds that the claim asks for")
    for method in [subject, *ran]:
        have = (cut["method"] == method).sum()
        planned = len(results.records(task, dataset, method))
        if have < planned:
            why_not = results.trouble(task, dataset, metric, method)
            notes.append(f"{have} of {planned} runs of {method} gave a value: {why_not}")
    return line | {"reason": "; ".join(notes)}


def _expand(
    claim: Mapping[str, Any], selected: Iterable[tuple[str, str, str]]
) -> Iterator[tuple[str, str, float | None]]:
    """Yield every (dataset, metric, claimed margin) that the claim is decided on."""
    named = claim.get("dataset", "")
    if named == "any":
        named = sorted({d for task, d, _ in selected if task == claim["task"]}) or ["any"]
    metrics, margin = claim.get("metric", ""), claim.get("margin")
    metrics = metrics if isinstance(metrics, list) else [metrics]
    for dataset in named if isinstance(named, list) else [named]:
        for index, metric in enumerate(metrics):
            yield dataset, metric, margin[index] if isinstance(margin, list) else margin


def judge(
    claims: Iterable[Mapping[str, Any]],
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    datasets: Collection[str],
    methods: Collection[str],
    selected: Collection[tuple[str, str, str]],
    mode: str = "repaired",
    efficiency: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Judge every claim.

    Parameters
    ----------
    claims
        The entries of ``workflow/claims.yaml``.
    rows
        Tidy results, one row per run, metric and unit; verdicts use the rows of level ``run``.
    runs
        One record per run, with its status and why it failed.
    datasets, methods
        Names that the suite declares.
    selected
        The (task, dataset, method) triples of the selection.
    mode
        Verdicts rest on rows of this mode; the others serve as sensitivity rows.
    efficiency
        What the efficiency step wrote; None if it is not in the selection.

    Returns
    -------
    pandas.DataFrame
        One row for each claim, data set and metric, with the columns `COLUMNS`. ``ours`` and
        ``comparator_value_ours`` are means over all seeds of each; the difference and ``n_seeds``
        rest on the seeds that both have. Where several comparators ran, the numbers are those of
        the one against which the claim fares worst.

    Raises
    ------
    ValueError
        If a method has two values for one seed.
    """
    results = _Results(rows, runs, frozenset(datasets), frozenset(methods), frozenset(selected), mode)
    lines = []
    for claim in claims:
        refused = claim.get("not_testable")
        for dataset, metric, margin in _expand(claim, selected):
            line: dict[str, Any] = {key: claim[key] for key in ("source", "text", "task")}
            line |= dict(claim_id=claim["id"], dataset=dataset, metric=metric, n_seeds=0)
            line |= dict(metric_impl=HEADLINE.get(metric, ""), reason="", departures="")
            line |= dict(subject=claim.get("subject", "scmamba2"), best_trivial="")
            line |= dict(comparator=", ".join(claim.get("comparator", [])))
            line |= dict(paper_value=claim.get("paper_value"), claimed_margin=margin)
            if "statements" in claim:
                line |= judge_statements(claim)
            elif claim["task"] == "efficiency":
                line |= judge_efficiency(claim, metric, efficiency)
            elif dataset == "any":
                reason = f"no dataset of the task {claim['task']} is in this selection"
                line |= {"verdict": "NOT RUN", "reason": reason}
            elif not refused or refused["reason"] == "power":
                line |= _measured(claim, dataset, metric, margin, results)
            notes = [line["reason"]]
            if refused:
                line["verdict"] = "NOT TESTABLE"
                notes.insert(0, f"{refused['reason']}: {refused['because'].rstrip('.')}")
            if "arithmetic" in claim:
                notes.append(arithmetic_note(claim))
            line["reason"] = "; ".join(note for note in notes if note)
            lines.append(line)
    table = pd.DataFrame(lines, columns=COLUMNS)
    words = ["value_verdict", "direction_verdict", "margin_verdict", "beaten_by_trivial"]
    for column in words:
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    first, end = COLUMNS.index("paper_value"), COLUMNS.index("value_verdict")
    numbers = [*COLUMNS[first:end], "best_trivial_value"]
    table[numbers] = table[numbers].astype(float)
    table["n_seeds"] = table["n_seeds"].astype(int)
    return table
