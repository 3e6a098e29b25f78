"""Stratified random: labels drawn from the frequencies of the reference; no gene is looked at."""

import numpy as np

from baselines import _io


def annotation(given: _io.Given) -> np.ndarray:
    """Return for each query cell the label of a random reference cell."""
    given.info["n_genes"] = 0
    labels = given.reference.obs["label"].to_numpy(dtype=str)
    return np.random.default_rng(given.seed).choice(labels, size=given.query.n_obs)


if __name__ == "__main__":
    _io.main(annotation=annotation)
