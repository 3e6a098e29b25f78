"""What is measured about one method, and about two on the same seeds: intervals, tests, effects, power.

From rows and predictions to numbers; :mod:`workflow.verdicts` turns numbers into words.

The interval of a score resamples what repeats. A score of all cells together (integration) repeats over seeds
alone: Student's t. An annotation repeats over seeds and over the cells of the query: the hierarchical
bootstrap of :mod:`workflow.resampling`. The same streams serve every comparison, so the order in which
claims are judged changes no number, and swapping two methods mirrors their difference exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from workflow import statistics
from workflow.resampling import Hierarchical, hierarchical_labels
from workflow.statistics import ROUNDING_NOISE, Interval, mean_t_interval, paired_difference

#: The implementation of each metric that verdicts rest on; the others serve as sensitivity rows.
HEADLINE: dict[str, str] = {
    "avg_bio": "scib-1.1.5",
    "avg_batch": "scib",
    "accuracy": "sklearn",
    "macro_precision": "sklearn-union",
    "macro_recall": "sklearn-union",
    "macro_f1": "sklearn-union",
}
#: Metrics of predicted labels, whose interval resamples cells as well as seeds.
OF_LABELS = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
#: With fewer cells than this the interval rests on seeds alone, which knows nothing of other cells, so
#: nothing is decided.
FEWEST_UNITS = 20
DRAWS = 10_000
#: The stream called "bootstrap", and the one called "permutation".
BOOTSTRAP, PERMUTATION = 0xB0075, 0x9E2407
POWER = 0.8


class Estimate(NamedTuple):
    """A method's mean over seeds with its 95 % interval, what that resamples, and what is behind it."""

    interval: Interval
    kind: str  # "t" or "hierarchical"
    se: float
    df: float

    @property
    def mde(self) -> float:
        """The smallest difference to another method with the same interval that is shown with 80 % power.

        The two are taken as independent, so the standard error of their difference is sqrt(2) times this
        one. Methods that err on the same cells differ by less noise: there it is an upper limit.
        """
        return float(np.sqrt(2)) * statistics.detectable_effect(self.se, self.df, power=POWER)


@dataclass(frozen=True)
class Comparison:
    """The subject against one comparator, over the seeds that both have.

    Attributes
    ----------
    method, mean
        The comparator and its mean over all its seeds.
    difference
        Mean of subject minus comparator with its 95 % interval; ``n`` counts common seeds.
    se, df
        Standard error and degrees of freedom behind the interval.
    se_units
        The part of ``se`` that more seeds do not make smaller (the cells); 0 where only seeds repeat.
    kind
        What the interval resamples: ``t`` (seeds) or ``hierarchical`` (seeds, then cells).
    p_value
        Two-sided, consistent with the interval.
    p_sign_flip, p_wilcoxon
        Of the differences by seed; their smallest possible value with n seeds is 2 / 2**n.
    mcnemar
        In how many seeds the exact McNemar test finds the subject better or worse (p < .05), in words.
    cohen_d
        Mean difference over its SD, by seed.
    cliffs_delta
        P(ours > theirs) - P(ours < theirs): of cells by the share of seeds that label them correctly, where
        cells are units; else of seeds.
    superiority
        P(a run of ours > a run of theirs), ties counted half.
    deterministic
        Both repeat one number on every seed.
    """

    method: str
    mean: float
    difference: Interval
    se: float
    df: float
    se_units: float
    kind: str
    p_value: float
    p_sign_flip: float
    p_wilcoxon: float
    mcnemar: str
    cohen_d: float
    cliffs_delta: float
    superiority: float
    deterministic: bool

    def at(self, level: float) -> Interval:
        """Return the interval at another level, from the same standard error."""
        if not np.isfinite(self.se):
            return self.difference._replace(low=np.nan, high=np.nan)
        half = self.se * float(stats.t.ppf((1 + level) / 2, self.df)) if self.se else 0.0
        mean = self.difference.mean
        return self.difference._replace(low=mean - half, high=mean + half)

    @property
    def mde(self) -> float:
        """The smallest true difference that these seeds and cells show with 80 % power.

        See :func:`workflow.statistics.detectable_effect`.
        """
        return statistics.detectable_effect(self.se, self.df, power=POWER)

    def seeds_needed(self, effect: float) -> float:
        """Return how many seeds would show ``effect`` with 80 % power; inf where no number would.

        More seeds shrink the part of the variance that seeds make; the cells stay the same.
        """
        if not (np.isfinite(self.se) and effect > 0):
            return np.nan
        of_seeds = max(self.se**2 - self.se_units**2, 0.0) * self.difference.n
        room = (effect / (stats.norm.ppf(0.975) + stats.norm.ppf(POWER))) ** 2 - self.se_units**2
        if room <= 0:
            return np.inf
        if not of_seeds:
            return 2.0
        if self.se_units:
            return float(max(np.ceil(of_seeds / room), 2))
        return float(statistics.seeds_needed(np.sqrt(of_seeds), effect))


@dataclass(frozen=True)
class Evidence:
    """Rows, runs and predictions of a selection, with the questions that tables and verdicts ask of them."""

    rows: pd.DataFrame
    runs: pd.DataFrame
    units: Mapping[tuple[str, str, str], pd.DataFrame] = field(default_factory=dict)
    draws: int = DRAWS

    @cached_property
    def _cache(self) -> dict:
        return {}

    def scores(self, task: str, dataset: str, metric: str, impl: str | None = None) -> pd.DataFrame:
        """Return the finite values of a metric, one for each run.

        Raises
        ------
        ValueError
            If a method has two values for one seed.
        """
        rows, impl = self.rows, impl or HEADLINE.get(metric)
        keep = (rows["task"] == task) & (rows["dataset"] == dataset) & (rows["metric"] == metric)
        keep &= (rows["metric_impl"] == impl) & (rows["unit_level"] == "run")
        keep &= np.isfinite(rows["value"].astype(float))
        cut = rows[keep]
        twice = cut[cut.duplicated(["method", "seed"])]
        if len(twice):
            one = twice.iloc[0]
            raise ValueError(
                f"{one['method']} on {dataset} has two values of {metric} for seed {one['seed']}"
            )
        return cut

    def by_seed(
        self, task: str, dataset: str, metric: str, method: str, impl: str | None = None
    ) -> pd.Series:
        """Return a method's values, indexed by seed."""
        cut = self.scores(task, dataset, metric, impl)
        mine = cut[cut["method"] == method].sort_values("seed")
        return pd.Series(mine["value"].to_numpy(float), index=mine["seed"].to_numpy())

    def labels(self, task: str, dataset: str, method: str) -> tuple[pd.Series, pd.DataFrame] | None:
        """Return the truth of each cell and the prediction of each seed (seeds x cells); None without.

        Raises
        ------
        ValueError
            If a seed lacks cells that another one has.
        """
        table = self.units.get((task, dataset, method))
        if table is None or table.empty:
            return None
        predicted = table.pivot(index="seed", columns="unit_id", values="predicted")
        if lacking := predicted.isna().sum(axis=1).loc[lambda n: n > 0].to_dict():
            said = ", ".join(f"seed {seed} lacks {n} of {predicted.shape[1]}" for seed, n in lacking.items())
            raise ValueError(f"scores/{task}/{dataset}/{method}.units.parquet: expected every cell; {said}")
        truth = table.drop_duplicates("unit_id").set_index("unit_id")["truth"]
        return truth.reindex(predicted.columns), predicted

    def estimate(
        self, task: str, dataset: str, metric: str, method: str, impl: str | None = None
    ) -> Estimate:
        """Return a method's mean over seeds with its interval."""
        values = self.by_seed(task, dataset, metric, method, impl)
        labels = self.labels(task, dataset, method) if self._of_labels(metric, impl) else None
        if labels is None or len(labels[0]) < FEWEST_UNITS or len(values) < 2:
            by_t = mean_t_interval(values)
            return Estimate(by_t, "t", by_t.sd / np.sqrt(max(by_t.n, 1)), by_t.n - 1.0)
        truth, predicted = labels
        found = self._bootstrap(metric, truth, predicted.loc[values.index])
        return Estimate(found.interval, "hierarchical", found.se, found.df)

    def compare(self, task: str, dataset: str, metric: str, subject: str, other: str) -> Comparison:
        """Compare two methods over the seeds that both have.

        Raises
        ------
        ValueError
            If their predictions are not of the same cells with the same labels.
        """
        key = (task, dataset, metric, subject, other)
        if key not in self._cache:
            self._cache[key] = self._compare(*key)
        return self._cache[key]

    def too_few_cells(self, task: str, dataset: str, metric: str, method: str) -> int:
        """Return how many cells were labelled if they are too few to decide anything; else 0."""
        labels = self.labels(task, dataset, method) if self._of_labels(metric, None) else None
        return len(labels[0]) if labels and len(labels[0]) < FEWEST_UNITS else 0

    def _of_labels(self, metric: str, impl: str | None) -> bool:
        return metric in OF_LABELS and impl in (None, HEADLINE[metric])

    def _bootstrap(
        self, metric: str, truth: pd.Series, ours: pd.DataFrame, theirs: pd.DataFrame | None = None
    ) -> Hierarchical:
        return hierarchical_labels(
            truth.to_numpy(dtype=str),
            ours.to_numpy(dtype=str),
            None if theirs is None else theirs.to_numpy(dtype=str),
            metric=metric,
            draws=self.draws,
            rng=np.random.default_rng(BOOTSTRAP),
        )

    def _compare(self, task: str, dataset: str, metric: str, subject: str, other: str) -> Comparison:
        a, b = (self.by_seed(task, dataset, metric, method) for method in (subject, other))
        by_t, p_value = paired_difference(a, b)
        se, df, se_units, kind = by_t.sd / np.sqrt(max(by_t.n, 1)), by_t.n - 1.0, 0.0, "t"
        common = sorted(set(a.index) & set(b.index))
        differences = (a[common] - b[common]).to_numpy()
        differences = np.where(np.abs(differences) < ROUNDING_NOISE, 0.0, differences)
        interval, mcnemar = by_t, ""
        delta = statistics.cliffs_delta(a.to_numpy(), b.to_numpy())
        ours, theirs = (self.labels(task, dataset, method) for method in (subject, other))
        if self._of_labels(metric, None) and ours and theirs and len(ours[0]) >= FEWEST_UNITS:
            truth, mine = ours
            if not truth.equals(theirs[0]):
                raise ValueError(
                    f"{subject} and {other} on {dataset} were not scored on the same cells with the same "
                    f"labels ({len(truth)} and {len(theirs[0])} cells); delete scores/{task}/{dataset} and "
                    "score again"
                )
            others = theirs[1]
            right = [(table.loc[common] == truth).to_numpy() for table in (mine, others)]
            if len(common) >= 2:
                found = self._bootstrap(metric, truth, mine.loc[common], others.loc[common])
                interval, kind, p_value = found.interval, "hierarchical", found.p_value
                se, df, se_units = found.se, found.df, found.se_units
            if metric == "accuracy" and common:
                p = [statistics.mcnemar_p(x, y) for x, y in zip(*right, strict=True)]
                better = sum(q < 0.05 and d > 0 for q, d in zip(p, differences, strict=True))
                worse = sum(q < 0.05 and d < 0 for q, d in zip(p, differences, strict=True))
                mcnemar = f"better in {better}, worse in {worse} of {len(common)} seeds"
                delta = statistics.cliffs_delta(right[0].mean(axis=0), right[1].mean(axis=0))
        return Comparison(
            method=other,
            mean=float(b.mean()),
            difference=interval,
            se=float(se),
            df=float(df),
            se_units=float(se_units),
            kind=kind,
            p_value=float(p_value),
            p_sign_flip=statistics.sign_flip_p(differences, rng=np.random.default_rng(PERMUTATION)),
            p_wilcoxon=statistics.wilcoxon_p(differences),
            mcnemar=mcnemar,
            cohen_d=statistics.cohen_d(differences),
            cliffs_delta=delta,
            superiority=statistics.superiority(a.to_numpy(), b.to_numpy()),
            deterministic=bool(by_t.sd == 0 and a.nunique() == b.nunique() == 1),
        )

    def best_trivial(self, task: str, dataset: str, metric: str, besides: str = "") -> tuple[str, float]:
        """Return the best baseline that learns nothing, and its mean; ``("", nan)`` without one.

        An oracle is none: it has seen the answers.
        """
        cut = self.scores(task, dataset, metric)
        trivial = cut[(cut["method_kind"] == "trivial") & (cut["method"] != besides)]
        if trivial.empty:
            return "", np.nan
        means = trivial.groupby("method")["value"].mean().astype(float)
        return str(means.idxmax()), float(means.max())

    def chance(self, task: str, dataset: str, metric: str, method: str, impl: str | None = None) -> float:
        """Return what the method's own outputs score against labels shuffled among the cells; else NaN.

        NaN too for an implementation that was not scored so: AvgBIO by another clustering has another chance.
        """
        rows = self.rows
        keep = (rows["task"] == task) & (rows["dataset"] == dataset) & (rows["method"] == method)
        keep &= (rows["metric"] == metric) & (rows["unit_level"] == "permuted")
        keep &= rows["metric_impl"] == (impl or HEADLINE.get(metric))
        return float(rows.loc[keep, "value"].mean()) if keep.any() else np.nan

    def ceiling(self, task: str, dataset: str, metric: str, impl: str | None = None) -> float:
        """Return the best score that can be expected here.

        Of AvgBIO that of the oracle, where one ran (which knows types, so it bounds no mixing of batches); of
        accuracy the share of query cells whose label the reference
        has; of a macro score 1 if that share is 1; else NaN.
        """
        cut = self.scores(task, dataset, metric, impl)
        oracle = cut[cut["method_kind"] == "oracle"]
        if len(oracle) and metric == "avg_bio":
            return float(oracle.groupby("method")["value"].mean().max())
        share = self.scores(task, dataset, "accuracy_ceiling", "sklearn")["value"]
        if share.empty or metric not in OF_LABELS:
            return np.nan
        value = float(share.max())
        return value if metric == "accuracy" or value == 1 else np.nan
