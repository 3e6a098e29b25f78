"""PCA with its cells shuffled: the same points, each of them another cell's.

Scoring it is scoring against shuffled labels and batches, so it shows what every metric gives by chance to an
embedding that has the shape of real data, which :mod:`baselines.random_embedding` has not.
"""

import numpy as np

from baselines import _io
from baselines.pca import integration as pca


def integration(given: _io.Given) -> np.ndarray:
    """Return ``n_components`` principal components with their rows in random order."""
    return np.random.default_rng(given.seed).permutation(pca(given))


if __name__ == "__main__":
    _io.main(integration=integration)
