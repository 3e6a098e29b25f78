"""How to train, in one immutable object."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

__all__ = ["Training"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
        Stop when the criterion has not improved for so many epochs. None: never.
    keep
        End with the weights of the ``"last"`` epoch or of the ``"best"``: lowest criterion.
    criterion
        What of the validation cells decides that: ``"loss"``, the sum of what is trained, or a term of the
        task, trained or not.
    losses
        Terms that are trained, by name, each with its term for zeros if it has one. None: the task's own.
    shuffle
        Whether each epoch draws the cells in a new order; otherwise they come as the data has them, one
        batch of cells after the other unless these are mixed.
    mixed_batches
        With domain-specific batch norm: whether a mini-batch takes cells of any batch, all of which then go
        through the norm of the first one's, as in the released code.
    eval_precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"`` of validation and embedding. None: ``precision``.
        A validation loss that overflows float16 counts as infinite.
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
    criterion: str = "loss"
    losses: tuple[str, ...] | None = None
    shuffle: bool = True
    mixed_batches: bool = False
    eval_precision: str | None = None
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
            "shuffle": (False, True),
            "mixed_batches": (False, True),
            "eval_precision": (None, *PRECISIONS),
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
        if self.losses is not None:
            names = self.losses
            if isinstance(names, str) or not names or len(set(names)) < len(names):
                raise ValueError(f"losses must be a list of different terms, not {names!r}")
            object.__setattr__(self, "losses", tuple(names))  # a list, in a file of settings

    def rate(self, epoch: int, step: int) -> float:
        """Return the learning rate in ``epoch``, at ``step`` of the whole training, both from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * self.gamma ** (epoch // self.step_epochs) * warm

    def trains(self, term: str) -> bool:
        """Return whether a term of the loss is trained."""
        return self.losses is None or term.removesuffix("_zero") in self.losses

    def best(self, history: list[dict[str, float]]) -> int:
        """Return the first epoch of lowest criterion, from 1; 0 before the first."""
        found = [row[f"valid_{self.criterion}"] for row in history]
        return found.index(min(found)) + 1 if found else 0

    def selected(self, history: list[dict[str, float]]) -> int:
        """Return the epoch whose weights are kept, from 1; 0 before the first."""
        return self.best(history) if self.keep == "best" else len(history)

    def finished(self, history: list[dict[str, float]]) -> bool:
        """Return whether all epochs are done, or the criterion has not improved for long enough."""
        done = len(history)
        return done == self.epochs or (
            self.patience is not None and done - self.best(history) >= self.patience
        )

    def autocast(self, device: torch.device, training: bool = False) -> torch.autocast:
        """Return the context in which the model computes, in training or else in evaluation.

        Raises
        ------
        ValueError
            If PyTorch cannot compute so on ``device``.
        """
        precision = self.precision if training else self.eval_precision or self.precision
        if precision == "float32":
            return torch.autocast(device.type, enabled=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PyTorch warns, and goes on in float32
            try:
                return torch.autocast(device.type, PRECISIONS[precision])
            except (RuntimeError, UserWarning) as error:
                raise ValueError(
                    f"PyTorch {torch.__version__} cannot compute in {precision} on {device.type}: {error}"
                ) from None

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the model's trainable weights."""
        weights = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
        eps = 1e-4 if self.precision == "bfloat16" else 1e-8
        return OPTIMIZERS[self.optimizer](groups, lr=self.learning_rate, eps=eps)
