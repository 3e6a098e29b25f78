"""Means, intervals, paired differences, tests, effect sizes and power."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from workflow.statistics import (
    binomial_p,
    cliffs_delta,
    cohen_d,
    detectable_effect,
    equivalence_p,
    fisher_p,
    holm,
    mcnemar_p,
    mean_t_interval,
    minimal_detectable_effect,
    paired_difference,
    seeds_needed,
    sign_flip_p,
    smallest_sign_flip_p,
    superiority,
    wilcoxon_p,
)

scores = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 4))
differences = st.lists(st.integers(-40, 40).map(lambda x: x / 100), min_size=2, max_size=9)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_interval_of_a_hand_computed_example():
    # 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt(3)
    interval = mean_t_interval([1, 2, 3])
    assert interval.mean == 2
    assert interval.sd == 1
    assert interval.n == 3
    assert interval.low == pytest.approx(2 - 4.302653 / np.sqrt(3), abs=1e-6)
    assert interval.high == pytest.approx(2 + 4.302653 / np.sqrt(3), abs=1e-6)


def test_one_value_has_no_limits():
    interval = mean_t_interval([0.5])
    assert (interval.mean, interval.n) == (0.5, 1)
    assert np.isnan([interval.low, interval.high, interval.sd, interval.width]).all()


def test_no_finite_value_gives_nan():
    for values in ([], [np.nan, np.inf]):
        interval = mean_t_interval(values)
        assert interval.n == 0
        assert np.isnan(interval.mean)


def test_equal_values_have_zero_width_in_spite_of_rounding():
    interval = mean_t_interval([0.1] * 7)
    assert (interval.low, interval.mean, interval.high, interval.sd) == (0.1, 0.1, 0.1, 0)


def test_values_that_are_not_finite_are_left_out():
    assert mean_t_interval([1, np.nan, 2, np.inf, 3]) == mean_t_interval([1, 2, 3])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_outside_0_and_1_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        mean_t_interval([1, 2], level)


@given(st.lists(scores, min_size=2, max_size=10))
def test_a_lower_level_lies_inside_a_higher_one(values):
    inner, outer = mean_t_interval(values, 0.90), mean_t_interval(values, 0.95)
    assert outer.low <= inner.low <= inner.mean <= inner.high <= outer.high


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        interval = mean_t_interval(rng.normal(0.8, 0.02, 5))
        hits += interval.low <= 0.8 <= interval.high
    assert 0.935 <= hits / 2000 <= 0.965


def test_paired_difference_equals_the_paired_t_test_of_scipy():
    a = pd.Series([0.80, 0.83, 0.79, 0.85], index=[0, 1, 2, 3])
    b = pd.Series([0.78, 0.80, 0.80, 0.81], index=[0, 1, 2, 3])
    interval, p_value = paired_difference(a, b)
    expected = stats.ttest_rel(a, b)
    assert p_value == pytest.approx(expected.pvalue)
    assert (interval.low, interval.high) == pytest.approx(expected.confidence_interval(0.95))


def test_only_common_seeds_count_and_they_are_matched_by_seed():
    a = pd.Series([0.3, 0.1, 0.2, 0.9], index=[2, 0, 1, 7])
    b = pd.Series([0.0, 0.1, 0.3], index=[0, 1, 2])
    interval, _ = paired_difference(a, b)
    assert interval.n == 3
    assert interval.mean == pytest.approx((0.1 + 0.1 + 0.0) / 3)


def test_nan_on_either_side_takes_the_seed_out():
    a, b = pd.Series([1.0, np.nan, 3.0, 4.0]), pd.Series([0.0, 1.0, np.nan, 1.0])
    assert paired_difference(a, b)[0].n == 2


def test_a_comparator_with_one_seed_gives_no_interval():
    interval, p_value = paired_difference(pd.Series([0.5, 0.6, 0.7]), pd.Series([0.4]))
    assert interval.n == 1
    assert np.isnan([interval.low, interval.high, p_value]).all()


def test_no_common_seed():
    interval, p_value = paired_difference(pd.Series({0: 1.0}), pd.Series({1: 1.0}))
    assert interval.n == 0
    assert np.isnan(p_value)


@pytest.mark.parametrize("b", [0.2, 0.5])
def test_two_deterministic_methods_have_no_p_value(b):
    interval, p_value = paired_difference(pd.Series([0.5] * 4), pd.Series([b] * 4))
    assert interval.width == 0
    assert np.isnan(p_value)


def test_rounding_of_sums_is_no_difference():
    interval, p_value = paired_difference(pd.Series([0.1 + 0.2] * 3), pd.Series([0.3] * 3))
    assert (interval.mean, interval.width) == (0, 0)
    assert np.isnan(p_value)


def test_equal_differences_of_moving_values_have_zero_width():
    a = pd.Series([0.1, 0.2, 0.3])
    interval, p_value = paired_difference(a + 0.1, a)
    assert interval.width == 0
    assert np.isnan(p_value)


def test_a_seed_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        paired_difference(pd.Series([1.0, 2.0], index=[0, 0]), pd.Series([1.0]))


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=8))
def test_swapping_the_sides_mirrors_the_interval(pairs):
    a, b = (pd.Series(list(side)) for side in zip(*pairs, strict=True))
    (there, p_there), (back, p_back) = paired_difference(a, b), paired_difference(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert p_there == pytest.approx(p_back, nan_ok=True)


# Sign flips


def test_sign_flips_of_a_hand_counted_example():
    # of 8 sign choices of 1, 2, 3, only all plus (6) and all minus (-6) reach |6|; 4 reach |4|
    assert sign_flip_p([1, 2, 3], rng=rng()) == 2 / 8
    assert sign_flip_p([-1, 2, 3], rng=rng()) == 4 / 8


@given(differences)
@settings(deadline=None)
def test_enumerated_sign_flips_equal_scipy(values):
    if any(values):
        exact = stats.permutation_test(
            (np.array(values),), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert sign_flip_p(values, rng=rng()) == pytest.approx(exact)
    else:
        assert np.isnan(sign_flip_p(values, rng=rng()))


@given(differences, st.randoms())
@settings(deadline=None)
def test_sign_flips_ignore_order_and_direction(values, random):
    found = sign_flip_p(values, rng=rng())
    assert sign_flip_p([-x for x in values], rng=rng()) == pytest.approx(found, nan_ok=True)
    assert sign_flip_p(random.sample(values, len(values)), rng=rng()) == pytest.approx(found, nan_ok=True)
    assert np.isnan(found) or found >= smallest_sign_flip_p(len(values))


def test_drawn_sign_flips_agree_with_enumerated_ones_and_are_never_zero():
    values = rng(1).normal(0.4, 1, 12)
    exact = sign_flip_p(values, rng=rng())
    drawn = [sign_flip_p(values, draws=4000, rng=rng(seed)) for seed in range(20)]
    assert np.mean(drawn) == pytest.approx(exact, abs=0.006)
    assert sign_flip_p(np.full(60, 0.3), draws=99, rng=rng()) == 1 / 100


def test_sign_flip_p_is_uniform_without_an_effect():
    # 8 differences enumerate to multiples of 1/128, spread by a uniform variable of that width
    draw = rng(2)
    exact = np.array([sign_flip_p(draw.normal(size=8), rng=draw) for _ in range(1000)])
    spread = exact - draw.random(1000) / 128
    assert stats.kstest(spread, "uniform").pvalue > 0.01
    drawn = [sign_flip_p(draw.standard_cauchy(40), draws=199, rng=draw) for _ in range(1000)]
    assert stats.kstest(drawn - draw.random(1000) / 200, "uniform").pvalue > 0.01


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, 1.0], [0.0, 0.0], [1e-15, -1e-14]])
def test_too_few_or_zero_differences_have_no_p_value(values):
    assert np.isnan(sign_flip_p(values, rng=rng()))
    assert np.isnan(wilcoxon_p(values))
    assert np.isnan(cohen_d(values))


def test_three_seeds_cannot_reach_significance():
    assert [smallest_sign_flip_p(n) for n in (3, 5, 6)] == [0.25, 0.0625, 0.03125]
    assert np.isnan(smallest_sign_flip_p(1))
    assert sign_flip_p([5, 6, 7], rng=rng()) == smallest_sign_flip_p(3)


# Tests of scipy and statsmodels


def test_wilcoxon_is_that_of_the_signed_ranks():
    assert wilcoxon_p([1, 2, 3, 4, 5]) == 2 / 32  # exact: only all plus and all minus are as extreme
    assert wilcoxon_p([1, 2, 3, 4, 5, 0, np.nan]) == 2 / 32
    assert wilcoxon_p([1, -2, 3, 4, 5]) == 6 / 32  # a sum of 2 or less: no rank, rank 1, rank 2


def test_mcnemar_counts_the_units_where_the_methods_disagree():
    ours = np.array([1] * 8 + [0] * 1 + [1] * 50 + [0] * 5, dtype=bool)
    theirs = np.array([0] * 8 + [1] * 1 + [1] * 50 + [0] * 5, dtype=bool)
    assert mcnemar_p(ours, theirs) == pytest.approx(mcnemar([[50, 8], [1, 5]], exact=True).pvalue)
    assert mcnemar_p(ours, theirs) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar_p(ours, ours) == 1
    assert np.isnan(mcnemar_p([], []))
    with pytest.raises(ValueError, match="pairs units"):
        mcnemar_p(ours, theirs[1:])


def test_binomial_and_fisher_by_hand():
    assert binomial_p(3, 7, 0.5) == pytest.approx(99 / 128)
    assert binomial_p(2, 2, 0.1) == pytest.approx(0.01)
    # the lady tasting tea: 4 of 4 against 0 of 4
    assert fisher_p(4, 4, 0, 4) == pytest.approx(2 / 70)
    assert fisher_p(3, 7, 1, 7) == pytest.approx(fisher_p(1, 7, 3, 7))
    assert np.isnan([binomial_p(0, 0, 0.5), fisher_p(0, 0, 1, 2)]).all()


def test_holm_of_a_known_example_with_missing_values():
    # sorted .01 .03 .04 times 3 2 1, made monotone: .03 .06 .06
    found = holm([0.04, np.nan, 0.01, 0.03])
    assert found == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert np.isnan(holm([np.nan, np.nan])).all()
    assert len(holm([])) == 0


def test_equivalence_equals_statsmodels_and_its_interval():
    for seed, margin in ((0, 0.02), (1, 0.01), (2, 0.05), (3, 0.004)):
        values = rng(seed).normal(0.005, 0.01, 8)
        interval = mean_t_interval(values, 0.9)
        p = equivalence_p(interval.mean, interval.sd / np.sqrt(8), 7, margin)
        assert p == pytest.approx(DescrStatsW(values).ttost_mean(-margin, margin)[0])
        assert (p < 0.05) == (-margin < interval.low and interval.high < margin)


@given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(1, 50), st.floats(0.05, 2))
@settings(deadline=None)
def test_equivalence_ignores_the_sign(mean, se, df, margin):
    assert equivalence_p(mean, se, df, margin) == pytest.approx(equivalence_p(-mean, se, df, margin))


def test_equivalence_needs_a_standard_error_and_a_margin():
    assert np.isnan([equivalence_p(0, 0, 4, 0.1), equivalence_p(0, np.nan, np.nan, 0.1)]).all()
    with pytest.raises(ValueError, match="margin"):
        equivalence_p(0, 1, 4, 0)


# Effect sizes


def test_cohen_d_by_hand_and_without_spread():
    assert cohen_d([1, 2, 3]) == 2
    assert np.isnan(cohen_d([0.1 + 0.2, 0.3, 0.3]))


@given(st.lists(scores, min_size=1, max_size=20), st.lists(scores, min_size=1, max_size=20))
@settings(deadline=None)
def test_superiority_and_cliffs_delta_equal_a_loop_over_pairs(a, b):
    signs = np.sign(np.subtract.outer(a, b))
    assert cliffs_delta(a, b) == pytest.approx(signs.mean(), abs=1e-12)
    assert superiority(a, b) == pytest.approx(((signs > 0) + (signs == 0) / 2).mean())
    assert cliffs_delta(b, a) == pytest.approx(-cliffs_delta(a, b))


def test_effect_sizes_without_values():
    assert np.isnan([superiority([], [1]), cliffs_delta([np.nan], [1]), cohen_d([])]).all()


# Power


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5, 10, 50])
def test_detectable_effect_has_the_power_it_names(n, paired):
    effect = minimal_detectable_effect(2.0, n, paired=paired)
    statsmodels = TTestPower() if paired else TTestIndPower()
    assert statsmodels.power(effect / 2.0, n, 0.05) == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(2.0, effect * 1.0001, paired=paired) == n
    assert seeds_needed(2.0, -effect * 0.999, paired=paired) == n + 1


def test_detectable_effect_is_found_as_often_as_it_says():
    draw, effect = rng(4), minimal_detectable_effect(0.02, 5)
    p = stats.ttest_1samp(draw.normal(effect, 0.02, (5000, 5)), 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.018)
    arms = draw.normal(0, 0.02, (2, 5000, 5))
    effect = minimal_detectable_effect(0.02, 5, paired=False)
    p = stats.ttest_ind(arms[0] + effect, arms[1], axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.018)


@pytest.mark.parametrize(
    ("sd", "gap", "seeds", "mde"),
    [(0.0147, 0.013, 20, 0.018), (0.0320, 0.020, 40, 0.040), (0.0071, 0.007, 16, 0.009)],
)
def test_seeds_for_the_annotation_claims_are_those_of_the_normal_formula_and_a_little(sd, gap, seeds, mde):
    # 2 * ((1.96 + 0.84) * sd / gap)**2 seeds in each arm, and 2.8 * sd * sqrt(2 / 10), know no t distribution
    assert 0 < seeds_needed(sd, gap, paired=False) - seeds <= 2
    assert 1.03 < minimal_detectable_effect(sd, 10, paired=False) / (2.802 * sd * np.sqrt(0.2)) < 1.07
    assert round(2.802 * sd * np.sqrt(0.2), 3) == pytest.approx(mde)


def test_power_at_the_edges():
    assert seeds_needed(1, 0) == np.inf
    assert seeds_needed(1, 1e-9) == np.inf
    assert seeds_needed(1e-15, 0.1) == 2
    assert seeds_needed(0.01, 1e-5) == pytest.approx((2.802 * 1000) ** 2, rel=1e-3)
    unknown = [
        seeds_needed(0, 1),
        seeds_needed(np.nan, 1),
        minimal_detectable_effect(0, 5),
        minimal_detectable_effect(1, 1),
        detectable_effect(np.nan, np.nan),
    ]
    assert np.isnan(unknown).all()
    # two pairs, where statsmodels' solver ends at its starting bracket; the t statistic is (Z + shift) / |W|
    shift = minimal_detectable_effect(1, 2, power=0.9) * np.sqrt(2)
    spread = stats.norm.ppf(0.5 + np.arange(0.5, 20_000) / 40_000)
    assert stats.norm.cdf(shift - stats.t.ppf(0.975, 1) * spread).mean() == pytest.approx(0.9, abs=1e-5)
    with pytest.raises(ValueError, match="power"):
        seeds_needed(1, 1, power=0.04)
