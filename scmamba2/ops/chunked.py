"""The bidirectional core in chunks: plain PyTorch, matrix products, no reversed copies.

Both directions read the same projection, so the step sizes ``dt`` and every decay derived from
them are computed once. Write ``s`` for the sum of ``dt * A`` over a chunk's tokens up to and
including the current one, and ``e`` for the same sum without the current one. Then

====================================  ========================  ==========================
                                      forward                   backward
====================================  ========================  ==========================
taps of the convolution               tokens t-3 .. t           tokens t .. t+3, mirrored
decay from token j to token t         exp(s_t - s_j), j <= t    exp(e_j - e_t), j >= t
decay from token j to the far edge    exp(s_end - s_j)          exp(e_j)
decay of the entering state at t      exp(s_t)                  exp(s_end - e_t)
order of the chunks                   left to right             right to left
====================================  ========================  ==========================

so the two triangles of one matrix hold the decays of both directions. No exponent is positive:
nothing overflows however large ``dt`` grows. The chunked form itself is that of Dao & Gu 2024,
Mamba-2, arXiv 2405.21060, section 6.

The gradient is written out, for two reasons. A CPU is bound by memory traffic here: a few cells at
a time keep every intermediate in cache, and large mini-batches compute them a second time rather
than store them. And the gradient of the decays needs no further matrix. Inside a chunk, where
``y_t = sum_j exp(s_t - s_j) (C_t . B_j) x_j``, ``s_t`` receives ``dy_t . y_t - x_t . dx_t``; what
crosses a chunk's far edge is the state there times its gradient. The backward direction mirrors it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CACHE_ELEMENTS = 1 << 18
"""Size of a ``(cells, length, d_inner)`` activation up to which a slice stays in a core's cache."""

KEEP_ELEMENTS = 1 << 22
"""The same for a mini-batch whose intermediates, 140 bytes per element, are kept for backward."""

silu_backward = torch.ops.aten.silu_backward


def bissd_chunked(
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
    """See :func:`scmamba2.ops.bissd`; this is its ``"chunked"`` backend."""
    weights = Weights(conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    elements = zxbcdt.shape[0] * zxbcdt.shape[1] * norm_weight.numel()
    keep = torch.is_grad_enabled() and elements <= KEEP_ELEMENTS
    return _BiSSD.apply(zxbcdt, *weights, lengths, chunk_size, eps, keep)


class Weights(NamedTuple):
    conv_weight: Tensor  # (d_inner + 2n, 1, width)
    conv_bias: Tensor  # (d_inner + 2n)
    dt_bias: Tensor  # (h)
    A_log: Tensor  # (h)
    D: Tensor  # (h)
    norm_weight: Tensor  # (d_inner)


class _BiSSD(torch.autograd.Function):
    """Walk over slices of the mini-batch, each cut to its longest cell: padding costs little."""

    @staticmethod
    def forward(ctx: Any, zxbcdt: Tensor, *args: Any) -> Tensor:
        *weights, lengths, chunk_size, eps, keep = args
        ctx.save_for_backward(zxbcdt, lengths, *weights)
        ctx.rest, ctx.kept = (chunk_size, eps), []
        out = zxbcdt.new_zeros(*zxbcdt.shape[:2], weights[-1].numel())
        for cells, longest in _slices(out, lengths):
            part = _Slice(zxbcdt[cells, :longest], lengths[cells], Weights(*weights), *ctx.rest)
            out[cells, :longest] = part.forward()
            if keep:
                ctx.kept.append(part)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        zxbcdt, lengths, *weights = ctx.saved_tensors
        kept, ctx.kept = ctx.kept[::-1], []
        grad_in = torch.zeros_like(zxbcdt)
        grads = [torch.zeros_like(w) for w in weights]
        for cells, longest in _slices(grad_out, lengths):
            if kept:
                part = kept.pop()
            else:
                part = _Slice(zxbcdt[cells, :longest], lengths[cells], Weights(*weights), *ctx.rest)
            new = part.backward(grad_out[cells, :longest], grad_in[cells, :longest])
            for total, grad in zip(grads, new, strict=True):
                total += grad
        return grad_in, *grads, None, None, None, None


def _slices(activation: Tensor, lengths: Tensor) -> list[tuple[slice, int]]:
    """Cut a mini-batch into runs of cells, each with its longest length; leave out empty runs."""
    b, length, width = activation.shape
    on_cpu = activation.device.type == "cpu"
    step = max(1, CACHE_ELEMENTS // (length * width)) if on_cpu else b
    runs = [slice(i, i + step) for i in range(0, b, step)]
    return [(run, longest) for run in runs if (longest := int(lengths[run].max())) > 0]


class _Slice:
    """A few cells in both directions.

    Letters of shapes: b cells, c chunks of q tokens, h heads of p channels, n state size. A
    leading 2 is the direction, forward then backward.
    """

    def __init__(
        self, zxbcdt: Tensor, lengths: Tensor, weights: Weights, chunk_size: int, eps: float
    ) -> None:
        self.weights = weights
        d_inner, h = weights.norm_weight.numel(), weights.dt_bias.numel()
        n = (weights.conv_bias.numel() - d_inner) // 2
        b, self.length, _ = zxbcdt.shape
        # Equal chunks waste less than full ones and a remainder: 257 tokens are 5 x 52.
        c = -(-self.length // chunk_size)
        q = -(-self.length // c)
        self.flat, self.chunks, self.heads = (2, b, c * q), (2, b, c, q), (2, b, c, q, h)
        self.widths = [d_inner, n, n]

        position = torch.arange(c * q, device=zxbcdt.device)
        self.pad = (position >= lengths[:, None])[..., None]  # (b, c * q, 1)
        self.ragged = bool((lengths < self.length).any())
        # A pad puts nothing into the state and does not let it decay.
        padded = zxbcdt.new_empty(b, c * q, zxbcdt.shape[-1])
        padded[:, : self.length] = zxbcdt
        padded[:, self.length :] = 0
        if self.ragged:
            padded.masked_fill_(self.pad, 0)
        self.z, self.xbc, dt = padded.split([d_inner, d_inner + 2 * n, h], dim=-1)
        self.gate = F.silu(self.z)
        self.raw = dt + weights.dt_bias
        self.dt = F.softplus(self.raw).masked_fill_(self.pad, 0).view(b, c, q, h, 1)

        s = torch.cumsum(self.dt[..., 0] * -weights.A_log.exp(), dim=2)
        e = F.pad(s[:, :, :-1], (0, 0, 1, 0))
        end = s[:, :, -1:]
        self.across = end.exp()[..., None]  # (b, c, 1, h, 1), over a whole chunk
        self.to_edge = torch.stack([end - s, e]).exp_()[..., None]  # (2, b, c, q, h, 1)
        self.from_edge = torch.stack([s, end - e]).exp_()[..., None]
        s, e = s.mT.contiguous(), e.mT.contiguous()
        past = torch.ones(q, q, dtype=torch.bool, device=dt.device).tril()
        exponent = torch.where(past, s[..., :, None] - s[..., None, :], e[..., None, :] - e[..., :, None])
        self.decay = exponent.exp_()  # (b, c, h, q, q), from column j to row t
        self.triangle = torch.stack([past, past.T])[:, None, None].to(dt.dtype)

        # The recurrence, chunk by chunk: what the chunk adds itself, what the entering state adds.
        self.u = self.conv()  # (2, b, c * q, d_inner + 2n), before SiLU
        x, B, C = F.silu(self.u).split(self.widths, dim=-1)
        self.x = x.unflatten(-1, (h, -1)).view(*self.heads, -1)
        self.B, self.C = B.reshape(*self.chunks, n), C.reshape(*self.chunks, n)
        self.xd = self.x * self.dt
        self.xd_heads = self.xd.transpose(-2, -3).contiguous()
        self.mixing = (self.C @ self.B.mT).mul_(self.triangle)[:, :, :, None] * self.decay
        self.xd_edge = (self.xd * self.to_edge).view(*self.chunks, d_inner)
        self.entering = self.carry(self.B.mT @ self.xd_edge, mirror=False)
        self.ssm = (self.C @ self.entering).view_as(self.xd).mul_(self.from_edge)
        self.ssm += (self.mixing @ self.xd_heads).transpose(-2, -3)
        self.y = torch.addcmul(self.ssm.view(*self.flat, -1), x, self.wide(weights.D))
        self.normed = self.y * self.gate
        norm = torch.linalg.vector_norm(self.normed, dim=-1, keepdim=True)
        self.rstd = torch.rsqrt(norm.square_() / d_inner + eps)
        self.normed *= self.rstd

    def forward(self) -> Tensor:
        """Return the gated and normed sum of both directions, ``(b, l, d_inner)``."""
        out = (self.normed[0] + self.normed[1]).mul_(self.weights.norm_weight)
        return out.masked_fill_(self.pad, 0)[:, : self.length]

    def conv(self) -> Tensor:
        """Convolve over tokens, causally and mirrored; shifted sums beat ``conv1d`` on a CPU."""
        taps = self.taps()
        out = torch.addcmul(self.weights.conv_bias, self.xbc, taps[0]).repeat(2, 1, 1, 1)
        for lag in range(1, len(taps)):
            out[0, :, lag:].addcmul_(self.xbc[:, :-lag], taps[lag])
            out[1, :, :-lag].addcmul_(self.xbc[:, lag:], taps[lag])
        return out

    def taps(self) -> Tensor:
        """Return the convolution's weights by distance, ``(width, d_inner + 2n)``."""
        return self.weights.conv_weight[:, 0].flip(1).T.contiguous()

    def wide(self, per_head: Tensor) -> Tensor:
        """Repeat ``(h,)`` for the channels of each head, ``(d_inner,)``."""
        return per_head.repeat_interleave(self.weights.norm_weight.numel() // per_head.numel())

    def carry(self, left: Tensor, mirror: bool) -> Tensor:
        """Turn what each chunk leaves behind into the state entering each chunk.

        ``left`` is ``(2, b, c, n, h * p)``. The transpose of this map, which the gradient needs,
        is the same map with the directions swapped (``mirror``).
        """
        _, b, c, q, h = self.heads
        left = left.view(2, b, c, -1, h, left.shape[-1] // h)
        entering = torch.empty_like(left)
        for direction in (0, 1):
            order = range(c - 1, -1, -1) if direction != mirror else range(c)
            entering[direction, :, order[0]] = 0
            for here, then in zip(order, order[1:], strict=False):
                state = entering[direction, :, then]
                torch.mul(entering[direction, :, here], self.across[:, here], out=state)
                state += left[direction, :, here]
        return entering.flatten(-2)

    def backward(self, grad_out: Tensor, grad_in: Tensor) -> tuple[Tensor, ...]:
        """Write the gradient of ``zxbcdt`` to ``grad_in``; return those of the weights."""
        w, flat = self.weights, self.flat
        _, b, c, q, h = self.heads
        grad_out = F.pad(grad_out, (0, 0, 0, c * q - self.length)).masked_fill_(self.pad, 0)
        grad_norm_weight = (grad_out * (self.normed[0] + self.normed[1])).sum((0, 1))
        grad_normed = grad_out * w.norm_weight

        # Norm and gate, then the transpose of the recurrence.
        dot = (grad_normed * self.normed).mean(-1, keepdim=True)
        grad_v = torch.addcmul(grad_normed, self.normed, dot, value=-1).mul_(self.rstd)
        grad_gate = (grad_v * self.y).sum(0)
        gy = grad_v.mul_(self.gate).view_as(self.xd)
        gy_heads = gy.transpose(-2, -3).contiguous()
        gy_edge = (gy * self.from_edge).view_as(self.xd_edge)
        grad_pairs = (gy_heads @ self.xd_heads.mT).mul_(self.decay).sum(3).mul_(self.triangle)
        grad_left = self.carry(self.C.mT @ gy_edge, mirror=True)
        grad_C = (grad_pairs @ self.B).add_(gy_edge @ self.entering.mT)
        grad_B = (grad_pairs.mT @ self.C).add_(self.xd_edge @ grad_left.mT)
        grad_xd = (self.B @ grad_left).view_as(self.xd).mul_(self.to_edge)
        grad_xd += (self.mixing.mT @ gy_heads).transpose(-2, -3)

        # Step sizes: directly, as dt * x, and through the decays (see the top of this file).
        grad_dt = (self.x * grad_xd).sum(-1)
        change = (gy * self.ssm).sum(-1) - grad_dt * self.dt[..., 0]
        across = self.entering[0, :, 1:] * grad_left[0, :, :-1]  # at the chunks' far edges
        across = torch.stack([across, self.entering[1, :, :-1] * grad_left[1, :, 1:]])
        across = across.unflatten(-1, (h, -1)).sum((3, 5))[..., None, :]
        grad_dtA = change[0].flip(2).cumsum(2).flip(2) + change[1].cumsum(2)
        grad_dtA[:, :-1] += across[0]
        grad_dtA[:, 1:] += across[1]
        grad_dtA, grad_dt = grad_dtA.view(b, c * q, h), grad_dt.sum(0).view(b, c * q, h)
        A = -w.A_log.exp()
        grad_A_log = (grad_dtA * self.dt.view(b, c * q, h)).sum((0, 1)) * A
        grad_raw = (grad_dt + grad_dtA * A) * torch.sigmoid(self.raw)
        grad_raw = grad_raw.masked_fill_(self.pad, 0)

        # SiLU and convolution.
        grad_D = (gy * self.x).sum((0, 1, 2, 3, 5))
        grad_x = grad_xd.mul_(self.dt).view(*flat, -1)
        grad_x.addcmul_(gy.view(*flat, -1), self.wide(w.D))
        parts = [grad_x, grad_B.view(*flat, -1), grad_C.view(*flat, -1)]
        grad_u = silu_backward(torch.cat(parts, dim=-1), self.u)
        both = grad_u[0] + grad_u[1]
        taps, grad_taps = self.taps(), [(both * self.xbc).sum((0, 1))]
        grad_xbc = both * taps[0]
        for lag in range(1, len(taps)):
            ahead, behind = grad_u[0, :, lag:], grad_u[1, :, :-lag]
            grad_xbc[:, :-lag].addcmul_(ahead, taps[lag])
            grad_xbc[:, lag:].addcmul_(behind, taps[lag])
            at_lag = ahead * self.xbc[:, :-lag]
            grad_taps.append(at_lag.addcmul_(behind, self.xbc[:, lag:]).sum((0, 1)))
        grad_conv_weight = torch.stack(grad_taps[::-1], dim=1)[:, None]

        grad_z = silu_backward(grad_gate, self.z)
        parts = [grad[:, : self.length] for grad in (grad_z, grad_xbc, grad_raw)]
        torch.cat(parts, dim=-1, out=grad_in)
        if self.ragged:
            grad_in.masked_fill_(self.pad[:, : self.length], 0)
        grad_dt_bias = grad_raw.sum((0, 1))
        grad_conv_bias = both.sum((0, 1))
        return grad_conv_weight, grad_conv_bias, grad_dt_bias, grad_A_log, grad_D, grad_norm_weight
