"""How much memory a training step takes, and how much there is.

The estimate is a sum that one can check by hand: four copies of the weights, and so many numbers
per token for each part of the network. ``python tests/scmamba2/measure_memory.py`` measures real
steps; the constants were fitted by hand to 50 of them on a CPU with PyTorch 2.13, 0.2 to 2.2 GB each,
in both precisions, with and without recomputing. Expect a third too much or too little. Nothing was
measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from .config import Config
from .ops.blocked import BLOCK_ELEMENTS, KEEP_ELEMENTS

__all__ = ["available", "check", "estimate", "largest_batch"]

PROCESS = 80_000_000
"""Bytes that the first step takes whatever its size."""

EMBEDDING = 28
"""Float32 numbers per token and channel of the model, of the embeddings and of all passing work."""

DECODER = 10
"""The same for the decoders, per hidden token."""


def estimate(
    model: nn.Module,
    config: Config,
    batch_size: int,
    length: int,
    *,
    recompute: bool = False,
) -> dict[str, int]:
    """Estimate the bytes that a training step holds at its peak, by part.

    Parameters
    ----------
    model
        Whose weights to count; they may lie on PyTorch's ``"meta"`` device.
    config
        Sizes. ``mask_ratio`` of the tokens are decoded.
    batch_size
        Cells at a time.
    length
        Tokens of the longest cell.
    recompute
        Whether a layer keeps only its input for the gradient.

    Returns
    -------
    dict
        ``process``, ``parameters``, ``gradients``, ``optimizer``, ``embeddings``, ``layers``,
        ``scan``, ``decoders`` and their sum, ``total``. All are float32, whatever the precision of products.
    """
    weights = [p.numel() * 4 for p in model.parameters()]
    tokens = batch_size * length
    number = tokens * config.d_model * 4
    # A layer keeps its input and the states at the edges of blocks, and if small what it projects.
    edges = (length * config.d_inner - 1) // BLOCK_ELEMENTS
    layer = number + 2 * batch_size * edges * config.d_state * config.d_inner * 4
    if tokens * config.d_inner <= KEEP_ELEMENTS:
        layer += tokens * (3 * config.d_inner + 2 * config.d_state + config.n_heads) * 4
    if config.oov == "pad":  # two passes, each with its own
        layer *= 2
    # What the scan of one block holds: the pairs of tokens of each head, the states of each chunk.
    q = min(length, config.chunk_size)
    block = max(q, min(tokens, BLOCK_ELEMENTS // config.d_inner))
    scan = 4 * 4 * block * (config.n_heads * q + config.d_state * config.d_inner // q)
    n = config.n_layers
    parts = {
        "process": PROCESS,
        "parameters": sum(weights),
        # The largest is the table of genes; it is looked up twice, so for a moment has two gradients.
        "gradients": sum(weights) + max(weights, default=0),
        "optimizer": 2 * sum(weights),
        "embeddings": EMBEDDING * number,
        "layers": n * number + layer if recompute else n * layer,
        "scan": scan,
        "decoders": int(DECODER * number * (config.mask_ratio or 0)),
    }
    return parts | {"total": sum(parts.values())}


def largest_batch(
    room: int,
    model: nn.Module,
    config: Config,
    most: int,
    length: int,
    *,
    recompute: bool = False,
) -> int:
    """Return the largest batch size up to ``most`` whose :func:`estimate` is at most ``room`` bytes, or 0."""
    for size in range(most, 0, -1):
        if estimate(model, config, size, length, recompute=recompute)["total"] <= room:
            return size
    return 0


def check(
    model: nn.Module,
    config: Config,
    batch_size: int,
    length: int,
    device: torch.device,
    *,
    recompute: bool = False,
) -> dict[str, int]:
    """Return the :func:`estimate` of a training step on ``device``, whose model is there already.

    Raises
    ------
    ValueError
        If there is less memory available, with the batch size that fits.
    """
    parts = estimate(model, config, batch_size, length, recompute=recompute)
    free = available(device)
    if free is None or parts["total"] - parts["parameters"] <= free:
        return parts
    room = free + parts["parameters"]
    fits = largest_batch(room, model, config, batch_size, length, recompute=recompute)
    advice = f"batch_size={fits} fits" if fits else "not even batch_size=1 fits"
    if not recompute:
        advice += "; recompute=True needs less memory and more time"
    raise ValueError(
        f"a training step with batch_size={batch_size} and cells of {length} tokens takes about "
        f"{(parts['total'] - parts['parameters']) / 1e9:.2f} GB, {free / 1e9:.2f} GB are available on "
        f"{device}: {advice}"
    )


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the bytes that can still be allocated on ``device``; None if this system does not say.

    On a GPU, free memory and what PyTorch has reserved and not used. On Linux, the least of the
    system's available memory and of what the limits of the process's control groups (version 1 or
    2, and of the groups around them) leave. ``root`` is where ``proc`` and ``sys`` are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return min(int(fields["MemAvailable"].split()[0]) * 1024, *_left_in_cgroups(root), 1 << 62)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yield the limit less the usage of each control group around this process.

    Cached files that nobody reads count as usage, but make room when it is needed.
    """
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, usage, cached = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, usage = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        top = root / "sys/fs/cgroup" / mount
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            # In a container the group's own path may not exist; the top is then the container's.
            if not (folder / limit).exists() or (most := (folder / limit).read_text().strip()) == "max":
                continue
            stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            yield int(most) - int((folder / usage).read_text()) + int(stat.get(cached, 0))
