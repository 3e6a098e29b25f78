"""Random numbers with names.

Every random decision draws from its own stream, ``(seed, name)``: ``"split"``, ``"init"``,
``"bins"``, ``"tokens"``, ``"mask"``, ``"shuffle"``, ``"dropout"``. Changing how often one is
drawn leaves the others as they were, and the global generators are never touched. Where a stream
stands can be saved and restored, so that a training goes on as if it had not been interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["restore_torch", "seed_of", "stream", "torch_state", "torch_stream"]


def seed_of(seed: int, name: str) -> int:
    """Return a 63-bit seed: the start of the SHA-256 hash of seed and name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> np.random.Generator:
    """Return numpy's generator for ``(seed, name)``; ``.bit_generator.state`` is where it stands."""
    return np.random.default_rng(seed_of(seed, name))


@contextmanager
def torch_stream(seed: int, name: str) -> Iterator[None]:
    """Inside, PyTorch's global generators follow ``(seed, name)``; afterwards they are as before.

    Initialisation and dropout know no other generator.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, name))
        yield


def torch_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return where PyTorch's generators of the CPU and of ``device`` stand, by device type."""
    import torch

    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_torch(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Undo what was drawn since ``state`` was taken; call it inside :func:`torch_stream`.

    A generator that ``state`` lacks, because the run has moved to another kind of device, stays.
    """
    import torch

    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
