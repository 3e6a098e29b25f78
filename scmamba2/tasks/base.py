"""What all tasks share: settings, tokens, a model built from them, cell embeddings."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..config import Config, resolve
from ..model.network import ScMamba2
from ..streams import stream, torch_stream
from ..tokenizer import Tokens, bin_values, tokenize
from ..training import Batch, Cells, Objective, Training, load, minibatches, train
from ..vocabulary import Vocabulary
from .data import read_matrix

__all__ = ["Task"]


class Task:
    """Settings and helpers; :class:`Integrator` and :class:`Annotator` are the tasks.

    Parameters
    ----------
    config
        A preset's name or a :class:`~scmamba2.Config`.
    seed
        Decides every random draw.
    vocabulary
        None: made of the genes of the data in ``fit``.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    folder
        Where ``fit`` writes checkpoints and a log; called again, it goes on from there.
    training
        Fields of :class:`scmamba2.training.Training`. Those not given are the task's own
        defaults, ``training_defaults``, then the class's.
    """

    defaults: dict[str, Any] = {}
    """Values of the configuration's fields that are None."""

    training_defaults: dict[str, Any] = {}
    """Values of the training's fields that are not given."""

    def __init__(
        self,
        config: Config | str = "tiny",
        *,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
        device: str = "auto",
        folder: str | os.PathLike[str] | None = None,
        **training: Any,
    ) -> None:
        known = [field.name for field in fields(Training)]
        unknown = [name for name in training if name not in known]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {unknown[0]!r}; of training: {', '.join(known)}"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.config = resolve(config, **self.defaults)
        self.training = Training(**{**self.training_defaults, **training})
        self.seed, self.vocabulary, self.device, self.folder = seed, vocabulary, torch.device(device), folder
        self._check()
        self.model: ScMamba2 | None = None
        self.history: list[dict[str, float]] = []
        self.coverage = float("nan")

    def _check(self) -> None:
        """Raise a ValueError if the configuration makes no sense for the task."""

    @property
    def n_parameters(self) -> int:
        """Number of trainable values of the fitted model."""
        return self._fitted().count_parameters()

    def _fitted(self) -> ScMamba2:
        if self.model is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted: call fit first")
        return self.model

    def _build(self, **heads: Any) -> ScMamba2:
        assert self.vocabulary is not None
        with torch_stream(self.seed, "init"):
            model = ScMamba2(self.config, len(self.vocabulary), pad_id=self.vocabulary.pad, **heads)
        backbone: Any = model.mamba_encoder
        backbone.recompute = self.training.recompute
        return model.to(self.device)

    def _train(self, model: ScMamba2, cells: Cells, objective: Objective) -> None:
        """Train what :meth:`_build` built."""
        self.history = train(
            model,
            cells,
            objective,
            self.config,
            self.training,
            seed=self.seed,
            device=self.device,
            folder=self.folder,
            title=type(self).__name__,
        )
        self.model = model

    def _tokens(self, adata: Any) -> tuple[Tokens, float]:
        """Bin and tokenise; the same data gives the same tokens every time."""
        if self.vocabulary is None:
            self.vocabulary = Vocabulary.from_genes(adata.var_names)
        matrix, gene_ids, coverage = read_matrix(adata, self.vocabulary)
        rule = self.config.binning or "plain"
        bins = bin_values(matrix, self.config.n_bins, rule, stream(self.seed, "bins"))
        special = self.vocabulary.cls, self.vocabulary.pad
        tokens = tokenize(bins, gene_ids, *special, self.config, stream(self.seed, "tokens"))
        return tokens, coverage

    def _map(self, cells: Cells, function: Any) -> np.ndarray:
        """Apply ``function(cell embeddings)`` to all cells, unmasked, in evaluation mode."""
        model = self._fitted().eval()
        groups = cells.batches if self.config.dsbn else None
        by_length = np.argsort(cells.tokens.lengths, kind="stable")  # little padding
        parts = minibatches(by_length, self.training.batch_size, groups)
        rows = []
        with torch.inference_mode():
            for batch in load(cells, parts, self.device):
                hidden = encode(model, batch)
                rows.append(function(hidden[:, 0]).float().cpu().numpy())
        out = np.concatenate(rows)
        out[np.concatenate(parts)] = out.copy()
        return out


def encode(model: Any, batch: Batch) -> torch.Tensor:
    """Return the hidden states ``(b, T, d_model)``."""
    return model(batch.genes, batch.values, batch.lengths, batch.batches)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Scale each row to length 1."""
    return F.normalize(x, dim=-1)
