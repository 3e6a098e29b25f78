"""What all tasks share: settings, tokens, a model built from them, cell embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..config import Config, resolve
from ..model.network import ScMamba2
from ..streams import stream, torch_stream
from ..tokenizer import Tokens, bin_values, tokenize
from ..training import Batch, Cells, load, minibatches
from ..vocabulary import Vocabulary
from .data import read_matrix

__all__ = ["Task"]


class Task:
    """Settings and helpers; :class:`Integrator` and :class:`Annotator` are the tasks."""

    defaults: dict[str, Any] = {}
    """Values of the configuration's fields that are None."""

    def __init__(
        self,
        config: Config | str = "tiny",
        *,
        epochs: int,
        learning_rate: float,
        batch_size: int,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
        device: str = "auto",
    ) -> None:
        if epochs < 1 or batch_size < 1 or not learning_rate > 0:
            raise ValueError("epochs and batch_size must be at least 1, learning_rate above 0")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.config = resolve(config, **self.defaults)
        self.epochs, self.learning_rate, self.batch_size = epochs, learning_rate, batch_size
        self.seed, self.vocabulary, self.device = seed, vocabulary, torch.device(device)
        self.model: ScMamba2 | None = None
        self.history: list[dict[str, float]] = []
        self.coverage = float("nan")

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
        return model.to(self.device)

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
        parts = minibatches(np.arange(len(cells)), self.batch_size, groups)
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
