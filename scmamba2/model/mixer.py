"""The bidirectional Mamba-2 mixer: parameters, and the call of the operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import Config
from ..ops import Weights, bimamba2, bimamba2_first
from ..ops.reference import reverse

__all__ = ["BiMamba2"]

EPS = 1e-5


class BiMamba2(nn.Module):
    """M(X) + R(M(R(X))) for one Mamba-2 mixer M shared by both directions.

    Parameters have the names and the initial values of mamba-ssm 2.2.2: A uniform in (1, 16),
    step sizes log-uniform in (0.001, 0.1) and at least 1e-4, D and the norm's weight 1, the rest
    as PyTorch does.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.chunk_size = config.chunk_size
        d_model, d_inner, heads = config.d_model, config.d_inner, config.n_heads
        channels = d_inner + 2 * config.d_state
        self.in_proj = nn.Linear(d_model, d_inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, config.d_conv, groups=channels)
        step = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)))
        step = step.clamp(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it: step
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(d_inner, eps=EPS)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix tokens ``(b, T, d_model)`` of which the first ``lengths`` ``(b,)`` are real."""
        return bimamba2(x, self.weights(), lengths, chunk_size=self.chunk_size, eps=EPS)

    def released(self, x: Tensor, counts: Tensor) -> Tensor:
        """Mix as the released code does when pads lie between the real tokens, of which it counts ``counts``.

        Pads are read like any token, and the reversal turns the first ``counts`` tokens around, pads among
        them, so that as many real ones at the end are read forward twice.
        """

        def forward(x: Tensor) -> Tensor:
            return bimamba2(x, self.weights(), chunk_size=self.chunk_size, eps=EPS, forward_only=True)

        return forward(x) + reverse(forward(reverse(x, counts)), counts)

    def first(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the first token alone, ``(b, d_model)``."""
        return bimamba2_first(x, self.weights(), lengths, eps=EPS)

    def weights(self) -> Weights:
        """Return the parameters as the operation takes them."""
        conv_bias = self.conv1d.bias
        assert conv_bias is not None
        return Weights(
            self.in_proj.weight,
            self.conv1d.weight,
            conv_bias,
            self.dt_bias,
            self.A_log,
            self.D,
            self.norm.weight,
            self.out_proj.weight,
        )
