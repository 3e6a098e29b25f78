"""Step 7d: draw which cell types are taken for which: ours, the best rival and the best control."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from workflow import tasks
from workflow.drawing import SMALL, STYLE, TWO_COLUMNS, heading, notice, save
from workflow.present import dataset_title, declared, read_scores

PANELS = {
    "SC-MAMBA2": ("ours",),
    "best rival": ("foundation", "deep", "classical"),
    "best control": ("trivial",),
}
NUMBERED = 12  # cell types up to which a field has room for its number


def chosen(rows: pd.DataFrame, methods: Mapping[str, Mapping]) -> dict[str, tuple[str, float]]:
    """Return for each panel the method with the best mean headline, and that mean.

    Parameters
    ----------
    rows
        Scores of one dataset; rows of the level ``run`` count.
    methods
        Declarations. Modes and variants of a method and oracles take no part; an arm, such as the one from
        scratch, only where no method itself has a value.
    """
    metric, impl = tasks.get("annotation").HEADLINE[0]
    rows = rows[(rows["unit_level"] == "run") & (rows["metric"] == metric) & (rows["metric_impl"] == impl)]
    means = rows.groupby("method")["value"].mean().dropna()
    panels = {}
    for role, kinds in PANELS.items():
        mine = [m for m in means.index if methods[m]["kind"] in kinds]
        able = [m for m in mine if not methods[m].get("variant_of")]
        able = able or [m for m in mine if methods[m].get("arm")]
        if able:
            panels[role] = (str(means[able].idxmax()), float(means[able].max()))
    return panels


def labels_of(units: pd.DataFrame) -> pd.Series:
    """Return every label that is true or predicted with its number of query cells, the largest first."""
    cells = units.drop_duplicates("unit_id")  # every method and seed has the same query cells
    counts = cells["truth"].value_counts().reindex(sorted(set(units["truth"]) | set(units["predicted"])))
    return counts.fillna(0).astype(int).sort_values(ascending=False, kind="stable")


def confusion(units: pd.DataFrame, labels: list[str]) -> np.ndarray:
    """Row-normalised confusion matrix, the mean over seeds.

    Parameters
    ----------
    units
        ``seed``, ``truth`` and ``predicted``, a line per seed and query cell.
    labels
        Labels in the order of the matrix.

    Returns
    -------
    numpy.ndarray
        Float, (labels, labels): of the cells of the true label of a row, the share that was given the label
        of a column. A row sums to 1; it is NaN where no cell has that label.
    """
    shares = []
    for _, mine in units.groupby("seed"):
        counts = pd.crosstab(mine["truth"], mine["predicted"]).reindex(
            index=labels, columns=labels, fill_value=0
        )
        values = counts.to_numpy(dtype=float)
        with np.errstate(invalid="ignore"):
            shares.append(values / values.sum(axis=1, keepdims=True))
    return np.mean(shares, axis=0)


def draw(
    units: Mapping[str, pd.DataFrame],
    panels: Mapping[str, tuple[str, float]],
    names: Mapping[str, str],
    title: str,
) -> plt.Figure:
    """Draw a matrix per panel; rows carry the names and numbers of cells, columns the rows' numbers."""
    together = pd.concat([units[method] for method, _ in panels.values()])
    counts = labels_of(together)
    size, n_seeds = len(counts), together["seed"].nunique()
    side = (TWO_COLUMNS - 2.2) / 3
    fig, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.2 + side * len(panels), max(side, 0.125 * size) + 1.35),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = plt.get_cmap("Blues").with_extremes(bad="0.93")
    for ax, (role, (method, value)) in zip(axes[0], panels.items(), strict=True):
        matrix = confusion(units[method], list(counts.index))
        image = ax.imshow(matrix, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        name = names[method] if role == names[method] else f"{role}:\n{names[method]}"
        ax.set_title(f"{name}\naccuracy {value:.3f}", fontsize=7, loc="left")
        ax.set_xticks(range(size), range(1, size + 1), fontsize=6 if size > 16 else SMALL)
        if size > 16:
            ax.set_xticks(range(0, size, 2), range(1, size + 1, 2))
        ax.tick_params(length=0)
        ax.set_xlabel("predicted type", fontsize=7)
        if size <= NUMBERED:
            for (row, column), share in np.ndenumerate(matrix):
                if share >= 0.005:
                    colour = "white" if share > 0.55 else "k"
                    text = "all" if share >= 0.995 else f"{100 * share:.0f}"  # three digits do not fit
                    ax.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    rows = [
        f"{shorten_middle(label)} ({count}) {i}" for i, (label, count) in enumerate(counts.items(), start=1)
    ]
    axes[0, 0].set_yticks(range(size), rows, fontsize=6 if size > 16 else SMALL)
    axes[0, 0].set_ylabel("true type (query cells), number", fontsize=7)
    bar = fig.colorbar(image, ax=axes[0, -1], fraction=0.06, ticks=[0, 0.5, 1])
    bar.set_label("share of the true type's cells", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]
    seeds = "1 seed" if n_seeds == 1 else f"mean over {n_seeds} seeds"
    numbers = "; numbers: percent, all: 100" if size <= NUMBERED else ""
    heading(fig, title, f"rows sum to 1, {seeds}{numbers}; grey: no query cell of that type")
    return fig


def shorten_middle(text: str, width: int = 26) -> str:
    """Shorten a long name in its middle, because cell types differ at both ends."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[-(width // 2) :]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--figure", type=Path, required=True, help="PNG to write; SVG stands beside it")
    args = parser.parse_args()

    rows, runs = read_scores(args.scores)
    datasets, methods = declared()
    dataset = runs["dataset"].iloc[0]
    title = f"{dataset_title(dataset, datasets[dataset])}: which types are taken for which"
    names = {name: entry["title"] for name, entry in methods.items()}
    panels = chosen(rows, methods)
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    if panels:
        files = {path.stem: path.with_suffix(".units.parquet") for path in args.scores}
        units = {method: pd.read_parquet(files[method]) for method, _ in panels.values()}
        save(draw(units, panels, names, title), args.figure)
    else:
        save(notice(title, "No method of this selection has predicted a label."), args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
