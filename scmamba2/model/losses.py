"""The terms of the objective, over hidden positions only. Cross-entropy is PyTorch's own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["nonzero_nll", "squared_error"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of ``(m,)`` hidden values; 0 if there is none."""
    return F.mse_loss(prediction, target, reduction="sum") / max(1, target.numel())


def nonzero_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of "the target is not zero", ``(m,)`` each.

    The probability of a *non-zero* target is ``sigmoid(logits)``. 0 if there is no target.
    """
    seen = (target > 0).to(logits)
    nll = F.binary_cross_entropy_with_logits(logits, seen, reduction="sum")
    return nll / max(1, target.numel())
