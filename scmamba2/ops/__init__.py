"""The one operation the model is made of: a Mamba-2 mixer that reads a cell in both directions.

Backends
--------
``"blocked"``
    Plain PyTorch with the gradient written out, fastest on a CPU; runs everywhere.
``"mamba_ssm"``
    The Triton kernels of the package mamba-ssm, for NVIDIA GPUs.
``"reference"``
    One step at a time, to test the others against.

:func:`choose` picks one and says why; the environment variable ``SCMAMBA2_BACKEND`` overrides it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from . import mamba_ssm
from .blocked import Settings, Weights, mix_blocked
from .first import mix_first
from .reference import mix_reference

__all__ = ["BACKENDS", "Weights", "bimamba2", "bimamba2_first", "choose", "fast_bfloat16"]

BACKENDS: dict[str, Callable[[Tensor, Sequence[Tensor], Tensor, Settings], Tensor]] = {
    "blocked": mix_blocked,
    "mamba_ssm": mamba_ssm.mix_mamba_ssm,
    "reference": mix_reference,
}

log = logging.getLogger("scmamba2")


def bimamba2(
    x: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None = None,
    *,
    chunk_size: int = 64,
    eps: float = 1e-5,
    forward_only: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Apply one Mamba-2 mixer to each cell and to its reversal, and add the results.

    Per direction: the input projection to [z, x, B, C, dt]; convolution and SiLU of [x, B, C]; the
    recurrence ``S_t = exp(dt_t a) S_{t-1} + dt_t x_t B_t'``, ``y_t = S_t C_t + D x_t`` with
    ``a = -exp(A_log)`` and ``dt = softplus(dt + dt_bias)``; ``RMSNorm(y * silu(z))``; the output
    projection. The result is ``M(X) + R(M(R(X)))``, where ``R`` reverses the real tokens of a cell.
    All sizes follow from the tensors' shapes.

    Under autocast the matrix products take its dtype; decays, states, norms and sums stay float32.
    float16 overflows where products pass 65,504: prefer bfloat16.

    Parameters
    ----------
    x
        ``(b, l, d_model)`` float32 or float64. Half precision is computed in float32.
    weights
        :class:`Weights`: ``in_proj`` ``(2 * d_inner + 2 * n + h, d_model)`` for state size ``n`` and
        ``h`` heads, ``conv_weight`` ``(d_inner + 2 * n, 1, width)``, ``conv_bias``
        ``(d_inner + 2 * n,)``, ``dt_bias``, ``A_log`` and ``D`` ``(h,)`` each, ``norm_weight``
        ``(d_inner,)``, ``out_proj`` ``(d_model, d_inner)``.
    lengths
        ``(b,)`` int64: real tokens per cell, the rest are pads. None: no pads. Pads never
        influence real tokens, whatever they hold, and come out as 0.
    chunk_size
        Longest chunk of the scan. Affects speed, not the result.
    eps
        Of the RMSNorm.
    forward_only
        Return ``M(X)`` alone.
    backend
        One of ``BACKENDS``, or ``"auto"``, see :func:`choose`.

    Returns
    -------
    Tensor
        ``(b, l, d_model)``, dtype of ``x``. Differentiable once.

    Raises
    ------
    ValueError
        Unknown backend, or shapes that do not fit together.

    References
    ----------
    SC-MAMBA2 preprint, bioRxiv 2024.09.30.615775; Dao & Gu 2024, Mamba-2, arXiv 2405.21060;
    mamba-ssm 2.2.2 defaults.
    """
    tensors, lengths, settings = _check(x, weights, lengths, chunk_size, eps)
    if x.numel() == 0:
        return x.clone()
    if forward_only:
        settings = settings._replace(directions=(False,))
    name = choose(x.device)[0] if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose from auto, {', '.join(BACKENDS)}")
    with torch.autocast(x.device.type, enabled=False):
        return BACKENDS[name](tensors[0], tensors[1:], lengths, settings).to(x.dtype)


def bimamba2_first(
    x: Tensor, weights: Sequence[Tensor], lengths: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Return ``bimamba2(x, weights, lengths)[:, 0]``, ``(b, d_model)``, at a fraction of the work.

    Parameters, errors and dtypes are those of :func:`bimamba2`.
    """
    tensors, lengths, settings = _check(x, weights, lengths, 64, eps)
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], x.shape[2])
    with torch.autocast(x.device.type, enabled=False):
        return mix_first(tensors[0], tensors[1:], lengths, settings).to(x.dtype)


def _check(
    x: Tensor, weights: Sequence[Tensor], lengths: Tensor | None, chunk_size: int, eps: float
) -> tuple[list[Tensor], Tensor, Settings]:
    w = Weights(*weights)
    heads, d_inner, channels = w.dt_bias.numel(), w.norm_weight.numel(), w.conv_bias.numel()
    fits = (
        x.ndim == 3
        and w.in_proj.shape == (d_inner + channels + heads, x.shape[-1])
        and w.out_proj.shape == (x.shape[-1], d_inner)
        and d_inner % heads == 0
        and w.A_log.shape == w.D.shape == w.dt_bias.shape == (heads,)
        and w.conv_weight.ndim == 3
        and w.conv_weight.shape[:2] == (channels, 1)
    )
    if not fits:
        raise ValueError(
            f"x of shape {tuple(x.shape)} and weights of shapes "
            f"{', '.join(f'{name} {tuple(t.shape)}' for name, t in w._asdict().items())} do not fit together"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    b, length, _ = x.shape
    if lengths is None:
        lengths = torch.full((b,), length, device=x.device)
    if (
        lengths.is_floating_point()
        or lengths.shape != (b,)
        or (b and (lengths.min() < 0 or lengths.max() > length))
    ):
        raise ValueError(f"lengths must hold one whole number from 0 to {length} for each of {b} sequences")
    tensors = [x, *w]
    if x.dtype in (torch.float16, torch.bfloat16):
        tensors = [t.float() for t in tensors]
    device = x.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return tensors, lengths, Settings(chunk_size, eps, products)


def fast_bfloat16(device: torch.device | str) -> bool:
    """Return whether the device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
def choose(device: torch.device | str) -> tuple[str, str]:
    """Return the backend for a device, and why; the first call per device logs it.

    Raises
    ------
    ValueError
        If ``SCMAMBA2_BACKEND`` names no backend.
    """
    kind = torch.device(device).type
    wish = os.environ.get("SCMAMBA2_BACKEND", "auto")
    if wish != "auto":
        if wish not in BACKENDS:
            raise ValueError(f"SCMAMBA2_BACKEND is {wish!r}: choose from auto, {', '.join(BACKENDS)}")
        name, why = wish, "SCMAMBA2_BACKEND says so"
    elif kind != "cuda":
        name, why = "blocked", f"the device is {kind}"
    elif (problem := mamba_ssm.missing()) is None:
        name, why = "mamba_ssm", "the device is cuda and mamba-ssm's Triton kernels import"
    else:
        name, why = "blocked", f"mamba-ssm's Triton kernels do not import ({problem})"
        log.warning("slow path on the GPU: %s; pip install mamba-ssm", why)
    log.info("backend %s: %s", name, why)
    return name, why
