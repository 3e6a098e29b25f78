"""SC-MAMBA2: bidirectional Mamba-2 over gene tokens, fine-tuned from the published weights or trained anew.

The model is the package ``scmamba2`` of this repository. With ``pretrained: true`` it starts from the
authors' checkpoint: its vocabulary, its sizes and every tensor that fits in name and shape, as in their PBMC
and annotation scripts; the rest, such as new heads, is drawn by the seed. With ``pretrained: false`` all is:
every row then says so, and none earns a value verdict.

``epochs: 0`` (integration) and ``frozen: true`` (annotation) train no weight of the model: cells are embedded
as in pre-training, and a frozen model is judged by a linear classifier on its embedding of the reference.

Besides its result it leaves probes: what each epoch would have returned, and what the kept one returns if the
genes stand in another order, if there is more padding, if ``<cls>`` stands last. They are made of the same
input, and nothing is chosen by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import anndata as ad
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from baselines import _io
from scmamba2 import Annotator, Config, Embedder, Integrator
from scmamba2.checkpoints import Checkpoint, read_published
from scmamba2.streams import stream
from scmamba2.tasks.data import VERSION
from scmamba2.training import Training
from scmamba2.vocabulary import Vocabulary

TRAINING = [field.name for field in fields(Training)]
READING = ("batch_size", "precision", "eval_precision")  # what of it matters to a model that is not trained
SIZES = ("d_model", "n_layers")
PROBES = ("trace_every", "probe_orders")
NOT_OF_THE_MODEL = (*PROBES, "pretrained", "known_genes", "feature_scope", "frozen")

#: The names under which the library reads a published checkpoint, by source of checkpoint_scmamba2.
PUBLISHED = {"args": "args.json", "weights": "best_model.pt", "vocabulary": "vocab.json"}
#: The text says 57 million and over 30 million, and the record neither; the smaller one claims less.
PRETRAINED_CELLS = 30_000_000

Model = Integrator | Annotator | Embedder
Kind = TypeVar("Kind", Integrator, Annotator, Embedder)


def _published(given: _io.Given) -> Checkpoint:
    """Read the authors' checkpoint; of its pickle nothing but tensors is accepted."""
    found = given.files.get("checkpoint_scmamba2", {})
    if lacking := [source for source in PUBLISHED if source not in found]:
        raise ValueError(
            f"pretrained: true needs the files of checkpoint_scmamba2, and there is no {', '.join(lacking)}; "
            "pretrained: false does without"
        )
    with TemporaryDirectory() as folder:
        for source, name in PUBLISHED.items():
            (Path(folder) / name).symlink_to(found[source].resolve())
        try:
            return read_published(folder)
        except ValueError as error:  # of several lines, the last of a table
            said = str(error).splitlines()[0].replace(folder, str(found["weights"].parent))
            raise ValueError(said) from error


def _task(kind: type[Kind], given: _io.Given, adata: ad.AnnData) -> Kind:
    """Return the task, not yet fitted, with the parameters of the run."""
    torch.set_num_threads(given.threads)
    params = {key: value for key, value in given.params.items() if key not in NOT_OF_THE_MODEL}
    training = {key: params.pop(key) for key in TRAINING if key in params}
    checkpoint, known = None, given.params.get("known_genes", 1.0)
    if given.params.get("pretrained", False):
        if known != 1:
            raise ValueError(f"known_genes: {known!r} is of a vocabulary of our own, so pretrained: false")
        checkpoint = _published(given)
        # Sizes are those of the tensors; what the library's tasks decide, they decide.
        own = {key: value for key, value in params.items() if key not in SIZES}
        undecided: dict[str, Any] = dict.fromkeys(Integrator.defaults)
        config = replace(checkpoint.model.config, dsbn_affine=False, **(undecided | own))
    else:
        config = Config(**params)
    if kind is Embedder:
        training = {key: value for key, value in training.items() if key in READING}
        config = replace(config, cls_value=config.pad_value)  # as in pre-training
    return kind(
        config,
        pretrained=checkpoint,
        vocabulary=_vocabulary(adata, known, given.seed),
        seed=given.seed,
        folder=given.resume,
        device="cuda" if given.gpu else "cpu",
        **training,
    )


def _vocabulary(adata: ad.AnnData, known: float, seed: int) -> Vocabulary | None:
    """Return a vocabulary of a random share of the genes; None, the model's own, for 1."""
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
    """Say what was trained, from what."""
    loaded, trained = model.pretrained is not None, bool(model.history)
    weights = "published weights" if loaded else "from scratch" if trained else "random weights"
    size = model.n_parameters / 1e6
    given.info |= {
        "scale": f"{size:.{0 if size >= 10 else 1 if size >= 1 else 2}f} M parameters, {weights}",
        "n_parameters": model.n_parameters,
        "n_genes": round(model.coverage * given.info["n_genes"]),  # of those chosen, the ones it knows
        "gene_coverage": model.coverage,
        "probe_seconds": round(probes.seconds, 3),  # of the run's time, for no result
    }
    if trained:
        given.info |= {"history": model.history, "selected_epoch": model.selected_epoch}
    if model.pretrained is None or model.report is None:
        given.info["reduced_scale"] = True  # no pre-training
        return
    report, config = model.report, model.config
    own = report.loaded | report.missing | {name: shape for name, (_, shape) in report.mismatched.items()}
    tensors = len(report.loaded) / len(own)
    values = sum(map(prod, report.loaded.values())) / sum(map(prod, own.values()))
    notes = [f"{tensors:.0%} of the tensors and {values:.1%} of the values are the published ones"]
    notes += model.pretrained.provenance["notes"]
    for name in SIZES:
        asked, found = given.params.get(name), getattr(config, name)
        if asked not in (None, found):
            notes.append(f"{name} is {asked} in the parameters; the tensors, which decide, say {found}")
    given.info |= {
        "pretrained_cells": PRETRAINED_CELLS,
        "tensors_loaded": tensors,  # share of those that the model has
        "values_loaded": values,
        "bridge": notes,
    }


def integration(given: _io.Given) -> np.ndarray:
    """Return the <cls> embedding, every row of length 1."""
    adata = given.highly_variable().copy()
    if given.params.get("epochs") == 0:
        model: Integrator | Embedder = _task(Embedder, given, adata).fit(adata)
        probes = Probes(given, lambda model, probe: model.embed(adata, probe=probe))
    else:
        model = _task(Integrator, given, adata)
        probes = Probes(given, lambda model, probe: model.transform(adata, probe=probe))
        model.fit(adata, batch_key="batch", on_epoch=probes.on_epoch)
    embedding = model.embed(adata)
    probes.finish(model)
    _describe(given, model, probes)
    return embedding


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label."""
    reference = given.highly_variable(given.reference).copy()
    query = given.highly_variable(given.query).copy()
    if given.params.get("frozen", False):
        model: Annotator | Embedder = _task(Embedder, given, reference).fit(reference)
        predict = _linear(model.embed(reference), reference.obs["label"].to_numpy(dtype=str), given.seed)
        probes = Probes(given, lambda model, probe: predict(model.embed(query, probe=probe)))
    else:
        model = _task(Annotator, given, reference)
        probes = Probes(given, lambda model, probe: model.predict(query, probe=probe))
        model.fit(reference, label_key="label", on_epoch=probes.on_epoch)
    labels = probes.look(model, None)
    probes.finish(model)
    _describe(given, model, probes)
    return labels


def _linear(embedding: np.ndarray, labels: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what a logistic regression on the reference alone makes of other cells' embedding."""
    if len(set(labels)) == 1:
        return lambda cells: np.full(len(cells), labels[0])
    classifier = LogisticRegression(C=1.0, max_iter=1000, random_state=seed)
    return make_pipeline(StandardScaler(), classifier).fit(embedding, labels).predict


if __name__ == "__main__":
    _io.main(integration=integration, annotation=annotation)
