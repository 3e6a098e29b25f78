"""Means over seeds with t intervals, paired differences, tests, effect sizes and power.

The functions are pure and never guess: too few values give limits that are NaN, not an interval.
Intervals that also know of cells or gene sets stand in `workflow.resampling`.
A method that ignores its seed repeats one number; its spread over seeds is zero, which says
nothing about how it would vary over other cells or data sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

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


# Paired tests


def sign_flip_p(differences: Iterable[float], *, draws: int = 10_000, rng: np.random.Generator) -> float:
    """Two-sided permutation p value of the mean difference: each sign could have been the other.

    Parameters
    ----------
    differences
        One paired difference per seed or unit; values that are not finite are left out.
    draws
        All ``2**n`` choices of signs are enumerated where that is no more than ``draws``; else as
        many are drawn.
    rng
        Source of the draws.

    Returns
    -------
    float
        Share of the choices whose mean is at least as far from 0 as the one found; NaN for fewer
        than two differences and where all are 0. It cannot fall below `smallest_sign_flip_p`.

    Notes
    -----
    Drawn choices count the one found as well, ``(hits + 1) / (draws + 1)``: Phipson and Smyth
    (2010), "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 9, 39. The
    differences are taken as independent: not for the same gene set in several seeds.
    """
    found = _differences(differences)
    n = len(found)
    if n < 2 or not found.any():
        return float("nan")
    # equal means may differ by the rounding of their sums
    enough = abs(found.sum()) - ROUNDING_NOISE * np.abs(found).sum()
    if 2**n <= draws:
        negative = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float(np.mean(np.abs((1 - 2 * negative) @ found) >= enough))
    hits, block = 0, max(1, 2**22 // n)
    for start in range(0, draws, block):
        signs = 1 - 2 * rng.integers(0, 2, size=(min(block, draws - start), n), dtype=np.int8)
        hits += int(np.count_nonzero(np.abs(signs @ found) >= enough))
    return (hits + 1) / (draws + 1)


def smallest_sign_flip_p(n: int) -> float:
    """Return the smallest p value that n differences can reach, ``2 / 2**n``; NaN for fewer than two.

    Three seeds stop at .25; below .05 takes six.
    """
    return 2.0 ** (1 - n) if n >= 2 else float("nan")


def wilcoxon_p(differences: Iterable[float]) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test, by `scipy.stats.wilcoxon`.

    Zeros are left out (Wilcoxon's own way); NaN for fewer than two differences and where all are 0.
    """
    found = _differences(differences)
    if len(found) < 2 or not found.any():
        return float("nan")
    return float(stats.wilcoxon(found[found != 0]).pvalue)


def mcnemar_p(ours_correct: np.ndarray, theirs_correct: np.ndarray) -> float:
    """Exact two-sided p value of McNemar's test: units that only one of two methods gets right.

    Parameters
    ----------
    ours_correct, theirs_correct
        Bool, one per unit.

    Returns
    -------
    float
        Of the binomial test that half of the units where the two disagree are ours; 1 where they
        never disagree, NaN without units.
    """
    ours, theirs = np.asarray(ours_correct, dtype=bool), np.asarray(theirs_correct, dtype=bool)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"McNemar's test pairs units; found {ours.shape} of ours and {theirs.shape} of theirs"
        )
    if not ours.size:
        return float("nan")
    only_ours, either = np.count_nonzero(ours & ~theirs), np.count_nonzero(ours != theirs)
    return float(stats.binomtest(only_ours, either).pvalue) if either else 1.0


def binomial_p(hits: int, n: int, chance: float) -> float:
    """Exact probability of this many hits or more in n tries with probability ``chance``; NaN for n = 0.

    For retrieval: the first guess among 210 pairs is right by chance once in 210 queries.
    """
    return float(stats.binomtest(hits, n, chance, alternative="greater").pvalue) if n else float("nan")


def fisher_p(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """Two-sided p value of Fisher's exact test of two shares; NaN where one has no tries."""
    if not n_a or not n_b:
        return float("nan")
    return float(stats.fisher_exact([[hits_a, n_a - hits_a], [hits_b, n_b - hits_b]]).pvalue)


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p values, in the order given, by statsmodels; NaN stay NaN and do not count.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6, 65-70.
    """
    raw = np.asarray(list(p_values), dtype=float)
    adjusted, known = np.full(len(raw), np.nan), ~np.isnan(raw)
    if known.any():
        adjusted[known] = multipletests(raw[known], method="holm")[1]
    return adjusted


def equivalence_p(mean: float, se: float, df: float, margin: float) -> float:
    """P value of two one-sided t tests (TOST) that a difference lies within ``+-margin``.

    Parameters
    ----------
    mean, se, df
        Of the difference: mean, standard error and degrees of freedom.
    margin
        Largest difference that counts as none, above 0.

    Returns
    -------
    float
        The larger of the two p values; below .05 exactly where the 90 % interval ``mean +-
        t(.95, df) * se`` lies inside the margin. NaN where the standard error is 0 or unknown.

    Notes
    -----
    Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657-680.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, found {margin}")
    if not np.isfinite([mean, se]).all() or not se > 0 or not df > 0:
        return float("nan")
    return float(max(stats.t.sf((mean + margin) / se, df), stats.t.cdf((mean - margin) / se, df)))


# Effect sizes


def cohen_d(differences: Iterable[float]) -> float:
    """Mean of paired differences over their sample SD (d_z); NaN for fewer than two and without spread."""
    found = _differences(differences)
    if len(found) < 2 or np.ptp(found) < ROUNDING_NOISE:
        return float("nan")
    return float(found.mean() / found.std(ddof=1))


def superiority(a: Iterable[float], b: Iterable[float]) -> float:
    """Probability that a value of a exceeds one of b, ties counted half; NaN where one is empty.

    All pairs count, not those of one seed. Takes a sort, not a loop over pairs.
    """
    ours, theirs = (np.asarray(list(side), dtype=float) for side in (a, b))
    ours, theirs = ours[np.isfinite(ours)], np.sort(theirs[np.isfinite(theirs)])
    if not len(ours) or not len(theirs):
        return float("nan")
    below = np.searchsorted(theirs, ours, side="left").sum()
    not_above = np.searchsorted(theirs, ours, side="right").sum()
    return float((below + not_above) / (2 * len(ours) * len(theirs)))


def cliffs_delta(a: Iterable[float], b: Iterable[float]) -> float:
    """Share of pairs where a is larger less that where b is, ``2 * superiority(a, b) - 1``.

    Cliff (1993), "Dominance statistics", Psychological Bulletin 114, 494-509.
    """
    return 2 * superiority(a, b) - 1


# Power


def detectable_effect(se: float, df: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest mean that a two-sided t test finds with this power.

    Parameters
    ----------
    se, df
        Standard error of the mean and its degrees of freedom.
    power
        Probability of finding it, above ``alpha`` and below 1.
    alpha
        Level of the test.

    Returns
    -------
    float
        In the unit of ``se``; NaN where the standard error is 0 or unknown.

    Notes
    -----
    Solves for the noncentrality of scipy's noncentral t. statsmodels 0.15's ``solve_power`` agrees
    where it converges; for two or three seeds it can return its starting bracket instead.
    """
    _check_power(power, alpha)
    if not (np.isfinite(se) and se > 0 and df > 0):
        return float("nan")
    above = 1.0
    while _power(above, df, alpha) < power:
        above *= 2
    found = optimize.brentq(lambda shift: _power(shift, df, alpha) - power, 0, above)
    return float(found * se)


def minimal_detectable_effect(
    sd: float, n: int, *, paired: bool = True, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference that n seeds find with this power in a two-sided t test.

    Parameters
    ----------
    sd
        SD of the paired differences; unpaired: SD of one arm, the same in both.
    n
        Pairs; unpaired: seeds in each arm.
    paired
        Whether seeds pair up.
    power, alpha
        As in `detectable_effect`.

    Returns
    -------
    float
        In the unit of ``sd``; NaN with fewer than two seeds and where the SD is 0 or unknown.
    """
    if n < 2:
        return float("nan")
    se, df = _se_and_df(sd, n, paired)
    return detectable_effect(se, df, power=power, alpha=alpha)


def seeds_needed(
    sd: float, effect: float, *, paired: bool = True, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest number of seeds (of pairs, or in each arm) that finds an effect with this power.

    Parameters
    ----------
    sd, paired, power, alpha
        As in `minimal_detectable_effect`.
    effect
        True difference; its sign does not matter.

    Returns
    -------
    float
        A whole number from 2 on, inf beyond a billion; NaN where the SD is 0 or unknown.
    """
    _check_power(power, alpha)
    if not (np.isfinite([sd, effect]).all() and sd > 0):
        return float("nan")

    def enough(n: int) -> bool:
        se, df = _se_and_df(sd, n, paired)
        return _power(abs(effect) / se, df, alpha) >= power

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > 10**9:
            return float("inf")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return float(high)


def _se_and_df(sd: float, n: int, paired: bool) -> tuple[float, int]:
    """Return standard error and degrees of freedom of a difference of means."""
    return (sd / np.sqrt(n), n - 1) if paired else (sd * np.sqrt(2 / n), 2 * n - 2)


def _power(shift: float, df: float, alpha: float) -> float:
    """Return the power of a two-sided t test whose statistic is shifted by this many standard errors."""
    shift = min(shift, 1e8)  # where scipy ends
    critical = stats.t.ppf(1 - alpha / 2, df)
    wrong_side = np.nan_to_num(stats.nct.cdf(-critical, df, shift))  # scipy has NaN where it is next to 0
    return float(stats.nct.sf(critical, df, shift) + wrong_side)


def _check_power(power: float, alpha: float) -> None:
    if not 0 < alpha < power < 1:
        raise ValueError(f"power must lie between alpha and 1, found power {power} and alpha {alpha}")


def _differences(values: Iterable[float]) -> np.ndarray:
    """Return the finite values, rounding noise as 0."""
    found = np.asarray(list(values), dtype=float)
    found = found[np.isfinite(found)]
    return np.where(np.abs(found) < ROUNDING_NOISE, 0.0, found)
