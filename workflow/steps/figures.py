"""Step 7b: draw one dataset: the cells as every method sees them, the headline, the epochs, and the cost.

PNG for people, SVG beside it for print; the same rows give the same picture.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import warnings
from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from sklearn.decomposition import PCA

from workflow import tasks
from workflow.costs import best_trivial, memory, span, without_probes
from workflow.drawing import SMALL, STYLE, TWO_COLUMNS, frame, heading, notice, plain, save, say, spread
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
PER_ROW = 4  # panels side by side, to stay legible on a page


def umap(matrix: np.ndarray) -> np.ndarray:
    """Return UMAP coordinates (n, 2) of the rows of a matrix: scanpy's defaults, k = 15, seed 0."""
    cells = ad.AnnData(np.zeros((len(matrix), 0), dtype=np.float32), obsm={"X": matrix})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, n_neighbors=15, use_rep="X", transformer="sklearn", random_state=0)
        sc.tl.umap(cells, random_state=0)
    return cells.obsm["X_umap"]


def colours_of(names: list[str]) -> dict[str, tuple]:
    """Give each name a colour and a marker: ten safe colours, then the same with other markers."""
    palette = sns.color_palette("colorblind", 10)
    return {n: (palette[i % 10], MARKERS[i // 10 % len(MARKERS)]) for i, n in enumerate(names)}


def scatter(ax: plt.Axes, xy: np.ndarray, values: np.ndarray, styles: dict[str, tuple]) -> None:
    """Draw cells coloured by a category, in an order that hides no category behind another."""
    order = np.random.default_rng(0).permutation(len(xy))
    for name, (colour, marker) in styles.items():
        mine = order[values[order] == name]
        ax.scatter(
            xy[mine, 0], xy[mine, 1], s=3, color=colour, marker=marker, lw=0, alpha=0.8, rasterized=True
        )
    frame(ax)


def legend(fig: plt.Figure, groups: dict[str, dict[str, tuple]]) -> None:
    """Put one legend at the right, in which each group of names stands below its title."""
    handles = []
    for title, styles in groups.items():
        handles.append(Line2D([], [], ls="", label=title))
        for name, (colour, marker) in styles.items():
            label = textwrap.shorten(name, 30, placeholder="…")
            handles.append(Line2D([], [], color=colour, marker=marker, ls="", ms=4, label=label))
    box = fig.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=SMALL, handletextpad=0.1,
        labelspacing=0.3,
    )  # fmt: skip
    for text in box.get_texts():
        if text.get_text() in groups:
            text.set_fontweight("bold")


def panels(n: int, title: str) -> tuple[plt.Figure, np.ndarray]:
    """Make a grid for ``n`` pairs of panels, one above the other; room at the right is for a legend."""
    n_columns, n_pairs = min(n, PER_ROW), -(-n // PER_ROW)
    fig, axes = plt.subplots(
        2 * n_pairs,
        n_columns,
        figsize=(1.3 * n_columns + 1.7, 3.1 * n_pairs + 0.5),
        squeeze=False,
        layout="constrained",
    )
    heading(fig, title)
    for i in range(n, n_pairs * n_columns):
        for ax in place(axes, i):
            ax.axis("off")
    return fig, axes


def title_of(ax: plt.Axes, name: str) -> None:
    """Write a method's name above its panel."""
    ax.set_title(name, linespacing=1.1, va="bottom", fontsize=7)


def figure_name(title: str, runs: pd.DataFrame) -> str:
    """Return a method's name; a reduced scale or changed parameters stand below it."""
    scale = next((info["scale"] for info in runs["info"] if info.get("scale")), "")
    changed = "parameters changed" if runs.iloc[0]["changed_params"] else ""
    below = ", ".join(note for note in (scale, changed) if note)
    return "\n".join([title, *textwrap.wrap(below, 24)])


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
    legend(fig, {"cell type": colourings[0][1], "batch": colourings[1][1]})
    axes[1, 0].set_xlabel("UMAP 1", fontsize=7)
    axes[1, 0].set_ylabel("UMAP 2", fontsize=7)
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
    above.set_xlabel("UMAP 1", fontsize=7)
    above.set_ylabel("UMAP 2", fontsize=7)
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
        below.set_xlabel(f"{(right == 'wrong').sum()} of {len(truth)} wrong", fontsize=7)
    legend(fig, {"cell type": styles, "prediction": verdicts})
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
    # beside an axis there is more room than above a panel
    parts = [names[m].split("\n", 1) for m in order]
    labels = ["\n".join([name, *textwrap.wrap(" ".join(below), 36)]) for name, *below in parts]
    lines = max(label.count("\n") + 1 for label in labels)
    fig, axes = plt.subplots(
        1,
        len(headline),
        figsize=(TWO_COLUMNS, max(0.34, 0.12 * lines) * len(order) + 1.2),
        sharey=True,
        layout="constrained",
    )
    heading(fig, title)
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
        ax.set(xlim=(0, 1), yticks=range(len(order)), xticks=[0, 0.5, 1])
        ax.set_xticks(np.arange(0.1, 1, 0.1), minor=True)
        ax.set_xlabel(titles(metric, impl), fontsize=7)
        ax.tick_params(labelsize=7)
        ax.set_ylim(-0.6, len(order) - 0.4)
        ax.grid(axis="x", which="both", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", length=0)
        sns.despine(ax=ax, left=True)
    axes[0].set_yticklabels(labels, fontsize=SMALL)
    used = [k for k in KIND_COLOURS if k in set(kinds)]
    handles = [Line2D([], [], color=KIND_COLOURS[k], lw=3, label=KIND_TITLES[k]) for k in used]
    if rings:
        handles.append(Line2D([], [], marker="o", ls="", mfc="none", mec="k", ms=6, label="published"))
    if cut:
        label = "interval goes on"
        handles.append(Line2D([], [], marker=">", ls="", color="0.3", ms=4, label=label))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=7)
    return fig


def of_results(methods: dict[str, dict], names: Iterable[str]) -> list[str]:
    """Return the methods that stand in results: not the variants that show what one defect does."""
    return [name for name in names if not methods[name].get("variant")]


def epoch_traces(rows: pd.DataFrame, runs: pd.DataFrame, metric: str, impl: str) -> dict[str, pd.DataFrame]:
    """Return for each method with epochs a line per seed and epoch: ``valid_loss``, ``score``, ``selected``.

    Parameters
    ----------
    rows
        Scores; those of the level ``epoch`` count, whose unit is the number of the epoch, from 1.
    runs
        Runs; ``info["history"]`` holds the losses and ``info["selected_epoch"]`` the epoch that was kept.
    metric, impl
        What is scored.
    """
    rows = rows[(rows["unit_level"] == "epoch") & (rows["metric"] == metric) & (rows["metric_impl"] == impl)]
    traces = {}
    for method, mine in runs[runs["status"] == "ok"].groupby("method", sort=False):
        lines = []
        for run in mine.itertuples():
            own = rows[(rows["method"] == method) & (rows["seed"] == run.seed)]
            scores = dict(zip(own["unit_id"].astype(int), own["value"], strict=True))
            losses = {step["epoch"]: step.get("valid_loss") for step in run.info.get("history") or []}
            for epoch in sorted(losses.keys() | scores.keys()):
                line = {"seed": run.seed, "epoch": epoch, "selected": epoch == run.info.get("selected_epoch")}
                lines.append(line | {"valid_loss": losses.get(epoch), "score": scores.get(epoch)})
        if lines:
            traces[method] = pd.DataFrame(lines).astype({"valid_loss": float, "score": float})
    return traces


#: Marker, size, face and edge of the epochs that a reader asks for. The ring goes around the others.
EPOCH_MARKS = {
    "first": ("o", 3.5, "white", "k"),
    "last": ("s", 3.5, "k", "k"),
    "best possible": ("*", 7, "#F0E442", "k"),
    "selected": ("o", 9, "none", "#0072B2"),
}


def marked_epochs(trace: pd.DataFrame) -> dict[str, float]:
    """Return the first, last, best possible (by the test score) and selected epoch of a seed, where known."""
    marks = {"first": trace["epoch"].min(), "last": trace["epoch"].max()}
    if trace["score"].notna().any():
        marks["best possible"] = trace.loc[trace["score"].idxmax(), "epoch"]
    if trace["selected"].any():
        marks["selected"] = trace.loc[trace["selected"], "epoch"].iloc[0]
    return marks


def cost_of_selection(trace: pd.DataFrame) -> str:
    """Say in words what the selected epoch scores, and what the best epoch of each seed would have."""
    scored = trace.dropna(subset=["score"])
    kept, best = scored[scored["selected"]]["score"], scored.groupby("seed")["score"].max()
    if kept.empty:
        return ""
    return f"selected {kept.mean():.3f}, best possible {best.mean():.3f}"


def draw_epochs(
    rows: pd.DataFrame, runs: pd.DataFrame, task: str, names: dict[str, str], title: str
) -> plt.Figure:
    """Validation loss above, test score below, against the epoch; a line per seed."""
    metric, impl = tasks.get(task).HEADLINE[0]
    traces = epoch_traces(rows, runs, metric, impl)
    if not traces:
        return notice(title, "No run of this selection tells what happened at each epoch.")
    columns = min(3, len(traces))
    n_pairs = -(-len(traces) // columns)
    fig, axes = plt.subplots(
        2 * n_pairs,
        columns,
        figsize=(1.1 + (TWO_COLUMNS - 1.1) * max(columns, 2) / 3, 3.8 * n_pairs + 0.6),
        squeeze=False,
        layout="constrained",
    )
    seeds = max(trace["seed"].nunique() for trace in traces.values())
    heading(fig, title, f"a line per seed (n = {seeds}); the test score was computed after the run")
    used: set[str] = set()
    for index in range(columns * n_pairs):
        row, column = divmod(index, columns)
        upper, lower = axes[2 * row : 2 * row + 2, column]
        if index >= len(traces):
            upper.axis("off"), lower.axis("off")
            continue
        method, trace = list(traces.items())[index]
        colour = KIND_COLOURS[runs.loc[runs["method"] == method, "kind"].iloc[0]]
        first, *notes = names[method].splitlines()
        title_of(upper, "\n".join([first, *textwrap.wrap(" ".join(notes), 40)]))
        for ax, column_name in ((upper, "valid_loss"), (lower, "score")):
            if trace[column_name].isna().all():
                missing = {"valid_loss": "no validation loss", "score": "no score of single epochs"}
                say(ax, f"{missing[column_name]} in this selection")
                continue
            for _, mine in trace.groupby("seed"):
                known = mine.dropna(subset=[column_name])
                ax.plot(known["epoch"], known[column_name], color=colour, lw=1, alpha=0.65, zorder=2)
                for height, (mark, epoch) in enumerate(marked_epochs(mine).items(), start=4):
                    value = known.loc[known["epoch"] == epoch, column_name]
                    if len(value):
                        shape, size, face, edge = EPOCH_MARKS[mark]
                        ax.plot(epoch, value, shape, ms=size, mfc=face, mec=edge, mew=0.8, zorder=height)
                        used.add(mark)
            plain(ax)
            ax.margins(y=0.12)  # room for the marks
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            ax.set_xlim(trace["epoch"].min() - 0.5, trace["epoch"].max() + 0.5)
        said = cost_of_selection(trace)
        lower.set_xlabel("epoch" + (f"\n{said}" if said else ""))
    for row in range(n_pairs):
        axes[2 * row, 0].set_ylabel("validation loss", fontsize=7)
        axes[2 * row + 1, 0].set_ylabel(f"{titles(metric, impl)}\nof the test cells", fontsize=7)
    handles = [
        Line2D(
            [], [], ls="", marker=shape, ms=min(size, 7), mfc=face, mec=edge, mew=0.8, label=f"{mark} epoch"
        )
        for mark, (shape, size, face, edge) in EPOCH_MARKS.items()
        if mark in used
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=7)
    return fig


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that no other beats in both: fewer ``seconds``, higher ``value``; by time."""
    points = points.sort_values(["seconds", "value"], ascending=[True, False])
    return points[points["value"] > points["value"].cummax().shift(fill_value=-np.inf)]


def draw_cost(
    rows: pd.DataFrame, runs: pd.DataFrame, task: str, names: dict[str, str], title: str
) -> plt.Figure:
    """Headline metric against the time of one run, with the best control and the Pareto front.

    The names stand in a column at the right, in the order of the values, so that they never overlap.
    """
    metric, impl = tasks.get(task).HEADLINE[0]
    first = rows[(rows["metric"] == metric) & (rows["metric_impl"] == impl) & (rows["unit_level"] == "run")]
    lines = []
    ok = without_probes(runs[runs["status"] == "ok"])
    for method, mine in ok.groupby("method", sort=False):
        interval = mean_t_interval(first.loc[first["method"] == method, "value"])
        line = {"method": method, "kind": mine["kind"].iloc[0], "value": interval.mean}
        line |= {"low": interval.low, "high": interval.high, "seconds": mine["seconds"].median()}
        gpu = mine["peak_gpu_memory_mb"].median() if mine["peak_gpu_memory_mb"].notna().any() else np.nan
        line |= {"memory": mine["peak_memory_mb"].median(), "gpu_memory": gpu}
        lines.append(line)
    points = pd.DataFrame(
        lines, columns=["method", "kind", "value", "low", "high", "seconds", "memory", "gpu_memory"]
    )
    points = points.dropna(subset=["value", "seconds"]).sort_values(["value", "method"], ignore_index=True)
    if points.empty:
        return notice(title, "No run of this selection has both a score and a time.")
    height = max(2.6, 0.17 * len(points) + 1.1)
    fig, (ax, side) = plt.subplots(
        1, 2, figsize=(TWO_COLUMNS, height), width_ratios=[1.85, 1], layout="constrained"
    )
    n = runs["seed"].nunique()
    seeds = (
        "1 seed" if n == 1 else f"{n} seeds: mean and 95 % t interval; median time and peak memory of a run"
    )
    heading(fig, title, seeds)
    reached = points[["value", "low", "high"]].clip(0, 1)  # a t interval knows nothing of the metric's range
    bottom, top = reached.min().min(), reached.max().max()
    margin = max(0.06 * (top - bottom), 0.01)
    ax.set(xscale="log", ylim=(bottom - margin, top + margin))
    ax.set(xlabel="time of one run (s, logarithmic)", ylabel=titles(metric, impl))
    ax.set_xlim(points["seconds"].min() / 1.6, points["seconds"].max() * 1.6)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
    if points["seconds"].max() / points["seconds"].min() < 30:  # one decade may hold no tick at all
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain(ax)
    kinds = points.set_index("method")["kind"]
    trivial, value = best_trivial(points.set_index("method")["value"], kinds)
    handles = []
    if trivial:
        ax.axhline(value, color=KIND_COLOURS["trivial"], ls="--", lw=1, zorder=1)
        handles.append(Line2D([], [], color=KIND_COLOURS["trivial"], ls="--", lw=1, label="best control"))
    front = pareto(points[points["kind"] != "oracle"])
    if len(front) > 1:
        ax.step(front["seconds"], front["value"], where="post", color="0.55", lw=0.8, zorder=1.5)
        handles.append(Line2D([], [], color="0.55", lw=0.8, label="nothing is both faster and better"))
    side.axis("off")
    side.set(xlim=(0, 1), ylim=ax.get_ylim())
    gap = (ax.get_ylim()[1] - ax.get_ylim()[0]) * 0.155 / (height - 1.1)
    places = spread(list(points["value"]), gap, *ax.get_ylim())
    for point, y in zip(points.itertuples(), places, strict=True):
        colour = KIND_COLOURS[point.kind]
        ax.plot([point.seconds] * 2, [point.low, point.high], color=colour, lw=1.2, zorder=2)
        face = "white" if point.kind == "oracle" else colour
        ax.scatter(point.seconds, point.value, s=26, fc=face, ec=colour, lw=1, zorder=3)
        leader = ConnectionPatch(
            xyA=(point.seconds, point.value), coordsA=ax.transData, xyB=(0.02, y), coordsB=side.transData
        )
        leader.set(color=colour, linewidth=0.4, alpha=0.6)
        fig.add_artist(leader)
        label = f"{names[point.method].splitlines()[0]}: {span(point.seconds)}, {memory(point.memory)}"
        label += f", GPU {memory(point.gpu_memory)}" if np.isfinite(point.gpu_memory) else ""
        side.text(0.04, y, label, va="center", fontsize=SMALL, color=colour)
    used = [kind for kind in KIND_COLOURS if kind in set(points["kind"])]
    handles += [
        Line2D(
            [], [], ls="", marker="o", ms=5, mec=KIND_COLOURS[kind], label=KIND_TITLES[kind],
            mfc="white" if kind == "oracle" else KIND_COLOURS[kind],
        )
        for kind in used
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=SMALL)
    return fig


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--runs-folder", type=Path, required=True, help="folder of this dataset's runs")
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--cells", type=Path, required=True, help="PNG to write; SVG stands beside it")
    parser.add_argument("--headline", type=Path, required=True, help="PNG to write")
    parser.add_argument("--epochs", type=Path, required=True, help="PNG to write")
    parser.add_argument("--cost", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()

    prepared = read_json(args.prepared)
    task, dataset = prepared["task"], prepared["dataset"]
    rows, runs = read_scores(args.scores)
    folders = {run.run_id: args.runs_folder / run.method / str(run.seed) for run in runs.itertuples()}
    datasets, methods = declared()
    names = {
        method: figure_name(methods[method]["title"], mine)
        for method, mine in runs.groupby("method", sort=False)
    }
    runs = runs[runs["method"].isin(of_results(methods, names))]
    of_runs = rows[rows["unit_level"] == "run"]
    called = dataset_title(dataset, datasets[dataset])

    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    outputs = first_outputs(runs, folders)
    draw = {"integration": draw_integration, "annotation": draw_annotation}[task]
    if prepared["status"] == "ok":
        seed = int(runs["seed"].min())
        save(draw(outputs, args.prepared.parent, names, f"{called}, seed {seed}"), args.cells)
    else:
        save(notice(called, prepared["reason"]), args.cells)
    n_seeds = runs["seed"].nunique()
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds, mean and 95 % t interval"
    save(draw_headline(of_runs, runs, task, dataset, names, f"{called}: {seeds}"), args.headline)
    save(draw_epochs(rows, runs, task, names, f"{called}: epochs"), args.epochs)
    save(draw_cost(rows, runs, task, names, f"{called}: cost and quality"), args.cost)
    return 0


if __name__ == "__main__":
    sys.exit(main())
