"""From measurements to slopes, cross-over lengths, tables and verdicts: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

TITLES = {
    "scmamba2": "SC-MAMBA2",
    "attention": "attention, equal width",
    "attention_equal_parameters": "attention, equal parameters",
    "two_pass": "two passes, as released",
    "transformers": "transformers' Mamba2",
}
PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
OURS = "scmamba2"
#: Times closer than this factor count as equal.
SAME = 1.05
#: Units of seconds and of megabytes, the largest first.
UNITS = {"time": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")], "memory": [(1024.0, "GB"), (1.0, "MB")]}
#: What a measurement must reach to be at the paper's scale: its narrower model, all of its genes, a GPU.
PAPER_WIDTH, PAPER_LENGTH = 512, 60_000


class Slope(NamedTuple):
    """The exponent of a power law with its confidence limits, and the number of lengths behind it."""

    value: float
    low: float
    high: float
    n: int


class Crossover(NamedTuple):
    """Where two costs cross: ``kind`` is ``"faster"`` or ``"slower"`` (ours, everywhere), ``"from"``
    (faster from ``length`` on), ``"until"`` (faster up to it) or ``"several"`` (``length`` is the last)."""

    kind: str
    length: float


def slope(lengths: Sequence[float], values: Sequence[float], start: float = 0, level: float = 0.95) -> Slope:
    """Fit ``log(value) = a + slope * log(length)`` by least squares.

    Parameters
    ----------
    lengths, values
        Positive numbers; a pair with a value that is not finite is left out.
    start
        Lengths below it are left out: there, fixed costs of a call hide the slope.
    level
        Confidence level of the interval, from Student's t with n - 2 degrees of freedom.

    Returns
    -------
    Slope
        NaN with fewer than two lengths; limits NaN with fewer than three.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(values, dtype=float)
    keep = (x >= start) & np.isfinite(y) & (y > 0)
    x, y = x[keep], y[keep]
    if len(x) < 2:
        return Slope(np.nan, np.nan, np.nan, len(x))
    fit = stats.linregress(np.log(x), np.log(y))
    if len(x) < 3:
        return Slope(float(fit.slope), np.nan, np.nan, len(x))
    half = stats.t.ppf((1 + level) / 2, len(x) - 2) * fit.stderr
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half), len(x))


def crossover(lengths: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> Crossover:
    """Find the length from which our cost is the lower one, on straight lines in a log-log plot.

    Parameters
    ----------
    lengths
        Rising.
    ours, theirs
        Positive costs at these lengths; pairs where one is not finite are left out.

    Returns
    -------
    Crossover
        Its length is NaN for ``"faster"`` and ``"slower"``.

    Raises
    ------
    ValueError
        Without a length at which both have a cost.
    """
    x = np.log(np.asarray(lengths, dtype=float))
    ahead = np.log(np.asarray(theirs, dtype=float)) - np.log(np.asarray(ours, dtype=float))
    x, ahead = x[np.isfinite(ahead)], ahead[np.isfinite(ahead)]
    if not len(x):
        raise ValueError("no length at which both were measured")
    won = ahead > 0
    turns = np.flatnonzero(won[1:] != won[:-1])
    if not len(turns):
        return Crossover("faster" if won[0] else "slower", np.nan)
    i = turns[-1]
    at = x[i] + (x[i + 1] - x[i]) * ahead[i] / (ahead[i] - ahead[i + 1])
    kind = "several" if len(turns) > 1 else "from" if won[-1] else "until"
    return Crossover(kind, float(np.exp(at)))


def time_key(record: Mapping[str, Any]) -> str:
    """Return which time counts: one thread of a CPU has its processor time, to which other work on the
    machine adds least; more threads, or a GPU, have the time on the wall."""
    return "cpu_seconds" if record["device"] == "cpu" and record["threads"] == 1 else "seconds"


def long_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per measurement, in the order of the record.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``pass``, ``length``, ``batch``, ``status``, ``reason``, ``parameters``;
        ``seconds_per_cell``: the least of the repeats; ``median_seconds_per_cell``;
        ``wall_seconds_per_cell``: the least on the wall; ``cells_per_second``; ``memory_mb_per_cell``;
        ``times_ours``: this time divided by ours.
    """
    key, rows = time_key(record), []
    for m in record["measurements"]:
        row = {k: m.get(k) for k in ("model", "pass", "length", "batch", "status", "reason", "parameters")}
        times = {"": f"{key}_min", "median_": f"{key}_median", "wall_": "seconds_min"}
        for name, source in times.items():
            row[f"{name}seconds_per_cell"] = m[source] / m["batch"] if m["status"] == "ok" else np.nan
        row["cells_per_second"] = 1 / row["seconds_per_cell"]
        row["memory_mb_per_cell"] = m["peak_memory_mb"] / m["batch"] if m["status"] == "ok" else np.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    ours = table[table["model"] == OURS].set_index(["pass", "length"])["seconds_per_cell"]
    keys = pd.MultiIndex.from_frame(table[["pass", "length"]])
    table["times_ours"] = table["seconds_per_cell"].to_numpy() / ours.reindex(keys).to_numpy()
    return table


def curve(table: pd.DataFrame, model: str, what: str, column: str = "seconds_per_cell") -> pd.Series:
    """Return one column for a model and a pass, indexed by length; NaN where the model was not ok."""
    mine = table[(table["model"] == model) & (table["pass"] == what)]
    return mine.set_index("length")[column].astype(float).sort_index()


def conditions(record: Mapping[str, Any]) -> str:
    """Say under which conditions a record was made, in one line."""
    settings, key = record["settings"], time_key(record)
    where = record["hardware"]["cpu"] if record["device"] == "cpu" else record["device"]
    tokens = settings["tokens"]

    def count(n: int, word: str) -> str:
        return f"{n} {word}" + ("" if n == 1 else "s")

    return ", ".join(
        [
            f"width {settings['d_model']}",
            count(settings["n_layers"], "layer"),
            f"about {tokens:,} tokens a batch" if tokens else "batch 1",
            where,
            count(record["threads"], "thread"),
            record["precision"],
            ("processor" if key == "cpu_seconds" else "wall") + " time",
            f"least of {count(settings['repeats'], 'repeat')}",
        ]
    )


def short_number(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Write a number with three digits in the largest unit that leaves it at 1 or more."""
    if not np.isfinite(value):
        return "–"
    size, unit = next(((s, u) for s, u in units if value >= s), units[-1])
    value /= size
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def trouble(table: pd.DataFrame, model: str, what: str) -> str:
    """Say at which lengths a model has no value, and why; a run of equal reasons once."""
    mine = table[(table["model"] == model) & (table["pass"] == what) & (table["status"] != "ok")]
    words = []
    for (status, reason), rows in mine.groupby(["status", "reason"], sort=False):
        first = rows["length"].min()
        words.append(f"{status.replace('_', ' ')} from {first:,} tokens: {reason}")
    return "; ".join(words)


def readable_curves(record: Mapping[str, Any], what: str, quantity: str) -> pd.DataFrame:
    """Turn one pass into text: a row per model, a column per length.

    Parameters
    ----------
    what
        The pass.
    quantity
        ``"time"`` or ``"memory"``, per cell.
    """
    table, settings = long_table(record), record["settings"]
    column = {"time": "seconds_per_cell", "memory": "memory_mb_per_cell"}[quantity]
    rows = []
    for model in settings["models"]:
        values = curve(table, model, what, column)
        fit = slope(values.index, values.to_numpy(), settings["slope_from"])
        power = "–" if not np.isfinite(fit.value) else f"{fit.value:.2f}"
        if np.isfinite(fit.low):
            power += f" [{fit.low:.2f}, {fit.high:.2f}]"
        row = {"Method": TITLES[model], "Power of T": power}
        row |= {f"{length:,}": short_number(v, UNITS[quantity]) for length, v in values.items()}
        note = trouble(table, model, what)
        rows.append(row | {"Note": note})
    return pd.DataFrame(rows)


def efficiency_table(record: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the table for machines, the table for people and its caption."""
    blocks = []
    for quantity in ("time", "memory"):
        for what in record["settings"]["passes"]:
            block = readable_curves(record, what, quantity)
            block.insert(1, "Per cell", f"{quantity}, {PASSES[what]}")
            blocks.append(block if quantity == "time" else block.assign(Note=""))
    caption = (
        f"Time and peak memory of one cell against the number of its tokens, T: {conditions(record)}. "
        "Memory: beyond weights and input. Power of T: slope in a log-log plot over lengths of "
        f"{record['settings']['slope_from']:,} tokens and more, with its 95 % t interval; 1 is linear. "
        "Two passes, as released: our parameters in the structure of the released code, in plain PyTorch, "
        "without its fused kernels."
    )
    return long_table(record), pd.concat(blocks, ignore_index=True), caption


def versus(record: Mapping[str, Any], other: str, what: str) -> tuple[str, str]:
    """Compare our time with that of another model.

    Returns
    -------
    tuple of str
        The verdict, or an empty word where there is nothing to compare, and the sentence for it.
    """
    table = long_table(record)
    ours, theirs = curve(table, OURS, what), curve(table, other, what)
    speed = (theirs / ours).dropna()
    title = TITLES.get(other, other)
    if speed.empty:
        missing = OURS if ours.dropna().empty else other
        why = trouble(table, missing, what) or f"{missing} is not in this selection"
        return "", f"not compared with {title}: {why}"
    cross = crossover(ours.index, ours, theirs.reindex(ours.index))
    near = f"about {float(f'{cross.length:.2g}'):,.0f} tokens" if np.isfinite(cross.length) else ""
    words = {
        "faster": "faster at every length",
        "slower": "slower at every length",
        "from": f"faster from {near} on",
        "until": f"slower from {near} on",
        "several": f"the times cross several times, last at {near}",
    }[cross.kind]
    span = f"{speed.index.min():,} to {speed.index.max():,} tokens"
    said = f"against {title}: {speed.min():.2g} to {speed.max():.2g} times as fast, {words} ({span})"
    if unequal := trouble(table, other, what):
        said += f", {unequal}"
    if speed.min() > SAME:
        return "SUPPORTED", said
    if speed.iloc[-1] > SAME:
        return "DIRECTION ONLY", said
    return ("TIE" if speed.between(1 / SAME, SAME).all() else "NOT REPRODUCED"), said


def judge_efficiency(claim: Mapping[str, Any], what: str, record: Mapping[str, Any] | None) -> dict:
    """Judge a claim on time, for one pass.

    ``slope_below``: SUPPORTED if the interval of the slope lies below the limit, NOT REPRODUCED if
    above, else INCONCLUSIVE. ``faster_than``: SUPPORTED if faster at every length, DIRECTION ONLY if at
    the longest but not at all, TIE if equal everywhere, else NOT REPRODUCED; the worst of the comparators
    counts, and SUPPORTED becomes INCONCLUSIVE where one could not be compared.

    Parameters
    ----------
    claim
        An entry of ``workflow/claims.yaml`` with one of these keys.
    what
        ``"forward"`` or ``"forward_backward"``.
    record
        What the efficiency step wrote; None if it is not in the selection.

    Returns
    -------
    dict
        Columns of a line of the verdicts.
    """
    title = PASSES[what]
    name = "power of time" if "slope_below" in claim else "speed"
    line: dict[str, Any] = {"metric": f"{name}, {title}", "comparator": ""}
    if record is None:
        return line | {"verdict": "NOT RUN", "reason": "the task efficiency is not in this selection"}
    table, settings = long_table(record), record["settings"]
    ours = curve(table, OURS, what).dropna()
    if ours.empty:
        why = trouble(table, OURS, what) or f"{OURS} or the pass {what} is not in this selection"
        return line | {"verdict": "NOT RUN", "reason": why}
    reduced = record["device"] == "cpu" or settings["d_model"] < PAPER_WIDTH
    line["departures"] = "at reduced scale" if reduced or ours.index.max() < PAPER_LENGTH else ""
    notes = []
    if "slope_below" in claim:
        limit, start = claim["slope_below"], settings["slope_from"]
        fit = slope(ours.index, ours.to_numpy(), start)
        line |= dict(ours=fit.value, ours_low=fit.low, ours_high=fit.high)
        if fit.high < limit:
            line["verdict"] = "SUPPORTED"
        else:
            line["verdict"] = "NOT REPRODUCED" if fit.low > limit else "INCONCLUSIVE"
        interval = f" [{fit.low:.2f}, {fit.high:.2f}]" if np.isfinite(fit.low) else ""
        notes.append(
            f"time grows with the power {fit.value:.2f}{interval} of the length "
            f"({fit.n} lengths, {start:,} to {ours.index.max():,}; linear if below {limit:g})"
        )
        theirs = curve(table, "attention", what)
        contrast = slope(theirs.index, theirs.to_numpy(), start)
        if np.isfinite(contrast.value):
            notes.append(f"that of {TITLES['attention']} with the power {contrast.value:.2f}")
    else:
        said = [versus(record, other, what) for other in claim["faster_than"]]
        notes += [sentence for _, sentence in said]
        order = ["NOT REPRODUCED", "TIE", "DIRECTION ONLY", "SUPPORTED"]
        words = sorted((word for word, _ in said if word), key=order.index)
        line["verdict"] = words[0] if words else "NOT RUN"
        if line["verdict"] == "SUPPORTED" and len(words) < len(said):
            line["verdict"] = "INCONCLUSIVE"
        line["comparator"] = ", ".join(TITLES[other] for other in claim["faster_than"])
    return line | {"reason": "; ".join([*notes, conditions(record)])}
