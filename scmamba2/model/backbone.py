"""The stack of bidirectional layers."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import Config
from .mixer import BiMamba2

__all__ = ["Backbone", "Layer"]


class Layer(nn.Module):
    """Join F(X) = M(X) + X of both directions: there is no other norm, no feed-forward network.

    With Y = M(X) + R(M(R(X))), ``combine`` gives X + Y / 2 for ``"mean"``, 2 X + Y for ``"sum"``
    and X + Y for ``"sum_residual_once"``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mamba = BiMamba2(config)
        factors = {"mean": (1.0, 0.5), "sum": (2.0, 1.0), "sum_residual_once": (1.0, 1.0)}
        self.residual, self.mixed = factors[config.combine]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape."""
        return self.residual * x + self.mixed * self.mamba(x, lengths)


class Backbone(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape."""
        for layer in self.layers:
            x = layer(x, lengths)
        return x
