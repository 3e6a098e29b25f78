"""Means over seeds with t intervals, and paired differences by seed.

The functions are pure and never guess: too few values give limits that are NaN, not an interval.
A method that ignores its seed repeats one number; its spread over seeds is zero, which says
nothing about how it would vary over other cells or data sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

#: Differences below this are rounding of floating-point sums, not effects.
ROUNDING_NOISE = 1e-12


class Interval(NamedTuple):
    """A mean with its confidence limits, the number of finite values and their sample SD.

    The SD has the divisor n - 1; limits and SD are NaN with fewer than two values.
    """

    mean: float
    low: float
    high: float
    n: int
    sd: float

    @property
    def width(self) -> float:
        """Distance between the limits; NaN where they are."""
        return self.high - self.low


def mean_t_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean and two-sided t interval, ``mean +- t(1 - (1 - level)/2, n - 1) * sd / sqrt(n)``.

    Parameters
    ----------
    values
        One number per seed; values that are not finite are left out.
    level
        Confidence level, between 0 and 1.

    Returns
    -------
    Interval
        With one value the limits are NaN; with equal values the width is zero.

    Notes
    -----
    Formula: Student (1908), "The probable error of a mean", Biometrika 6, 1-25. The interval
    takes the seeds as independent draws from a normal distribution.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    finite = np.asarray(list(values), dtype=float)
    finite = finite[np.isfinite(finite)]
    n = len(finite)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0, np.nan)
    if n == 1:
        return Interval(float(finite[0]), np.nan, np.nan, 1, np.nan)
    if np.ptp(finite) == 0:  # summing equal floats would leave a spread of rounding noise
        value = float(finite[0])
        return Interval(value, value, value, n, 0.0)
    mean, sd = float(finite.mean()), float(finite.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, sd)


def paired_difference(a: pd.Series, b: pd.Series, level: float = 0.95) -> tuple[Interval, float]:
    """Mean of ``a - b`` over the seeds that both have, and the p value of a paired t test.

    Parameters
    ----------
    a, b
        Values indexed by seed. A seed that one side lacks, or where it is not finite, is left
        out: a deterministic method that ran on one seed is compared on that seed only.
    level
        Confidence level of the interval.

    Returns
    -------
    Interval
        Interval of the mean difference.
    float
        Two-sided p value, ``2 * P(T > |mean| / (sd / sqrt(n)))`` with n - 1 degrees of freedom;
        NaN with fewer than two common seeds, and when all differences are equal, which leaves the
        statistic undefined. Two deterministic methods always land there.

    Notes
    -----
    Formula: Student (1908), the one-sample t test applied to the differences.
    """
    for side in (a, b):
        if side.index.has_duplicates:
            raise ValueError("a seed stands twice; give one value for each seed")
    pairs = pd.concat([a, b], axis=1, join="inner", keys=["a", "b"]).astype(float)
    differences = (pairs["a"] - pairs["b"]).to_numpy()
    differences = np.where(np.abs(differences) < ROUNDING_NOISE, 0.0, differences)
    if len(differences) and np.ptp(differences) < ROUNDING_NOISE:
        differences = np.full_like(differences, differences[0])
    interval = mean_t_interval(differences, level)
    if interval.n < 2 or interval.sd == 0:
        return interval, float("nan")
    statistic = abs(interval.mean) / (interval.sd / np.sqrt(interval.n))
    return interval, float(2 * stats.t.sf(statistic, interval.n - 1))
