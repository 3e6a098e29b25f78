"""Integrate batches: learn a cell embedding that keeps biology and forgets the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.losses import elastic_similarity, nonzero_nll, squared_error
from ..training import Batch
from .base import Task, encode, unit
from .data import read_column

__all__ = ["Integrator"]

LOSSES = ("gep", "gepc", "dar")
"""Terms that are trained unless others are named."""


class Integrator(Task):
    """Embed cells of several batches in one space, without labels.

    The model learns to fill in hidden values from the tokens (GEP) and from the cell embedding
    (GEPC), each with a head for zeros, while a discriminator whose gradient is reversed keeps the
    embedding from telling the batch (DAR). Each batch has its own batch norm (DSBN). The terms
    add up with unit weight; the last epoch is kept. SC-MAMBA2 preprint, bioRxiv
    2024.09.30.615775, with the training of scGPT's public recipe.

    Parameters
    ----------
    config
        A preset's name or a :class:`~scmamba2.Config`.
    seed, vocabulary, device, folder
        See :class:`~scmamba2.tasks.base.Task`.
    training
        Fields of :class:`~scmamba2.training.Training`: 15 epochs, batch size 64, the last epoch
        kept. The learning rate of 1e-4 suits large models; from scratch, ``"tiny"`` learns well
        at 1e-3. ``losses`` names what is trained: ``"gep"``, ``"gepc"``, ``"dar"`` (the default), and
        ``"ecs"``, elastic cell similarity above a cosine of 0.8. ``criterion`` may name any of them.

    Attributes
    ----------
    history : list of dict
        Loss terms per epoch, see :func:`scmamba2.training.train`.
    n_parameters : int
        Trainable values.
    coverage : float
        Share of the genes of the last data that is in the vocabulary.
    batches : list of str
        Batches seen in ``fit``.
    """

    defaults = {
        "binning": "plain",
        "max_length": 1201,
        "include_zero_genes": True,
        "mask_ratio": 0.4,
        "dsbn": True,
    }

    training_defaults = {"epochs": 15, "learning_rate": 1e-4, "batch_size": 64, "keep": "last"}

    terms = (*LOSSES, "ecs")

    batches: list[str] = []
    batch_key = "batch"
    learnt = ("batches", "batch_key")

    def _check(self) -> None:
        if not self.config.mask_ratio:
            raise ValueError("integration learns from hidden values: mask_ratio must be above 0")
        if self.training.criterion == "ecs" and self.training.losses is None:  # looked at, not trained
            self.training = replace(self.training, losses=LOSSES)

    def fit(
        self,
        adata: Any,
        batch_key: str = "batch",
        on_epoch: Callable[[int, Integrator], object] | None = None,
    ) -> Integrator:
        """Train on ``adata``.

        Parameters
        ----------
        adata
            Cells by genes; values from ``layers["counts"]`` if there, else from ``X``.
        batch_key
            Column of ``adata.obs``.
        on_epoch
            Called after each epoch with its number, from 1, and a task that can embed with its model. It
            changes nothing of the training; epochs before an interruption are not shown again.

        Raises
        ------
        ValueError
            For data that cannot be used, saying why.
        RuntimeError
            When the loss is not finite.
        """
        names = read_column(adata, batch_key, "batch")
        batches = sorted(set(names))
        ids = np.searchsorted(np.array(batches), names).astype(np.int64)
        heads = {"n_batches": len(batches), "explicit_zeros": True, "mvc": True, "adversarial": True}
        # What decides the epoch is computed, trained or not; heads stay, so the first weights are the same.
        wanted = (*(self.training.losses or LOSSES), self.training.criterion.removesuffix("_zero"))
        chosen = tuple(name for name in self.terms if name in wanted)
        loss = objective if chosen == LOSSES else partial(objective, names=chosen)
        self._fit(adata, loss, heads, {"batch_key": batch_key, "batches": batches}, on_epoch, batches=ids)
        return self

    def transform(self, adata: Any, *, probe: str | None = None) -> np.ndarray:
        """Return the cell embeddings, ``(n_cells, d_model)`` float32 with rows of length 1.

        With a ``probe``, those of the cells written otherwise, see :mod:`scmamba2.tasks.probes`.

        Raises
        ------
        ValueError
            For unusable data, or a batch that was not in ``fit``.
        RuntimeError
            Before ``fit``.
        """
        self._fitted()
        ids = self._batch_ids(read_column(adata, self.batch_key, "batch"))
        return self._map(adata, unit, ids, probe)

    embed = transform

    def fit_transform(self, adata: Any, batch_key: str = "batch") -> np.ndarray:
        """Train on ``adata`` and return its embeddings."""
        return self.fit(adata, batch_key).transform(adata)

    def _batch_ids(self, names: np.ndarray) -> np.ndarray:
        unknown = sorted(set(names) - set(self.batches))
        if unknown:
            raise ValueError(
                f"batches {', '.join(unknown)} in {self.batch_key!r} were not seen in fit, only "
                f"{', '.join(self.batches)}: each batch has a norm of its own, so fit on all of them"
            )
        return np.searchsorted(np.array(self.batches), names).astype(np.int64)


def objective(model: Any, batch: Batch, names: Sequence[str] = LOSSES) -> dict[str, Tensor]:
    """Return the terms in ``names``, GEP and GEPC with their zero terms. Only hidden values are decoded."""
    assert batch.batches is not None
    hidden = encode(model, batch)
    cells = model.read_cell(hidden, batch.values, batch.lengths)
    place = batch.mask.flatten().nonzero().squeeze(1)
    cell = torch.div(place, batch.mask.shape[1], rounding_mode="floor")
    target, labels = batch.targets.flatten()[place], batch.batches[cell]
    terms: dict[str, Tensor] = {}
    if "gep" in names:
        value, nonzero = model.decode_tokens(hidden.flatten(0, 1).index_select(0, place), labels)
        terms |= {"gep": squared_error(value, target), "gep_zero": nonzero_nll(nonzero, target)}
    if "gepc" in names:
        genes = batch.genes.flatten()[place]
        value, nonzero = model.decode_cells(genes, cells.index_select(0, cell), labels)
        terms |= {"gepc": squared_error(value, target), "gepc_zero": nonzero_nll(nonzero, target)}
    if "dar" in names:
        terms["dar"] = F.cross_entropy(model.grad_reverse_discriminator(cells), batch.batches)
    if "ecs" in names:
        terms["ecs"] = elastic_similarity(cells)
    return terms
