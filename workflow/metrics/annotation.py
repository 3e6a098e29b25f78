"""Annotation metrics, all from scikit-learn.

A macro average depends on which labels it averages over: one query cell that is given a label that
no query cell has adds a class with precision 0 and recall 0. So the macro scores carry the set:

``sklearn-union``
    Labels that occur in the truth or in the prediction of the query (as the paper computes them).
``sklearn-query``
    Labels that occur in the truth of the query.
``sklearn-shared``
    Labels that occur in the truth of the query and in the reference.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    f1_score,
    precision_recall_fscore_support,
)

#: The stream called "permuted", and how often labels are permuted.
PERMUTED, N_PERMUTED = 0x9E2407ED, 5


def score_labels(*, truth: np.ndarray, predicted: np.ndarray, reference_labels: list[str]) -> list[dict]:
    """Score predicted labels.

    Parameters
    ----------
    truth, predicted
        (n,) strings, one per query cell.
    reference_labels
        Labels that the method could have learned.

    Returns
    -------
    list of dict
        ``metric``, ``metric_impl``, ``unit_level``, ``unit_id``, ``value``, ``n_units``: one row per
        metric for the run, one F1 per label; and, as level ``permuted``, accuracy and macro F1 against
        labels that were shuffled among the query cells: what the same predictions score by chance.
        Undefined precision or recall counts as 0 (``zero_division=0``).
    """
    n = len(truth)
    rows: list[dict] = []

    def add(metric: str, impl: str, value: float, level: str = "run", unit: str = "", units: int = n):
        rows.append(
            {
                "metric": metric,
                "metric_impl": impl,
                "unit_level": level,
                "unit_id": unit,
                "value": float(value),
                "n_units": units,
            }
        )

    in_query = sorted(set(truth))
    label_sets = {
        "sklearn-union": sorted(set(truth) | set(predicted)),
        "sklearn-query": in_query,
        "sklearn-shared": sorted(set(truth) & set(reference_labels)),
    }
    add("accuracy", "sklearn", accuracy_score(truth, predicted))
    for impl, labels in label_sets.items():
        if not labels:
            continue
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, predicted, labels=labels, average="macro", zero_division=0
        )
        add("macro_precision", impl, precision)
        add("macro_recall", impl, recall)
        add("macro_f1", impl, f1)
    # balanced accuracy warns about predicted labels that no query cell has; they do not enter it
    recalls = precision_recall_fscore_support(
        truth, predicted, labels=in_query, average=None, zero_division=0
    )[1]
    add("balanced_accuracy", "sklearn", recalls.mean())
    add("weighted_f1", "sklearn", f1_score(truth, predicted, average="weighted", zero_division=0))
    kappa = cohen_kappa_score(truth, predicted) if len(in_query) > 1 else np.nan
    add("cohen_kappa", "sklearn", kappa)
    add("accuracy_ceiling", "sklearn", np.isin(truth, reference_labels).mean())

    per_label = f1_score(truth, predicted, labels=in_query, average=None, zero_division=0)
    for label, value in zip(in_query, per_label, strict=True):
        add("f1", "sklearn", value, "label", label, int((truth == label).sum()))
    rng = np.random.default_rng(PERMUTED)
    for index in range(N_PERMUTED):
        shuffled = rng.permutation(truth)
        f1 = f1_score(
            shuffled, predicted, labels=label_sets["sklearn-union"], average="macro", zero_division=0
        )
        add("accuracy", "sklearn", accuracy_score(shuffled, predicted), "permuted", str(index))
        add("macro_f1", "sklearn-union", f1, "permuted", str(index))
    return rows
