"""Logistic regression, one label against the rest, with C chosen by cross-validation on the reference."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from baselines import _io


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label, from all genes of the input."""
    params = given.params
    reference = given.reference
    given.info["n_genes"] = reference.n_vars
    sizes = reference.obs["label"].value_counts()
    n_folds = min(params["n_folds"], sizes.max())
    if (sizes > 0).sum() < 2 or n_folds < 2:
        _io.not_applicable(
            "to choose C by cross-validation takes two labels in the reference, one of them with two cells; "
            f"found {(sizes > 0).sum()}, the largest with {sizes.max()}"
        )
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", message="The least populated class")
    classifier = LogisticRegression(
        l1_ratio={"l1": 1.0, "l2": 0.0}[params["penalty"]],
        solver="liblinear",
        max_iter=params["max_iter"],
        random_state=given.seed,
    )
    search = GridSearchCV(
        make_pipeline(MaxAbsScaler(), OneVsRestClassifier(classifier)),
        {"onevsrestclassifier__estimator__C": params["C"]},
        cv=StratifiedKFold(n_folds, shuffle=True, random_state=given.seed),
        n_jobs=None,
    )
    search.fit(reference.X, reference.obs["label"].astype(str))
    given.info["C"] = search.best_params_["onevsrestclassifier__estimator__C"]
    return search.predict(given.query.X)


if __name__ == "__main__":
    _io.main(annotation=annotation)
