"""Annotate cells: learn cell types on a reference, predict them on a query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..training import Batch
from .base import Task, encode_cells
from .data import read_column

__all__ = ["Annotator"]


class Annotator(Task):
    """Classify cells by their ``<cls>`` token.

    Cross-entropy only, no value is hidden; the epoch of lowest validation loss, on a random tenth
    of the reference, is kept. SC-MAMBA2 preprint, bioRxiv 2024.09.30.615775, with mini-batches
    and dropout of scGPT's public recipe.

    Parameters
    ----------
    config
        A preset's name or a :class:`~scmamba2.Config`.
    seed, vocabulary, device, folder
        See :class:`~scmamba2.tasks.base.Task`.
    training
        Fields of :class:`~scmamba2.training.Training`: 10 epochs, batch size 32, the best epoch
        kept. The learning rate of 1e-4 suits large models; from scratch, ``"tiny"`` learns well
        at 1e-3.

    Attributes
    ----------
    classes : list of str
        Labels seen in ``fit``, sorted: the columns of ``predict_proba``.
    history : list of dict
        Loss per epoch, see :func:`scmamba2.training.train`.
    n_parameters : int
        Trainable values.
    coverage : float
        Share of the genes of the last data that is in the vocabulary.
    """

    defaults = {
        "binning": "spreading",
        "max_length": 3001,
        "include_zero_genes": False,
        "mask_ratio": 0.0,
        "dsbn": False,
    }

    training_defaults = {"epochs": 10, "learning_rate": 1e-4, "batch_size": 32, "keep": "best"}

    terms = ("ce",)

    classes: list[str] = []
    learnt = ("classes",)

    def _check(self) -> None:
        if self.config.mask_ratio or self.config.dsbn:
            raise ValueError("annotation hides no values and knows no batches: mask_ratio and dsbn")

    def fit(
        self,
        adata: Any,
        label_key: str = "label",
        on_epoch: Callable[[int, Annotator], object] | None = None,
    ) -> Annotator:
        """Train on reference cells.

        Parameters
        ----------
        adata
            Cells by genes; values from ``layers["counts"]`` if there, else from ``X``.
        label_key
            Column of ``adata.obs``.
        on_epoch
            Called after each epoch with its number, from 1, and a task that can predict with its model. It
            changes nothing of the training; epochs before an interruption are not shown again.

        Raises
        ------
        ValueError
            For data that cannot be used, saying why.
        RuntimeError
            When the loss is not finite.
        """
        names = read_column(adata, label_key, "label")
        classes = sorted(set(names))
        labels = np.searchsorted(np.array(classes), names).astype(np.int64)
        heads = {"n_classes": len(classes)}
        self._fit(adata, objective, heads, {"classes": classes}, on_epoch, labels=labels)
        return self

    def predict_proba(self, adata: Any, *, probe: str | None = None) -> np.ndarray:
        """Return the classes' probabilities, ``(n_cells, n_classes)`` float32.

        With a ``probe``, those of the cells written otherwise, see :mod:`scmamba2.tasks.probes`.

        Raises
        ------
        ValueError
            For unusable data.
        RuntimeError
            Before ``fit``.
        """
        model = self._fitted()
        return self._map(adata, lambda cell: torch.softmax(model.cls_decoder(cell), -1), probe=probe)

    def predict(self, adata: Any, *, probe: str | None = None) -> np.ndarray:
        """Return the most probable class of each cell, ``(n_cells,)`` str; see :meth:`predict_proba`."""
        return np.array(self.classes)[self.predict_proba(adata, probe=probe).argmax(1)]


def objective(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Return the cross-entropy."""
    assert batch.labels is not None
    logits = model.cls_decoder(encode_cells(model, batch))
    return {"ce": F.cross_entropy(logits, batch.labels)}
