"""Linear support vector machine, one label against the rest.

The best of 22 classifiers in the benchmark of Abdelaal et al. (2019), and run as there: scikit-learn's
defaults, without class weights, on log-normalised values of all genes.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from baselines import _io


def annotation(given: _io.Given) -> np.ndarray:
    """Return the label of the largest margin, from all genes of the input."""
    reference = given.reference
    given.info["n_genes"] = reference.n_vars
    if reference.obs["label"].nunique() < 2:
        _io.not_applicable("a linear SVM needs two labels in the reference; found one")
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    model = LinearSVC(C=given.params["C"], max_iter=given.params["max_iter"], random_state=given.seed)
    model.fit(reference.X, reference.obs["label"].astype(str))
    return model.predict(given.query.X)


if __name__ == "__main__":
    _io.main(annotation=annotation)
