"""The folder of a training: checkpoints to go on from after any interruption, and a log."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Folder", "digest"]


class Folder:
    """``state.pt``, the one before it as ``state.previous.pt``, and ``log.jsonl``.

    A file appears whole or not at all, and there is a whole checkpoint at every moment after the
    first: whatever stops the process, and whenever, starting it again goes on.

    Parameters
    ----------
    path
        Created if it does not exist.
    identity
        What decides the result of the training, by name: plain values. A checkpoint holds it too.
    header
        First line of the log.
    """

    def __init__(
        self, path: str | os.PathLike[str], identity: dict[str, Any], header: dict[str, Any]
    ) -> None:
        self.path, self.identity, self.header = Path(path), identity, header
        self.path.mkdir(parents=True, exist_ok=True)
        self.last, self.previous = self.path / "state.pt", self.path / "state.previous.pt"

    def write(self, state: dict[str, Any]) -> None:
        """Write a checkpoint of tensors and plain values."""
        fresh = self.path / "state.pt.tmp"
        try:
            with open(fresh, "wb") as file:
                torch.save({"identity": self.identity, **state}, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as the latter
            fresh.unlink(missing_ok=True)
            raise OSError(f"{fresh} cannot be written ({error}): is the disk full?") from error
        if self.last.exists():
            self.last.replace(self.previous)
        fresh.replace(self.last)

    def read(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that can be read; None if there is none yet.

        Raises
        ------
        ValueError
            If it is of another training, naming what differs, or if no checkpoint can be read.
        """
        found = [path for path in (self.last, self.previous) if path.exists()]
        for path in found:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                theirs = state.pop("identity")
            except Exception as error:  # a damaged file fails in many ways
                warnings.warn(f"{path} cannot be read ({type(error).__name__}: {error})", stacklevel=2)
                continue
            self._compare(theirs)
            return state
        if found:
            raise ValueError(
                f"none of the checkpoints in {self.path} can be read: delete the folder to train anew"
            )
        return None

    def _compare(self, theirs: dict[str, Any]) -> None:
        ours = self.identity
        other = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        if other:
            found = ", ".join(
                f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)" for name in other
            )
            raise ValueError(
                f"{self.path} holds another training; choose another folder or delete it. Different: {found}"
            )

    def log(self, history: list[dict[str, float]]) -> None:
        """Write ``log.jsonl`` anew, a JSON object a line: so no line is ever lost or doubled."""
        fresh = self.path / "log.jsonl.tmp"
        fresh.write_text("".join(json.dumps(row) + "\n" for row in [self.header, *history]), encoding="utf-8")
        fresh.replace(self.path / "log.jsonl")


def digest(arrays: Iterable[np.ndarray | Tensor | None]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 hash of types, shapes and values."""
    result = hashlib.sha256()
    for array in arrays:
        if isinstance(array, Tensor):
            array = array.detach().cpu().numpy()
        if array is None:
            result.update(b"none")
        else:
            result.update(f"{array.dtype}{array.shape}".encode())
            result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()[:16]
