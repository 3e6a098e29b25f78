"""What a run costs: time, memory, energy and money, and what a hundredth of the headline metric costs.

Time, memory and energy are those of run.json, less what this suite's own probes took. Energy that was not
measured is estimated from hours and a power that the configuration assumes, and is then called an estimate;
so is a sum of which one part is one. Money is core hours and card hours at the configured prices: the time
that was used, not what was reserved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workflow.present import METRIC_TITLES, without_probes
from workflow.statistics import ROUNDING_NOISE

COLUMNS = [
    "task", "dataset", "method", "title", "kind", "mode", "n_runs", "seconds", "cpu_hours", "peak_memory_mb",
    "gpu_hours", "peak_gpu_memory_mb", "energy_kwh", "energy_kind", "money", "currency", "n_parameters",
    "device", "headline_metric", "headline", "best_trivial", "best_trivial_value", "gain", "money_per_001",
    "seconds_per_001", "energy_per_001",
]  # fmt: skip
MEASURED = ["seconds", "cpu_seconds", "gpu_seconds", "peak_memory_mb", "peak_gpu_memory_mb"]
ENERGIES = ["cpu_energy_wh", "gpu_energy_wh"]


def of_card(table: Mapping[str, float], card: str) -> float:
    """Return the price or power of a card: that of the longest name which its own contains, or the default.

    >>> of_card({"default": 2.5, "H100": 3.0, "H100 PCIe": 2.8}, "NVIDIA H100 80GB HBM3")
    3.0
    """
    names = [name for name in table if name != "default" and name.lower() in card.lower()]
    return float(table[max(names, key=len, default="default")])


def run_costs(runs: pd.DataFrame, cost: Mapping[str, Any]) -> pd.DataFrame:
    """Energy and money of each run.

    Parameters
    ----------
    runs
        Records of runs that are ok: ``seconds``, ``cpu_seconds``, ``gpu`` (cards), ``hardware``, and where
        they were measured ``gpu_seconds``, ``gpu_energy_wh`` and ``cpu_energy_wh``.
    cost
        The key ``cost`` of the configuration: ``cpu_hour`` and ``gpu_hour`` (prices), ``watts_per_core`` and
        ``gpu_watts``.

    Returns
    -------
    pandas.DataFrame
        One line per run: ``cpu_hours``, ``gpu_hours``, ``energy_kwh``, ``measured`` (whether no part of the
        energy is an estimate), ``money``, ``device``.
    """
    runs = runs.reindex(columns=[*runs.columns, *(c for c in [*MEASURED, *ENERGIES] if c not in runs)])
    numbers = runs[[*MEASURED, *ENERGIES, "gpu"]].astype(float)
    gpus = [list(machine["gpus"]) for machine in runs["hardware"]]
    cards = [names[0] if used and names else "" for used, names in zip(runs["gpu"], gpus, strict=True)]
    out = pd.DataFrame(index=runs.index)
    out["device"] = [card or machine["cpu"] for card, machine in zip(cards, runs["hardware"], strict=True)]
    out["cpu_hours"] = numbers["cpu_seconds"] / 3600
    # a record from before GPUs were timed still says how many it held
    out["gpu_hours"] = numbers["gpu_seconds"].fillna(numbers["seconds"] * numbers["gpu"]) / 3600
    estimates = {
        "cpu_energy_wh": out["cpu_hours"] * cost["watts_per_core"],
        "gpu_energy_wh": out["gpu_hours"] * [of_card(cost["gpu_watts"], card) for card in cards],
    }
    parts = [numbers[key].fillna(estimate) for key, estimate in estimates.items()]
    out["energy_kwh"] = sum(parts) / 1000
    gpu_known = numbers["gpu_energy_wh"].notna() | (numbers["gpu"] == 0)
    out["measured"] = numbers["cpu_energy_wh"].notna() & gpu_known
    prices = [of_card(cost["gpu_hour"], card) for card in cards]
    out["money"] = out["cpu_hours"] * cost["cpu_hour"] + out["gpu_hours"] * prices
    return out


def per_hundredth(amount: float, gain: float) -> float:
    """Return what a gain of 0.01 costs: infinite where nothing is gained, NaN where the gain is unknown."""
    if not np.isfinite(gain):
        return np.nan
    return amount / (gain / 0.01) if gain > ROUNDING_NOISE else np.inf


def median(values: pd.Series) -> float:
    """Return the median of the finite values; NaN, without a warning, where there is none."""
    return float(values.astype(float).dropna().median())


def best_trivial(headlines: pd.Series, kinds: pd.Series) -> tuple[str, float]:
    """Return the best of the trivial methods and its value; ``("", nan)`` where none has one.

    Parameters
    ----------
    headlines, kinds
        Mean headline metric (higher is better) and kind of each method, indexed by method.
    """
    values = headlines[kinds == "trivial"].dropna()
    return (str(values.idxmax()), float(values.max())) if len(values) else ("", np.nan)


def costs(
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    cost: Mapping[str, Any],
    titles: Mapping[str, str],
    headlines: Mapping[str, tuple[str, str]],
) -> pd.DataFrame:
    """Cost of one run of each method on each dataset, and of a hundredth above the best trivial method.

    Parameters
    ----------
    rows
        Scores, one row per run, metric and unit; rows of the level ``run`` count.
    runs
        Every run, whatever became of it. Runs that are ok count; one that went on where a killed one had
        stopped counts only if there is no other, because its record knows the second part alone.
    cost
        The key ``cost`` of the configuration.
    titles
        Title of each method.
    headlines
        (metric, metric_impl) that counts in each task; higher is better.

    Returns
    -------
    pandas.DataFrame
        :data:`COLUMNS`; medians over runs of time, memory, energy and money, the mean of the headline.
        ``gain`` is the headline above that of the best method of the kind ``trivial`` on the same dataset;
        ``*_per_001`` divides the cost of one run by gain / 0.01: ``inf`` where nothing is gained, NaN without
        a value, without a trivial method, and for an oracle, which reads the answers.
    """
    lines = []
    rows = rows[rows["unit_level"] == "run"]
    for (task, dataset), here in runs.groupby(["task", "dataset"], sort=False):
        metric, impl = headlines[task]
        chosen = (rows["task"] == task) & (rows["dataset"] == dataset)
        chosen &= (rows["metric"] == metric) & (rows["metric_impl"] == impl)
        kinds = here.drop_duplicates("method").set_index("method")["kind"]
        means = rows[chosen].groupby("method")["value"].mean().reindex(kinds.index)
        trivial, trivial_value = best_trivial(means, kinds)
        for method, mine in here.groupby("method", sort=False):
            ok = mine[mine["status"] == "ok"]
            if "resumed" in ok and not ok["resumed"].eq(True).all():
                ok = ok[~ok["resumed"].eq(True)]
            ok = without_probes(ok)
            each = run_costs(ok, cost)
            line: dict[str, Any] = {
                "task": task,
                "dataset": dataset,
                "method": method,
                "title": titles[method],
                "kind": kinds[method],
                "mode": mine.iloc[0]["mode"],
                "n_runs": len(ok),
                "currency": cost["currency"],
                "energy_kind": "" if ok.empty else "measured" if each["measured"].all() else "estimate",
                "device": " / ".join(dict.fromkeys(each["device"])),
                "n_parameters": median(pd.Series([i.get("n_parameters") for i in ok["info"]])),
                "headline_metric": f"{metric}|{impl}",
                "headline": means[method],
                "best_trivial": trivial,
                "best_trivial_value": trivial_value,
                "gain": means[method] - trivial_value,
            }
            line |= {key: median(ok[key]) for key in MEASURED if key in ok}
            line |= {key: median(each[key]) for key in ("cpu_hours", "gpu_hours", "energy_kwh", "money")}
            gain = np.nan if kinds[method] == "oracle" else line["gain"]
            amounts = {"money": line["money"], "seconds": line["seconds"], "energy": line["energy_kwh"]}
            line |= {f"{key}_per_001": per_hundredth(amount, gain) for key, amount in amounts.items()}
            lines.append(line)
    return pd.DataFrame(lines, columns=COLUMNS)


def amount(value: float, unit: str = "") -> str:
    """Write a number that is not negative in two significant digits, a dash for NaN.

    >>> amount(1234.0, "s"), amount(0.00123), amount(float("inf"))
    ('1,200 s', '0.0012', '∞')
    """
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞"
    rounded = float(f"{value:.2g}")
    if 0 < rounded < 1e-4:
        text = "< 0.0001"
    else:
        text = f"{rounded:,.{max(0, 1 - int(np.floor(np.log10(rounded)))) if rounded else 0}f}"
    return f"{text} {unit}".rstrip()


def span(seconds: float) -> str:
    """Write a time in the unit that people would use."""
    if not np.isfinite(seconds):
        return amount(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def memory(megabytes: float) -> str:
    """Write a memory in MB or GB."""
    if np.isnan(megabytes):
        return "–"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def parameters(count: float) -> str:
    """Write a number of parameters in thousands or millions."""
    if np.isnan(count):
        return "–"
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def energy(kwh: float, kind: str) -> str:
    """Write an energy; the cell itself says whether it is an estimate."""
    if np.isnan(kwh):
        return "–"
    text = amount(kwh, "kWh") if kwh >= 0.1 else amount(kwh * 1000, "Wh")
    return f"{text} ({kind})"


def costs_text(table: pd.DataFrame) -> pd.DataFrame:
    """Turn costs into text for a table that people read.

    Returns
    -------
    pandas.DataFrame
        A line per line and a column per thing that a person looks at; task and dataset are columns where
        there is more than one of them. A dash: no value. ∞: no better than the best control.
    """
    out = pd.DataFrame(index=table.index)
    if len(table[["task", "dataset"]].drop_duplicates()) > 1:
        out["Task"], out["Dataset"] = table["task"], table["dataset"]
    out["Method"] = table["title"]
    out["Runs"] = table["n_runs"].astype(str)
    out["Time"] = table["seconds"].map(span)
    out["CPU time"] = (table["cpu_hours"] * 3600).map(span)
    out["Peak memory"] = table["peak_memory_mb"].map(memory)
    if (table["gpu_hours"] > 0).any():
        out["GPU time"] = (table["gpu_hours"] * 3600).map(span)
        out["Peak GPU memory"] = table["peak_gpu_memory_mb"].map(memory)
    out["Energy"] = [energy(*v) for v in zip(table["energy_kwh"], table["energy_kind"], strict=True)]
    out["Money"] = [amount(*v) for v in zip(table["money"], table["currency"], strict=True)]
    out["Parameters"] = table["n_parameters"].map(parameters)
    out["Device"] = table["device"].fillna("").replace("", "–")  # a CSV has no empty text
    names = [METRIC_TITLES.get(key.split("|")[0], key) for key in table["headline_metric"]]
    one = names[0] if len(set(names)) == 1 else ""
    values = [f"{v:.3f}" if np.isfinite(v) else "–" for v in table["headline"]]
    if one:
        out[one] = values
    else:
        out["Headline"] = [f"{v} ({n})" for v, n in zip(values, names, strict=True)]
    out["Above the best control"] = [f"{v:+.3f}" if np.isfinite(v) else "–" for v in table["gain"]]
    out["Money per +0.01"] = [
        amount(v, c if np.isfinite(v) else "")
        for v, c in zip(table["money_per_001"], table["currency"], strict=True)
    ]
    out["Time per +0.01"] = table["seconds_per_001"].map(span)
    return out.reset_index(drop=True)
