"""Raw genes: the log-normalised highly variable genes themselves as the embedding, nothing done to them."""

import numpy as np

from baselines import _io


def integration(given: _io.Given) -> np.ndarray:
    """Return the genes as they are."""
    return _io.dense(given.highly_variable().X)


if __name__ == "__main__":
    _io.main(integration=integration)
