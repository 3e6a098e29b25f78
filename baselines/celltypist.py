"""CellTypist (Domínguez Conde et al. 2022): logistic regression on genes that a first fit has picked.

CellTypist 1.7.1 asks scikit-learn for ``multi_class="ovr"``, which scikit-learn 1.8 removed;
:class:`AgainstTheRest` is what that did. Nothing else of the package is changed, and nothing is downloaded:
the model is trained on the reference.
"""

import logging
import os
import sys
import tempfile
import warnings

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._base import LinearClassifierMixin

from baselines import _io


class AgainstTheRest(LinearClassifierMixin, BaseEstimator):
    """scikit-learn's ``LogisticRegression(multi_class="ovr")`` up to 1.7: one binary fit per label."""

    def __init__(self, multi_class: str = "ovr", **settings) -> None:
        self.settings = settings

    def fit(self, genes: np.ndarray, labels: np.ndarray) -> "AgainstTheRest":
        """Fit each label against all others; of two labels only the second, as scikit-learn does."""
        self.classes_ = np.unique(labels)
        fitted = self.classes_ if len(self.classes_) > 2 else self.classes_[1:]
        fits = [LogisticRegression(**self.settings).fit(genes, labels == label) for label in fitted]
        self.coef_ = np.vstack([fit.coef_ for fit in fits])
        self.intercept_ = np.concatenate([fit.intercept_ for fit in fits])
        return self


def load():
    """Import the package, which makes a folder on import and sets up logging for the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CELLTYPIST_FOLDER"] = folder  # instead of the home folder
        import celltypist
    logging.getLogger().setLevel(logging.WARNING)
    celltypist.logger.set_level(logging.ERROR)
    sys.modules["celltypist.train"].LogisticRegression = AgainstTheRest  # type: ignore[attr-defined]
    return celltypist


def annotation(given: _io.Given) -> np.ndarray:
    """Return the best match, or with ``majority_voting`` that of the small cluster that a cell is in."""
    params = given.params
    reference, query = given.reference.copy(), given.query.copy()
    if reference.obs["label"].nunique() < 2:
        _io.not_applicable("CellTypist needs two labels in the reference; found one")
    low, high = given.adata.X.min(), given.adata.X.max()
    if low < 0 or high > 9.22:
        _io.not_applicable(
            "CellTypist takes log1p of counts per 10,000, which lie between 0 and 9.22; "
            f"these values lie between {low:.3g} and {high:.3g}"
        )
    if params["majority_voting"] and query.n_vars <= 50:
        _io.not_applicable(f"CellTypist votes on 50 principal components, of {query.n_vars} genes here")
    given.info["bridge"] = ["scikit-learn's multi_class='ovr', removed in 1.8, replaced by 10 lines"]
    total = np.asarray(given.adata.X.expm1().sum(axis=1)).ravel()
    if (np.abs(total[total > 0] - 1e4) > 1).any():
        given.info["bridge"].append("cells do not sum to 10,000 as it asks; its check of that is off")
    warnings.filterwarnings("ignore")
    celltypist = load()
    expressed = int((reference.X.sum(axis=0) > 0).sum())
    model = celltypist.train(
        reference,
        labels="label",
        check_expression=False,  # it looks at the first cell alone, which may be empty; see above
        # impossible, and needless, where there are no more genes than it would pick for one label
        feature_selection=params["feature_selection"] and expressed > params["top_genes"],
        top_genes=params["top_genes"],
        random_state=given.seed,
    )
    given.info["n_genes"] = len(model.features)
    found = celltypist.annotate(query, model=model, majority_voting=params["majority_voting"])
    return found.predicted_labels.iloc[:, -1].to_numpy(dtype=str)  # the vote stands last, if there is one


if __name__ == "__main__":
    _io.main(annotation=annotation)
