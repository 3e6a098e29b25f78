"""Nearest centroid: the label whose mean reference cell is closest.

Cells are scaled to length 1 first, so that distance follows the cosine between two profiles and the depth of
a cell, which log-normalisation leaves a trace of, takes no part.
"""

import numpy as np
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from baselines import _io


def annotation(given: _io.Given) -> np.ndarray:
    """Return the label of the nearest centroid, on the log-normalised highly variable genes."""
    reference = given.highly_variable(given.reference)
    if reference.obs["label"].nunique() < 2:
        _io.not_applicable("the nearest of several centroids needs two labels in the reference; found one")
    model = make_pipeline(Normalizer(), NearestCentroid())
    model.fit(_io.dense(reference.X), reference.obs["label"].astype(str))
    return model.predict(_io.dense(given.highly_variable(given.query).X))


if __name__ == "__main__":
    _io.main(annotation=annotation)
