"""The hierarchical bootstrap: against closed forms and scikit-learn, and how often it covers the truth.

All values and labels here are synthetic.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from workflow.resampling import METRICS, hierarchical_labels, hierarchical_mean, label_scores
from workflow.statistics import mean_t_interval

LABELS = np.array(["B cell", "NK cell", "T cell", "monocyte"], dtype=object)


def rng(seed=0):
    return np.random.default_rng(seed)


def labels(seeds=3, cells=60, right=0.7, seed=0):
    """Return true and predicted labels, strings."""
    draw = rng(seed)
    truth = draw.integers(len(LABELS), size=cells)
    other = draw.integers(len(LABELS), size=(seeds, cells))
    return LABELS[truth], LABELS[np.where(draw.random((seeds, cells)) < right, truth, other)]


def flat(found):
    return [*found.interval, *found[1:]]


# hierarchical_mean


def test_crossed_variance_is_that_of_the_two_way_layout_with_random_effects():
    # Var(mean) = (MS seeds + MS units - MS interaction) / (seeds * units), the textbook's estimate
    values = rng().normal(size=(5, 1)) * 0.1 + rng(1).normal(size=40) + rng(2).normal(size=(5, 40))
    seeds, units = values.shape
    of_seeds, of_units = values.mean(axis=1), values.mean(axis=0)
    residual = values - of_seeds[:, None] - of_units + values.mean()
    squares = np.array([
        units * of_seeds.var(ddof=1),
        seeds * of_units.var(ddof=1),
        -(residual**2).sum() / ((seeds - 1) * (units - 1)),
    ])  # fmt: skip
    found = hierarchical_mean(values, draws=40_000, rng=rng())
    assert found.se**2 == pytest.approx(squares.sum() / values.size, rel=0.03)
    assert found.interval.mean == pytest.approx(values.mean())
    assert found.interval.sd == pytest.approx(of_seeds.std(ddof=1))
    assert found.se_seeds == pytest.approx(found.interval.sd / np.sqrt(5))
    assert found.se**2 / found.df == pytest.approx(found.se_seeds**2 / 4 + found.se_units**2 / 39)


def test_nested_interval_is_the_t_interval_over_seeds_and_names_the_share_of_the_units():
    values = rng().normal(size=(6, 30)) + rng(1).normal(size=(6, 1))
    found = hierarchical_mean(values, rng=rng(), crossed=False)
    assert found.interval == pytest.approx(mean_t_interval(values.mean(axis=1)))
    assert found.df == 5
    assert found.se_units == pytest.approx(np.sqrt(values.var(axis=1, ddof=1).mean() / 180))


def test_nested_seeds_may_have_different_numbers_of_units_and_count_alike():
    values = np.array([[1.0, 3.0, np.nan], [2.0, 4.0, 9.0]])
    found = hierarchical_mean(values, draws=100, rng=rng(), crossed=False)
    assert found.interval.mean == 3.5
    with pytest.raises(ValueError, match="finite"):
        hierarchical_mean(values, draws=100, rng=rng())


@pytest.mark.parametrize("crossed", [True, False])
def test_a_deterministic_method_gets_its_interval_from_the_units_alone(crossed):
    row = rng().normal(0.3, 1, 10)  # few: the divisor n - 1 shows
    found = hierarchical_mean(np.tile(row, (4, 1)), draws=40_000, rng=rng(), crossed=crossed)
    expected = row.std(ddof=1) / np.sqrt(10 if crossed else 40)
    assert found.se_seeds == 0
    assert found.se_units == pytest.approx(expected, rel=0.02)
    assert found.interval.sd == 0
    if crossed:
        assert found.interval[:3] == pytest.approx(mean_t_interval(row)[:3], abs=0.01)


def test_units_that_are_all_alike_leave_the_t_interval_over_seeds():
    values = np.repeat([[0.7], [0.8], [0.75]], 30, axis=1)
    found = hierarchical_mean(values, draws=100, rng=rng())
    assert found.interval == pytest.approx(mean_t_interval([0.7, 0.8, 0.75]))
    assert found.se_units == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("shape", [(1, 20), (3, 1)])
def test_one_seed_or_one_unit_gives_no_limits(shape, crossed):
    found = hierarchical_mean(rng().normal(size=shape), draws=50, rng=rng(), crossed=crossed)
    assert np.isfinite(found.interval.mean)
    assert np.isnan([found.interval.low, found.interval.high, found.p_value]).all()


def test_no_variation_at_all_has_no_width_and_no_p_value():
    found = hierarchical_mean(np.full((3, 20), 0.1), draws=50, rng=rng())
    assert found.interval[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert found.interval.width == 0
    assert np.isnan(found.p_value)


@pytest.mark.parametrize("values", [np.empty((0, 3)), np.empty((3, 0)), [[np.nan], [1.0]]])
def test_a_seed_without_units_is_refused(values):
    with pytest.raises(ValueError, match="each seed needs a unit"):
        hierarchical_mean(values, draws=10, rng=rng(), crossed=False)


def test_a_level_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match="level"):
        hierarchical_mean(np.ones((2, 3)), level=95, draws=10, rng=rng())


values_strategy = st.integers(0, 10_000).map(
    lambda seed: rng(seed).normal(rng(seed).normal(0, 0.4), 1, (2 + seed % 5, 5 + seed % 30))
)


@given(values_strategy, st.booleans())
@settings(max_examples=60, deadline=None)
def test_p_value_and_interval_agree_and_signs_mirror(values, crossed):
    found = hierarchical_mean(values, draws=100, rng=rng(), crossed=crossed)
    mirrored = hierarchical_mean(-values, draws=100, rng=rng(), crossed=crossed)
    low, high = found.interval.low, found.interval.high
    assert (low > 0 or high < 0) == (found.p_value < 0.05)
    assert mirrored.interval[:3] == pytest.approx((-found.interval.mean, -high, -low))
    assert mirrored.p_value == pytest.approx(found.p_value)
    assert found.se_seeds >= 0 and found.se_units >= 0


@given(values_strategy, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_order_of_seeds_and_units_does_not_matter(values, seed):
    found = hierarchical_mean(values, draws=100, rng=rng())
    seeds = hierarchical_mean(rng(seed).permutation(values, axis=0), draws=100, rng=rng())
    assert flat(seeds) == pytest.approx(flat(found))
    units = hierarchical_mean(rng(seed).permutation(values, axis=1), draws=100, rng=rng())
    assert (units.interval.mean, units.interval.sd) == pytest.approx((found.interval.mean, found.interval.sd))


def test_a_higher_level_is_wider():
    values = rng().normal(size=(3, 30))
    a, b = (hierarchical_mean(values, level=level, draws=500, rng=rng()) for level in (0.9, 0.95))
    assert b.interval.low < a.interval.low < a.interval.high < b.interval.high
    assert a.p_value == b.p_value


# label_scores


@pytest.mark.parametrize("metric", METRICS)
def test_scores_equal_scikit_learn_with_labels_that_only_one_side_has(metric):
    draw = rng()
    for _ in range(20):
        truth = draw.integers(0, 5, 40)
        predicted = np.where(draw.random((4, 40)) < 0.5, truth, draw.integers(2, 8, (4, 40)))
        expected = []
        for row in predicted:
            macro = precision_recall_fscore_support(truth, row, average="macro", zero_division=0)
            expected.append(dict(zip(METRICS, [accuracy_score(truth, row), *macro[:3]], strict=True))[metric])
        assert label_scores(truth, predicted, metric) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_weights_equal_repeated_cells_scored_over_the_full_set_of_labels(metric):
    draw = rng()
    truth, predicted = draw.integers(0, 6, 25), draw.integers(0, 6, (2, 25))
    weights = draw.multinomial(25, np.full(25, 1 / 25), size=30)
    found = label_scores(truth, predicted, metric, weights)
    assert found.shape == (30, 2)
    for counts, scores in zip(weights, found, strict=True):
        picked = np.repeat(np.arange(25), counts)
        for row, score in zip(predicted, scores, strict=True):
            known = np.union1d(truth, row)  # of all cells, not of the resample
            macro = precision_recall_fscore_support(
                truth[picked], row[picked], labels=known, average="macro", zero_division=0
            )
            accuracy = accuracy_score(truth[picked], row[picked])
            assert score == pytest.approx(dict(zip(METRICS, [accuracy, *macro[:3]], strict=True))[metric])


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="expected one of accuracy.*found 'f1'"):
        label_scores(np.array([0]), np.array([[0]]), "f1")


# hierarchical_labels


@pytest.mark.parametrize("metric", METRICS)
def test_mean_is_the_plain_mean_over_seeds_and_of_the_paired_difference(metric):
    truth, ours = labels(seed=1)
    theirs = labels(right=0.5, seed=1)[1]
    names = {name: code for code, name in enumerate(LABELS)}
    t, a, b = (np.vectorize(names.get)(x) for x in (truth, ours, theirs))
    scores = label_scores(t, a, metric), label_scores(t, b, metric)
    alone = hierarchical_labels(truth, ours, metric=metric, draws=50, rng=rng()).interval
    paired = hierarchical_labels(truth, ours, theirs, metric=metric, draws=50, rng=rng()).interval
    assert (alone.mean, alone.n) == (pytest.approx(scores[0].mean()), 3)
    assert paired.mean == pytest.approx((scores[0] - scores[1]).mean())
    assert paired.sd == pytest.approx((scores[0] - scores[1]).std(ddof=1))


def test_accuracy_is_the_mean_of_right_and_wrong():
    truth, ours = labels(cells=200)
    a = hierarchical_labels(truth, ours, draws=500, rng=rng())
    b = hierarchical_mean(ours == truth, draws=500, rng=rng())
    assert flat(a) == pytest.approx(flat(b))


@pytest.mark.parametrize("metric", METRICS)
def test_swapping_the_methods_mirrors_and_a_method_against_itself_is_zero(metric):
    truth, ours = labels(seed=2)
    theirs = labels(right=0.5, seed=3)[1]
    there = hierarchical_labels(truth, ours, theirs, metric=metric, draws=200, rng=rng())
    back = hierarchical_labels(truth, theirs, ours, metric=metric, draws=200, rng=rng())
    assert there.interval.mean == pytest.approx(-back.interval.mean)
    assert (there.interval.low, there.interval.high) == pytest.approx(
        (-back.interval.high, -back.interval.low)
    )
    self = hierarchical_labels(truth, ours, ours, metric=metric, draws=200, rng=rng())
    assert self.interval[:3] == (0, 0, 0)
    assert np.isnan(self.p_value)


def test_pairing_narrows_the_difference_of_methods_that_err_on_the_same_cells():
    truth, ours = labels(cells=300, seeds=5)
    worse = ours.copy()
    worse[:, :30] = "B cell"
    paired = hierarchical_labels(truth, ours, worse, draws=500, rng=rng())
    apart = [hierarchical_labels(truth, side, draws=500, rng=rng()).se for side in (ours, worse)]
    assert paired.se < 0.8 * np.hypot(*apart)


def test_names_of_labels_and_the_size_of_blocks_do_not_matter(monkeypatch):
    truth, ours = labels(seeds=4)
    first = hierarchical_labels(truth, ours, metric="macro_f1", draws=300, rng=rng())
    monkeypatch.setattr("workflow.resampling._BLOCK", 600)
    renamed = hierarchical_labels(truth + "!", ours + "!", metric="macro_f1", draws=300, rng=rng())
    assert flat(renamed) == pytest.approx(flat(first))


def test_one_seed_has_a_mean_and_no_limits():
    truth, ours = labels(seeds=1)
    found = hierarchical_labels(truth, ours, metric="macro_f1", draws=50, rng=rng())
    assert found.interval.n == 1
    assert np.isfinite(found.interval.mean)
    assert np.isnan([found.interval.low, found.interval.sd, found.p_value]).all()


def test_wrong_shapes_and_missing_labels_are_refused():
    truth, ours = labels()
    with pytest.raises(ValueError, match=r"theirs: expected seeds x cells \(3, 60\), found \(2, 60\)"):
        hierarchical_labels(truth, ours, ours[:2], rng=rng())
    with pytest.raises(ValueError, match="missing"):
        hierarchical_labels(truth, np.where(ours == "B cell", None, ours), rng=rng())


# Coverage. The standard error of a share of .95 over 600 repetitions is .009


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("crossed", "own"), [(True, 0.0), (True, 0.5), (True, 1.0), (False, 1.0)], ids=str)
@pytest.mark.parametrize(("ratio", "seeds"), [(0, 3), (1, 3), (0.1, 10)])
def test_interval_covers_the_mean(binary, crossed, own, ratio, seeds):
    draw, units, repeats = rng(7), 80, 600
    per_unit = (1 - own) / units + own / (units * seeds) if crossed else 1 / (units * seeds)
    spread = np.sqrt(ratio * seeds * per_unit)  # seeds' share of the variance over the units' share
    cut = 0.7 * np.sqrt(1 + spread**2)
    hits = 0
    for _ in range(repeats):
        common = draw.normal(0, np.sqrt(1 - own), units) if crossed else 0
        values = cut + draw.normal(0, spread, (seeds, 1)) + common
        values = values + draw.normal(0, np.sqrt(own) if crossed else 1, (seeds, units))
        truth = stats.norm.cdf(0.7) if binary else cut
        interval = hierarchical_mean(
            values > 0 if binary else values, draws=150, rng=draw, crossed=crossed
        ).interval
        hits += interval.low <= truth <= interval.high
    assert 0.925 <= hits / repeats <= 0.975


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("paired", [False, True])
def test_label_interval_covers_what_repetitions_show_on_average(metric, paired):
    draw, repeats, seeds, cells = rng(3), 400, 3, 200
    results = []
    for _ in range(repeats):
        truth = draw.choice(4, cells, p=[0.4, 0.3, 0.2, 0.1])
        difficulty, sides = draw.normal(0, 0.8, cells), []
        for gain in (0.2, 0.0)[: 1 + paired]:
            latent = 0.8 + gain + draw.normal(0, 0.15, (seeds, 1)) + difficulty
            right = latent + draw.normal(0, 0.6, (seeds, cells)) > 0
            sides.append(np.where(right, truth, (truth + draw.integers(1, 4, right.shape)) % 4))
        results.append(hierarchical_labels(truth, *sides, metric=metric, draws=150, rng=draw).interval[:3])
    mean, low, high = np.transpose(results)
    covered = np.mean((low <= mean.mean()) & (mean.mean() <= high))
    assert 0.92 <= covered <= 0.98
