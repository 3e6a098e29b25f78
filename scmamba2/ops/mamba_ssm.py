"""The mixer on the Triton kernels of the package mamba-ssm, for NVIDIA GPUs.

Both directions share the projections; the kernels, which only read forward, get the second
direction's tokens reversed. Only the Triton part of mamba-ssm is needed, not its compiled extensions.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocked import Settings
from .reference import reverse

MODULE = "mamba_ssm.ops.triton.ssd_combined"


def missing() -> str | None:
    """Return what keeps the kernels from being imported, or None."""
    try:
        kernel()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@cache
def kernel() -> Callable[..., Any]:
    """Import ``mamba_chunk_scan_combined``.

    ``import mamba_ssm`` fails without its compiled extensions, which this function does not use.
    Then its parent packages are imported as empty ones.

    Raises
    ------
    ImportError
        If mamba-ssm, or what its kernels need, is not installed.
    """
    try:
        return importlib.import_module(MODULE).mamba_chunk_scan_combined
    except ImportError:
        found = importlib.util.find_spec("mamba_ssm")
        if found is None:
            raise
    for name in [m for m in sys.modules if m.partition(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    assert found.submodule_search_locations is not None
    folder = next(iter(found.submodule_search_locations))
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        empty = ModuleType(name)
        empty.__path__ = [folder + name.removeprefix("mamba_ssm").replace(".", "/")]
        sys.modules[name] = empty
    return importlib.import_module(MODULE).mamba_chunk_scan_combined


def mix_mamba_ssm(x: Tensor, weights: Sequence[Tensor], lengths: Tensor, settings: Settings) -> Tensor:
    """See :func:`scmamba2.ops.bimamba2`; this is its ``"mamba_ssm"`` backend."""
    in_proj, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, out_proj = weights
    h, d_inner, width = dt_bias.numel(), norm_weight.numel(), conv_weight.shape[-1]
    n = (conv_bias.numel() - d_inner) // 2
    b, length, _ = x.shape
    kind = settings.products
    pad = (torch.arange(length, device=x.device) >= lengths[:, None])[..., None]

    wide = x.masked_fill(pad, 0).to(kind) @ in_proj.T.to(kind)
    z, xbc, dt = wide.split([d_inner, d_inner + 2 * n, h], dim=-1)
    # A pad puts nothing into the state and does not let it decay.
    dt = F.softplus(dt.float() + dt_bias).masked_fill(pad, 0)
    xbc, both = xbc.transpose(1, 2), []
    for mirror in settings.directions:
        taps = conv_weight.flip(2) if mirror else conv_weight
        sides = (0, width - 1) if mirror else (width - 1, 0)
        u = F.conv1d(F.pad(xbc, sides), taps.to(kind), conv_bias.to(kind), groups=conv_bias.numel())
        u = F.silu(u).transpose(1, 2)
        both.append(reverse(u, lengths) if mirror else u)
    u, B, C = torch.cat(both).split([d_inner, n, n], dim=-1)
    y = kernel()(
        u.unflatten(-1, (h, -1)).contiguous(),
        torch.cat([reverse(dt, lengths) if mirror else dt for mirror in settings.directions]),
        -A_log.exp(),
        B[:, :, None].contiguous(),
        C[:, :, None].contiguous(),
        256,  # what the kernels are tuned for
        D=D,
    )
    gate, normed = F.silu(z.float()), torch.zeros_like(z, dtype=torch.float32)
    for mirror, part in zip(settings.directions, y.flatten(2).split(b), strict=True):
        part = reverse(part, lengths) if mirror else part
        normed = normed + F.rms_norm(part.float() * gate, (d_inner,), norm_weight, settings.eps)
    return (normed.to(kind) @ out_proj.T.to(kind)).to(x.dtype).masked_fill(pad, 0)
