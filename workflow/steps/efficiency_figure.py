"""Step 7c: draw time and peak memory of a cell against the length of its sequence."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from workflow.drawing import STYLE, save
from workflow.efficiency.analysis import (
    OURS,
    PASSES,
    TITLES,
    conditions,
    crossover,
    curve,
    long_table,
    slope,
)
from workflow.files import read_json
from workflow.present import KIND_COLOURS

#: Colour (Okabe and Ito), marker and line of each model.
LOOKS = {
    "scmamba2": (KIND_COLOURS["ours"], "o", "-"),
    "attention": (KIND_COLOURS["deep"], "s", "-"),
    "attention_equal_parameters": ("#56B4E9", "^", "--"),
    "two_pass": (KIND_COLOURS["classical"], "D", "-."),
    "transformers": (KIND_COLOURS["foundation"], "v", ":"),
}


def draw(record: dict) -> plt.Figure:
    """Draw a row for time and one for memory, a column per pass; both axes are logarithmic."""
    table, settings = long_table(record), record["settings"]
    passes, start = settings["passes"], settings["slope_from"]
    lengths = sorted(settings["lengths"])
    fig, axes = plt.subplots(
        2,
        len(passes),
        figsize=(3.5 * len(passes) + 0.2, 5.9),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    title = "Efficiency: time and memory of one cell"
    fig.suptitle(f"{title}\n\n", x=0.01, ha="left", fontsize=9, fontweight="bold")
    below = (
        f"{conditions(record)}\n"
        f"slopes: over lengths from {start:,} on; ring: where SC-MAMBA2 and attention of equal width cross"
    )
    fig.text(0.01, 0.966, below, ha="left", va="top", fontsize=7, color="0.3", linespacing=1.4)
    for (row, column, label), what in (
        ((r, c, label), what)
        for r, (c, label) in enumerate(
            [
                ("seconds_per_cell", "time per cell (s)"),
                ("memory_mb_per_cell", "peak memory per cell (MB)"),
            ]
        )
        for what in passes
    ):
        ax = axes[row, passes.index(what)]
        for model in settings["models"]:
            values = curve(table, model, what, column)
            colour, marker, line = LOOKS[model]
            fit = slope(values.index, values.to_numpy(), start)
            said = f"slope {fit.value:.2f}" if np.isfinite(fit.value) else first_trouble(table, model, what)
            ax.plot(
                values.index,
                values,
                color=colour,
                marker=marker,
                ls=line,
                ms=4,
                lw=1.3,
                zorder=3 if model == OURS else 2,
                label=f"{TITLES[model]}: {said}",
            )
        if row == 0:
            ax.set_title(PASSES[what], loc="left")
            mark_crossover(ax, table, what)
        ax.set(xscale="log", yscale="log")
        ax.grid(color="0.92", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="upper left", fontsize=6.5, frameon=False, handlelength=2.6, borderaxespad=0.2)
        axes[row, 0].set_ylabel(label)
    for ax in axes[:, 0]:  # room for the legend above the lines; a row shares its axis
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.42)
    labelled = [lengths[-1]]  # from the right, where they stand closest on a logarithmic axis
    for length in lengths[-2::-1]:
        if length * 1.6 < labelled[-1]:
            labelled.append(length)
    for ax in axes[-1]:
        ax.set_xlabel("tokens per cell, T")
        ax.xaxis.set_major_locator(FixedLocator(lengths))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: tokens(v) if round(v) in labelled else ""))
    return fig


def tokens(length: float) -> str:
    """Write a length so that it fits below its tick."""
    return f"{length:,.0f}" if length < 9999.5 else f"{length / 1000:,.0f}k"


def first_trouble(table: pd.DataFrame, model: str, what: str) -> str:
    """Return in a few words why a model has no line."""
    bad = table[(table["model"] == model) & (table["pass"] == what) & (table["status"] != "ok")]
    return str(bad["status"].iloc[0]).replace("_", " ") if len(bad) else "one length"


def mark_crossover(ax: plt.Axes, table: pd.DataFrame, what: str) -> None:
    """Mark where our time falls below that of attention of our width."""
    ours, theirs = curve(table, OURS, what), curve(table, "attention", what)
    if not np.isfinite(theirs.reindex(ours.index) / ours).any():
        return
    cross = crossover(ours.index, ours, theirs.reindex(ours.index))
    if np.isfinite(cross.length):
        y = np.exp(np.interp(np.log(cross.length), np.log(ours.index), np.log(ours)))
        ax.plot([cross.length], [y], marker="o", ms=9, mfc="none", mec="k", mew=0.9, zorder=4)
        ax.annotate(
            f"T ≈ {float(f'{cross.length:.2g}'):,.0f}",
            (cross.length, y),
            xytext=(6, -11),
            textcoords="offset points",
            fontsize=7,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True, help="measurements.json")
    parser.add_argument("--figure", type=Path, required=True, help="PNG to write; SVG stands beside it")
    args = parser.parse_args()
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    save(draw(read_json(args.record)), args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
