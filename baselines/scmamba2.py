"""SC-MAMBA2: bidirectional Mamba-2 over gene tokens, trained from scratch on the given cells.

The model is the package ``scmamba2`` of this repository. The published weights are not loaded here, so every
row says "from scratch" and earns no value verdict.

Besides its result it leaves probes: what each epoch would have returned, and what the kept one returns if the
genes stand in another order, if there is more padding, if ``<cls>`` stands last. They are made of the same
input, and nothing is chosen by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import anndata as ad
import numpy as np
import torch

from baselines import _io
from scmamba2 import Annotator, Config, Integrator
from scmamba2.streams import stream
from scmamba2.tasks.data import VERSION
from scmamba2.training import Training
from scmamba2.vocabulary import Vocabulary

TRAINING = [field.name for field in fields(Training)]
PROBES = ("trace_every", "probe_orders")

Model = Integrator | Annotator


def _settings(given: _io.Given, adata: ad.AnnData) -> dict[str, Any]:
    """Split the parameters into those of the model and those of its training."""
    torch.set_num_threads(given.threads)
    params = {key: value for key, value in given.params.items() if key not in PROBES}
    known = params.pop("known_genes", 1.0)
    training = {key: params.pop(key) for key in TRAINING if key in params}
    return training | {
        "config": Config(**params),
        "vocabulary": _vocabulary(adata, known, given.seed),
        "seed": given.seed,
        "folder": given.resume,
        "device": "cuda" if given.gpu else "cpu",
    }


def _vocabulary(adata: ad.AnnData, known: float, seed: int) -> Vocabulary | None:
    """Return a vocabulary of a random share of the genes; None, the model's own of all of them, for 1."""
    if not isinstance(known, int | float) or not 0 < known <= 1:
        raise ValueError(f"known_genes must be above 0 and at most 1, not {known!r}")
    if known == 1:
        return None
    names = np.array([VERSION.sub(r"\1", name) for name in adata.var_names])
    chosen = stream(seed, "known_genes").permutation(len(names))[: max(1, round(known * len(names)))]
    return Vocabulary.from_genes(names[np.sort(chosen)].tolist())


class Probes:
    """The probes of one run.

    Parameters
    ----------
    given
        Of the run; its parameters say which probes.
    look
        Maps a fitted task, and the name of a probe or None, to what the run would return.

    Raises
    ------
    ValueError
        If ``trace_every`` or ``probe_orders`` is not a whole number of at least 0.
    """

    def __init__(self, given: _io.Given, look: Callable[[Any, str | None], np.ndarray]) -> None:
        self.given, self.look, self.seconds = given, look, 0.0
        self.every, self.orders = (given.params.get(name, 0) for name in PROBES)
        for name, value in zip(PROBES, (self.every, self.orders), strict=True):
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, not {value!r}")

    def on_epoch(self, epoch: int, model: Model) -> None:
        """Keep what this epoch would return, on disk too: a run that is killed goes on behind it."""
        if not self.every or (epoch % self.every and not model.training.finished(model.history)):
            return
        # float32: 11,990 cells x 1,536 numbers x 30 epochs take 2.2 GB (trace_every: 5 a fifth of it). Half
        # as much in float16 moved AvgBIO by 0.01, and a kept epoch must score what the run itself scores.
        value = self.keep(f"epoch_{epoch}", model, None)
        if self.given.resume is not None:
            part = self.given.resume / "epoch.part"
            with open(part, "wb") as file:
                np.save(file, value)
            part.replace(self.given.resume / f"epoch_{epoch}.npy")

    def finish(self, model: Model) -> None:
        """Probe the fitted model, and add the epochs that a killed run has left."""
        names = [*(f"order_{k}" for k in range(self.orders)), "padding", "cls_last"] if self.orders else []
        for name in names:
            if name != "cls_last" or model.config.readout == "cls":
                self.keep(name, model, name)
        for path in self.given.resume.glob("epoch_*.npy") if self.given.resume else ():
            self.given.probes.setdefault(path.stem, np.load(path))

    def keep(self, name: str, model: Model, probe: str | None) -> np.ndarray:
        start = time.perf_counter()
        self.given.probes[name] = value = self.look(model, probe)
        self.seconds += time.perf_counter() - start
        return value


def _describe(given: _io.Given, model: Model, probes: Probes) -> None:
    """Say what was trained."""
    given.info |= {
        "scale": f"{model.n_parameters / 1e6:.2g} M parameters, from scratch",
        "reduced_scale": True,  # no pre-training
        "n_parameters": model.n_parameters,
        "gene_coverage": model.coverage,
        "history": model.history,
        "selected_epoch": model.selected_epoch,
        "probe_seconds": round(probes.seconds, 3),  # of the run's time, for no result
    }


def integration(given: _io.Given) -> np.ndarray:
    """Return the <cls> embedding, every row of length 1."""
    adata = given.highly_variable().copy()
    model = Integrator(**_settings(given, adata))
    probes = Probes(given, lambda model, probe: model.transform(adata, probe=probe))
    model.fit(adata, batch_key="batch", on_epoch=probes.on_epoch)
    embedding = model.transform(adata)
    probes.finish(model)
    _describe(given, model, probes)
    return embedding


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label."""
    reference = given.highly_variable(given.reference).copy()
    query = given.highly_variable(given.query).copy()
    model = Annotator(**_settings(given, reference))
    probes = Probes(given, lambda model, probe: model.predict(query, probe=probe))
    model.fit(reference, label_key="label", on_epoch=probes.on_epoch)
    labels = model.predict(query)
    probes.finish(model)
    _describe(given, model, probes)
    return labels


if __name__ == "__main__":
    _io.main(integration=integration, annotation=annotation)
