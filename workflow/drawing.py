"""What all figures share: how they look and how they are written."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from workflow.files import atomic

#: Widths in inches of one and of two columns of a printed page (85 and 178 mm). At these nothing is smaller
#: than SMALL points.
ONE_COLUMN, TWO_COLUMNS = 85 / 25.4, 178 / 25.4
SMALL = 6.5

STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "svg.hashsalt": "scmamba2",
    "svg.fonttype": "none",
}


def heading(fig: plt.Figure, title: str, below: str = "") -> None:
    """Write a bold title at the left and under it, small, what is drawn: n, and what the bars mean."""
    lines = below.count("\n") + 1 if below else 0
    height = fig.get_size_inches()[1]
    fig.suptitle(title + "\n" * lines, x=0.01, ha="left", fontsize=9, fontweight="bold")
    if below:
        # constrained layout keeps 0.04 inches above the title; the next line begins under it
        y = 1 - (0.05 + 9 * 1.25 / 72) / height
        fig.text(0.01, y, below, ha="left", va="top", fontsize=SMALL, color="0.3", linespacing=1.3)


def plain(ax: plt.Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw axes of two spines and a pale grid behind what they hold."""
    ax.grid(axis=grid, color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def frame(ax: plt.Axes) -> None:
    """Draw a thin frame without ticks, for coordinates without a unit."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.8", linewidth=0.5)


def say(ax: plt.Axes, text: str, width: int = 20) -> None:
    """Write why there is no picture into the place where it would be."""
    frame(ax)
    text = textwrap.fill(text, width, max_lines=5, placeholder=" …")
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=7, color="0.4", transform=ax.transAxes)


def notice(title: str, text: str, width: float = TWO_COLUMNS) -> plt.Figure:
    """Return a figure that says why there is nothing to draw."""
    fig, ax = plt.subplots(figsize=(width, 1.3), layout="constrained")
    heading(fig, title)
    say(ax, text, 70 if width > ONE_COLUMN else 40)
    return fig


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until neighbours are ``gap`` from each other, as little as keeps them in order.

    Parameters
    ----------
    wanted
        Places in ascending order.
    gap
        Least distance; less where not all fit between ``low`` and ``high``.

    Returns
    -------
    list of float
        Places in the same order.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    # groups that would overlap merge, and a group stands about the mean of its wishes
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], gap) < _start(groups[-2], gap) + gap * len(groups[-2]):
            last = groups.pop()
            groups[-1] += last
    places = [_start(group, gap) + gap * i for group in groups for i in range(len(group))]
    for i, place in enumerate(places):  # the lower limit, then the upper
        places[i] = max(place, low + gap * i)
    for i in range(len(places)):
        places[-1 - i] = min(places[-1 - i], high - gap * i)
    return places


def _start(group: list[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def save(fig: plt.Figure, path: Path) -> None:
    """Write PNG (200 dots per inch) and SVG, without the date that would make bytes differ."""
    for target in (path, path.with_suffix(".svg")):
        meta = {"Date": None} if target.suffix == ".svg" else {"Software": None}
        with atomic(target) as part:
            fig.savefig(part, dpi=200, metadata=meta)
    plt.close(fig)
