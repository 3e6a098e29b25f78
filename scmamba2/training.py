"""Training, read from top to bottom: mini-batches, one epoch, all epochs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .streams import stream, torch_stream
from .tokenizer import Tokens, mask_values

__all__ = ["Batch", "Cells", "minibatches", "split", "train"]


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
    """A mini-batch on the device."""

    genes: Tensor  # (b, T) int64
    values: Tensor  # (b, T) float32, some hidden
    targets: Tensor  # (b, T) float32, none hidden
    mask: Tensor  # (b, T) bool, True where hidden
    lengths: Tensor  # (b,) int64
    batches: Tensor | None  # (b,) int64
    labels: Tensor | None  # (b,) int64


Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]


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
    mask_ratio: float = 0.0,
    mask_value: float = -1.0,
    rng: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Put mini-batches on the device, with a fresh mask if there is a ratio."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    for part in parts:
        tokens = Tokens(*(array[part] for array in cells.tokens))
        values, mask = tokens.values, np.zeros(tokens.values.shape, dtype=bool)
        if mask_ratio and rng is not None:
            values, mask = mask_values(tokens, mask_ratio, mask_value, rng)
        yield Batch(
            genes=tensor(tokens.genes),
            values=tensor(values),
            targets=tensor(tokens.values),
            mask=tensor(mask),
            lengths=tensor(tokens.lengths),
            batches=None if cells.batches is None else tensor(cells.batches[part]),
            labels=None if cells.labels is None else tensor(cells.labels[part]),
        )


def run_epoch(
    model: nn.Module,
    batches: Iterator[Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer | None,
    clip: float,
    place: str,
) -> dict[str, float]:
    """Go once over the data; return each loss term and their sum, averaged over cells.

    Without an optimizer nothing is learnt and the model is in evaluation mode.

    Raises
    ------
    RuntimeError
        When the loss is not finite.
    """
    model.train(optimizer is not None)
    sums: dict[str, float] = {}
    n = 0
    for batch in batches:
        with torch.set_grad_enabled(optimizer is not None):
            terms = objective(model, batch)
            loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            found = ", ".join(f"{name} = {term.item():g}" for name, term in terms.items())
            raise RuntimeError(f"the loss is not finite in {place} ({found}): lower learning_rate")
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        size = len(batch.lengths)
        n += size
        for name, term in {**terms, "loss": loss}.items():
            sums[name] = sums.get(name, 0.0) + term.item() * size
    return {name: total / n for name, total in sums.items()}


def train(
    model: nn.Module,
    cells: Cells,
    objective: Objective,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    device: torch.device,
    mask_ratio: float = 0.0,
    mask_value: float = -1.0,
    by_batch: bool = False,
    keep_best: bool = False,
    gamma: float = 0.9,
    clip: float = 1.0,
    progress: str = "training",
) -> list[dict[str, float]]:
    """Train with Adam on 90 % of the cells; validate on the others.

    Parameters
    ----------
    model
        Changed in place.
    cells
        The data.
    objective
        Maps model and mini-batch to named loss terms; their sum is minimised.
    epochs, learning_rate, batch_size
        The learning rate is multiplied by ``gamma`` after each epoch.
    seed
        Of the streams ``split``, ``shuffle``, ``mask`` and ``dropout``.
    device
        Where to compute.
    mask_ratio, mask_value
        Hidden share of each cell's genes, redrawn each epoch, and the value put there.
    by_batch
        Take every mini-batch from one batch of cells.
    keep_best
        End with the epoch of lowest validation loss rather than the last.
    clip
        Largest norm of the gradient.
    progress
        Title of the progress bar, which only a terminal shows.

    Returns
    -------
    list of dict
        Per epoch: ``epoch``, ``train_<term>`` and ``valid_<term>`` for each term and ``loss``,
        ``learning_rate``, ``seconds``, ``cells_per_s`` (training cells over the epoch's time).

    Raises
    ------
    RuntimeError
        When the loss is not finite.
    """
    training, validation = split(len(cells), seed)
    groups = cells.batches if by_batch else None
    shuffle, mask = stream(seed, "shuffle"), stream(seed, "mask")
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=gamma)
    history: list[dict[str, float]] = []
    best, best_state = float("inf"), None
    with torch_stream(seed, "dropout"), tqdm(total=epochs, desc=progress, disable=None) as bar:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            rate = optimizer.param_groups[0]["lr"]
            row: dict[str, float] = {"epoch": epoch, "learning_rate": float(rate)}
            for name, chosen, order in (("train", training, shuffle), ("valid", validation, None)):
                parts = minibatches(chosen, batch_size, groups, order)
                loaded = load(cells, parts, device, mask_ratio, mask_value, mask)
                step = optimizer if name == "train" else None
                place = f"epoch {epoch} ({name})"
                terms = run_epoch(model, loaded, objective, step, clip, place)
                row.update({f"{name}_{term}": value for term, value in terms.items()})
            schedule.step()
            row["seconds"] = time.perf_counter() - start
            row["cells_per_s"] = len(training) / row["seconds"]
            history.append(row)
            if keep_best and row["valid_loss"] < best:
                best, best_state = row["valid_loss"], copy.deepcopy(model.state_dict())
            bar.set_postfix(loss=f"{row['train_loss']:.3g}", valid=f"{row['valid_loss']:.3g}")
            bar.update()
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
    return history
