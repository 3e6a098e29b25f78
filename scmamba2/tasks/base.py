"""What all tasks share: settings, tokens, a model built from them, cell embeddings, checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import asdict, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoints
from ..config import Config, resolve
from ..model.network import ScMamba2
from ..ops import fast_bfloat16
from ..progress import Bar
from ..streams import stream, torch_stream
from ..tokenizer import Tokens, bin_values, tokenize
from ..training import Batch, Cells, Objective, Training, load, minibatches, train
from ..vocabulary import Vocabulary
from . import probes
from .data import CHUNK, VERSION, check_values, chunks, match_genes, read_values

__all__ = ["Task"]

log = logging.getLogger("scmamba2")


class Task:
    """Settings and helpers; :class:`Integrator`, :class:`Annotator` and :class:`Embedder` are the tasks.

    Parameters
    ----------
    config
        A preset's name or a :class:`~scmamba2.Config`. None: that of ``pretrained``, or ``"tiny"``.
    pretrained
        Checkpoint to start from, or its folder: its vocabulary is taken, and every tensor that fits. A
        backbone that does not fit whole is refused.
    seed
        Decides every random draw.
    vocabulary
        None: that of ``pretrained``, or the genes of the data in ``fit``.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    folder
        Where ``fit`` writes checkpoints and a log; called again, it goes on from there.
    min_coverage
        Smallest share of the data's genes that the vocabulary must know.
    training
        Fields of :class:`scmamba2.training.Training`. Those not given are the task's own
        defaults, ``training_defaults``, then the class's.
    """

    defaults: dict[str, Any] = {}
    """Values of the configuration's fields that are None."""

    training_defaults: dict[str, Any] = {}
    """Values of the training's fields that are not given."""

    terms: tuple[str, ...] = ()
    """Terms of the loss that the task knows, the first ones of which it trains by itself."""

    learnt: tuple[str, ...] = ()
    """Attributes besides the model that ``fit`` sets and a checkpoint keeps."""

    def __init__(
        self,
        config: Config | str | None = None,
        *,
        pretrained: str | os.PathLike[str] | checkpoints.Checkpoint | None = None,
        seed: int = 0,
        vocabulary: Vocabulary | None = None,
        device: str = "auto",
        folder: str | os.PathLike[str] | None = None,
        min_coverage: float = 0.1,
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
        if device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu, cuda or auto, not {device!r}")
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device!r}: PyTorch {torch.__version__} finds no GPU here")
        self.pretrained: checkpoints.Checkpoint | None = None
        if pretrained is not None:
            if not isinstance(pretrained, checkpoints.Checkpoint):
                pretrained = checkpoints.load(pretrained)
            self.pretrained = pretrained
            # What a task decides is decided anew; sizes are those of the checkpoint.
            decided: dict[str, Any] = dict.fromkeys(self.defaults)
            config = config or replace(pretrained.model.config, **decided)
            vocabulary = vocabulary or pretrained.vocabulary
        self.config = resolve(config or "tiny", **self.defaults)
        self.training = Training(**{**self.training_defaults, **training})
        self.seed, self.device, self.folder = seed, torch.device(device), folder
        self.given_vocabulary = self.vocabulary = vocabulary
        self.min_coverage = min_coverage
        if self.training.precision == "bfloat16" and not fast_bfloat16(self.device):
            log.warning("%s does not multiply bfloat16 in hardware: float32 is faster", self.device)
        self.training.autocast(self.device)  # say now what PyTorch cannot do
        self._check_terms()
        self._check()
        self.model: ScMamba2 | None = None
        self.history: list[dict[str, float]] = []
        self.coverage = float("nan")
        self.report: checkpoints.Report | None = None  # what became of the tensors of ``pretrained``
        self.warned: list[str] = []  # what was said once, by copies of this task too

    def _check(self) -> None:
        """Raise a ValueError if the configuration makes no sense for the task."""

    def _check_terms(self) -> None:
        """Raise a ValueError if ``losses`` or ``criterion`` name what the task does not know."""
        known = [*self.terms, *(f"{name}_zero" for name in self.terms if name in ("gep", "gepc")), "loss"]
        for name in self.training.losses or ():
            if name not in self.terms:
                raise ValueError(f"losses of {type(self).__name__} are {', '.join(self.terms)}; not {name!r}")
        if self.terms and self.training.criterion not in known:
            raise ValueError(f"criterion must be one of {', '.join(known)}, not {self.training.criterion!r}")

    @property
    def n_parameters(self) -> int:
        """Number of trainable values of the fitted model."""
        return self._fitted().count_parameters()

    @property
    def selected_epoch(self) -> int:
        """Epoch whose weights the fitted model has, from 1; 0 if it was not trained here."""
        return self.training.selected(self.history)

    def embed(self, adata: Any, *, probe: str | None = None) -> np.ndarray:
        """Return the cell embeddings, ``(n_cells, d_model)`` float32 with rows of length 1.

        Parameters
        ----------
        adata
            Cells by genes; values from ``layers["counts"]`` if there, else from ``X``; in memory or
            backed.
        probe
            ``"order_<k>"``, ``"padding"`` or ``"cls_last"``: the cells written otherwise, see
            :mod:`scmamba2.tasks.probes`.

        Raises
        ------
        ValueError
            For unusable data.
        RuntimeError
            Before ``fit``.
        """
        return self._map(adata, unit, probe=probe)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted task to a folder, see :func:`scmamba2.checkpoints.save`."""
        model = self._fitted()
        assert self.vocabulary is not None
        extra = {
            "task": type(self).__name__,
            "seed": self.seed,
            "min_coverage": self.min_coverage,
            "training": asdict(self.training),
            "history": self.history,
            "learnt": {name: getattr(self, name) for name in self.learnt},
        }
        checkpoints.save(folder, model, self.vocabulary, extra=extra)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the folder holds no checkpoint, or that of another task.
        """
        checkpoint = checkpoints.load(folder)
        if checkpoint.extra.get("task") != cls.__name__:
            held = checkpoint.extra.get("task", "a model without a task")
            raise ValueError(f"{folder} holds {held}, not {cls.__name__}")
        return cls._restore(checkpoint, device)

    @classmethod
    def _restore(cls, checkpoint: checkpoints.Checkpoint, device: str) -> Self:
        if not isinstance(checkpoint.model, ScMamba2):
            raise ValueError(f"{cls.__name__} needs a model with <cls>, not a perturbation generator")
        extra = checkpoint.extra
        task = cls(
            checkpoint.model.config,
            seed=extra.get("seed", 0),
            min_coverage=extra.get("min_coverage", 0.1),
            vocabulary=checkpoint.vocabulary,
            device=device,
            **extra.get("training", {}),
        )
        task.model = checkpoint.model.to(task.device)
        task.history = extra.get("history", [])
        for name, value in extra.get("learnt", {}).items():
            setattr(task, name, value)
        return task

    def _fitted(self) -> ScMamba2:
        if self.model is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted: call fit first")
        return self.model

    def _fit(
        self,
        adata: Any,
        objective: Objective,
        heads: dict[str, Any],
        learnt: dict[str, Any],
        on_epoch: Callable[[int, Any], object] | None,
        **known: np.ndarray,
    ) -> None:
        """Build a model with ``heads`` and train it on ``adata``, of which ``known`` is :class:`Cells`.

        After each epoch ``on_epoch`` is called with its number and a task that has the model of that epoch
        and ``learnt``. A failure leaves this task as it was.
        """
        fitted = copy(self)
        vocabulary = self._vocabulary_for(adata)
        (tokens,) = fitted._tokens(adata, vocabulary)
        model = fitted._build(vocabulary, heads)
        vars(fitted).update(learnt, model=model, vocabulary=vocabulary)

        def look(history: list[dict[str, float]]) -> None:
            fitted.history = history
            assert on_epoch is not None
            on_epoch(len(history), copy(fitted))

        fitted.history = train(
            model,
            Cells(tokens, **known),
            objective,
            self.config,
            self.training,
            seed=self.seed,
            device=self.device,
            folder=self.folder,
            title=type(self).__name__,
            on_epoch=None if on_epoch is None else look,
        )
        vars(self).update(vars(fitted))

    def _vocabulary_for(self, adata: Any) -> Vocabulary:
        """Return the vocabulary that was given, or one of the genes of ``adata``."""
        if self.given_vocabulary is not None:
            return self.given_vocabulary
        return Vocabulary.from_genes(VERSION.sub(r"\1", name) for name in adata.var_names)

    def _build(self, vocabulary: Vocabulary, heads: dict[str, Any]) -> ScMamba2:
        with torch_stream(self.seed, "init"):
            model = ScMamba2(self.config, len(vocabulary), pad_id=vocabulary.pad, **heads)
        if self.pretrained is not None:
            self.report = checkpoints.transfer(model, self.pretrained.model.state_dict())
            log.info("from the checkpoint:\n%s", self.report)
        model.mamba_encoder.recompute = self.training.recompute
        return model.to(self.device)

    def _tokens(self, adata: Any, vocabulary: Vocabulary, size: int | None = None) -> Iterator[Tokens]:
        """Check the data, then bin and tokenise ``size`` cells at a time, all at once if None.

        The same cells in the same order give the same tokens every time, whatever the size and
        whatever the order of the genes. Where genes are sampled or bins drawn, a cell's draws depend
        on its place among the cells.
        """
        if not adata.n_obs:
            raise ValueError("adata has no cells")
        genes = match_genes(adata, vocabulary, self.min_coverage)
        self.coverage = genes.coverage
        known = np.flatnonzero(genes.ids >= 0)
        log.info("%d of %d genes known, by %s", len(known), adata.n_vars, genes.source)
        check_values(adata, known)
        # In the order of the vocabulary: the model reads a sequence, and files order their genes as they
        # like. The released code, of which "pad" is a part, follows the file.
        ids, columns = genes.ids, known[np.argsort(genes.ids[known])]
        if self.config.oov == "pad":
            ids, columns = np.where(ids < 0, vocabulary.pad, ids), np.arange(adata.n_vars)
        room = (self.config.max_length or len(columns) + 1) - 1
        if self.config.include_zero_genes and len(columns) > room and not self.warned:
            self.warned.append("cut")
            log.warning(
                "%d genes, but max_length leaves room for %d: each cell keeps a random part of them. "
                "Select highly variable genes first, or raise max_length",
                len(columns),
                room,
            )
        special = vocabulary.cls, vocabulary.pad
        draw_bins, draw_tokens = stream(self.seed, "bins"), stream(self.seed, "tokens")
        for cells in chunks(adata.n_obs, size or adata.n_obs):
            matrix = read_values(adata, cells)[:, columns]
            bins = bin_values(matrix, self.config.n_bins, self.config.binning or "plain", draw_bins)
            yield tokenize(bins, ids[columns], *special, self.config, draw_tokens)

    def _map(
        self,
        adata: Any,
        function: Callable[[Tensor], Tensor],
        batches: np.ndarray | None = None,
        probe: str | None = None,
    ) -> np.ndarray:
        """Apply ``function(cell embeddings)`` to all cells, unmasked, in evaluation mode."""
        self._fitted().eval()
        assert self.vocabulary is not None
        probes.check(probe, self.config)
        parts = self._tokens(adata, self.vocabulary, CHUNK)
        if probe is not None and probe.startswith("order_"):
            size, pad = len(self.vocabulary), self.vocabulary.pad
            parts = probes.reorder(parts, probe, self.seed, size, pad, self.config)
        rows: list[np.ndarray] = []
        with Bar(f"{type(self).__name__}, embedding", adata.n_obs) as bar, torch.inference_mode():
            for tokens in parts:
                done = sum(map(len, rows))
                part = None if batches is None else batches[done : done + len(tokens.lengths)]
                rows.append(self._map_cells(Cells(tokens, batches=part), function, bar, probe))
        return np.concatenate(rows)

    def _map_cells(
        self, cells: Cells, function: Callable[[Tensor], Tensor], bar: Bar, probe: str | None
    ) -> np.ndarray:
        model = self._fitted()
        assert self.vocabulary is not None
        mixed = bool(self.config.dsbn and self.training.mixed_batches)
        groups = cells.batches if self.config.dsbn and not mixed else None
        order = np.argsort(cells.tokens.lengths, kind="stable")  # little padding
        if mixed:  # which cells share a mini-batch matters: as in the data
            order = np.arange(len(cells))
        parts = minibatches(order, self.training.batch_size, groups)
        rows = []
        for batch in load(cells, parts, self.device, mixed=mixed):
            if probe == "padding":
                batch = probes.more_pads(batch, self.vocabulary.pad, self.config.pad_value)
            if probe == "cls_last":
                batch = probes.cls_to_the_end(batch)
            with self.training.autocast(self.device):
                cell = encode_cells(model, batch, last=probe == "cls_last")
            rows.append(function(cell.float()).cpu().numpy())
            bar.step(len(cell))
        out = np.concatenate(rows)
        out[np.concatenate(parts)] = out.copy()
        return out


def encode(model: Any, batch: Batch) -> Tensor:
    """Return the hidden states ``(b, T, d_model)``."""
    return model(batch.genes, batch.values, batch.lengths, batch.norms)


def encode_cells(model: Any, batch: Batch, last: bool = False) -> Tensor:
    """Return the cell embeddings ``(b, d_model)`` alone, at less work where they are ``<cls>``.

    If ``last``, they are read at the last token before the pads.
    """
    if last:
        return encode(model, batch)[torch.arange(len(batch.lengths)), batch.lengths - 1]
    first_only = model.config.readout == "cls"
    hidden = model(batch.genes, batch.values, batch.lengths, batch.norms, first_only=first_only)
    return model.read_cell(hidden, batch.values, batch.lengths)


def unit(x: Tensor) -> Tensor:
    """Scale each row to length 1."""
    return F.normalize(x, dim=-1)
