"""The mixer's output for the first token alone, which is all that ``<cls>`` needs of the last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocked import Settings

BLOCK_TOKENS = 4096


def mix_first(x: Tensor, weights: Sequence[Tensor], lengths: Tensor, settings: Settings) -> Tensor:
    """Return ``bimamba2(x, ...)[:, 0]``; see :func:`scmamba2.ops.bimamba2_first`.

    Read forward, the first token knows only itself. Read backward it is last, and with ``w_j`` the
    decay from token j to token 0 its output is ``sum_j w_j dt_j (B_j . C_0) x_j``: a weighted mean,
    without a state, a gate, or C and z of any other token.
    """
    in_proj, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, out_proj = weights
    h, d_inner = dt_bias.numel(), norm_weight.numel()
    n = (conv_bias.numel() - d_inner) // 2
    b, length, _ = x.shape
    taps = conv_weight[:, 0].flip(1).T  # (width, d_inner + 2n), by distance
    kind, ahead = settings.products, len(taps) - 1
    pad = (torch.arange(length, device=x.device) >= lengths[:, None])[..., None]
    x = x.masked_fill(pad, 0)
    A, projection = -A_log.exp(), in_proj[d_inner:].T.to(kind)

    past = x.new_zeros(b, 1, h)  # of dt * A, over the blocks before
    C_first, weighted, forward = None, x.new_zeros(b, h, d_inner // h), x
    for start in range(0, length, BLOCK_TOKENS):
        stop = min(start + BLOCK_TOKENS, length)
        seen = slice(start, min(stop + ahead, length))
        wide = (x[:, seen].to(kind) @ projection).to(x.dtype)
        xbc, dt = wide.split([d_inner + 2 * n, h], dim=-1)
        xbc = F.pad(xbc, (0, 0, 0, stop + ahead - seen.stop))
        size = stop - start
        u = conv_bias + sum(xbc[:, lag : lag + size] * tap for lag, tap in enumerate(taps))
        v, B, C = F.silu(u).split([d_inner, n, n], dim=-1)
        dt = F.softplus(dt[:, :size] + dt_bias).masked_fill(pad[:, start:stop], 0)
        if C_first is None:
            C_first = C[:, 0, :, None]
            alone, B0, C0 = F.silu(conv_bias + xbc[:, 0] * taps[0]).split([d_inner, n, n], dim=-1)
            scale = dt[:, 0] * (B0 * C0).sum(-1, keepdim=True) + D
            forward = alone.unflatten(-1, (h, -1)) * scale[..., None]
            weighted = D[:, None] * v[:, 0].unflatten(-1, (h, -1))
        sums = past + (dt * A).cumsum(1)
        decay = torch.exp(torch.cat([past, sums[:, :-1]], dim=1))
        past = sums[:, -1:]
        share = decay * dt * (B @ C_first)  # (b, l, h)
        weighted = weighted + (share.mT[:, :, None] @ v.unflatten(-1, (h, -1)).transpose(1, 2))[:, :, 0]

    gate = F.silu((x[:, 0].to(kind) @ in_proj[:d_inner].T.to(kind)).to(x.dtype))
    both = torch.stack([forward, weighted]).flatten(2) * gate
    normed = F.rms_norm(both, (d_inner,), norm_weight, settings.eps).sum(0)
    out = (normed.to(kind) @ out_proj.T.to(kind)).to(x.dtype)
    return out.masked_fill((lengths == 0)[:, None], 0)
