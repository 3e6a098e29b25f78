"""Means, intervals and paired differences."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workflow.statistics import mean_t_interval, paired_difference

scores = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 4))


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
