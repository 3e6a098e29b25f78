"""PCA and k nearest neighbours: principal components of the reference, majority vote of k cells."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from baselines import _io


def annotation(given: _io.Given) -> np.ndarray:
    """Return the label that most of the k nearest reference cells have."""
    reference = given.highly_variable(given.reference)
    genes = _io.dense(reference.X)
    n_components = min(given.params["n_components"], *np.subtract(genes.shape, 1))
    model = make_pipeline(
        PCA(n_components, svd_solver="covariance_eigh"),  # fitted on the reference alone
        KNeighborsClassifier(min(given.params["n_neighbors"], len(genes))),
    )
    model.fit(genes, reference.obs["label"].astype(str))
    return model.predict(_io.dense(given.highly_variable(given.query).X))


if __name__ == "__main__":
    _io.main(annotation=annotation)
