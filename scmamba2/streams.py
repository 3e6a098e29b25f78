"""Random numbers with names.

Every random decision draws from its own stream, ``(seed, name)``: ``"split"``, ``"init"``,
``"bins"``, ``"tokens"``, ``"mask"``, ``"shuffle"``, ``"dropout"``. Changing how often one is
drawn leaves the others as they were, and the global generators are never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["seed_of", "stream", "torch_stream"]


def seed_of(seed: int, name: str) -> int:
    """Return a 63-bit seed: the start of the SHA-256 hash of seed and name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> np.random.Generator:
    """Return numpy's generator for ``(seed, name)``."""
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
