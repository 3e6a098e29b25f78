"""How far a number depends on a choice that a paper seldom states: the rows of the sensitivity table.

Each row sets a variant beside its base on one dataset and metric. ``effect`` is variant minus base, paired
by seed, with a 95 % t interval; the two kinds that are not a plain difference say so. Kinds:

mode, defect, conflict
    The method as one mode, or with one defect or conflict, against the method as mended.
metric, labels
    The same outputs, scored by another implementation of the metric, or over another set of labels.
epoch
    What the first and the last epoch would have given, against the epoch that was kept; and the epoch of the
    highest test score, which nobody may choose: it shows how much a look at the test set inflates a score.
order
    The same model on the genes in other random orders: the mean of the orders against the order of the
    file; ``sd`` and ``range`` have the spread over orders as their effect, averaged over seeds.

Nothing is corrected for the number of rows: of twenty that change nothing, one looks like more than noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workflow import tasks
from workflow.present import IMPL_TITLES, METRIC_TITLES, trouble
from workflow.statistics import Interval, mean_t_interval, paired_difference

COLUMNS = [
    "kind", "id", "title", "task", "dataset", "method", "metric", "metric_impl", "base", "base_value",
    "variant", "variant_value", "effect", "low", "high", "n_seeds", "sentence",
]  # fmt: skip
#: What the implementations of a metric are called in a sentence.
IMPLS = IMPL_TITLES | {
    "leiden-r1": "Leiden at resolution 1",
    "sklearn-union": "the labels of truth or prediction",
    "sklearn-query": "the labels of the query",
    "sklearn-shared": "the labels of query and reference",
}
MODES = {
    "paper": "Following the paper's text where it differs from the code",
    "released": "Computing as the released code does",
}
KINDS = ["mode", "defect", "conflict", "metric", "labels", "epoch", "order"]


def headline(task: str) -> list[tuple[str, str]]:
    """Return the first two headline metrics of a task, each with the implementation that counts."""
    first: dict[str, str] = {}
    for metric, impl in tasks.get(task).HEADLINE:
        first.setdefault(metric, impl)
    return list(first.items())[:2]


def by_seed(rows: pd.DataFrame, metric: str, impl: str) -> pd.Series:
    """Return the value of a metric on each seed; NaN values are left out."""
    mine = rows[(rows["metric"] == metric) & (rows["metric_impl"] == impl)]
    return mine.set_index("seed")["value"].dropna().sort_index()


def _of(table: pd.DataFrame, task: Any, dataset: Any, method: Any) -> pd.DataFrame:
    """Return the rows of one method on one dataset."""
    same = (table["task"] == task) & (table["dataset"] == dataset) & (table["method"] == method)
    return table[same]


def change_words(effect: Interval) -> str:
    """Say in words what an effect is worth."""
    shown = f"{effect.mean:+.3f}"
    if effect.n < 2:
        return f"{shown}: one seed, so nothing is known about noise"
    if effect.low == effect.high:
        return "0: no change on any seed" if effect.mean == 0 else f"{shown} on every seed alike"
    told = "cannot be told from noise" if effect.low <= 0 <= effect.high else "more than noise between seeds"
    return f"{shown} [{effect.low:+.3f}, {effect.high:+.3f}]: {told}"


def _row(about: dict, base: pd.Series, variant: pd.Series, effect: Interval, sentence: str) -> dict:
    """Put a row together; the values of both sides are means over the seeds that they share."""
    both = base.index.intersection(variant.index)
    return about | {
        "base_value": base[both].mean(),
        "variant_value": variant[both].mean(),
        "effect": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "n_seeds": effect.n,
        "sentence": sentence,
    }


def _against(about: dict, base: pd.Series, variant: pd.Series, subject: str, tail: str = "") -> dict:
    """Return the row of a plain difference; ``subject`` does what the sentence says."""
    effect, _ = paired_difference(variant, base)
    title = METRIC_TITLES.get(about["metric"], about["metric"])
    return _row(about, base, variant, effect, f"{subject} changes {title} by {change_words(effect)}{tail}.")


def variant_rows(
    rows: pd.DataFrame, runs: pd.DataFrame, methods: Mapping[str, dict], register: Mapping[str, dict]
) -> Iterable[dict]:
    """Yield a row for each mode, defect and conflict that ran beside its base, whatever became of it."""
    for (task, dataset, method), mine in runs.groupby(["task", "dataset", "method"], sort=False):
        entry = methods[str(method)]
        number, base = entry.get("variant", ""), entry.get("compared_with")
        theirs = _of(runs, task, dataset, base)
        if entry.get("arm"):  # another model, not another way to compute: its row stands in the tables
            continue
        if theirs.empty or str(method).endswith("_base"):
            continue
        change = register[number]["change"] if number else MODES[entry["mode"]]
        free = methods[entry["variant_of"]].get("variants", {})  # probes and the like change no result
        tail = _caveats(theirs, mine, {*entry["changes"].get(task, {}), *free})
        for metric, impl in headline(str(task)):
            about = {
                "kind": ("defect" if number.startswith("D") else "conflict") if number else "mode",
                "id": number or entry["mode"],
                "title": change,
                "task": task,
                "dataset": dataset,
                "method": entry["variant_of"],
                "metric": metric,
                "metric_impl": impl,
                "base": base,
                "variant": method,
            }
            before, after = (by_seed(_of(rows, task, dataset, name), metric, impl) for name in (base, method))
            if len(before.index.intersection(after.index)):
                yield _against(about, before, after, change, tail)
            else:
                title = METRIC_TITLES.get(metric, metric)
                none = f"{change}: there is no {title} to compare on any seed{tail}."
                yield _row(about, before, after, mean_t_interval([]), none)


def _caveats(base: pd.DataFrame, variant: pd.DataFrame, expected: set[str]) -> str:
    """Say what else stands between the runs of two methods: failures, and parameters that none expects."""
    words = ""
    for name, runs in (("of the base", base), ("of the variant", variant)):
        if failed := int((runs["status"] != "ok").sum()):
            words += f"; {failed} of {len(runs)} runs {name} gave no value: {trouble(runs)}"
    ours, theirs = variant.iloc[0]["params"], base.iloc[0]["params"]
    for key in ours:
        if key not in expected and ours[key] != theirs.get(key):
            words += f"; besides, {key} is {ours[key]} and not {theirs.get(key)}"
    changed = any(keys for runs in (base, variant) for keys in runs["changed_params"])
    return words + (" (changed parameters)" if changed else "")


def scoring_rows(rows: pd.DataFrame, methods: Mapping[str, dict]) -> Iterable[dict]:
    """Yield a row for each other implementation of AvgBIO, and each other set of labels of macro F1."""
    for (task, dataset, method), mine in rows.groupby(["task", "dataset", "method"], sort=False):
        entry = methods[str(method)]
        if entry.get("variant"):
            continue
        for metric, impl in headline(str(task)):
            base = by_seed(mine, metric, impl)
            for other in mine.loc[mine["metric"] == metric, "metric_impl"].unique():
                variant = by_seed(mine, metric, other)
                if other == impl or not len(base.index.intersection(variant.index)):
                    continue
                kind = "labels" if other.startswith("sklearn-") else "metric"
                names = IMPLS.get(impl, impl), IMPLS.get(other, other)
                title = METRIC_TITLES.get(metric, metric)
                how = f"over {names[1]}" if kind == "labels" else f"by {names[1]}"
                about = {
                    "kind": kind,
                    "id": other,
                    "title": f"{title} {how}",
                    "task": task,
                    "dataset": dataset,
                    "method": method,
                    "metric": metric,
                    "metric_impl": other,
                    "base": impl,
                    "variant": other,
                }
                subject = f"{entry['title']}: scoring {how} instead of {names[0]}"
                yield _against(about, base, variant, subject)


def epoch_rows(
    rows: pd.DataFrame, traces: pd.DataFrame, runs: pd.DataFrame, methods: Mapping[str, dict]
) -> Iterable[dict]:
    """Yield what the first, the last and the best epoch would have given, against the one that was kept.

    Parameters
    ----------
    rows
        Scores of what the runs returned; the base where the kept epoch has no trace.
    traces
        Rows of the level ``epoch``.
    runs
        Their ``info`` has ``selected_epoch``, where the method says it.
    methods
        The entries by name.
    """
    for (task, dataset, method), trace in traces.groupby(["task", "dataset", "method"], sort=False):
        at = {"task": task, "dataset": dataset, "method": method}
        mine = _of(rows, **at)
        record = _of(runs, **at).set_index("seed")["info"]
        kept = [info["selected_epoch"] for info in record.sort_index() if "selected_epoch" in info]
        name = methods[str(method)]["title"]
        for metric, impl in headline(str(task)):
            scores = trace[(trace["metric"] == metric) & (trace["metric_impl"] == impl)]
            scores = scores.dropna(subset="value")
            if scores.empty:
                continue
            table = scores.assign(epoch=scores["unit_id"].astype(int)).pivot(
                index="seed", columns="epoch", values="value"
            )
            # The trace may be stored in fewer digits than the output; so the kept epoch's trace is the base.
            base = by_seed(mine, metric, impl)
            for seed, info in record.items():
                if seed in table.index and info.get("selected_epoch") in table.columns:
                    base[seed] = table.at[seed, info["selected_epoch"]]
            base = base.dropna()
            title = METRIC_TITLES.get(metric, metric)
            best = table.idxmax(axis=1)
            arms = {
                "first": (table.iloc[:, 0].dropna(), f"epoch {table.columns[0]}"),
                "last": (table.iloc[:, -1].dropna(), f"epoch {table.columns[-1]}"),
                "best-possible": (table.max(axis=1), f"epochs {_listed(best)}"),
            }
            for arm, (values, which) in arms.items():
                about = {
                    "kind": "epoch",
                    "id": arm,
                    "title": f"{arm} epoch",
                    **at,
                    "metric": metric,
                    "metric_impl": impl,
                    "base": f"selected epochs {_listed(kept)}" if kept else "selected epoch",
                    "variant": f"{arm}: {which}",
                }
                if arm != "best-possible":
                    yield _against(about, base, values, f"{name}: keeping the {arm} epoch ({which})")
                    continue
                effect, _ = paired_difference(values, base)
                shown = change_words(effect).partition(":")[0]
                words = f"{name}: choosing the epoch by the test score ({which}), which nobody may do, would"
                yield _row(about, base, values, effect, f"{words} change {title} by {shown}.")


def order_rows(rows: pd.DataFrame, orders: pd.DataFrame, methods: Mapping[str, dict]) -> Iterable[dict]:
    """Yield what other random orders of the genes do to the same model: mean, SD and range over orders.

    Parameters
    ----------
    rows
        Scores of what the runs returned.
    orders
        Rows of the level ``order``.
    methods
        The entries by name.
    """
    for (task, dataset, method), mine in orders.groupby(["task", "dataset", "method"], sort=False):
        at = {"task": task, "dataset": dataset, "method": method}
        own = _of(rows, **at)
        name = methods[str(method)]["title"]
        for metric, impl in headline(str(task)):
            scores = mine[(mine["metric"] == metric) & (mine["metric_impl"] == impl)]
            scores = scores.dropna(subset="value")
            if scores.empty:
                continue
            seeds = scores.groupby("seed")["value"]
            base, mean, count = by_seed(own, metric, impl), seeds.mean(), int(seeds.size().max())
            title = METRIC_TITLES.get(metric, metric)
            about = {
                "kind": "order",
                **at,
                "metric": metric,
                "metric_impl": impl,
                "base": "order of the file",
                "variant": f"{count} random orders",
            }
            words = f"{name}: reading the genes in a random order"
            yield _against(about | {"id": "mean", "title": "other orders of the genes"}, base, mean, words)
            if count < 2:
                continue
            for measure, spread in (
                ("sd", seeds.std(ddof=1)),
                ("range", seeds.max() - seeds.min()),
            ):
                effect = mean_t_interval(spread)
                what = "the standard deviation" if measure == "sd" else "the difference of best and worst"
                sentence = f"{name}: {what} of {title} over {count} random orders of the genes is "
                sentence += f"{effect.mean:.3f}."
                about |= {"id": measure, "title": f"{measure} over orders of the genes"}
                yield _row(about, base, mean, effect, sentence)


def _listed(epochs: Iterable[Any]) -> str:
    """Write the epochs of the seeds, once if they agree."""
    found = [str(int(epoch)) for epoch in epochs]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def sensitivity(
    rows: pd.DataFrame, runs: pd.DataFrame, methods: Mapping[str, dict], register: Iterable[dict]
) -> pd.DataFrame:
    """Return the sensitivity table.

    Parameters
    ----------
    rows, runs
        As :func:`workflow.present.read_scores` returns them.
    methods
        The entries of :func:`workflow.declarations.load_methods`.
    register
        Defects and conflicts, as they are declared.

    Returns
    -------
    pandas.DataFrame
        The columns ``COLUMNS``. A defect or conflict that did not run beside its base has no row; one of
        which no run gave a value has a row without numbers whose sentence says why.
    """
    level = {name: rows[rows["unit_level"] == name] for name in ("run", "epoch", "order")}
    found = [
        *variant_rows(level["run"], runs, methods, {item["id"]: item for item in register}),
        *scoring_rows(level["run"], methods),
        *epoch_rows(level["run"], level["epoch"], runs, methods),
        *order_rows(level["run"], level["order"], methods),
    ]
    table = pd.DataFrame(found, columns=COLUMNS).astype({"n_seeds": int})
    numbers = ["base_value", "variant_value", "effect", "low", "high"]
    table[numbers] = table[numbers].astype(float).replace({-np.inf: np.nan, np.inf: np.nan})
    return table.sort_values(
        "kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable", ignore_index=True
    )
