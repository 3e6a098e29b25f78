"""Label one-hot: the true labels as an embedding, the ceiling of every integration table.

The only method that reads the solution. A little noise keeps cells apart, so that the neighbours within a
label are random and the kNN graph is well defined.
"""

import numpy as np
import pandas as pd

from baselines import _io


def integration(given: _io.Given) -> np.ndarray:
    """Return the one-hot labels plus Gaussian noise."""
    assert given.solution is not None, "label_onehot is an oracle: methods.yaml must say so"
    given.info["n_genes"] = 0
    onehot = pd.get_dummies(given.solution.obs["label"].astype(str)).to_numpy(dtype=float)
    rng = np.random.default_rng(given.seed)
    return onehot + rng.normal(scale=given.params["noise_sd"], size=onehot.shape)


if __name__ == "__main__":
    _io.main(integration=integration)
