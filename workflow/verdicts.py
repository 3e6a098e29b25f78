"""Turn tidy results into one verdict for each claim, data set and metric.

The rules, for a claim that a subject beats its comparators on a metric where higher is better:

value      MATCH (the paper's value lies in our interval), NEAR (within ``delta_eq`` of our mean),
           HIGHER or LOWER (ours is), WIDE (the interval is longer than ``4 * delta_eq``). Left out where
           something departs from the paper: a smaller model, no pre-training, another dataset.
direction  of the paired difference: TIE (its 90 % interval lies so close to 0 that the two count as
           equal, see `equal_up_to`), else SUPPORTED (the 95 % interval lies above 0) or REVERSED
           (below), if the p value is below .05 after Holm's correction, else INCONCLUSIVE. Against
           several comparators: SUPPORTED by the largest p value, REVERSED by the smallest times their number.
margin     is the claimed advantage inside the interval of ours: yes, no, or wide.
verdict    REPRODUCED, DIRECTION ONLY, VALUE ONLY, NOT REPRODUCED, INCONCLUSIVE, NOT TESTABLE,
           NOT RUN or INCONSISTENT; for a question of the suite the word of the direction.

Holm's correction runs over all claims of the paper on one task, and over all questions of the suite on one
task; it asks the same of both signs, so that swapping subject and comparator mirrors every word.

A claim that consists of statements or counts is judged by these alone, without a run. Where every seed
gives the same difference an interval over seeds has no width and says nothing about chance; `reason` says
so. A missing or NaN number never turns into a verdict: its place stays empty and `reason` says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from workflow.comparisons import HEADLINE, Comparison, Evidence
from workflow.declarations import WORKFLOW
from workflow.efficiency.analysis import judge_efficiency
from workflow.statistics import ROUNDING_NOISE, Interval, equivalence_p, fisher_p, holm, seeds_needed

#: Two statements of the paper about one quantity may differ by this share of the larger one.
STATEMENT_TOLERANCE = 0.05

COLUMNS = [
    "claim_id", "source", "text", "where", "task", "dataset", "metric", "metric_impl", "mode", "subject",
    "comparator", "paper_value", "ours", "ours_low", "ours_high", "n_seeds", "interval",
    "comparator_value_ours", "delta", "delta_low", "delta_high", "p_value", "p_holm", "p_sign_flip",
    "p_wilcoxon", "mcnemar", "cohen_d", "cliffs_delta", "superiority", "p_equivalence", "mde",
    "seeds_needed", "claimed_margin", "value_verdict", "direction_verdict", "margin_verdict", "verdict",
    "not_testable", "reason", "departures", "best_trivial", "best_trivial_value", "beaten_by_trivial",
    "chance", "ceiling", "verdict_released", "verdict_paper", "only_released", "rows", "files", "command",
]  # fmt: skip
_NUMBERS = [
    "paper_value", "ours", "ours_low", "ours_high", "comparator_value_ours", "delta", "delta_low",
    "delta_high", "p_value", "p_holm", "p_sign_flip", "p_wilcoxon", "cohen_d", "cliffs_delta",
    "superiority", "p_equivalence", "mde", "seeds_needed", "claimed_margin", "best_trivial_value",
    "chance", "ceiling",
]  # fmt: skip
_WORDS = ["value_verdict", "direction_verdict", "margin_verdict", "beaten_by_trivial", "only_released"]

#: Modes whose verdicts stand beside that of the repaired one.
OTHER_MODES = ("released", "paper")
ALPHA = 0.05

#: From the word that a claim can least afford to the one that it asks for.
_SEVERITY = ["REVERSED", "TIE", "INCONCLUSIVE", "SUPPORTED"]
_STATUS = {
    "failed": "failed on",
    "not_applicable": "is not applicable to",
    "not_installed": "is not installed, so it did not run on",
    "no_data": "found no data for",
    "not_run": "did not run on",
}


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
    return min([delta_eq, *(advantage / 2 for advantage in claimed if advantage > 0)])


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


def arithmetic_note(arithmetic: Mapping[str, Any]) -> str:
    """Compute the gain between two values and set it beside the gain in the paper's words."""
    low, high = arithmetic["percent"]
    base, value = arithmetic["base"], arithmetic["value"]
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


def judge_arithmetic(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Compute a gain from the two values that the paper gives, and compare it with its words: no run."""
    arithmetic = claim["arithmetic"]
    low, high = arithmetic["percent"]
    percent = 100 * (arithmetic["value"] - arithmetic["base"]) / arithmetic["base"]
    fits = low - 0.005 <= percent <= high + 0.005  # the words have two decimals at most
    verdict = "VALUE ONLY" if fits else "INCONSISTENT"
    notes = ["no run enters this verdict", arithmetic_note(arithmetic), claim.get("note", "")]
    return {"verdict": verdict, "reason": "; ".join(filter(None, notes))}


def judge_counts(claim: Mapping[str, Any], dataset: str, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Compare the counts that the paper gives with those of the prepared dataset: 1 percent apart at most."""
    if facts is None or facts.get("status") != "ok":
        why = "is not prepared" if facts is None else f"could not be prepared: {facts.get('reason')}"
        call = f"snakemake --cores 2 prepare --config data={dataset}"
        return {"verdict": "NOT RUN", "reason": f"dataset {dataset} {why}", "command": call}
    sizes = {k: len(v) if isinstance(v, Mapping) else v for k, v in facts.get("found", {}).items()}
    found = sizes | facts.get("recipe", {})
    same, notes = [], []
    for name, said in claim["counts"].items():
        if name not in found:
            notes.append(f"{name}: the paper says {said:,}; not counted")
            continue
        same.append(abs(found[name] - said) <= 0.01 * said)
        notes.append(f"{name}: the paper says {said:,}, the file holds {found[name]:,}")
    verdict = "INCONCLUSIVE" if not same else "VALUE ONLY" if all(same) else "NOT REPRODUCED"
    notes = ["counted in the prepared dataset, without a run", *notes, claim.get("note", "")]
    files = f"data/{dataset}/tidy.json"
    return {"verdict": verdict, "reason": "; ".join(filter(None, notes)), "files": files}


@cache
def published_spread(dataset: str, metric: str, method: str) -> float:
    """Return the SD over seeds that others report for a method, from ``published.csv``; else NaN.

    They give the half-width of a 95 % t interval, so SD = half-width * sqrt(n) / t(.975, n - 1).
    """
    from scipy import stats

    table = pd.read_csv(WORKFLOW / "published.csv")
    mine = table[
        (table["dataset"] == dataset)
        & (table["metric"] == metric)
        & (table["method"] == method)
        & (table["spread_kind"] == "ci95_half_width")
    ]
    if mine.empty:
        return np.nan
    one = mine.iloc[0]
    return float(one["spread"] * np.sqrt(one["n"]) / stats.t.ppf(0.975, one["n"] - 1))


def power_note(claim: Mapping[str, Any], dataset: str, metric: str, margin: float | None) -> str:
    """Say how many seeds the claimed advantage needs, by the spread that others report; or nothing."""
    if margin is None or claim.get("margin_kind") == "rel":
        return ""
    for other in claim.get("comparator", []):
        sd = published_spread(dataset, metric, other)
        if np.isfinite(sd):
            n = seeds_needed(sd, margin, paired=False)
            return (
                f"others report an SD of {sd:.4f} over seeds for {other}: a gap of {margin:g} takes "
                f"{n:,.0f} seeds per method to show with 80 percent power"
            )
    return ""


def hits_note(claim: Mapping[str, Any]) -> str:
    """Say what an exact test makes of the paper's own hits out of few queries; or nothing."""
    n = claim.get("denominator")
    if n is None or "comparator_value" not in claim:
        return ""
    ours, theirs = int(claim["paper_value"]), int(claim["comparator_value"])
    return f"{ours} of {n} against {theirs} of {n} has p = {fisher_p(ours, n, theirs, n):.2f} (Fisher)"


@dataclass(frozen=True)
class Selection:
    """What ran, and all that verdicts read besides.

    Attributes
    ----------
    evidence
        Rows, runs and predictions.
    datasets, methods
        Names that the suite declares.
    selected
        The (task, dataset, method) triples of the selection.
    efficiency
        What the efficiency step wrote; None if it is not in the selection.
    facts
        ``tidy.json`` of each dataset that is prepared.
    call
        The command that makes this selection; files to make are added to it.
    """

    evidence: Evidence
    datasets: frozenset[str]
    methods: frozenset[str]
    selected: frozenset[tuple[str, str, str]]
    efficiency: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    call: str = "snakemake --cores all"

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
        if len(self.evidence.by_seed(task, dataset, metric, method)):
            return ""
        return self.trouble(task, dataset, metric, method)

    def trouble(self, task: str, dataset: str, metric: str, method: str) -> str:
        """Why a run gave no value: the first that did not end well, as one sentence."""
        mine = self.records(task, dataset, method)
        bad = mine[mine["status"] != "ok"].sort_values("seed")
        if mine.empty:
            return f"{method} has no run on {dataset}"
        if bad.empty:
            return f"{method} ran on {dataset} without a finite {metric} ({HEADLINE[metric]})"
        first = bad.iloc[0]
        status = _STATUS.get(first["status"], f"is {first['status']} on")
        why = ": ".join(str(w) for w in (first["why"], first["reason"]) if w and pd.notna(w))
        return f"{method} {status} {dataset}" + (f" ({why})" if why else "")

    def records(self, task: str, dataset: str, method: str) -> pd.DataFrame:
        """The runs of a method on a data set, whatever became of them."""
        runs = self.evidence.runs
        mine = (runs["task"] == task) & (runs["dataset"] == dataset) & (runs["method"] == method)
        return runs[mine]

    def departures(self, task: str, dataset: str, metric: str, methods: Collection[str]) -> str:
        """What departs from the paper in the rows of these methods, each once."""
        cut = self.evidence.scores(task, dataset, metric)
        said = "; ".join(cut.loc[cut["method"].isin(methods), "departures"].unique())
        return "; ".join(dict.fromkeys(filter(None, said.split("; "))))

    def where(self, task: str, dataset: str, metric: str, methods: list[str]) -> dict[str, str]:
        """The rows that decide a claim, the files that hold them, and the command that makes these."""
        query = f'task == "{task}" and dataset == "{dataset}" and metric == "{metric}"'
        query += f' and metric_impl == "{HEADLINE.get(metric, "")}" and unit_level == "run"'
        query += f" and method in {methods}".replace("'", '"')
        scores = [f"scores/{task}/{dataset}/{method}.parquet" for method in methods]
        units = [path.replace(".parquet", ".units.parquet") for path in scores if task == "annotation"]
        return {"rows": query, "files": " ".join([*scores, *units]), "command": self.call}


def _worst(compared: list[tuple[str, Comparison]]) -> tuple[str, Comparison]:
    """Return the comparator against which the claim fares worst: it speaks for all."""
    return min(compared, key=lambda pair: (_SEVERITY.index(pair[0]), pair[1].difference.mean))


def _measured(
    claim: Mapping[str, Any], dataset: str, metric: str, margin: float | None, subject: str, chosen: Selection
) -> dict[str, Any]:
    """Measure a claim by its runs; the words that Holm's correction may change are left to `_settle`."""
    task, others, evidence = claim["task"], claim.get("comparator", []), chosen.evidence
    why_not = chosen.absent(task, dataset, metric, subject)
    if not why_not and "subgroup" in claim:
        why_not = f"subgroup {claim['subgroup']} is not in the suite yet"
    if why_not:
        note = power_note(claim, dataset, metric, margin)
        return {"verdict": "NOT RUN", "reason": "; ".join(filter(None, [why_not, note]))}

    estimate = evidence.estimate(task, dataset, metric, subject)
    ours = estimate.interval
    line: dict[str, Any] = dict(ours=ours.mean, ours_low=ours.low, ours_high=ours.high)
    line |= dict(n_seeds=ours.n, interval=estimate.kind)
    best, value = evidence.best_trivial(task, dataset, metric, besides=subject)
    if best:
        beaten = bool(value > ours.mean + ROUNDING_NOISE)
        line |= dict(best_trivial=best, best_trivial_value=value, beaten_by_trivial=beaten)
    line["chance"] = evidence.chance(task, dataset, metric, subject)
    line["ceiling"] = evidence.ceiling(task, dataset, metric)
    absent = {other: chosen.absent(task, dataset, metric, other) for other in others}
    ran = [other for other in others if not absent[other]]
    line |= chosen.where(task, dataset, metric, [subject, *ran])
    notes = [f"not compared with {other}: {why}" for other, why in absent.items() if why]
    line["departures"] = chosen.departures(task, dataset, metric, [subject, *ran])
    delta_eq = claim.get("delta_eq", 0.0)
    if not line["departures"]:
        rounding = claim.get("rounding", 0.0)
        line["value_verdict"] = value_verdict(ours, claim.get("paper_value"), rounding, delta_eq)

    n, asked = ours.n, claim.get("min_seeds", 2)
    if few := evidence.too_few_cells(task, dataset, metric, subject):
        notes.append(f"{few} cells are too few to decide anything")
    if ran:
        compared = []
        kind = claim.get("margin_kind", "abs")
        for other in ran:
            one = evidence.compare(task, dataset, metric, subject, other)
            equal = equal_up_to(delta_eq, claimed_advantages(margin, kind, one.mean))
            enough = one.difference.n >= asked and not few
            word = direction_verdict(one.difference, one.at(0.90), equal) if enough else "INCONCLUSIVE"
            compared.append((word, one))
        direction, worst = _worst(compared)
        delta, n = worst.difference, worst.difference.n
        equal = equal_up_to(delta_eq, claimed_advantages(margin, kind, worst.mean))
        p_value = worst.p_value
        # NaN: both repeat their numbers, so the difference is certain where seeds are all that repeats
        p_values = np.array([one.p_value for word, one in compared if word == direction])
        if direction == "SUPPORTED":  # against each: the largest
            p_value = float(np.nan if np.isnan(p_values).all() else np.nanmax(p_values))
            direction = direction if len(ran) == len(others) else "INCONCLUSIVE"
        elif direction == "REVERSED":  # against any of them: the smallest, times their number (Bonferroni)
            p_value = float(np.minimum(1.0, len(ran) * p_values.min()))
        line |= dict(comparator=worst.method, comparator_value_ours=worst.mean, n_seeds=n)
        line |= dict(delta=delta.mean, delta_low=delta.low, delta_high=delta.high, interval=worst.kind)
        line |= dict(p_value=p_value, direction_verdict=direction, mde=worst.mde, mcnemar=worst.mcnemar)
        line |= dict(p_sign_flip=worst.p_sign_flip, p_wilcoxon=worst.p_wilcoxon)
        line |= dict(cohen_d=worst.cohen_d, cliffs_delta=worst.cliffs_delta, superiority=worst.superiority)
        line["p_equivalence"] = equivalence_p(delta.mean, worst.se, worst.df, equal)
        claimed = claimed_advantages(margin, kind, worst.mean)
        line["seeds_needed"] = worst.seeds_needed(min(claimed, default=delta_eq))
        line["margin_verdict"] = margin_verdict(delta, worst.mean, margin, kind, delta_eq)
        if delta.sd == 0 and worst.kind == "t":
            what = "deterministic" if worst.deterministic else "the same difference on every seed"
            notes.append(f"{what}: no interval over seeds")
        if direction == "TIE" and (delta.low > 0 or delta.high < 0):
            sign = "above" if delta.low > 0 else "below"
            notes.append(f"the difference lies {sign} 0, but up to {equal:g} counts as equal")
    elif others:
        line["verdict"] = "NOT RUN"
    elif n < asked or few:
        line["verdict"] = "INCONCLUSIVE"
    if n < asked:
        notes.append(f"{n} of {asked} seeds that the claim asks for")
    for method in [subject, *ran]:
        have = len(evidence.by_seed(task, dataset, metric, method))
        planned = len(chosen.records(task, dataset, method))
        if have < planned:
            why_not = chosen.trouble(task, dataset, metric, method)
            notes.append(f"{have} of {planned} runs of {method} gave a value: {why_not}")
    notes.append(power_note(claim, dataset, metric, margin))
    return line | {"reason": "; ".join(filter(None, notes))}


def _settle(lines: list[dict[str, Any]]) -> None:
    """Correct the p values for their number and give each line its verdict, in place."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if np.isfinite(line.get("p_value", np.nan)):
            families.setdefault((line["source"], line["task"]), []).append(line)
    for family in families.values():
        corrected = holm([line["p_value"] for line in family])
        for line, p in zip(family, corrected, strict=True):
            line["p_holm"] = float(p)
            if line["direction_verdict"] in ("SUPPORTED", "REVERSED") and p >= ALPHA:
                line["direction_verdict"] = "INCONCLUSIVE"
                note = (
                    f"p = {line['p_value']:.2g}, and {p:.2g} after Holm's correction for {len(family)} claims"
                )
                line["reason"] = "; ".join(filter(None, [line["reason"], note]))
    for line in lines:
        if "verdict" in line:
            continue
        direction = line.get("direction_verdict")
        if line["source"] == "suite" and direction:
            line["verdict"] = direction
        else:
            line["verdict"] = overall_verdict(line.get("value_verdict"), direction)


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


def _lines(claims: Iterable[Mapping[str, Any]], chosen: Selection, mode: str) -> list[dict[str, Any]]:
    """Judge every claim in one mode: its subject is then the method of that mode, where there is one.

    The others are judged as they are, so that Holm's correction counts as many claims in every mode.
    """
    lines = []
    methods = {method for _, _, method in chosen.selected}
    for claim in claims:
        named = claim.get("subject", "scmamba2")
        subject = f"{named}_{mode}" if f"{named}_{mode}" in methods else named
        refused = claim.get("not_testable")
        for dataset, metric, margin in _expand(claim, chosen.selected):
            line: dict[str, Any] = {key: claim[key] for key in ("source", "text", "where", "task")}
            line |= dict(claim_id=claim["id"], dataset=dataset, metric=metric, n_seeds=0, reason="")
            line |= dict(metric_impl=HEADLINE.get(metric, ""), mode=mode, subject=subject, departures="")
            line |= dict(comparator=", ".join(claim.get("comparator", [])), best_trivial="", mcnemar="")
            line |= dict(interval="", rows="", files="", command=chosen.call, not_testable="")
            line |= dict(paper_value=claim.get("paper_value"), claimed_margin=margin)
            if "statements" in claim:
                line |= judge_statements(claim) | {"files": "claims.csv"}
            elif "arithmetic" in claim:
                line |= judge_arithmetic(claim) | {"files": "claims.csv"}
            elif "counts" in claim:
                line |= judge_counts(claim, dataset, chosen.facts.get(dataset))
            elif claim["task"] == "efficiency":
                line |= judge_efficiency(claim, metric, chosen.efficiency)
                line["files"] = "efficiency/measurements.json" if chosen.efficiency else ""
            elif dataset == "any":
                reason = f"no dataset of the task {claim['task']} is in this selection"
                line |= {"verdict": "NOT RUN", "reason": reason}
            elif not refused or refused["reason"] == "power":
                line |= _measured(claim, dataset, metric, margin, subject, chosen)
            if refused:
                line |= {"verdict": "NOT TESTABLE", "not_testable": refused["reason"]}
                said = f"{refused['reason']}: {refused['because'].rstrip('.')}"
                line["reason"] = "; ".join(filter(None, [said, hits_note(claim), line["reason"]]))
            lines.append(line)
    _settle(lines)
    return lines


def holds(line: Mapping[str, Any]) -> bool | None:
    """Whether the claim holds by a run: its advantage, or its value where it claims none; None if unknown."""
    if line["verdict"] in ("NOT RUN", "NOT TESTABLE", "INCONCLUSIVE"):
        return None
    direction = line.get("direction_verdict")
    return direction == "SUPPORTED" if direction else line.get("value_verdict") in ("MATCH", "NEAR")


def judge(claims: Iterable[Mapping[str, Any]], chosen: Selection) -> pd.DataFrame:
    """Judge every claim.

    Parameters
    ----------
    claims
        The entries of ``workflow/claims.yaml``.
    chosen
        What ran.

    Returns
    -------
    pandas.DataFrame
        One row for each claim, data set and metric, with the columns `COLUMNS`. ``ours`` and
        ``comparator_value_ours`` are means over all seeds of each; the difference and ``n_seeds``
        rest on the seeds that both have. Where several comparators ran, the numbers are those of
        the one against which the claim fares worst. Verdicts rest on the repaired mode;
        ``verdict_released`` and ``verdict_paper`` are those of the other modes where they ran, and
        ``only_released`` says that the claim holds there and not in the repaired one.

    Raises
    ------
    ValueError
        If a method has two values for one seed.
    """
    claims = list(claims)
    lines = _lines(claims, chosen, "repaired")
    methods = {method for _, _, method in chosen.selected}
    for mode in OTHER_MODES:
        if not any(method.endswith(f"_{mode}") for method in methods):
            continue
        judged = {
            (line["claim_id"], line["dataset"], line["metric"]): line
            for line in _lines(claims, chosen, mode)
            if line["verdict"] not in ("NOT RUN", "NOT TESTABLE") and line["subject"].endswith(f"_{mode}")
        }
        for line in lines:
            other = judged.get((line["claim_id"], line["dataset"], line["metric"]))
            if other is None:
                continue
            line[f"verdict_{mode}"] = other["verdict"]
            if mode == "released" and (ours := holds(line)) is not None:
                line["only_released"] = bool(holds(other) and not ours)
    table = pd.DataFrame(lines, columns=COLUMNS)
    for column in _WORDS:
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    for column in ("verdict_released", "verdict_paper"):
        table[column] = table[column].fillna("")
    table[_NUMBERS] = table[_NUMBERS].astype(float)
    table["n_seeds"] = table["n_seeds"].astype(int)
    return table
