"""Embed cells with a model that is there already."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .. import checkpoints
from .annotation import Annotator
from .base import Task
from .data import match_genes
from .integration import Integrator

__all__ = ["Embedder", "embed", "load"]


class Embedder(Task):
    """A model as it is, without a task: tokens as in pre-training.

    Non-zero genes, at most 1,200 at random, plain bins; see :class:`~scmamba2.tasks.base.Task`. :func:`load`
    reads one from a checkpoint; one that is made here needs :meth:`fit`.
    """

    defaults = {
        "binning": "plain",
        "max_length": 1201,
        "include_zero_genes": False,
        "mask_ratio": 0.0,
        "dsbn": False,
    }

    def _check(self) -> None:
        if self.config.dsbn:
            raise ValueError("this model has a batch norm per batch of its own data: fine-tune it first")

    def fit(self, adata: Any) -> Embedder:
        """Make the model: that of ``pretrained``, or one of random weights. Nothing is trained.

        Parameters
        ----------
        adata
            Cells by genes. Its genes are the vocabulary, where none is given.

        Raises
        ------
        ValueError
            If too few genes are known, or the backbone of ``pretrained`` does not fit whole.
        """
        vocabulary = self._vocabulary_for(adata)
        self.coverage = match_genes(adata, vocabulary, self.min_coverage).coverage
        self.model, self.vocabulary = self._build(vocabulary, {}).eval(), vocabulary
        return self


TASKS: dict[str, type[Task]] = {task.__name__: task for task in (Annotator, Integrator, Embedder)}


def load(folder: str | os.PathLike[str], device: str = "auto", **training: Any) -> Task:
    """Read a checkpoint as the task that it was saved from, or as an :class:`Embedder`.

    Parameters
    ----------
    folder
        From ``save`` of a task, or from ``scmamba2 convert``.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    training
        Fields of :class:`scmamba2.training.Training` to change, such as ``batch_size`` and
        ``precision``, which matter to embedding too.

    Raises
    ------
    ValueError
        If the folder holds no checkpoint, naming what is wrong.
    """
    checkpoint = checkpoints.load(folder)
    name = checkpoint.extra.get("task", "Embedder")
    if name not in TASKS:
        raise ValueError(f"{folder} was saved by the task {name!r}; known are {', '.join(TASKS)}")
    checkpoint.extra["training"] = {**checkpoint.extra.get("training", {}), **training}
    return TASKS[name]._restore(checkpoint, device)


def embed(
    adata: Any,
    model: str | os.PathLike[str] | Task,
    *,
    key_added: str = "X_scmamba2",
    device: str = "auto",
    batch_size: int = 32,
    precision: str = "float32",
) -> np.ndarray:
    """Embed cells and store the result in ``adata.obsm[key_added]``.

    Parameters
    ----------
    adata
        Cells by genes; values from ``layers["counts"]`` if there, else from ``X``; in memory or
        backed. Genes are matched by ``var_names`` or by a column of ``var``.
    model
        A checkpoint's folder, or a fitted task, whose own settings then hold.
    key_added
        Where to store the embeddings.
    device, batch_size, precision
        Where and how to compute, if ``model`` is a folder.

    Returns
    -------
    numpy.ndarray
        ``(n_cells, d_model)`` float32 with rows of length 1.

    Raises
    ------
    ValueError
        For unusable data or a wrong checkpoint, saying why.
    """
    if not hasattr(adata, "obsm"):
        raise TypeError(f"embed needs an AnnData object, not {type(adata).__name__}")
    if adata.isbacked and adata.is_view:
        raise ValueError("a view of backed data cannot be written to: call to_memory() first")
    if not isinstance(model, Task):
        model = load(model, device, batch_size=batch_size, precision=precision)
    embedding = model.embed(adata)
    adata.obsm[key_added] = embedding
    return embedding
