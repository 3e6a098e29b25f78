"""From tokenised cells to mini-batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..streams import stream
from ..tokenizer import Tokens, mask_values

__all__ = ["Batch", "Cells", "Objective", "load", "minibatches", "split"]


@dataclass
class Cells:
    """Tokenised cells with what is known about each: its batch, its label."""

    tokens: Tokens
    batches: np.ndarray | None = None  # (n,) int64
    labels: np.ndarray | None = None  # (n,) int64

    def __len__(self) -> int:
        return len(self.tokens.lengths)


@dataclass
class Batch:
    """A mini-batch on the device, T tokens long as its longest cell is."""

    genes: Tensor  # (b, T) int64
    values: Tensor  # (b, T) float32, some hidden
    targets: Tensor  # (b, T) float32, none hidden
    mask: Tensor  # (b, T) bool, True where hidden
    lengths: Tensor  # (b,) int64
    batches: Tensor | None  # (b,) int64
    norms: Tensor | None  # (b,) int64, the batch whose norm they go through: all the same
    labels: Tensor | None  # (b,) int64


Objective = Callable[[Any, Batch], dict[str, Tensor]]
"""Maps model and mini-batch to named terms of the loss; their sum is minimised."""


def split(n: int, seed: int, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Divide ``n`` cells at random into training and validation, sorted indices both.

    Raises
    ------
    ValueError
        For fewer than 2 cells.
    """
    if n < 2:
        raise ValueError(f"training needs at least 2 cells, one of them for validation; got {n}")
    order = stream(seed, "split").permutation(n)
    held_out = max(1, round(share * n))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def minibatches(
    cells: np.ndarray,
    size: int,
    groups: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """Cut cells into mini-batches; shuffled if there is ``rng``.

    Parameters
    ----------
    cells
        Indices of cells.
    size
        Largest mini-batch.
    groups
        ``(n,)``, group of every cell of the data. No mini-batch mixes groups.
    rng
        Shuffles the cells, then the mini-batches.
    """
    if rng is not None:
        cells = rng.permutation(cells)
    kinds = [cells] if groups is None else [cells[groups[cells] == g] for g in np.unique(groups)]
    parts = [kind[i : i + size] for kind in kinds for i in range(0, len(kind), size)]
    if rng is not None and groups is not None:
        parts = [parts[i] for i in rng.permutation(len(parts))]
    return parts


def load(
    cells: Cells,
    parts: Sequence[np.ndarray],
    device: torch.device,
    config: Config | None = None,
    rng: np.random.Generator | None = None,
    mixed: bool = False,
) -> Iterator[Batch]:
    """Put mini-batches on the device, each cut to its longest cell.

    With a configuration, values are hidden as it says, drawn anew from ``rng``. If batches of cells may be
    mixed, the first cell's batch stands for all in front of a norm.
    """

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    for part in parts:
        lengths = cells.tokens.lengths[part]
        longest = int(lengths.max())
        tokens = Tokens(cells.tokens.genes[part, :longest], cells.tokens.values[part, :longest], lengths)
        values, mask = tokens.values, np.zeros(tokens.values.shape, dtype=bool)
        batches = None if cells.batches is None else tensor(cells.batches[part])
        if config is not None and config.mask_ratio and rng is not None:
            hide = config.mask_ratio, config.mask_value, rng, config.mask_cls
            values, mask = mask_values(tokens, *hide)
        yield Batch(
            genes=tensor(tokens.genes),
            values=tensor(values),
            targets=tensor(tokens.values),
            mask=tensor(mask),
            lengths=tensor(tokens.lengths),
            batches=batches,
            norms=None if batches is None else batches[:1].expand(len(part)) if mixed else batches,
            labels=None if cells.labels is None else tensor(cells.labels[part]),
        )
