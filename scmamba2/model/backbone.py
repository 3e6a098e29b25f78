"""The stack of bidirectional layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Config
from .mixer import BiMamba2

__all__ = ["Backbone", "Layer"]


class Layer(nn.Module):
    """Join F(X) = M(X) + X of both directions: there is no other norm, no feed-forward network.

    With Y = M(X) + R(M(R(X))), ``combine`` gives X + Y / 2 for ``"mean"``, 2 X + Y for ``"sum"``
    and X + Y for ``"sum_residual_once"``. Sums are float32, whatever autocast makes of products.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mamba = BiMamba2(config)
        factors = {"mean": (1.0, 0.5), "sum": (2.0, 1.0), "sum_residual_once": (1.0, 1.0)}
        self.residual, self.mixed = factors[config.combine]
        self.pads_inside = config.oov == "pad"

    def forward(self, x: Tensor, lengths: Tensor | None = None, first_only: bool = False) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape, or to ``(b, 1, d_model)`` if ``first_only``.

        ``lengths`` ``(b,)`` are the real tokens: those before the pads at the end, or, where pads lie
        in between (``oov="pad"``), their number.
        """
        if self.pads_inside and lengths is not None:
            out = self.join(x, self.mamba.released(x, lengths))
            return out[:, :1] if first_only else out
        if first_only:
            return self.join(x[:, :1], self.mamba.first(x, lengths)[:, None])
        return self.join(x, self.mamba(x, lengths))

    def join(self, x: Tensor, both: Tensor) -> Tensor:
        return (x if self.residual == 1 else self.residual * x).add(both, alpha=self.mixed)


class Backbone(nn.Module):
    """The layers, one after the other.

    Set ``recompute`` to keep only the input of each layer for the gradient and compute the layer a
    second time: less memory, more time.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.recompute = False

    def forward(self, x: Tensor, lengths: Tensor | None = None, first_only: bool = False) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape, or to ``(b, 1, d_model)`` if ``first_only``.

        The last layer then computes its first token alone.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            options = x, lengths, first_only and i == last
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, *options, use_reentrant=False)
            else:
                x = layer(*options)
        return x
