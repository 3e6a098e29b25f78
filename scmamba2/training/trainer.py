"""Training, read from top to bottom: all epochs, one epoch, one step, one mini-batch."""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__, memory
from ..config import Config
from ..progress import Bar
from ..streams import restore_torch, stream, torch_state, torch_stream
from .batches import Batch, Cells, Objective, load, minibatches, split
from .folder import Folder, digest
from .settings import Training

__all__ = ["train"]

log = logging.getLogger("scmamba2")

CHANGES = ("order", "history", "best", "step", "cells_done", "sums", "seconds")
"""Attributes of the trainer that change, besides its model, optimizer and generators."""

RESOURCES = ("recompute", "save_every")
"""Settings that change the cost and not the result: a training may go on with others."""


def train(
    model: nn.Module,
    cells: Cells,
    objective: Objective,
    config: Config,
    settings: Training,
    *,
    seed: int,
    device: torch.device,
    folder: str | os.PathLike[str] | None = None,
    title: str = "training",
    on_epoch: Callable[[list[dict[str, float]]], object] | None = None,
) -> list[dict[str, float]]:
    """Train on 90 % of the cells; validate on the others.

    Parameters
    ----------
    model
        Changed in place.
    cells
        The data.
    objective
        Maps model and mini-batch to named loss terms; the sum of those that ``settings`` trains is
        minimised.
    config
        Gives ``mask_ratio``, the hidden share of each cell's genes, redrawn each epoch;
        ``mask_value``; and ``dsbn``: whether each mini-batch comes from one batch of cells.
    settings
        How to train.
    seed
        Of the streams ``split``, ``shuffle``, ``mask`` and ``dropout``.
    device
        Where to compute, and where the model is.
    folder
        Where to write checkpoints and ``log.jsonl``: a line on the training, then one per epoch.
        Called again with the same folder, an interrupted training goes on, and on the CPU, with as
        many threads, ends with the same numbers, bit for bit, as an uninterrupted one. A finished
        one is read back.
    title
        Of the progress bar, which only a terminal shows.
    on_epoch
        Called with the history after each epoch, the model in evaluation mode. What it returns is ignored and
        what it draws is undone, so it changes no number of the training. An epoch is over, and its
        checkpoint written, once it returns: an interrupted one is trained and looked at again.

    Returns
    -------
    list of dict
        Per epoch: ``epoch``, ``train_<term>`` and ``valid_<term>`` for each term and ``loss``,
        averaged over cells, ``learning_rate``, ``seconds``, ``cells_per_s`` (training cells over
        the epoch's time).

    Raises
    ------
    ValueError
        If a mini-batch does not fit into memory, see :func:`scmamba2.memory.check`, or if the
        folder holds another training.
    RuntimeError
        When the loss is not finite.
    """
    trainer = Trainer(model, cells, objective, config, settings, seed, device)
    needed = memory.check(
        model,
        config,
        min(settings.batch_size, len(trainer.training)),
        int(cells.tokens.lengths.max()),
        device,
        recompute=settings.recompute,
    )
    if folder is None:
        return trainer.run(title, on_epoch=on_epoch)
    kept = {name: value for name, value in asdict(settings).items() if name not in RESOURCES}
    identity = {
        **asdict(config),
        **kept,
        "seed": seed,
        "task": title,
        "data": digest([*cells.tokens, cells.batches, cells.labels]),
        "initial weights": digest(model.state_dict().values()),
    }
    header = {
        "task": title,
        "config": asdict(config),
        "training": asdict(settings),
        "seed": seed,
        "cells": {"training": len(trainer.training), "validation": len(trainer.validation)},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "bytes": needed,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "scmamba2": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return trainer.run(title, Folder(folder, identity, header), on_epoch)


class Trainer:
    """One training: what it needs, and what changes in it."""

    def __init__(
        self,
        model: nn.Module,
        cells: Cells,
        objective: Objective,
        config: Config,
        settings: Training,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.cells, self.objective, self.config = model, cells, objective, config
        self.settings, self.seed, self.device = settings, seed, device
        self.training, self.validation = split(len(cells), seed)
        self.mixed = settings.mixed_batches
        self.groups = cells.batches if config.dsbn and not self.mixed else None

        # From here on: what changes, besides the model and PyTorch's generators.
        self.optimizer = settings.build(model)
        self.shuffle, self.mask = stream(seed, "shuffle"), stream(seed, "mask")
        self.order = self.shuffle.bit_generator.state  # where shuffling stood when the epoch began
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None  # weights of the best epoch
        self.step, self.cells_done = 0, 0  # of this epoch
        self.sums: dict[str, float] = {}  # of this epoch's loss terms, over cells
        self.seconds = 0.0  # spent on this epoch

    def run(
        self,
        title: str,
        folder: Folder | None = None,
        on_epoch: Callable[[list[dict[str, float]]], object] | None = None,
    ) -> list[dict[str, float]]:
        """Train to the end; leave the model in evaluation mode and return the history."""
        with torch_stream(self.seed, "dropout"):
            if folder is not None:
                if (state := folder.read()) is not None:
                    self.restore(state)
                    del state  # a copy of everything
                folder.log(self.history)
            n = len(self.training)
            with Bar(title, self.settings.epochs * n, len(self.history) * n + self.cells_done) as bar:
                while not self.settings.finished(self.history):
                    self.train_epoch(bar, folder)
                    if on_epoch is not None:
                        state = torch_state(self.device)
                        on_epoch([dict(row) for row in self.history])
                        restore_torch(state, self.device)
                    if folder is not None:
                        folder.write(self.state())
                        folder.log(self.history)
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.eval()
        return self.history

    def train_epoch(self, bar: Bar, folder: Folder | None) -> None:
        """Train on all training cells, or on those left after an interruption, and validate."""
        settings, epoch = self.settings, len(self.history)
        start = time.perf_counter() - self.seconds
        rng = self.shuffle if settings.shuffle else None
        parts = minibatches(self.training, settings.batch_size, self.groups, rng)
        steps = [parts[i : i + settings.accumulate] for i in range(0, len(parts), settings.accumulate)]
        self.model.train()
        for step in steps[self.step :]:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.rate(epoch, epoch * len(steps) + self.step)
            loss = self.train_step(step, f"epoch {epoch + 1} (train)")
            bar.step(sum(map(len, step)), f"epoch {epoch + 1}/{settings.epochs}, loss {loss:.3g}")
            self.step += 1
            self.cells_done += sum(map(len, step))
            if folder is not None and self.step % settings.save_every == 0:
                self.seconds = time.perf_counter() - start
                folder.write(self.state())

        terms = {f"train_{name}": total / len(self.training) for name, total in self.sums.items()}
        terms |= self.validate(f"epoch {epoch + 1} (valid)")
        seconds = time.perf_counter() - start
        rate = float(self.optimizer.param_groups[0]["lr"])
        row = {"epoch": epoch + 1, "learning_rate": rate, **terms, "seconds": seconds}
        self.history.append({**row, "cells_per_s": len(self.training) / seconds})
        if bar.disable:  # nobody sees the bar: a line an epoch
            losses = f"loss {row['train_loss']:.4g}, validation {row['valid_loss']:.4g}"
            log.info("epoch %d/%d: %s, %.0f s", epoch + 1, settings.epochs, losses, seconds)
        self.step, self.cells_done, self.sums, self.seconds = 0, 0, {}, 0.0
        self.order = self.shuffle.bit_generator.state
        if settings.keep == "best" and settings.best(self.history) == epoch + 1:
            weights = self.model.state_dict().items()
            self.best = {name: value.to("cpu", copy=True) for name, value in weights}

    def train_step(self, parts: list[np.ndarray], place: str) -> float:
        """Make one step of the optimizer on one or more mini-batches; return the loss per cell."""
        cells = sum(map(len, parts))
        total = 0.0
        self.optimizer.zero_grad()
        for batch in self.load(parts):
            size = len(batch.lengths)
            loss, values = self.loss(batch, place)
            (loss * (size / cells)).backward()
            total += values["loss"] * size
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * size
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip or math.inf)
        if not torch.isfinite(norm):  # a step would leave NaN in the weights and in the checkpoint
            raise RuntimeError(f"the gradient is not finite in {place}: lower learning_rate")
        self.optimizer.step()
        return total / cells

    @torch.no_grad()
    def validate(self, place: str) -> dict[str, float]:
        """Return each loss term of the validation cells, ``valid_<term>``, averaged over cells."""
        self.model.eval()
        sums: dict[str, float] = {}
        for batch in self.load(minibatches(self.validation, self.settings.batch_size, self.groups)):
            for name, value in self.loss(batch, place)[1].items():
                sums[name] = sums.get(name, 0.0) + value * len(batch.lengths)
        return {f"valid_{name}": total / len(self.validation) for name, total in sums.items()}

    def load(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        return load(self.cells, parts, self.device, self.config, self.mask, self.mixed)

    def loss(self, batch: Batch, place: str) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, float32, and the values of all terms and of the sum of those that are trained.

        Raises
        ------
        RuntimeError
            When one is not finite; in validation under float16, which overflows easily, it counts as
            infinite instead, so that its epoch is never the best one.
        """
        training = self.model.training
        with self.settings.autocast(self.device, training):
            terms = self.objective(self.model, batch)
        terms = {name: term.float() for name, term in terms.items()}
        loss = torch.stack([term for name, term in terms.items() if self.settings.trains(name)]).sum()
        numbers = torch.stack([*terms.values(), loss]).tolist()  # one transfer from a GPU
        values = dict(zip([*terms, "loss"], numbers, strict=True))
        if not all(map(math.isfinite, numbers)):
            found = ", ".join(f"{name} = {values[name]:g}" for name in terms)
            if training or self.settings.eval_precision != "float16":
                raise RuntimeError(f"the loss is not finite in {place} ({found}): lower learning_rate")
            # The released code goes on, and an epoch whose loss is NaN is never its lowest.
            log.warning("the loss is not finite in %s (%s): float16 ends at 65,504", place, found)
            values = {name: value if math.isfinite(value) else math.inf for name, value in values.items()}
        return loss, values

    def state(self) -> dict[str, Any]:
        """Return everything that changes, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch": torch_state(self.device),
            "mask": self.mask.bit_generator.state,
            **{name: getattr(self, name) for name in CHANGES},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state` was called, or forward."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_torch(state["torch"], self.device)
        self.mask.bit_generator.state = state["mask"]
        for name in CHANGES:
            setattr(self, name, state[name])
        self.shuffle.bit_generator.state = self.order
