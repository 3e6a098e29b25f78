"""Step 7b: draw one dataset: the cells as every method sees them, and the headline with every seed.

PNG for people, SVG beside it for print; the same rows give the same picture.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import seaborn as sns
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from workflow import tasks
from workflow.drawing import STYLE, save
from workflow.files import read_json
from workflow.present import (
    KIND_COLOURS,
    KIND_TITLES,
    dataset_title,
    declared,
    published,
    read_scores,
    titles,
    trouble,
)
from workflow.statistics import mean_t_interval

MARKERS = "osD^vP"
PER_ROW = 6  # panels side by side, to stay legible on a page


def umap(matrix: np.ndarray) -> np.ndarray:
    """Return UMAP coordinates (n, 2) of the rows of a matrix: scanpy's defaults, k = 15, seed 0."""
    cells = ad.AnnData(np.zeros((len(matrix), 0), dtype=np.float32), obsm={"X": matrix})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, n_neighbors=15, use_rep="X", random_state=0)
        sc.tl.umap(cells, random_state=0)
    return cells.obsm["X_umap"]


def colours_of(names: list[str]) -> dict[str, tuple]:
    """Give each name a colour and a marker: ten safe colours, then the same with other markers."""
    palette = sns.color_palette("colorblind", 10)
    return {n: (palette[i % 10], MARKERS[i // 10 % len(MARKERS)]) for i, n in enumerate(names)}


def frame(ax: plt.Axes) -> None:
    """Draw a thin frame without ticks: UMAP coordinates have no unit."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.8", linewidth=0.5)


def scatter(ax: plt.Axes, xy: np.ndarray, values: np.ndarray, styles: dict[str, tuple]) -> None:
    """Draw cells coloured by a category, in an order that hides no category behind another."""
    order = np.random.default_rng(0).permutation(len(xy))
    for name, (colour, marker) in styles.items():
        mine = order[values[order] == name]
        ax.scatter(
            xy[mine, 0], xy[mine, 1], s=5, color=colour, marker=marker, lw=0, alpha=0.8, rasterized=True
        )
    frame(ax)


def legend(ax: plt.Axes, styles: dict[str, tuple], title: str) -> None:
    """Put a legend into the empty axes at the end of a row."""
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", ms=5, label=name)
        for name, (colour, marker) in styles.items()
    ]
    ax.legend(handles=handles, title=title, loc="center left", frameon=False, alignment="left")


def panels(n: int, title: str) -> tuple[plt.Figure, np.ndarray]:
    """Make a grid for ``n`` pairs of panels, one above the other, and a column at the right for legends."""
    n_columns, n_pairs = min(n, PER_ROW), -(-n // PER_ROW)
    fig, axes = plt.subplots(
        2 * n_pairs,
        n_columns + 1,
        figsize=(1.75 * n_columns + 1.7, 3.9 * n_pairs + 0.6),
        squeeze=False,
        layout="constrained",
    )
    fig.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    for ax in [*(ax for i in range(n, n_pairs * n_columns) for ax in place(axes, i)), *axes[:, -1]]:
        ax.axis("off")
    return fig, axes


def title_of(ax: plt.Axes, name: str) -> None:
    """Write a method's name above its panel."""
    ax.set_title(name, linespacing=1.1, va="bottom")


def say(ax: plt.Axes, text: str) -> None:
    """Write why there is no picture into the place where it would be."""
    frame(ax)
    text = text if len(text) < 90 else text[:87] + "..."
    text = textwrap.fill(text, 24)
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=7, color="0.4", transform=ax.transAxes)


def figure_name(title: str, runs: pd.DataFrame) -> str:
    """Return a method's name; a reduced scale or changed parameters stand below it."""
    scale = next((info["scale"] for info in runs["info"] if info.get("scale")), "")
    changed = "parameters changed" if runs.iloc[0]["changed_params"] else ""
    below = ", ".join(note for note in (scale, changed) if note)
    return "\n".join([title, *textwrap.wrap(below, 26)])


def first_outputs(runs: pd.DataFrame, folders: dict[str, Path]) -> dict[str, ad.AnnData | str]:
    """Return for each method the output of its first seed that is ok, or why there is none."""
    found: dict[str, ad.AnnData | str] = {}
    for method, mine in runs.groupby("method", sort=False):
        ok = mine[mine["status"] == "ok"].sort_values("seed")
        if len(ok):
            found[method] = ad.read_h5ad(folders[ok.iloc[0]["run_id"]] / "output.h5ad")
        else:
            found[method] = trouble(mine)
    return found


def place(axes: np.ndarray, index: int) -> np.ndarray:
    """Return the two panels, one above the other, of the picture with this index."""
    row, column = divmod(index, PER_ROW)
    return axes[2 * row : 2 * row + 2, column]


def draw_integration(outputs: dict, folder: Path, names: dict[str, str], title: str) -> plt.Figure:
    """UMAP of every embedding: coloured by label above, by batch below."""
    solution = ad.read_h5ad(folder / "solution.h5ad")
    fig, axes = panels(len(outputs), title)
    colourings = []
    for key in ("label", "batch"):
        values = solution.obs[key].to_numpy(dtype=str)
        colourings.append((values, colours_of(sorted(set(values)))))
    for index, (method, output) in enumerate(outputs.items()):
        pair = place(axes, index)
        title_of(pair[0], names[method])
        xy = None if isinstance(output, str) else umap(np.asarray(output.obsm["X_emb"]))
        for ax, (values, styles) in zip(pair, colourings, strict=True):
            if xy is None:
                say(ax, str(output))
            else:
                scatter(ax, xy, values, styles)
    for row, what in enumerate(("cell type", "batch")):
        legend(axes[row, -1], colourings[row][1], what)
    axes[1, 0].set(xlabel="UMAP 1", ylabel="UMAP 2")
    return fig


def draw_annotation(outputs: dict, folder: Path, names: dict[str, str], title: str) -> plt.Figure:
    """UMAP of the query cells' genes: predicted labels above, wrong predictions below."""
    given = ad.read_h5ad(folder / "input.h5ad")
    query = given[(given.obs["split"] == "query").to_numpy(), given.var["highly_variable"].to_numpy()]
    genes = query.X.toarray()
    truth = ad.read_h5ad(folder / "solution.h5ad").obs["label"].to_numpy(dtype=str)
    xy = umap(PCA(min(50, *np.subtract(genes.shape, 1)), random_state=0).fit_transform(genes))
    styles = colours_of(sorted(set(truth) | set(given.obs["label"].dropna().astype(str))))
    verdicts = {"right": ((0.8, 0.8, 0.8), "o"), "wrong": (KIND_COLOURS["ours"], "o")}
    fig, axes = panels(len(outputs) + 1, title)
    above, below = place(axes, 0)
    title_of(above, "truth")
    scatter(above, xy, truth, styles)
    above.set(xlabel="UMAP 1", ylabel="UMAP 2")
    below.axis("off")
    for index, (method, output) in enumerate(outputs.items(), start=1):
        above, below = place(axes, index)
        title_of(above, names[method])
        if isinstance(output, str):
            say(above, output)
            below.axis("off")
            continue
        predicted = output.obs["label_pred"].to_numpy(dtype=str)
        right = np.where(predicted == truth, "right", "wrong")
        scatter(above, xy, predicted, styles)
        scatter(below, xy, right, verdicts)
        below.set_xlabel(f"{(right == 'wrong').sum()} of {len(truth)} wrong")
    legend(axes[0, -1], styles, "cell type")
    legend(axes[1, -1], verdicts, "prediction")
    return fig


def draw_headline(
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    task: str,
    dataset: str,
    names: dict[str, str],
    title: str,
) -> plt.Figure:
    """Every seed as a dot, the mean as a bar with its 95 % t interval, the published value as a ring."""
    headline = tasks.get(task).HEADLINE[:4]
    kinds = runs.drop_duplicates("method").set_index("method")["kind"]
    first = rows[(rows["metric"] == headline[0][0]) & (rows["metric_impl"] == headline[0][1])]
    means = first.groupby("method")["value"].mean().reindex(kinds.index)
    order = list(means.sort_values(na_position="first").index)
    rings = cut = False
    fig, axes = plt.subplots(
        1,
        len(headline),
        figsize=(2.05 * len(headline) + 1.8, 0.42 * len(order) + 1.4),
        sharey=True,
        layout="constrained",
    )
    fig.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    for ax, (metric, impl) in zip(axes, headline, strict=True):
        mine = rows[(rows["metric"] == metric) & (rows["metric_impl"] == impl)]
        for y, method in enumerate(order):
            values = mine.loc[mine["method"] == method, "value"].to_numpy()
            colour = KIND_COLOURS[kinds[method]]
            if not len(values):
                if ax is axes[0]:
                    why = trouble(runs[runs["method"] == method]).split(":")[0] or "no value"
                    ax.text(0.02, y, why, va="center", fontsize=7, color="0.4")
                continue
            interval = mean_t_interval(values)
            ax.hlines(y, interval.low, interval.high, color=colour, lw=1.2)
            for end, marker, beyond in ((0, "<", interval.low < 0), (1, ">", interval.high > 1)):
                if beyond:  # a t interval knows nothing of the metric's range
                    ax.scatter(end, y, s=22, marker=marker, color=colour, lw=0, clip_on=False, zorder=4)
                    cut = True
            ax.plot([interval.mean] * 2, [y - 0.3, y + 0.3], color=colour, lw=1.4)
            # seeds stand one above the other, so that equal values stay countable
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
            ax.scatter(values, y + np.asarray(spread), s=11, color=colour, alpha=0.7, lw=0, zorder=3)
            said = published(dataset, metric).get(method)
            if said is not None:
                ax.scatter(said, y, s=45, fc="none", ec="k", lw=0.9, zorder=4)
                rings = True
        ax.set(xlim=(0, 1), xlabel=titles(metric, impl), yticks=range(len(order)))
        ax.set_ylim(-0.6, len(order) - 0.4)
        ax.grid(axis="x", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True)
    axes[0].set_yticklabels([names[m] for m in order])
    used = [k for k in KIND_COLOURS if k in set(kinds)]
    handles = [Line2D([], [], color=KIND_COLOURS[k], lw=3, label=KIND_TITLES[k]) for k in used]
    if rings:
        handles.append(Line2D([], [], marker="o", ls="", mfc="none", mec="k", ms=6, label="published"))
    if cut:
        label = "interval goes on"
        handles.append(Line2D([], [], marker=">", ls="", color="0.3", ms=4, label=label))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return fig


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--runs-folder", type=Path, required=True, help="folder of this dataset's runs")
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--cells", type=Path, required=True, help="PNG to write; SVG stands beside it")
    parser.add_argument("--headline", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()

    prepared = read_json(args.prepared)
    task, dataset = prepared["task"], prepared["dataset"]
    rows, runs = read_scores(args.scores)
    rows = rows[rows["unit_level"] == "run"]
    folders = {run.run_id: args.runs_folder / run.method / str(run.seed) for run in runs.itertuples()}
    datasets, methods = declared()
    names = {
        method: figure_name(methods[method]["title"], mine)
        for method, mine in runs.groupby("method", sort=False)
    }
    heading = dataset_title(dataset, datasets[dataset])

    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    outputs = first_outputs(runs, folders)
    draw = {"integration": draw_integration, "annotation": draw_annotation}[task]
    if prepared["status"] == "ok":
        seed = int(runs["seed"].min())
        save(draw(outputs, args.prepared.parent, names, f"{heading}, seed {seed}"), args.cells)
    else:
        fig, ax = plt.subplots(figsize=(5, 2), layout="constrained")
        fig.suptitle(heading, x=0.01, ha="left", fontsize=9, fontweight="bold")
        say(ax, prepared["reason"])
        save(fig, args.cells)
    n_seeds = runs["seed"].nunique()
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds, mean and 95 % t interval"
    what = f"{heading}: {seeds}"
    save(draw_headline(rows, runs, task, dataset, names, what), args.headline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
