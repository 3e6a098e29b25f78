"""The mixer as the paper's code runs it: step by step, twice, with two explicit reversals.

Slow and obvious on purpose. Every other backend is tested against this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocked import Settings


def mix_reference(x: Tensor, weights: Sequence[Tensor], lengths: Tensor, settings: Settings) -> Tensor:
    """See :func:`scmamba2.ops.bimamba2`; this is its ``"reference"`` backend."""
    pad = (torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[..., None]
    x = x.masked_fill(pad, 0)
    out = mamba2(x, weights, settings.eps)
    if True in settings.directions:
        out = out + reverse(mamba2(reverse(x, lengths), weights, settings.eps), lengths)
    return out.masked_fill(pad, 0)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first ``lengths[i]`` tokens of cell ``i`` and leave the rest where they are.

    Parameters
    ----------
    x
        ``(b, l, ...)``.
    lengths
        ``(b,)`` int64.
    """
    position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    source = torch.where(position < lengths[:, None], lengths[:, None] - 1 - position, position)
    return x[torch.arange(x.shape[0], device=x.device)[:, None], source]


def mamba2(x: Tensor, weights: Sequence[Tensor], eps: float = 1e-5) -> Tensor:
    """One direction of Mamba-2, from input to output projection.

    The recurrence of Dao & Gu 2024, Mamba-2, arXiv 2405.21060, with the defaults of mamba-ssm
    2.2.2: one group of B and C, SiLU, RMSNorm after the gate.

    Parameters
    ----------
    x
        ``(b, l, d_model)``.
    weights
        As :func:`scmamba2.ops.bimamba2` takes them.
    eps
        Of the RMSNorm.
    """
    in_proj, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, out_proj = weights
    b, length, _ = x.shape
    h, d_inner, width = dt_bias.numel(), norm_weight.numel(), conv_weight.shape[-1]
    n = (conv_bias.numel() - d_inner) // 2
    z, xbc, dt = (x @ in_proj.T).split([d_inner, d_inner + 2 * n, h], dim=-1)
    xbc = F.pad(xbc.transpose(1, 2), (width - 1, 0))
    xbc = F.silu(F.conv1d(xbc, conv_weight, conv_bias, groups=conv_bias.numel())).transpose(1, 2)
    u, B, C = xbc.split([d_inner, n, n], dim=-1)
    u = u.reshape(b, length, h, d_inner // h)
    dt = F.softplus(dt + dt_bias)
    decay = torch.exp(dt * -torch.exp(A_log))

    state = torch.zeros_like(u[:, 0, :, :, None] * B[:, 0, None, None, :])
    outputs = []
    for t in range(length):
        added = (dt[:, t, :, None] * u[:, t])[..., None] * B[:, t, None, None, :]
        state = decay[:, t, :, None, None] * state + added
        outputs.append((state * C[:, t, None, None, :]).sum(-1) + D[:, None] * u[:, t])
    y = torch.stack(outputs, dim=1).reshape(b, length, d_inner) * F.silu(z)
    normed = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * norm_weight
    return normed @ out_proj.T
