"""Unintegrated PCA: no correction at all, the row that every integration method must beat."""

import numpy as np
from sklearn.decomposition import PCA

from baselines import _io


def integration(given: _io.Given) -> np.ndarray:
    """Return the principal components of the log-normalised highly variable genes."""
    genes = _io.dense(given.highly_variable().X)
    n_components = min(given.params["n_components"], *np.subtract(genes.shape, 1))
    return PCA(n_components, svd_solver="covariance_eigh").fit_transform(genes)


if __name__ == "__main__":
    _io.main(integration=integration)
