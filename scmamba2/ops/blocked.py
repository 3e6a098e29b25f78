"""The mixer in plain PyTorch, block by block, with its gradient written out. The default on a CPU.

Both directions share the two projections, the step sizes ``dt`` and every decay derived from them.
Write ``s`` for the sum of ``dt * A`` over a chunk's tokens up to and including the current one, ``e``
for the same sum without the current one, ``end`` for the sum over the whole chunk. Then

====================================  ========================  ==========================
                                      forward                   backward
====================================  ========================  ==========================
taps of the convolution               tokens t-3 .. t           tokens t .. t+3, mirrored
decay from token j to token t         exp(s_t - s_j), j <= t    exp(e_j - e_t), j >= t
decay from token j to the far edge    exp(end - s_j)            exp(e_j)
decay of the entering state at t      exp(s_t)                  exp(end - e_t)
order of the chunks                   left to right             right to left
====================================  ========================  ==========================

and nothing is ever reversed. The chunked form is that of Dao & Gu 2024, Mamba-2, arXiv 2405.21060,
section 6. Three things make it fast:

* Work goes through blocks of a few chunks, or of a few short cells, that stay in a core's cache.
* ``exp(s_t - s_j)`` is the product of ``exp(s_t - end / 2)`` and ``exp(end / 2 - s_j)``: all heads share
  one matrix ``C B'`` and every product is a large one. Where ``end / 2`` passes ``HALF_RANGE`` for some
  chunk, the factors could overflow and the decays are formed for each pair of tokens instead.
* The gradient computes a block a second time instead of storing it; only the states at the edges of the
  blocks and, for small inputs, the input projection are kept. The gradient of a step's decay is summed
  over what crosses that step; the shorter ``dy_t . y_t - x_t . dx_t`` loses all digits in bfloat16.

Cells are independent, so slices of them, if there are enough, run in as many threads as PyTorch has.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK_ELEMENTS = 1 << 18
"""Size of a block's ``(cells, tokens, d_inner)``: 1 MB of float32, a core's cache."""

KEEP_ELEMENTS = 1 << 24
"""Size of ``(b, l, d_inner)`` up to which the input projection is kept for the gradient."""

PIECE_TOKENS = 2048
"""Tokens that a projection takes at a time."""

HALF_RANGE = 60.0
"""Largest exponent of a factor. exp overflows float32 above 88 and loses digits below -87; what is left is
room for the values that the factors multiply, and for small gradients."""

Result = TypeVar("Result")
silu_backward = torch.ops.aten.silu_backward

# glibc hands freed memory back to the system, to be faulted in again page by page, beyond a threshold that
# follows the largest block ever freed, up to 32 MB. One such block halves the time of short cells.
torch.empty(31 << 20, dtype=torch.uint8)


class Weights(NamedTuple):
    in_proj: Tensor  # (2 * d_inner + 2n + h, d_model)
    conv_weight: Tensor  # (d_inner + 2n, 1, width)
    conv_bias: Tensor  # (d_inner + 2n)
    dt_bias: Tensor  # (h)
    A_log: Tensor  # (h)
    D: Tensor  # (h)
    norm_weight: Tensor  # (d_inner)
    out_proj: Tensor  # (d_model, d_inner)


class Settings(NamedTuple):
    chunk_size: int
    eps: float
    products: torch.dtype  # of the operands of matrix products
    directions: tuple[bool, ...] = (False, True)  # whether mirrored


def mix_blocked(x: Tensor, weights: Sequence[Tensor], lengths: Tensor, settings: Settings) -> Tensor:
    """See :func:`scmamba2.ops.bimamba2`; this is its ``"blocked"`` backend."""
    train = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    return _BiMamba2.apply(x, lengths, settings, train, *weights)


class _BiMamba2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lengths: Tensor, settings: Settings, train: bool, *tensors: Tensor
    ) -> Tensor:
        w = Weights(*tensors)
        out = x.new_zeros(x.shape)
        ctx.keep = train and x.shape[0] * x.shape[1] * w.norm_weight.numel() <= KEEP_ELEMENTS

        def run(cells: slice, longest: int) -> list[Tensor]:
            part = _Slice(x[cells, :longest], lengths[cells], w, settings)
            normed, edges = part.forward(out[cells, :longest], train)
            return [part.zxbcdt, normed, *edges] if ctx.keep else edges

        kept = list(_in_threads(run, _slices(x, lengths, w)))
        # Saved the official way, activation checkpointing can drop them.
        ctx.save_for_backward(x, lengths, *tensors, *(t for tensors in kept for t in tensors))
        ctx.settings, ctx.counts = settings, [len(tensors) for tensors in kept]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, lengths, *tensors = ctx.saved_tensors
        w, rest = Weights(*tensors[: len(Weights._fields)]), iter(tensors[len(Weights._fields) :])
        kept = [[next(rest) for _ in range(count)] for count in ctx.counts]
        grad_x = torch.zeros_like(x)

        def run(cells: slice, longest: int, tensors: list[Tensor]) -> Weights:
            zxbcdt, normed = tensors[:2] if ctx.keep else (None, None)
            edges = tensors[2:] if ctx.keep else tensors
            part = _Slice(x[cells, :longest], lengths[cells], w, ctx.settings, zxbcdt)
            return part.backward(grad_out[cells, :longest], normed, edges, grad_x[cells, :longest])

        slices = _slices(x, lengths, w)
        grads = _in_threads(run, [(*where, part) for where, part in zip(slices, kept, strict=True)])
        totals = [torch.zeros_like(t) for t in w]
        for grad in grads:
            for total, part in zip(totals, grad, strict=True):
                total += part
        return grad_x, None, None, None, *totals


def _slices(x: Tensor, lengths: Tensor, w: Weights) -> list[tuple[slice, int]]:
    """Cut a mini-batch into runs of cells, each with its longest length; leave out empty runs."""
    b, length, _ = x.shape
    on_cpu = x.device.type == "cpu"
    step = max(1, BLOCK_ELEMENTS // (length * w.norm_weight.numel())) if on_cpu else b
    runs = [slice(i, i + step) for i in range(0, b, step)]
    return [(run, longest) for run in runs if (longest := int(lengths[run].max())) > 0]


def _in_threads(function: Callable[..., Result], items: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
    """Yield ``function(*item)`` for each item; in threads, if there is work for them."""
    workers, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def call(item: tuple[Any, ...]) -> Result:
        # Modes belong to a thread. Nothing in here is recorded: the gradient is written out.
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
            return function(*item)

    if workers == 1 or len(items) < max(2, workers // 2):
        yield from map(call, items)
    else:
        yield from _pool(workers, os.getpid()).map(call, items)


@lru_cache(maxsize=1)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Return a pool; the threads of another ``process`` are not there after a fork."""
    ready = threading.Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # takes effect here, before it is taken back for others
        ready.wait()

    pool = ThreadPoolExecutor(workers, "scmamba2", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(workers)  # the last word on this is the default of threads to come
    return pool


class _Slice:
    """A few cells: what both directions share, and the walk over blocks.

    Letters of shapes: b cells, c chunks of q tokens, h heads of p channels, n state size.
    """

    def __init__(
        self, x: Tensor, lengths: Tensor, w: Weights, settings: Settings, zxbcdt: Tensor | None = None
    ) -> None:
        self.w, self.settings, self.inference = w, settings, False
        b, length, _ = x.shape
        d_inner, h = w.norm_weight.numel(), w.dt_bias.numel()
        # Equal chunks waste less than full ones and a remainder: 257 tokens are 5 x 52.
        c = -(-length // settings.chunk_size)
        q = -(-length // c)
        self.b, self.c, self.q, self.h, self.rows, self.length = b, c, q, h, c * q, length
        self.d_inner, self.n = d_inner, (w.conv_bias.numel() - d_inner) // 2
        self.pad = (torch.arange(c * q, device=x.device) >= lengths[:, None])[..., None]  # (b, rows, 1)
        self.ragged = bool((lengths < length).any())

        # A pad puts nothing into the state and does not let it decay.
        self.x = x = x.masked_fill(self.pad[:, :length], 0) if self.ragged else x
        if zxbcdt is None:
            zxbcdt = x.new_empty(b, c * q, w.in_proj.shape[0])
            self.product(x, w.in_proj.T, zxbcdt[:, :length])
            zxbcdt[:, length:] = 0
            if settings.products != x.dtype:  # steps stand in exponents: keep their digits
                zxbcdt[:, :length, -h:] = x @ w.in_proj[-h:].T
        self.zxbcdt = zxbcdt
        self.z, self.xbc, dt = zxbcdt.split([d_inner, d_inner + 2 * self.n, h], dim=-1)
        self.raw = dt + w.dt_bias
        self.dt = F.softplus(self.raw).masked_fill_(self.pad, 0).view(b, c, q, h)
        self.A = -w.A_log.exp()
        # Sums reach 100 and more: float32 would leave their differences 5 digits.
        s = (self.dt * self.A).double().cumsum(2)
        e = F.pad(s[:, :, :-1], (0, 0, 1, 0))
        end = s[:, :, -1:]
        # float16 ends at 65,504.
        self.factorised = settings.products != torch.float16 and bool(end.min() > -2 * HALF_RANGE)
        if self.factorised:
            half = end / 2
            self.kept = torch.ones_like(end, dtype=x.dtype)
            self.edge = self.wide(half.exp())[:, :, 0].to(x.dtype)  # from an edge to the middle
            inward, outward = (half - s, e - half), (s - half, half - e)  # between token and middle
        else:
            self.kept = end.exp().to(x.dtype)
            self.across = self.wide(self.kept)[:, :, 0]  # (b, c, d_inner), over a whole chunk
            inward, outward = (end - s, e), (s, end - e)  # to the far edge, from the near one
            self.sums = s, e
        self.inward, self.outward = ([d.exp().to(x.dtype) for d in way] for way in (inward, outward))
        self.taps = w.conv_weight[:, 0].flip(1).T.contiguous()  # (width, d_inner + 2n), by distance
        self.D = self.wide(w.D)
        tokens = max(1, BLOCK_ELEMENTS // (b * d_inner)) if x.device.type == "cpu" else self.rows
        step = max(1, tokens // q)
        self.blocks = [(i, min(i + step, c)) for i in range(0, c, step)]
        ones = torch.ones(q, q, dtype=torch.bool, device=x.device)
        self.triangles = ones.tril(), ones.triu()
        # The norm's weight moves into the projection that follows.
        self.out_proj = w.out_proj * w.norm_weight

    def wide(self, per_head: Tensor) -> Tensor:
        """Repeat the last axis, h, for the channels of each head."""
        return per_head.repeat_interleave(self.d_inner // self.h, dim=-1)

    def product(self, a: Tensor, matrix: Tensor, out: Tensor) -> None:
        """Write ``a @ matrix``, ``(b, l, k)`` by ``(k, m)``, in the dtype of products."""
        matrix = matrix.to(self.settings.products)
        if self.b == 1 and matrix.dtype == a.dtype:
            torch.mm(a[0], matrix, out=out[0])
            return
        for tokens in self.pieces(a):
            out[:, tokens] = a[:, tokens].to(matrix.dtype) @ matrix

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum ``left' right`` over all tokens, ``(b, l, k)`` and ``(b, l, m)`` to ``(k, m)``, alike."""
        total = left.new_zeros(left.shape[-1], right.shape[-1])
        for tokens in self.pieces(left):
            a, b = (t[:, tokens].flatten(0, 1).to(self.settings.products) for t in (left, right))
            total += a.T @ b
        return total

    def pieces(self, a: Tensor) -> list[slice]:
        """Cut the tokens, so that copies stay small."""
        step = max(1, PIECE_TOKENS // self.b) if a.device.type == "cpu" else a.shape[1]
        return [slice(i, i + step) for i in range(0, a.shape[1], step)]

    def walk(self, mirror: bool) -> list[tuple[int, int]]:
        return self.blocks[::-1] if mirror else self.blocks

    def forward(self, out: Tensor, train: bool) -> tuple[Tensor, list[Tensor]]:
        """Write the output ``(b, l, d_model)``.

        Return what enters the output projection, ``(b, rows, d_inner)``, and to ``train`` the states
        between the blocks of each direction in the order of its walk, ``(blocks - 1, b, n, d_inner)``.
        """
        normed = self.x.new_empty(self.b, self.rows, self.d_inner)
        edges = []
        if not train:
            self.inference = True  # nothing is needed twice: overwrite
            F.silu(self.z, inplace=True)
        for mirror in self.settings.directions:
            state = self.x.new_zeros(self.b, self.n, self.d_inner)
            leaving: list[Tensor] = []
            for first, last in self.walk(mirror):
                block = _Block(self, mirror, first, last, state)
                rows = normed[:, first * self.q : last * self.q]
                if mirror:
                    rows += block.normed
                else:
                    rows.copy_(block.normed)
                state = block.leaving
                if train and len(leaving) + 1 < len(self.blocks):
                    leaving.append(state)
            if train:
                edges.append(torch.stack(leaving) if leaving else state.new_empty(0, *state.shape))
        if self.ragged:
            normed.masked_fill_(self.pad, 0)
        self.product(normed[:, : self.length], self.out_proj.T, out)
        return normed, edges

    def backward(
        self, grad_out: Tensor, normed: Tensor | None, edges: list[Tensor], grad_x: Tensor
    ) -> Weights:
        """Write the gradient of ``x``; return those of the weights.

        Without ``normed``, its gradient and its share in the weights' are taken block by block and
        for each direction, at twice the work and none of the memory.
        """
        w, b, c, q, h = self.w, self.b, self.c, self.q, self.h
        if self.ragged:
            grad_out = grad_out.masked_fill(self.pad[:, : self.length], 0)
        grad_out = F.pad(grad_out, (0, 0, 0, self.rows - self.length))
        grad_in = self.x.new_zeros(self.zxbcdt.shape)
        grads = _Gradients(self, grad_in)
        folded = torch.zeros_like(self.out_proj)  # the gradient of out_proj * norm_weight
        if normed is not None:
            grad_all = torch.empty_like(normed)
            self.product(grad_out, self.out_proj, grad_all)
            folded += self.outer(grad_out, normed)
        for mirror in self.settings.directions:
            grad_state = self.x.new_zeros(b, self.n, self.d_inner)
            states = [torch.zeros_like(grad_state), *edges[mirror].unbind()][::-1]
            for (first, last), state in zip(self.walk(not mirror), states, strict=True):
                block = _Block(self, mirror, first, last, state)
                rows = slice(first * q, last * q)
                if normed is not None:
                    grad_normed = grad_all[:, rows]
                else:
                    grad_normed = torch.empty_like(block.normed)
                    self.product(grad_out[:, rows], self.out_proj, grad_normed)
                    folded += self.outer(grad_out[:, rows], block.normed)
                grad_state = block.backward(grad_normed, grad_state, grads)

        silu_backward.grad_input(grads.gate, self.z, grad_input=grads.gate)
        grad_dtA, grad_dt = (g.view(b, c * q, h) for g in (grads.dtA, grads.dt))
        grad_raw = (grad_dt + grad_dtA * self.A) * torch.sigmoid(self.raw)
        grad_in[..., -h:] = grad_raw.masked_fill_(self.pad, 0)
        if self.ragged:
            grad_in.masked_fill_(self.pad, 0)
        real = grad_in[:, : self.length]
        self.product(real, w.in_proj, grad_x)
        return Weights(
            in_proj=self.outer(real, self.x),
            conv_weight=grads.taps.flip(0).T[:, None],
            conv_bias=grads.conv_bias,
            dt_bias=grad_raw.sum((0, 1)),
            A_log=(grad_dtA * self.dt.view(b, c * q, h)).sum((0, 1)) * self.A,
            D=grads.D,
            norm_weight=(folded * w.out_proj).sum(0),
            out_proj=folded * w.norm_weight,
        )


class _Gradients:
    """Where the blocks of a slice add up what they find."""

    def __init__(self, part: _Slice, grad_in: Tensor) -> None:
        self.gate, self.xbc, _ = grad_in.split([part.d_inner, part.xbc.shape[-1], part.h], dim=-1)
        self.dt, self.dtA = torch.zeros_like(part.dt), torch.zeros_like(part.dt)
        self.taps, self.conv_bias = torch.zeros_like(part.taps), torch.zeros_like(part.w.conv_bias)
        self.D = torch.zeros_like(part.w.D)


class _Block:
    """Chunks ``first`` to ``last`` of a slice in one direction, and the state that enters them."""

    def __init__(self, part: _Slice, mirror: bool, first: int, last: int, state: Tensor) -> None:
        self.part, self.mirror, self.chunks = part, mirror, slice(first, last)
        self.start, self.stop = first * part.q, last * part.q
        kind = part.settings.products
        b, c, q, h, n, d_inner = part.b, last - first, part.q, part.h, part.n, part.d_inner
        self.tokens, self.heads, self.flat = (b, c * q, h, -1), (b, c, q, h, -1), (b * c, q, -1)
        self.rows = slice(self.start, self.stop)

        self.u = torch.addcmul(part.w.conv_bias, part.xbc[:, self.rows], part.taps[0])
        for lag, (mine, theirs) in self.shifts():
            self.u[:, mine].addcmul_(part.xbc[:, theirs], part.taps[lag])
        x, B, C = F.silu(self.u, inplace=part.inference).split([d_inner, n, n], dim=-1)
        self.x = x.view(self.tokens)
        self.B, self.C = (m.reshape(b * c, q, n).to(kind) for m in (B, C))
        self.inward, self.outward = (
            w[mirror][:, self.chunks].reshape(b, c * q, h, 1) for w in (part.inward, part.outward)
        )
        self.dt = part.dt[:, self.chunks].reshape(b, c * q, h, 1)

        # The recurrence: what each chunk adds to the state, the state that enters each chunk.
        self.xs = (self.x * (self.dt * self.inward)).view(self.flat).to(kind)
        self.total = (self.B.mT @ self.xs).to(x.dtype).view(b, c, n, d_inner)
        self.entering = torch.empty_like(self.total)
        for i in range(c - 1, -1, -1) if mirror else range(c):
            if part.factorised:
                edge = part.edge[:, first + i, None]
                torch.mul(state, edge, out=self.entering[:, i])
                state = self.total[:, i].add_(self.entering[:, i]) * edge
            else:
                self.entering[:, i] = state
                state = self.total[:, i].addcmul_(state, part.across[:, first + i, None])
        self.leaving = state if part.factorised else state.clone()  # not a view that holds the block

        self.entered = self.entering.view(b * c, n, d_inner).to(kind)
        self.carried = self.C @ self.entered
        self.pairs = self.triangle(self.C @ self.B.mT)
        if part.factorised:
            ssm = self.carried if part.inference else self.carried.clone()
            ssm = ssm.baddbmm_(self.pairs, self.xs).to(x.dtype)
            self.ssm = ssm.view(self.tokens) * self.outward
        else:
            s, e = (a[:, self.chunks].mT for a in part.sums)  # (b, c, h, q)
            exponent = e[..., None, :] - e[..., :, None] if mirror else s[..., :, None] - s[..., None, :]
            exponent = exponent.to(x.dtype).masked_fill_(~part.triangles[mirror], -torch.inf)
            self.decay = exponent.exp_()  # (b, c, h, q, q), from column j to row t
            self.mixing = (self.pairs.view(b, c, 1, q, q) * self.decay).to(kind)
            self.xd = (self.x * self.dt).view(self.heads).transpose(2, 3).to(kind)
            self.ssm = self.carried.to(x.dtype).view(self.tokens) * self.outward
            self.ssm.view(self.heads).add_((self.mixing @ self.xd).transpose(2, 3))
        self.y = torch.addcmul(self.ssm.view(b, c * q, d_inner), x, part.D)
        self.gate = part.z[:, self.rows] if part.inference else F.silu(part.z[:, self.rows])
        self.normed = self.y * self.gate
        norm = torch.linalg.vector_norm(self.normed, dim=-1, keepdim=True)
        self.rstd = torch.rsqrt(norm.square_() / d_inner + part.settings.eps)
        self.normed *= self.rstd

    def shifts(self) -> list[tuple[int, tuple[slice, slice]]]:
        """Return, per lag of the convolution, rows of this block and the rows of the slice they read."""
        start, stop, found = self.start, self.stop, []
        for lag in range(1, len(self.part.taps)):
            lag_low, lag_high = (0, lag) if self.mirror else (lag, 0)
            low, high = max(start, lag_low), min(stop, self.part.rows - lag_high)
            shift = lag if self.mirror else -lag
            if low < high:
                found.append((lag, (slice(low - start, high - start), slice(low + shift, high + shift))))
        return found

    def triangle(self, pairs: Tensor) -> Tensor:
        return pairs.triu_() if self.mirror else pairs.tril_()

    def backward(self, grad_normed: Tensor, grad_state: Tensor, grads: _Gradients) -> Tensor:
        """Add to ``grads``; take the gradient of the leaving state, return that of the entering one."""
        part, rows = self.part, self.rows
        kind, real = part.settings.products, self.y.dtype
        b, c, q, h, n, d_inner = part.b, self.entering.shape[1], part.q, part.h, part.n, part.d_inner

        # Norm and gate.
        dot = (grad_normed * self.normed).mean(-1, keepdim=True)
        grad_v = torch.addcmul(grad_normed, self.normed, dot, value=-1).mul_(self.rstd)
        grads.gate[:, rows].addcmul_(grad_v, self.y)
        gy = grad_v.mul_(self.gate).view(self.tokens)
        gY = (gy * self.outward).view(self.flat).to(kind)

        # The recurrence, against its direction.
        into = (self.C.mT @ gY).to(real).view(self.entering.shape)
        grad_total = torch.empty_like(into)
        for i in range(c) if self.mirror else range(c - 1, -1, -1):
            if part.factorised:
                edge = part.edge[:, self.chunks.start + i, None]
                torch.mul(grad_state, edge, out=grad_total[:, i])
                grad_state = (grad_total[:, i] + into[:, i]).mul_(edge)
            else:
                grad_total[:, i] = grad_state
                across = part.across[:, self.chunks.start + i, None]
                grad_state = torch.addcmul(into[:, i], grad_state, across)
        grad_added = grad_total.view(b * c, n, d_inner).to(kind)
        added = self.B @ grad_added
        if part.factorised:
            grad_heads = gY.view(self.heads).transpose(2, 3) @ self.xs.view(self.heads).permute(0, 1, 3, 4, 2)
            grad_heads = self.triangle(grad_heads.to(real))  # (b, c, h, q, q)
            grad_xd = torch.baddbmm(added, self.pairs.mT, gY).to(real).view(self.tokens) * self.inward
        else:
            gy_heads = gy.view(self.heads).transpose(2, 3).to(kind)
            grad_heads = (gy_heads @ self.xd.mT).to(real).mul_(self.decay)
            grad_xd = added.to(real).view(self.tokens) * self.inward
            grad_xd.view(self.heads).add_((self.mixing.mT @ gy_heads).transpose(2, 3))
        grad_pairs = grad_heads.sum(2).view(b * c, q, q).to(kind)
        grad_C = torch.baddbmm(gY @ self.entered.mT, grad_pairs, self.B)
        grad_B = torch.baddbmm(self.xs @ grad_added.mT, grad_pairs.mT, self.C)

        # Step sizes: directly, as dt * x, and through every decay across them: from token to token,
        # from the entering state to a token, from a token to the leaving state, from state to state.
        grads.dt[:, self.chunks] += (self.x * grad_xd).sum(-1).view(b, c, q, h)
        others = self.pairs.triu(1) if self.mirror else self.pairs.tril(-1)
        grad_heads.mul_(others.view(b, c, 1, q, q))
        change = (grad_heads.sum(-1) - grad_heads.sum(-2)).mT
        change += (gY * self.carried).view(self.heads).sum(-1, dtype=real)
        leaves = (self.xs * added).view(self.heads).sum(-1, dtype=real)
        across = (grad_total * self.entering).view(b, c, n, h, -1).sum((2, 4))
        across = across[:, :, None] * part.kept[:, self.chunks]
        if self.mirror:
            grad_dtA = change.cumsum(2) + (leaves.flip(2).cumsum(2).flip(2) - leaves)
        else:
            grad_dtA = change.flip(2).cumsum(2).flip(2) + (leaves.cumsum(2) - leaves)
        grads.dtA[:, self.chunks] += grad_dtA + across
        grads.D += (gy * self.x).sum((0, 1, 3))

        # SiLU and convolution.
        grad_u = torch.empty_like(self.u)
        gx, gB, gC = grad_u.split([d_inner, n, n], dim=-1)
        torch.mul(grad_xd, self.dt, out=gx.view(self.tokens))
        gx.addcmul_(gy.view(b, c * q, d_inner), part.D)
        gB.copy_(grad_B.view(b, c * q, n))
        gC.copy_(grad_C.view(b, c * q, n))
        grad_u = silu_backward(grad_u, self.u)
        grads.conv_bias += grad_u.sum((0, 1))
        grads.taps[0] += (grad_u * part.xbc[:, rows]).sum((0, 1))
        grads.xbc[:, rows].addcmul_(grad_u, part.taps[0])
        for lag, (mine, theirs) in self.shifts():
            grads.taps[lag] += (grad_u[:, mine] * part.xbc[:, theirs]).sum((0, 1))
            grads.xbc[:, theirs].addcmul_(grad_u[:, mine], part.taps[lag])
        return grad_state
