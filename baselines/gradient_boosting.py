"""Gradient-boosted trees on histograms of the genes, stopped early on a part of the reference."""

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from baselines import _io


def held_out(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the share of each label's cells that training is stopped by; few cells of a label: none of them.

    (scikit-learn's own split fails where a label has one cell.)
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        chosen[rng.permutation(cells)[: int(fraction * len(cells))]] = True
    return chosen


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label, on the log-normalised highly variable genes."""
    params = given.params
    reference = given.highly_variable(given.reference)
    labels = reference.obs["label"].to_numpy(dtype=str)
    if len(np.unique(labels)) < 2:
        _io.not_applicable("gradient boosting needs two labels in the reference; found one")
    genes = _io.dense(reference.X)
    held = held_out(labels, params["validation_fraction"], np.random.default_rng(given.seed))
    model = HistGradientBoostingClassifier(
        learning_rate=params["learning_rate"],
        max_iter=params["max_iter"],
        early_stopping=bool(held.any()),
        n_iter_no_change=params["n_iter_no_change"],
        random_state=given.seed,
    )
    validation = {"X_val": genes[held], "y_val": labels[held]} if held.any() else {}
    model.fit(genes[~held], labels[~held], **validation)
    given.info["n_rounds"] = int(model.n_iter_)
    return model.predict(_io.dense(given.highly_variable(given.query).X))


if __name__ == "__main__":
    _io.main(annotation=annotation)
