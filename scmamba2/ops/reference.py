"""The bidirectional core as the paper's code runs it: step by step, with two explicit reversals.

Slow and obvious on purpose. Every other backend is tested against this one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bissd_reference(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    lengths: Tensor,
    chunk_size: int,
    eps: float,
) -> Tensor:
    """See :func:`scmamba2.ops.bissd`; ``chunk_size`` has no meaning here."""
    weights = conv_weight, conv_bias, dt_bias, A_log, D, norm_weight
    pad = (torch.arange(zxbcdt.shape[1], device=zxbcdt.device) >= lengths[:, None])[..., None]
    zxbcdt = zxbcdt.masked_fill(pad, 0)
    forward = mamba2(zxbcdt, *weights, eps)
    backward = reverse(mamba2(reverse(zxbcdt, lengths), *weights, eps), lengths)
    return (forward + backward).masked_fill(pad, 0)


def reverse(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first ``lengths[i]`` tokens of cell ``i`` and leave its pads where they are.

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


def mamba2(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    """One direction of Mamba-2, from its input projection to its gated norm.

    The recurrence of Dao & Gu 2024, Mamba-2, arXiv 2405.21060, with the defaults of mamba-ssm
    2.2.2: one group of B and C, SiLU, RMSNorm after the gate.
    """
    b, length, _ = zxbcdt.shape
    h, d_inner, width = dt_bias.numel(), norm_weight.numel(), conv_weight.shape[-1]
    n = (conv_bias.numel() - d_inner) // 2
    z, xbc, dt = zxbcdt.split([d_inner, d_inner + 2 * n, h], dim=-1)
    xbc = F.pad(xbc.transpose(1, 2), (width - 1, 0))
    xbc = F.silu(F.conv1d(xbc, conv_weight, conv_bias, groups=conv_bias.numel())).transpose(1, 2)
    x, B, C = xbc.split([d_inner, n, n], dim=-1)
    x = x.reshape(b, length, h, d_inner // h)
    dt = F.softplus(dt + dt_bias)
    decay = torch.exp(dt * -torch.exp(A_log))

    state = torch.zeros_like(x[:, 0, :, :, None] * B[:, 0, None, None, :])
    outputs = []
    for t in range(length):
        added = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None, :]
        state = decay[:, t, :, None, None] * state + added
        outputs.append((state * C[:, t, None, None, :]).sum(-1) + D[:, None] * x[:, t])
    y = torch.stack(outputs, dim=1).reshape(b, length, d_inner) * F.silu(z)
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * norm_weight
