"""What is read off the backbone: expression values, classes, batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AffineDecoder", "BatchDiscriminator", "CellDecoder", "Classifier", "ExpressionDecoder"]


def _network(d_in: int, d_model: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_in, d_model),
        nn.LeakyReLU(),
        nn.Linear(d_model, d_model),
        nn.LeakyReLU(),
        nn.Linear(d_model, 1),
    )


class ExpressionDecoder(nn.Module):
    """Predict a value from a token's hidden state (GEP)."""

    def __init__(self, d_in: int, d_model: int, explicit_zeros: bool) -> None:
        super().__init__()
        self.fc = _network(d_in, d_model)
        self.zero_logit = _network(d_in, d_model) if explicit_zeros else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map ``(..., d_in)`` to values and to the logits of being non-zero, ``(...)`` each."""
        nonzero = None if self.zero_logit is None else self.zero_logit(x).squeeze(-1)
        return self.fc(x).squeeze(-1), nonzero


class AffineDecoder(nn.Module):
    """Predict a perturbed value from the control's: alpha(h) x + beta(h), without an activation.

    With ``scale_bias``, beta is multiplied by the mean of the cell's non-zero control values.
    """

    def __init__(self, d_model: int, explicit_zeros: bool, scale_bias: bool) -> None:
        super().__init__()
        self.coeff_decoder = ExpressionDecoder(d_model, d_model, explicit_zeros)
        self.bias_decoder = ExpressionDecoder(d_model, d_model, explicit_zeros)
        self.scale_bias = scale_bias

    def forward(self, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map states ``(b, T, d_model)`` and control values ``(b, T)`` to values and logits.

        The logits of being non-zero, ``(b, T)`` or None, are those of the coefficient's decoder.
        """
        alpha, nonzero = self.coeff_decoder(x)
        beta, _ = self.bias_decoder(x)
        if self.scale_bias:
            seen = (values != 0).sum(1, keepdim=True).clamp(min=1)
            beta = beta * (values.sum(1, keepdim=True) / seen)
        return alpha * values + beta, nonzero


class CellDecoder(nn.Module):
    """Predict a value from the cell embedding and the gene alone (GEPC, or MVC).

    With q = sigmoid(gene2query(gene)), the value is (W q) . cell.
    """

    def __init__(self, d_in: int, explicit_zeros: bool) -> None:
        super().__init__()
        self.gene2query = nn.Linear(d_in, d_in)
        self.W = nn.Linear(d_in, d_in, bias=False)
        self.W_zero_logit = nn.Linear(d_in, d_in) if explicit_zeros else None

    def forward(self, gene: Tensor, cell: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map genes and their cells ``(..., d_in)`` to values and logits of being non-zero."""
        query = torch.sigmoid(self.gene2query(gene))
        zero = self.W_zero_logit
        nonzero = None if zero is None else (zero(query) * cell).sum(-1)
        return (self.W(query) * cell).sum(-1), nonzero


class Classifier(nn.Module):
    """Two blocks and a linear layer on the cell embedding."""

    def __init__(self, d_model: int, n_classes: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        blocks = [(nn.Linear(d_model, d_model), activation(), nn.LayerNorm(d_model)) for _ in "12"]
        self._decoder = nn.Sequential(*blocks[0], *blocks[1])
        self.out_layer = nn.Linear(d_model, n_classes)

    def forward(self, cell: Tensor) -> Tensor:
        """Map ``(b, d_model)`` to logits ``(b, n_classes)``."""
        return self.out_layer(self._decoder(cell))


class BatchDiscriminator(Classifier):
    """Guess a cell's batch; the gradient into the cell embedding is reversed (DAR)."""

    def __init__(self, d_model: int, n_batches: int) -> None:
        super().__init__(d_model, n_batches, activation=nn.LeakyReLU)

    def forward(self, cell: Tensor) -> Tensor:
        """Map ``(b, d_model)`` to logits ``(b, n_batches)``."""
        return super().forward(_ReverseGradient.apply(cell))


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad
