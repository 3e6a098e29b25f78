"""What a model would have returned had a cell been written down otherwise.

A cell is a set of genes, and the model reads a sequence. A probe changes what should not matter, or what
the model could have been built with, and nothing else:

``order_<k>``
    The genes in the k-th random order, the same for all cells, in place of the vocabulary's. A cell that
    was cut to ``max_length`` stands in a random order of its own, and gets another one: its genes stay.
``padding``
    :data:`PADS` more ``<pad>`` tokens at the end. Nothing may change but rounding.
``cls_last``
    ``<cls>`` moved behind the genes, and read there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from ..config import Config
from ..streams import stream
from ..tokenizer import Tokens
from ..training import Batch

__all__ = ["PADS", "check", "cls_to_the_end", "more_pads", "reorder"]

PADS = 100
"""More than a chunk of the scan, so that its edges move too."""


def check(probe: str | None, config: Config) -> None:
    """Raise a ValueError if there is no such probe, or not of this model."""
    if probe is not None and not re.fullmatch(r"order_\d+|padding|cls_last", probe):
        raise ValueError(f"probe must be 'order_<number>', 'padding' or 'cls_last', not {probe!r}")
    if probe == "cls_last" and config.readout != "cls":
        raise ValueError(f"probe 'cls_last' moves <cls>, which the readout {config.readout!r} does not use")


def reorder(
    parts: Iterator[Tokens], probe: str, seed: int, n_tokens: int, pad_id: int, config: Config
) -> Iterator[Tokens]:
    """Put the genes of all cells in the random order ``(seed, probe)``; values go with their genes.

    Parameters
    ----------
    parts
        Cells, some at a time.
    probe
        ``"order_<k>"``, the name of the stream.
    seed
        Of the stream.
    n_tokens
        Size of the vocabulary, whose order is drawn.
    pad_id
        Genes that became ``<pad>`` (``Config.oov``) have no place in that order: they get any.
    config
        Gives ``max_length``. A cell as long has been cut.
    """
    rng = stream(seed, probe)
    place = rng.permutation(n_tokens)
    for tokens in parts:
        genes, values = tokens.genes.copy(), tokens.values.copy()
        for i, length in enumerate(tokens.lengths):
            own = genes[i, 1:length]
            drawn = rng.random(len(own)) * n_tokens
            order = 1 + np.argsort(
                np.where((own == pad_id) | (length == config.max_length), drawn, place[own])
            )
            genes[i, 1:length], values[i, 1:length] = genes[i, order], values[i, order]
        yield tokens._replace(genes=genes, values=values)


def more_pads(batch: Batch, pad_id: int, pad_value: float) -> Batch:
    """Add :data:`PADS` pads to the end of each cell; its length, in tokens that are read, stays."""
    return replace(
        batch,
        genes=F.pad(batch.genes, (0, PADS), value=pad_id),
        values=F.pad(batch.values, (0, PADS), value=pad_value),
    )


def cls_to_the_end(batch: Batch) -> Batch:
    """Move ``<cls>`` behind the last gene of each cell, ``lengths - 1``; pads stay."""
    index = torch.arange(batch.genes.shape[1], device=batch.genes.device).expand_as(batch.genes)
    last = batch.lengths[:, None] - 1
    source = torch.where(index < last, index + 1, torch.where(index == last, 0, index))
    return replace(batch, genes=batch.genes.gather(1, source), values=batch.values.gather(1, source))
