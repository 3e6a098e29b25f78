"""Intervals over seeds and units (cells, gene sets): the hierarchical bootstrap.

A score varies for two reasons: another seed trains another model, and other cells could have been
asked. A t interval over seeds sees the first only; where every seed scored the same cells, it says
nothing about other cells. The functions here put both into one interval. They are pure: whoever
calls them gives the random generator.

How the interval is built, and why. The textbook recipe resamples seeds, then units, and reads off
percentiles. With few seeds these are too narrow where seeds differ (drawing S of S shrinks their
variance by (S - 1) / S, and percentiles know nothing of the t distribution) and too wide where they
do not (see below). So only the units are drawn; the seeds' share of the variance is taken in closed
form, rescaled by S / (S - 1) (Rao and Wu 1988), and the limits are ``mean +- t(df) * se``:

crossed  Every seed scored the same units; one resample of units serves all seeds (Owen 2007).
         ``se**2 = V_seeds / S + (V_units - V_both / S)``: the variance of the seeds' scores, plus
         the bootstrap variance of the mean over seeds, less what both contain, the noise of a seed
         on a unit. In expectation this is the variance of the mean in the two-way layout with
         random effects; the plain bootstrap counts that noise three times.
nested   Every seed has units of its own. Scores of seeds then differ by their units' noise as well,
         so ``se**2 = V_seeds / S`` holds it all: the t interval over seeds, whose level is exact
         for normal scores however the variance divides. Nothing is drawn.

Degrees of freedom of a sum of two estimated variances: ``1 / df = sum(share_i / df_i)``, the harmonic
mean weighted by the shares of the variance. Satterthwaite (1946) squares the shares; with 3 seeds that
covers as little as 91 %, because seeds that agree by luck make the variance small and the degrees of
freedom large at once. The other way, to weight the t quantiles themselves (Cochran and Cox 1950), is
wider than this.

Measured by ``python tests/speed/statistics.py coverage`` at level .95, 400 units, 1,000 repetitions, 3, 5
and 10 seeds, the seeds' share of the variance 0, .1, 1 and 4 times the units': 93.6 to 97.1 % for normal
values (percentiles: 83 to 99.9 %), 91.6 to 96.0 % for 0/1 values, below 93 % only where accuracies of
seeds spread so far (SD .05 to .11 around .85) that they are skewed themselves; t over seeds does no better.

References
----------
Rao and Wu (1988), "Resampling inference with complex survey data", JASA 83, 231-241.
Owen (2007), "The pigeonhole bootstrap", Annals of Applied Statistics 1, 386-411.
Satterthwaite (1946), "An approximate distribution of estimates of variance components",
Biometrics Bulletin 2, 110-114.
Cochran and Cox (1950), "Experimental Designs", Wiley.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, stats

from workflow.statistics import ROUNDING_NOISE, Interval

METRICS = ("accuracy", "macro_precision", "macro_recall", "macro_f1")

#: Units drawn at a time: counts of this many stay in a core's cache.
_BLOCK = 2**18


class Hierarchical(NamedTuple):
    """A mean over seeds with an interval that knows of seeds and units.

    Attributes
    ----------
    interval
        Mean over seeds, limits, number of seeds, sample SD over seeds.
    se_seeds, se_units
        Two parts of the standard error; their squares add up to its square. ``se_seeds`` shrinks
        with more seeds. ``se_units`` shrinks with more units; where units are crossed with seeds, no
        number of seeds makes it smaller.
    df
        Degrees of freedom of the t quantile behind the limits.
    p_value
        Two-sided, of the hypothesis that the quantity is 0; below .05 exactly where the 95 %
        interval leaves 0 out. NaN where the standard error is 0 or unknown.
    """

    interval: Interval
    se_seeds: float
    se_units: float
    df: float
    p_value: float

    @property
    def se(self) -> float:
        """Standard error of the mean."""
        return float(np.hypot(self.se_seeds, self.se_units))


def hierarchical_mean(
    values: np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    rng: np.random.Generator,
    crossed: bool = True,
) -> Hierarchical:
    """Interval of the mean over seeds of the mean over units.

    Parameters
    ----------
    values
        Float, seeds x units. NaN stands for a unit that a seed does not have; only nested units
        may be missing.
    level
        Confidence level, between 0 and 1.
    draws
        Resamples of crossed units; nested units need none.
    rng
        Source of the draws.
    crossed
        Whether column u is the same unit in every seed (query cells), or each seed has its own
        units (test perturbations of its own split).

    Returns
    -------
    Hierarchical
        Limits are NaN with one seed, and where a seed has fewer than two units. Where all seeds give
        one number, a deterministic method, the units alone give the interval. Limits of a share may
        lie outside 0 and 1.

    Raises
    ------
    ValueError
        For a level outside 0 and 1, a seed without units, and a crossed unit that a seed lacks.

    Notes
    -----
    The module's docstring tells the method, and how often it covers.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    found = np.isfinite(values)
    if crossed and not found.all():
        raise ValueError("values: crossed units need a finite value for every seed; found NaN or inf")
    n_units = found.sum(axis=1)
    if not len(values) or not n_units.all():
        raise ValueError(f"values: each seed needs a unit with a finite value; found shape {values.shape}")
    observed = np.array([row[keep].mean() for row, keep in zip(values, found, strict=True)])
    if crossed:
        resampled = [counts @ values.T for counts in _resamples(values.shape[1], draws, rng)]
        return _crossed(observed, np.concatenate(resampled) / values.shape[1], values.shape[1], level)
    noise = [
        row[keep].var(ddof=1) / n if n > 1 else np.nan
        for row, keep, n in zip(values, found, n_units, strict=True)
    ]
    return _nested(observed, sum(noise) / len(values) ** 2, float((n_units - 1).sum()), level)


def label_scores(
    truth: np.ndarray, predicted: np.ndarray, metric: str, weights: np.ndarray | None = None
) -> np.ndarray:
    """Score the labels that each seed predicted, once or once per resample of the cells.

    Parameters
    ----------
    truth
        Int codes from 0, one per cell.
    predicted
        Int codes, seeds x cells.
    metric
        "accuracy", "macro_precision", "macro_recall" or "macro_f1". The macro metrics average over
        the labels that occur in the truth or in that seed's predictions, as scikit-learn does with
        ``zero_division=0``; a label that a resample lost stays in the average and scores 0.
    weights
        How often each resample drew each cell, resamples x cells; None scores the cells as they are.

    Returns
    -------
    numpy.ndarray
        Float, one per seed; with ``weights`` resamples x seeds.
    """
    tables, occurs = _tables(truth, predicted, metric)
    if weights is None:
        return _scores(tables, occurs, metric, np.ones((1, len(truth))))[0]
    return _scores(tables, occurs, metric, np.asarray(weights))


def hierarchical_labels(
    truth: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray | None = None,
    *,
    metric: str = "accuracy",
    level: float = 0.95,
    draws: int = 10_000,
    rng: np.random.Generator,
) -> Hierarchical:
    """Interval of a label metric's mean over seeds, or of its paired difference.

    Parameters
    ----------
    truth
        Label of each cell.
    ours, theirs
        Predicted labels, seeds x cells; row i of both is one pair, drawn together, on the same
        resampled cells. Repeat the row of a method that ignores its seed. Without ``theirs`` the
        quantity is the metric of ``ours``, else the difference ours - theirs.
    metric
        One of `METRICS`; see `label_scores`.
    level, draws, rng
        As in `hierarchical_mean`.

    Returns
    -------
    Hierarchical
        For crossed units; see `hierarchical_mean`.

    Notes
    -----
    Cells that share a donor are drawn as if they were independent. A macro metric with labels of a
    few cells is biased in small samples; the interval is one for what this many cells show on average.
    """
    sides = [np.atleast_2d(np.asarray(side, dtype=object)) for side in (ours, theirs) if side is not None]
    truth = np.asarray(truth, dtype=object)
    for name, side in zip(("ours", "theirs"), sides, strict=False):
        if side.shape != (len(sides[0]), len(truth)):
            expected = (len(sides[0]), len(truth))
            raise ValueError(f"{name}: expected seeds x cells {expected}, found {side.shape}")
    stacked = np.concatenate([truth[None], *sides])
    codes = pd.factorize(stacked.ravel())[0].reshape(stacked.shape)
    if not codes.size or codes.min() < 0:
        raise ValueError("labels: each cell needs a true and a predicted label; found none or a missing one")
    rows, place = np.unique(codes[1:], axis=0, return_inverse=True)  # a repeated row is scored once
    place = place.ravel().reshape(len(sides), -1)

    def quantity(scores: np.ndarray) -> np.ndarray:
        parts = [scores[:, at] for at in place]
        return parts[0] - parts[1] if len(parts) == 2 else parts[0]

    tables, occurs = _tables(codes[0], rows, metric)
    observed = quantity(_scores(tables, occurs, metric, np.ones((1, len(truth)))))[0]
    resampled = [
        quantity(_scores(tables, occurs, metric, counts)) for counts in _resamples(len(truth), draws, rng)
    ]
    return _crossed(observed, np.concatenate(resampled), len(truth), level)


def _resamples(n: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each of n units was drawn, draws x units, a block of draws at a time."""
    size = max(1, _BLOCK // n)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        picked = (
            rng.integers(n, size=(rows, n), dtype=np.int32) + n * np.arange(rows, dtype=np.int32)[:, None]
        )
        yield np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)


def _tables(truth: np.ndarray, predicted: np.ndarray, metric: str) -> tuple[sparse.csr_array, np.ndarray]:
    """Return 0/1 rows over cells, whose weighted sums make the metric, and which labels count.

    Rows: for accuracy whether each seed is right; for a macro metric for each seed and label
    whether both say the label, then whether the seed does, and last for each label the truth.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, found {metric!r}")
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    seeds, cells = predicted.shape
    right = predicted == truth
    if metric == "accuracy":
        return sparse.csr_array(right, dtype=np.float32), np.ones((seeds, 1), bool)
    n_labels = int(max(truth.max(), predicted.max())) + 1
    says = predicted + n_labels * np.arange(seeds)[:, None]
    cell = np.broadcast_to(np.arange(cells), predicted.shape)
    rows = [says[right], says.ravel() + seeds * n_labels, truth + 2 * seeds * n_labels]
    columns = [cell[right], cell.ravel(), np.arange(cells)]
    row, column = np.concatenate(rows), np.concatenate(columns)
    shape = ((2 * seeds + 1) * n_labels, cells)
    tables = sparse.csr_array((np.ones(len(row), np.float32), (row, column)), shape=shape)
    counts = tables.sum(axis=1).reshape(2 * seeds + 1, n_labels)
    return tables, (counts[seeds:-1] + counts[-1]) > 0


def _scores(tables: sparse.csr_array, occurs: np.ndarray, metric: str, weights: np.ndarray) -> np.ndarray:
    """Score every resample and seed; float32 counts whole numbers exactly up to 16 million cells."""
    sums = (tables @ np.ascontiguousarray(weights.T, dtype=np.float32)).astype(float).T
    if metric == "accuracy":
        return sums / weights.sum(axis=1, keepdims=True)
    seeds, n_labels = occurs.shape
    sums = sums.reshape(len(weights), 2 * seeds + 1, n_labels)
    both, says, true = sums[:, :seeds], sums[:, seeds:-1], sums[:, -1:]
    top, bottom = {
        "macro_precision": (both, says),
        "macro_recall": (both, np.broadcast_to(true, both.shape)),
        "macro_f1": (2 * both, says + true),
    }[metric]
    per_label = np.divide(top, bottom, out=np.zeros_like(both), where=bottom > 0)
    return np.einsum("bsl,sl->bs", per_label, occurs / occurs.sum(axis=1, keepdims=True))


def _crossed(observed: np.ndarray, resampled: np.ndarray, n_units: int, level: float) -> Hierarchical:
    """Combine the seeds' scores with their scores on each resample of units (draws x seeds)."""
    seeds = len(observed)
    if seeds < 2 or n_units < 2:
        return _finish(observed, (np.nan, np.nan), np.nan, level)
    means = resampled.mean(axis=1)
    both = np.sum((resampled - means[:, None]).var(axis=0)) / (seeds * (seeds - 1))
    from_units = max(0.0, n_units / (n_units - 1) * (means.var() - both))
    from_seeds = observed.var(ddof=1) / seeds
    total = from_seeds + from_units
    df = total / (from_seeds / (seeds - 1) + from_units / (n_units - 1)) if total > 0 else np.nan
    return _finish(observed, (from_seeds, from_units), df, level)


def _nested(observed: np.ndarray, from_units: float, df_units: float, level: float) -> Hierarchical:
    """Use the spread of the seeds' means, which holds the units' noise; the units only without spread."""
    seeds = len(observed)
    if seeds < 2:
        return _finish(observed, (np.nan, np.nan), np.nan, level)
    if np.ptp(observed) <= ROUNDING_NOISE:
        return _finish(observed, (0.0, from_units), df_units, level)
    total = observed.var(ddof=1) / seeds
    from_units = min(from_units, total)
    return _finish(observed, (total - from_units, from_units), seeds - 1, level)


def _finish(observed: np.ndarray, variances: tuple[float, float], df: float, level: float) -> Hierarchical:
    """Turn the seeds' and the units' part of the variance into limits and a p value."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    # equal numbers summed in floating point leave variances that are rounding noise
    seeds_part, units_part = (float(np.sqrt(v if not v < ROUNDING_NOISE**2 else 0.0)) for v in variances)
    mean, se = float(observed.mean()), float(np.hypot(seeds_part, units_part))
    sd = float(observed.std(ddof=1)) if len(observed) > 1 else float("nan")
    half = float(stats.t.ppf((1 + level) / 2, df)) * se if se > 0 else se
    p_value = float(2 * stats.t.sf(abs(mean) / se, df)) if se > 0 else float("nan")
    interval = Interval(mean, mean - half, mean + half, len(observed), 0.0 if sd < ROUNDING_NOISE else sd)
    return Hierarchical(interval, seeds_part, units_part, float(df), p_value)
