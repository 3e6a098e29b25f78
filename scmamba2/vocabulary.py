"""Gene symbols and special tokens as consecutive integers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["SPECIALS", "Vocabulary"]

SPECIALS = ("<pad>", "<cls>", "<eoc>")


class Vocabulary:
    """A mapping from gene symbol to token id.

    Parameters
    ----------
    ids
        Symbol to id; the ids must be 0 .. len - 1. Missing special tokens (``<pad>``, ``<cls>``,
        ``<eoc>``) are appended in this order.

    Raises
    ------
    ValueError
        If the ids are not consecutive from 0.
    """

    def __init__(self, ids: dict[str, int]) -> None:
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"the ids of {len(ids)} symbols must be 0 to {len(ids) - 1} once each")
        self.ids = dict(ids)
        for token in SPECIALS:
            self.ids.setdefault(token, len(self.ids))

    @classmethod
    def from_genes(cls, genes: Iterable[str]) -> Vocabulary:
        """Number ``genes`` in their order, each once."""
        return cls({gene: i for i, gene in enumerate(dict.fromkeys(genes))})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read a JSON object of symbols and ids.

        Raises
        ------
        ValueError
            If there is no such file or it holds anything else, naming it.
        """
        try:
            ids = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
                raise ValueError("not a JSON object of symbols and integer ids")
            return cls(ids)
        except (OSError, ValueError) as error:
            raise ValueError(f"vocabulary {path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON object of symbols and ids; the file appears whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, gene: str) -> bool:
        return gene in self.ids

    @property
    def pad(self) -> int:
        return self.ids["<pad>"]

    @property
    def cls(self) -> int:
        return self.ids["<cls>"]

    def lookup(self, genes: Sequence[str], oov: str = "drop") -> tuple[np.ndarray, float]:
        """Return the ids of ``genes`` and the share of them that is in the vocabulary.

        Parameters
        ----------
        genes
            Symbols. A special token is not a gene.
        oov
            ``"drop"``: an unknown gene gets -1; leave it out before tokenising. ``"pad"``: it gets
            the id of ``<pad>``, as in the released SC-MAMBA2, and its value stays in the sequence.

        Returns
        -------
        ids
            ``(len(genes),)`` int64.
        share
            From 0 to 1.

        Raises
        ------
        ValueError
            Unknown ``oov``.
        """
        if oov not in ("drop", "pad"):
            raise ValueError(f"oov must be 'drop' or 'pad', not {oov!r}")
        known = [-1 if g in SPECIALS else self.ids.get(g, -1) for g in genes]
        ids = np.array(known, dtype=np.int64)
        share = float((ids >= 0).mean()) if len(ids) else 0.0
        if oov == "pad":
            ids[ids < 0] = self.pad
        return ids, share
