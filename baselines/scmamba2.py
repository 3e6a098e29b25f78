"""SC-MAMBA2: bidirectional Mamba-2 over gene tokens, trained from scratch on the given cells.

The model is the package ``scmamba2`` of this repository. The published weights are not loaded here, so every
row says "from scratch" and earns no value verdict.
"""

from dataclasses import fields

import numpy as np
import torch

from baselines import _io
from scmamba2 import Annotator, Config, Integrator
from scmamba2.training import Training

TRAINING = [field.name for field in fields(Training)]


def _settings(given: _io.Given) -> dict:
    """Split the parameters into those of the model and those of its training."""
    torch.set_num_threads(given.threads)
    params = dict(given.params)
    training = {key: params.pop(key) for key in TRAINING if key in params}
    return training | {
        "config": Config(**params),
        "seed": given.seed,
        "folder": given.resume,
        "device": "cuda" if given.gpu else "cpu",
    }


def _describe(given: _io.Given, model: Integrator | Annotator) -> None:
    """Say what was trained."""
    given.info |= {
        "scale": f"{model.n_parameters / 1e6:.2g} M parameters, from scratch",
        "reduced_scale": True,  # no pre-training
        "n_parameters": model.n_parameters,
        "gene_coverage": model.coverage,
        "history": model.history,
    }


def integration(given: _io.Given) -> np.ndarray:
    """Return the <cls> embedding, every row of length 1."""
    adata = given.highly_variable().copy()
    model = Integrator(**_settings(given))
    embedding = model.fit_transform(adata, batch_key="batch")
    _describe(given, model)
    return embedding


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label."""
    model = Annotator(**_settings(given))
    model.fit(given.highly_variable(given.reference).copy(), label_key="label")
    labels = model.predict(given.highly_variable(given.query).copy())
    _describe(given, model)
    return labels


if __name__ == "__main__":
    _io.main(integration=integration, annotation=annotation)
