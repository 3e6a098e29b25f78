"""How to train, in one immutable object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

__all__ = ["Training"]

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Training:
    """How to train.

    Parameters
    ----------
    epochs
        Times to go over the training cells.
    learning_rate
        Of the first epoch, after the warm-up.
    batch_size
        Cells of a mini-batch.
    optimizer
        ``"adam"`` or ``"adamw"``; epsilon is 1e-4 in bfloat16, else 1e-8.
    weight_decay
        Of matrices; vectors (biases, norms, step sizes, A, D) do not decay.
    clip
        Largest norm of the gradient, or None.
    accumulate
        Mini-batches whose gradients add up, weighted by their cells, to one step.
    gamma, step_epochs
        The learning rate is multiplied by ``gamma`` every ``step_epochs`` epochs.
    warmup_steps
        Steps over which the learning rate rises linearly from zero.
    precision
        ``"float32"``, or ``"bfloat16"`` for the large matrix products; weights, residual stream
        and loss are float32 in both.
    recompute
        Keep only the input of each layer and compute the rest again for the gradient: the same
        numbers in less memory and more time.
    patience
        Stop when the validation loss has not improved for so many epochs. None: never.
    keep
        End with the weights of the ``"last"`` epoch or of the ``"best"``: lowest validation loss.
    save_every
        Steps of an epoch between checkpoints, if there is a folder for them; each epoch ends with one.

    Raises
    ------
    ValueError
        For a value out of range, naming the field.
    """

    epochs: int = 10
    learning_rate: float = 1e-4
    batch_size: int = 32
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    accumulate: int = 1
    gamma: float = 0.9
    step_epochs: int = 1
    warmup_steps: int = 0
    precision: str = "float32"
    recompute: bool = False
    patience: int | None = None
    keep: str = "last"
    save_every: int = 1000

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "step_epochs": 1, "warmup_steps": 0}
        for name, lowest in {**least, "patience": 1, "save_every": 1}.items():
            value = getattr(self, name)
            if name == "patience" and value is None:
                continue
            if not isinstance(value, Integral) or value < lowest:
                raise ValueError(f"{name} must be a whole number of at least {lowest}, not {value!r}")
        for name, choices in {
            "optimizer": tuple(OPTIMIZERS),
            "precision": ("float32", "bfloat16"),
            "recompute": (False, True),
            "keep": ("last", "best"),
        }.items():
            if getattr(self, name) not in choices:
                allowed = " or ".join(map(repr, choices))
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, not {self.learning_rate!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, not {self.weight_decay!r}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be above 0 and finite, or None, not {self.clip!r}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, not {self.gamma!r}")

    def rate(self, epoch: int, step: int) -> float:
        """Return the learning rate in ``epoch``, at ``step`` of the whole training, both from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * self.gamma ** (epoch // self.step_epochs) * warm

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the model's trainable weights."""
        weights = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
        eps = 1e-4 if self.precision == "bfloat16" else 1e-8
        return OPTIMIZERS[self.optimizer](groups, lr=self.learning_rate, eps=eps)
