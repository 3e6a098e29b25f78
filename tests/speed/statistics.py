"""For developers: how long the intervals of labels take, and how often intervals cover the truth.

    OMP_NUM_THREADS=1 python tests/speed/statistics.py time
    OMP_NUM_THREADS=1 python tests/speed/statistics.py coverage --repeats 1000 --units 400
    OMP_NUM_THREADS=1 python tests/speed/statistics.py labels --repeats 400

time      `hierarchical_labels` on SYNTHETIC labels: 10 seeds, 13,468 cells (as many as the MS query), 20
          labels, 10,000 draws. The floor has two steps that cannot be left out: a random integer for each
          draw and cell with its count, and an addition for each draw and pair of cell and seed.
coverage  `hierarchical_mean` on SYNTHETIC values whose mean is known, a line for each number of seeds, kind
          of values and division of the variance. "ratio" is the seeds' share of the mean's variance over the
          units' share; "own" the part of the unit variance that differs from seed to seed. Beside our
          interval: the same with Satterthwaite's degrees of freedom, the t interval over seeds, and the
          percentiles of the plain bootstrap of seeds and units.
labels    the same for `hierarchical_labels`, accuracy and macro F1, and the difference of two methods.

No test: the suite's tests check a few lines of these tables.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.pop(0)  # this folder, which would hide Python's own statistics
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import time
from itertools import cycle, product

import numpy as np
from scipy import stats

from workflow.resampling import METRICS, hierarchical_labels, hierarchical_mean
from workflow.statistics import mean_t_interval

SHARE = 0.85  # mean of binary values


def synthetic_values(rng, seeds, units, *, ratio, own, crossed, binary):
    """Draw seeds x units values with mean 0 or, binary, SHARE; return them and that mean.

    Binary values are a threshold on a normal scale; there the ratio holds to first order.
    """
    unit = (1 - own) / units * crossed + (own if crossed else 1) / (units * seeds)
    spread = np.sqrt(ratio * unit * seeds)  # of a seed, where a value has variance 1
    if not binary:
        common = rng.normal(0, np.sqrt(1 - own), units) if crossed else 0
        noise = rng.normal(0, np.sqrt(own if crossed else 1), (seeds, units))
        return rng.normal(0, spread, (seeds, 1)) + common + noise, 0.0
    cut = stats.norm.ppf(SHARE)
    spread *= np.sqrt(SHARE * (1 - SHARE)) / stats.norm.pdf(cut)
    common = rng.normal(0, np.sqrt(1 - own), units) if crossed else 0
    noise = rng.normal(0, np.sqrt(own if crossed else 1), (seeds, units))
    latent = rng.normal(0, spread, (seeds, 1)) + common + noise + cut * np.sqrt(1 + spread**2)
    return (latent > 0).astype(float), SHARE


def intervals(values, crossed, rng, draws=500):
    """Return the limits of each kind of interval."""
    ours = hierarchical_mean(values, rng=rng, crossed=crossed, draws=draws)
    mean, seeds, units = ours.interval.mean, *values.shape
    share = np.array([ours.se_seeds, ours.se_units]) ** 2 / (ours.se**2 or np.nan)
    df = 1 / (share**2 / [seeds - 1, units - 1]).sum() if crossed else ours.df
    half = stats.t.ppf(0.975, df) * ours.se
    t = mean_t_interval(values.mean(axis=1))
    who = rng.integers(seeds, size=(draws, seeds))
    which = rng.integers(units, size=(1 if crossed else seeds, draws, units))
    resampled = np.stack(
        [value[w].mean(axis=1) for value, w in zip(values, cycle(which), strict=False)], axis=1
    )
    plain = np.quantile(np.take_along_axis(resampled, who, axis=1).mean(axis=1), [0.025, 0.975])
    return {
        "ours": ours.interval[1:3],
        "satterthwaite": (mean - half, mean + half),
        "t": t[1:3],
        "percentile": plain,
    }


def coverage(repeats: int, units: int) -> None:
    """Print how often each interval covers the mean, in percent, and the width of ours over that of t."""
    print("units layout  values      own ratio seeds  ours satt.    t perc. width/t")
    layouts = [(True, 0.0), (True, 0.5), (True, 1.0), (False, 1.0)]
    for binary, (crossed, own), ratio, seeds in product((False, True), layouts, (0, 0.1, 1, 4), (3, 5, 10)):
        rng = np.random.default_rng(0)
        hits, widths = {}, []
        for _ in range(repeats):
            values, mean = synthetic_values(
                rng, seeds, units, ratio=ratio, own=own, crossed=crossed, binary=binary
            )
            found = intervals(values, crossed, rng)
            for name, (low, high) in found.items():
                hits[name] = hits.get(name, 0) + (low <= mean <= high)
            widths.append([np.diff(found["ours"]).item(), np.diff(found["t"]).item()])
        wide, t = np.mean(widths, axis=0)
        shares = " ".join(f"{100 * n / repeats:5.1f}" for n in hits.values())
        print(
            f"{units:5d} {'crossed' if crossed else 'nested':7s} {'binary' if binary else 'continuous':10s}"
            f" {own:4.1f} {ratio:5.1f} {seeds:5d} {shares} {wide / t if t else np.nan:7.2f}",
            flush=True,
        )


def synthetic_labels(rng, seeds, cells, *, spread, own, gain=0.0, shares=(0.4, 0.25, 0.15, 0.1, 0.06, 0.04)):
    """Draw true labels and the predictions of one method or, with a gain, of a pair that share difficulties.

    A cell is right where cut + seed + difficulty + noise > 0; a wrong one gets another label at random.
    """
    truth = rng.choice(len(shares), cells, p=shares)
    difficulty = rng.normal(0, np.sqrt(1 - own), cells)
    sides = []
    for extra in (gain, 0.0):
        latent = 1.0 + extra + rng.normal(0, spread, (seeds, 1)) + difficulty
        right = latent + rng.normal(0, np.sqrt(own), (seeds, cells)) > 0
        wrong = (truth + rng.integers(1, len(shares), (seeds, cells))) % len(shares)
        sides.append(np.where(right, truth, wrong))
    return truth, *sides


def labels_coverage(repeats: int, cells: int = 300) -> None:
    """Print how often `hierarchical_labels` covers the mean of the same quantity over many repetitions."""
    print(f"{cells} cells; quantity   metric   own  sd(seed) seeds truth  ours     t  width/t")
    for own, spread, seeds in product((0.2, 1.0), (0.0, 0.1, 0.3), (3, 10)):
        for metric, paired in product(("accuracy", "macro_f1"), (False, True)):
            rng = np.random.default_rng(0)
            results = []
            for _ in range(repeats):
                truth, ours, theirs = synthetic_labels(
                    rng, seeds, cells, spread=spread, own=own, gain=0.2 * paired
                )
                found = hierarchical_labels(
                    truth, ours, theirs if paired else None, metric=metric, rng=rng, draws=200
                ).interval
                half = stats.t.ppf(0.975, seeds - 1) * found.sd / np.sqrt(seeds)
                results.append([found.mean, found.low, found.high, found.mean - half, found.mean + half])
            mean, low, high, t_low, t_high = np.transpose(results)
            target = mean.mean()
            hits = 100 * np.mean((low <= target) & (target <= high))
            t_hits = 100 * np.mean((t_low <= target) & (target <= t_high))
            print(
                f"{'difference' if paired else 'one method':10s} {metric:9s} {own:4.1f} {spread:5.1f}"
                f" {seeds:5d} {target:6.4f} {hits:5.1f} {t_hits:5.1f}"
                f" {(high - low).mean() / (t_high - t_low).mean():6.2f}",
                flush=True,
            )


def timing(draws: int = 10_000, seeds: int = 10, cells: int = 13_468, n_labels: int = 20) -> None:
    """Print seconds of the floor's steps and of every metric, with and without a second method."""
    rng = np.random.default_rng(0)
    print(f"{draws:,} draws x {seeds} seeds x {cells:,} cells x {n_labels} labels")
    start = time.perf_counter()
    for _ in range(0, draws, 20):
        picked = rng.integers(cells, size=(20, cells), dtype=np.int32)
    print(f"random integers        {time.perf_counter() - start:5.2f} s  floor: {draws * cells:.3g}")
    start = time.perf_counter()
    for _ in range(0, draws, 20):
        np.bincount(picked.ravel(), minlength=cells)
    print(f"counting them          {time.perf_counter() - start:5.2f} s  floor: {draws * cells:.3g}")
    block = np.ones((seeds, cells), np.float32)
    total = np.zeros_like(block)
    start = time.perf_counter()
    for _ in range(draws // 10):
        total += block
    seconds = 10 * (time.perf_counter() - start)
    print(f"additions, contiguous  {seconds:5.2f} s  floor: {draws * cells * seeds:.3g} per method")
    names = np.array([f"type {i}" for i in range(n_labels)], dtype=object)
    shares = rng.dirichlet(np.full(n_labels, 2.0))
    truth, ours, theirs = synthetic_labels(rng, seeds, cells, spread=0.05, own=0.3, gain=0.1, shares=shares)
    for metric, other in product(METRICS, (None, names[theirs])):
        start = time.perf_counter()
        hierarchical_labels(names[truth], names[ours], other, metric=metric, draws=draws, rng=rng)
        seconds = time.perf_counter() - start
        print(f"{metric:15s} {'paired' if other is not None else 'alone ':6s} {seconds:5.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["time", "coverage", "labels"])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--units", type=int, default=400)
    options = parser.parse_args()
    if options.what == "time":
        timing()
    elif options.what == "coverage":
        coverage(options.repeats, options.units)
    else:
        labels_coverage(options.repeats)
