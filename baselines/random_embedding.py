"""Random embedding: Gaussian noise, the floor of every integration table."""

import numpy as np

from baselines import _io


def integration(given: _io.Given) -> np.ndarray:
    """Return independent standard normal numbers."""
    given.info["n_genes"] = 0
    rng = np.random.default_rng(given.seed)
    return rng.normal(size=(given.adata.n_obs, given.params["n_dimensions"]))


if __name__ == "__main__":
    _io.main(integration=integration)
