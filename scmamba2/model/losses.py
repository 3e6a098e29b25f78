"""The terms of the objective. Cross-entropy is PyTorch's own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["masked_mse", "masked_nonzero_nll"]


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the squared error averaged over the masked positions; 0 if there is none."""
    squared = F.mse_loss(prediction, target, reduction="none")
    return (squared * mask).sum() / mask.sum().clamp(min=1)


def masked_nonzero_nll(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of "the target is not zero" over the mask.

    The probability of a *non-zero* target is ``sigmoid(logits)``.
    """
    nll = F.binary_cross_entropy_with_logits(logits, (target > 0).to(logits), reduction="none")
    return (nll * mask).sum() / mask.sum().clamp(min=1)
