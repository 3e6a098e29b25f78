"""The one operation the model is made of: a Mamba-2 core that reads a cell in both directions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .chunked import bissd_chunked
from .reference import bissd_reference

__all__ = ["BACKENDS", "bissd"]

BACKENDS: dict[str, Callable[..., Tensor]] = {
    "chunked": bissd_chunked,
    "reference": bissd_reference,
}


def bissd(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    lengths: Tensor | None = None,
    *,
    chunk_size: int = 64,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Apply one Mamba-2 core to a sequence and to its reversal, and add the results.

    Per direction: convolution and SiLU of [x, B, C]; the recurrence
    ``S_t = exp(dt_t a) S_{t-1} + dt_t x_t B_t'``, ``y_t = S_t C_t + D x_t`` with
    ``a = -exp(A_log)`` and ``dt = softplus(dt + dt_bias)``; then ``RMSNorm(y * silu(z))``.
    The result is ``n_f + R(n_b)``, where ``R`` reverses the real tokens of a cell. The output
    projection is linear, so the SC-MAMBA2 layer is ``X + W_out(result) / 2``: the projections
    are computed once, not once per direction. All sizes follow from the tensors' shapes.

    Parameters
    ----------
    zxbcdt
        ``(b, l, 2 * d_inner + 2 * n + h)`` float: the input projection, in the order z, x, B, C,
        dt, for state size ``n`` and ``h`` heads.
    conv_weight, conv_bias
        ``(d_inner + 2 * n, 1, width)`` and ``(d_inner + 2 * n,)``.
    dt_bias, A_log, D
        ``(h,)`` each.
    norm_weight
        ``(d_inner,)``.
    lengths
        ``(b,)`` int64: real tokens per cell, the rest are pads. None: no pads. Pads never
        influence real tokens, whatever they hold, and come out as 0.
    chunk_size
        Longest chunk of the chunked backend. No effect on the result.
    eps
        Of the RMSNorm.
    backend
        ``"chunked"``, ``"reference"`` (sequential, slow) or ``"auto"``, which is chunked.

    Returns
    -------
    Tensor
        ``(b, l, d_inner)``, dtype of ``zxbcdt``. Half precision is computed in float32.

    Raises
    ------
    ValueError
        Unknown backend, or shapes that do not fit together.

    References
    ----------
    SC-MAMBA2 preprint, bioRxiv 2024.09.30.615775; Dao & Gu 2024, Mamba-2, arXiv 2405.21060;
    mamba-ssm 2.2.2 defaults.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose from auto, {', '.join(BACKENDS)}")
    heads, d_inner, channels = dt_bias.numel(), norm_weight.numel(), conv_bias.numel()
    if zxbcdt.ndim != 3 or zxbcdt.shape[-1] != d_inner + channels + heads or d_inner % heads:
        raise ValueError(
            f"zxbcdt of shape {tuple(zxbcdt.shape)} does not fit {d_inner} inner channels, "
            f"{channels} convolution channels and {heads} heads"
        )
    b, length, _ = zxbcdt.shape
    if lengths is None:
        lengths = torch.full((b,), length, device=zxbcdt.device)
    if lengths.shape != (b,) or (b and (lengths.min() < 0 or lengths.max() > length)):
        raise ValueError(f"lengths must hold one number from 0 to {length} for each of {b} sequences")
    tensors = [zxbcdt, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight]
    if zxbcdt.dtype in (torch.float16, torch.bfloat16):
        tensors = [t.float() for t in tensors]
    if 0 in (b, length):
        return zxbcdt[..., :d_inner].clone()
    run = BACKENDS["chunked" if backend == "auto" else backend]
    return run(*tensors, lengths, chunk_size, eps).to(zxbcdt.dtype)
