"""Harmony on the principal components (Korsunsky et al. 2019), by harmonypy.

harmonypy 2 changed its defaults after the R package harmony2: on two batches of PBMC they mix half as well
as the published algorithm. The parameters in methods.yaml are those of the paper, and of harmonypy 0.0.10.
"""

import logging
from dataclasses import replace

import harmonypy
import numpy as np

from baselines import _io
from baselines.pca import integration as pca


def integration(given: _io.Given) -> np.ndarray:
    """Return the corrected principal components."""
    if given.adata.obs["batch"].nunique() < 2:
        _io.not_applicable("Harmony corrects one batch towards another, and there is only one")
    if given.adata.n_obs < 16:
        _io.not_applicable(f"Harmony makes a cluster per 30 cells, and there are {given.adata.n_obs}")
    params = dict(given.params)
    components = pca(replace(given, params={"n_components": params.pop("n_components")}))
    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    found = harmonypy.run_harmony(
        components,
        given.adata.obs,
        "batch",
        random_state=given.seed,
        ncores=given.threads,
        **params,
    )
    corrected = np.asarray(found.Z_corr)
    # cells x components since 0.2, components x cells before
    return corrected if corrected.shape == components.shape else corrected.T


if __name__ == "__main__":
    _io.main(integration=integration)
