"""Audits of the scores: what a search, an epoch, a seed, a gene order or an implementation makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from workflow.audits import (
    KINDS_OF_CONTROLS,
    MARGIN,
    NOT_APPLICABLE,
    PASS,
    WARN,
    Case,
    Finding,
    absent,
    audit,
    points,
    verdict,
)
from workflow.audits.data import chance_accuracy

FEWEST_SEEDS = 5
SEARCHED, FIXED, BLIND = "scib-1.1.5", "leiden-r1", "scib-metrics"
#: AvgBIO of an embedding that knows nothing: NMI 0, ARI 0, and a silhouette of 0, which counts as 1/2.
BLIND_AVG_BIO, BLIND_TOLERANCE = 1 / 6, 0.05
#: Of the way from the best control to the ceiling, below which a metric hardly tells methods apart.
SATURATED = 0.05
#: Shift of an embedding (1 - cosine) that rounding explains.
ROUNDING = 1e-3


@audit("L2", "Resolution chosen with the labels")
def searched_resolution(case: Case) -> Iterator[Finding]:
    if case.task != "integration":
        yield absent("Annotation is scored without clustering.")
        return
    for method, best in case.means("avg_bio", SEARCHED).items():
        fixed, blind = (case.means("avg_bio", rule)[method] for rule in (FIXED, BLIND))
        lift = best - fixed
        sentence = (
            f"AvgBIO of {case.title(method)} is {best:.3f} at the resolution that fits the labels best, "
            f"{fixed:.3f} at resolution 1 ({points(lift)} less) and {blind:.3f} with k-means"
        )
        if method == "random_embedding":
            sentence += ": so high comes a search in pure noise"
        yield Finding(verdict(lift <= case.margin), lift, f"{sentence}.", str(method))


@audit("L3", "Epoch against the best epoch by test score")
def best_epoch(case: Case) -> Iterator[Finding]:
    traced = case.level("epoch")
    if traced.empty:
        yield absent("No method left a score per epoch.")
        return
    own = case.scores()
    for method, rows in traced.groupby("method", sort=False):
        best = rows.groupby("seed")["value"].max()
        kept = own[method].reindex(best.index)
        inflation = float((best - kept).mean())
        sentence = (
            f"What chose the epoch of {case.title(method)} never saw a score. Mean of {len(best)} seeds "
            f"{kept.mean():.3f}; the best of {rows['unit_id'].nunique()} traced epochs, picked by the score "
            f"itself, would be {best.mean():.3f}, {points(inflation)} more."
        )
        yield Finding(verdict(inflation <= case.margin), inflation, sentence, str(method))


@audit("L10", "Room between the best control and the ceiling")
def saturation(case: Case) -> Iterator[Finding]:
    means = case.means()
    kinds = pd.Series({method: case.kind(str(method)) for method in means.index}, dtype=object)
    controls, oracles = means[kinds == "trivial"], means[kinds == "oracle"]
    rule = "_louvain" if case.task == "integration" else ""
    floor = (
        controls.max() if len(controls) else case.room.get(f"pca_avg_bio{rule}", case.room.get("majority"))
    )
    ceiling = (
        oracles.max() if len(oracles) else case.room.get(f"ceiling_avg_bio{rule}", case.room.get("ceiling"))
    )
    if floor is None or ceiling is None:
        yield absent("Neither a control nor a ceiling was measured.")
        return
    if not ceiling > floor:
        sentence = f"The best control ({floor:.3f}) leaves nothing below the ceiling ({ceiling:.3f})."
        yield Finding(WARN, ceiling - floor, sentence)
        return
    sentence = f"The best control reaches {floor:.3f} and the ceiling is {ceiling:.3f}: "
    sentence += f"{points(ceiling - floor)} in which methods can differ."
    yield Finding(verdict(ceiling - floor > SATURATED), ceiling - floor, sentence)
    for method, mean in means.items():
        if case.kind(str(method)) not in KINDS_OF_CONTROLS:
            scaled = (mean - floor) / (ceiling - floor)
            sentence = f"{case.title(str(method))} ({mean:.3f}) "
            sentence += f"goes {100 * scaled:.0f} % of the way from" if scaled > 0 else "does not get above"
            sentence += f" the best control ({floor:.3f})"
            sentence += f" to the ceiling ({ceiling:.3f})." if scaled > 0 else "."
            yield Finding(verdict(scaled > 0), scaled, sentence, str(method))


@audit("L12", "Number of seeds")
def seeds(case: Case) -> Iterator[Finding]:
    for method, values in case.scores().groupby(level="method", sort=False):
        if case.kind(str(method)) in KINDS_OF_CONTROLS:
            continue
        n, spread = len(values), float(values.std()) if len(values) > 1 else np.nan
        title = case.title(str(method))
        if n > 1 and np.ptp(values) < 1e-12:
            sentence = f"{title} gave the same value on each of {n} seeds: more would not tell more."
            yield Finding(PASS, n, sentence, str(method))
            continue
        sentence = f"{title} has {n} seed{'s' * (n != 1)}"
        sentence += f", SD {points(spread)}" if n > 1 else ", so its spread is unknown"
        few = f"; {FEWEST_SEEDS} are the least for an interval to mean much" if n < FEWEST_SEEDS else ""
        yield Finding(verdict(n >= FEWEST_SEEDS), n, f"{sentence}{few}.", str(method))


@audit("L13", "Every cell is scored in every run")
def every_cell(case: Case) -> Finding:
    expected = len(case.labels)
    scored = case.rows[case.rows["unit_level"] == "run"].groupby("run_id")["n_units"].unique()
    wrong = [run for run, counts in scored.items() if list(counts) != [expected]]
    silent = sorted(set(case.ok["run_id"]) - set(scored.index))
    for method, units in case.units.items():
        sizes = units.groupby("seed")["unit_id"].nunique()
        wrong += [f"{method}/{seed}" for seed, n in sizes.items() if n != expected]
    bad = len(set(wrong)) + len(silent)
    sentence = f"{len(scored) - len(set(wrong))} of {len(case.ok)} runs that ended well are scored on all "
    sentence += f"{expected} cells."
    if bad:
        sentence += f" Not so: {', '.join([*map(str, wrong), *silent][:3])}."
    return Finding(verdict(bad == 0), bad, sentence)


@audit("L15", "Order of the genes")
def gene_order(case: Case) -> Iterator[Finding]:
    yield from _probe(case, "order", "the genes stand in another random order", worth=case.margin)


@audit("A3", "Padding changes nothing")
def padding(case: Case) -> Iterator[Finding]:
    yield from _probe(case, "padding", "cells are padded further", worth=0.0)


@audit("A4", "Place of <cls>")
def cls_position(case: Case) -> Iterator[Finding]:
    yield from _probe(case, "cls_position", "<cls> stands last instead of first", worth=case.margin)


def _probe(case: Case, level: str, words: str, worth: float) -> Iterator[Finding]:
    """Compare what a run returned with what it would have returned; ``worth``: change that may pass."""
    probed = case.level(level)
    if probed.empty:
        yield absent("No method left such a probe.")
        return
    shifts = case.level(level, "shift")
    own = case.scores()
    for method, rows in probed.groupby("method", sort=False):
        kept = own[method].reindex(rows["seed"]).to_numpy()
        change = float(np.abs(rows["value"] - kept).max())
        shift = float(shifts.loc[shifts["method"] == method, "value"].mean())
        moved = f"{100 * shift:.1f} % of the labels change" if case.task == "annotation" else ""
        moved = moved or f"cells turn by 1 - cosine = {shift:.2g} on average"
        within = rows.groupby("seed")["value"].std().mean()  # NaN with one probe a run
        spread = f", SD between them {points(within)}" if np.isfinite(within) else ""
        fine = change <= worth if worth else shift <= (0 if case.task == "annotation" else ROUNDING)
        sentence = (
            f"When {words}, {moved} and the score of {case.title(str(method))} ({kept.mean():.3f}) becomes "
            f"{rows['value'].mean():.3f} on average; the largest change is {points(change)}{spread}."
        )
        yield Finding(verdict(fine), shift if not worth else change, sentence, str(method))


@audit("L18", "Means, not best seeds")
def means_not_bests(case: Case) -> Finding:
    values = case.scores()
    methods = values.index.get_level_values("method")
    values = values[np.array([case.kind(m) not in KINDS_OF_CONTROLS for m in methods], dtype=bool)]
    if not values.groupby(level="method").size().max() > 1:
        return absent("No method has two seeds: a mean is the best.")
    groups = values.groupby(level="method", sort=False)
    means, bests = groups.mean(), groups.max()
    gap, widest = float((bests - means).max()), str((bests - means).idxmax())
    leads, would = str(means.idxmax()), str(bests.idxmax())
    sentence = (
        f"Tables and verdicts show means over seeds. The best seed of {case.title(widest)} lies "
        f"{points(gap)} above its mean, the widest gap; {case.title(leads)} leads by means"
    )
    sentence += f", {case.title(would)} would by best seeds." if leads != would else " and by best seeds."
    return Finding(verdict(leads == would), gap, sentence)


@audit("A1", "Labels shuffled at scoring")
def permuted_labels(case: Case) -> Iterator[Finding]:
    rows = case.level("permuted")
    if rows.empty:
        yield Finding(NOT_APPLICABLE, None, "No score against shuffled labels was made.")
        return
    own = case.means()
    for method, mine in rows.groupby("method", sort=False):
        value = float(mine["value"].mean())
        if case.task == "annotation":
            units = case.units.get(str(method))
            if units is None:
                yield Finding(NOT_APPLICABLE, None, "Its predictions are not here.", str(method))
                continue
            found = [chance_accuracy(u["truth"], u["predicted"]) for _, u in units.groupby("seed")]
            chance, sd = (float(np.mean(column)) for column in zip(*found, strict=True))
            tolerance = 4 * sd / np.sqrt(mine.groupby("seed").size().min())
            how = "how often each label is true and predicted, four standard errors of the shuffles"
        else:
            chance, tolerance = BLIND_AVG_BIO, BLIND_TOLERANCE
            how = "NMI 0, ARI 0 and silhouette 0; the search finds a little more in few cells"
        sentence = (
            f"Against shuffled labels {case.title(str(method))} scores {value:.3f} instead of "
            f"{own[method]:.3f}; chance is {chance:.3f} ± {tolerance:.3f} ({how})."
        )
        yield Finding(verdict(abs(value - chance) <= tolerance + 1e-9), value, sentence, str(method))


@audit("A5", "Implementations of one metric")
def implementations(case: Case) -> Iterator[Finding]:
    if case.task != "integration":
        yield absent("Annotation metrics have one implementation; the sets of labels are L11.")
        return
    rows = case.level("run", "avg_bio")
    for method, table in rows.groupby("method", sort=False):
        means = table.groupby("metric_impl")["value"].mean().sort_values()
        spread = float(means.iloc[-1] - means.iloc[0])
        sentence = (
            f"AvgBIO of the same embedding of {case.title(str(method))} runs from {means.iloc[0]:.3f} "
            f"({means.index[0]}) to {means.iloc[-1]:.3f} ({means.index[-1]}) with the rule."
        )
        yield Finding(verdict(spread <= MARGIN["integration"]), spread, sentence, str(method))


@audit("A7", "Methods with one and the same output")
def identical_outputs(case: Case) -> Finding:
    runs = case.rows[case.rows["unit_level"] == "run"]
    if runs["method"].nunique() < 2:
        return absent("There are not two methods to compare.")
    scores = runs.pivot_table(index=["seed", "method"], columns=["metric", "metric_impl"], values="value")
    hashes = runs.groupby(["seed", "method"])["output_sha256"].first()
    pairs = set()
    for _, table in scores.round(12).groupby(level="seed"):
        names = [(str(method), (seed, method)) for seed, method in table.index]
        for i, (a, at_a) in enumerate(names):
            for b, at_b in names[i + 1 :]:
                same = table.loc[at_a].equals(table.loc[at_b]) or hashes[at_a] == hashes[at_b]
                if same:
                    pairs.add((a, b))
    sentence = f"{len(pairs)} pairs of {runs['method'].nunique()} methods agree in the file of a seed or in "
    sentence += f"all {scores.shape[1]} metrics"
    if pairs:
        sentence += ": " + "; ".join(f"{case.title(a)} and {case.title(b)}" for a, b in sorted(pairs))
    return Finding(WARN if pairs else PASS, len(pairs), f"{sentence}.")
