"""<Name>: <what it does, in one sentence> (<Author> et al. <year>).

Copy this file to ``baselines/<name>.py``, add an entry ``<name>`` to ``workflow/methods.yaml`` and put the
name into ``select.methods`` of a configuration. That is all. Keep one function per task that you serve
and delete the other.
"""

import numpy as np

from baselines import _io


def integration(given: _io.Given) -> np.ndarray:
    """Return one embedding row per cell, in the order of the input."""
    adata = given.highly_variable()  # log-normalised X; raw counts in adata.layers["counts"]
    rng = np.random.default_rng(given.seed)
    n_dimensions = given.params["n_dimensions"]  # every parameter is declared in methods.yaml
    projection = rng.normal(size=(adata.n_vars, n_dimensions))
    given.info["scale"] = f"{n_dimensions} dimensions"  # shown beside the name in the tables
    return adata.X @ projection


def annotation(given: _io.Given) -> np.ndarray:
    """Return one label per query cell, in the order of the input."""
    if given.reference.obs["label"].nunique() < 2:
        _io.not_applicable("needs two labels in the reference")
    labels = given.reference.obs["label"].to_numpy()
    return np.random.default_rng(given.seed).choice(labels, size=given.query.n_obs)


if __name__ == "__main__":
    _io.main(integration=integration, annotation=annotation)
