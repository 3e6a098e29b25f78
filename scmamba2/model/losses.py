"""The terms of the objective. Cross-entropy (classes, batches) is PyTorch's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["elastic_similarity", "nonzero_nll", "squared_error"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of ``(m,)`` values; 0 if there is none.

    The values are the hidden ones (GEP, GEPC), or all of them (perturbation).
    """
    return F.mse_loss(prediction, target, reduction="sum") / max(1, target.numel())


def nonzero_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of "the target is not zero", ``(m,)`` each.

    The probability of a *non-zero* target is ``sigmoid(logits)``. 0 if there is no target.
    """
    seen = (target > 0).to(logits)
    nll = F.binary_cross_entropy_with_logits(logits, seen, reduction="sum")
    return nll / max(1, target.numel())


def elastic_similarity(cells: Tensor, threshold: float = 0.8) -> Tensor:
    """Return the elastic cell similarity loss (ECS) of cell embeddings ``(b, d_model)``.

    The mean over all b * b pairs of ``1 - (max(0, cosine) - threshold)^2``, the cosine of a cell
    with itself taken as 0: pairs above the threshold are drawn together, others pushed apart.
    From scGPT (Cui et al. 2024, Nature Methods); configured, never computed in SC-MAMBA2's code.
    """
    unit = F.normalize(cells, dim=-1)
    cosine = unit @ unit.T
    cosine = cosine.masked_fill(torch.eye(len(cells), dtype=torch.bool, device=cells.device), 0)
    return (1 - (torch.relu(cosine) - threshold).square()).mean()
