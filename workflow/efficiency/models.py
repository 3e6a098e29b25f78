"""The encoders that are compared: each maps ``(b, T, d_model)`` to the same shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scmamba2.config import Config
from scmamba2.model.backbone import Backbone, Layer
from scmamba2.model.mixer import BiMamba2

HEAD = 64  # channels per attention head, as per head of Mamba-2
CHUNK = 64


def parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters())


def config_of(d_model: int, n_layers: int) -> Config:
    """Return our configuration at a width and a depth; every other value is the model's default."""
    return Config(d_model=d_model, n_layers=n_layers, max_length=None)


class AttentionLayer(nn.Module):
    """A Transformer encoder layer with the norm first (Xiong et al. 2020, arXiv 2002.04745).

    All tokens see all tokens, without a mask, by ``scaled_dot_product_attention``: PyTorch takes a flash
    kernel where the device and the dtype have one.
    """

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.up = nn.Linear(d_model, hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape."""
        b, length, d_model = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, length, 3, d_model // HEAD, HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, d_model)
        x = x + self.out(seen)
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


def attention(d_model: int, n_layers: int) -> nn.Module:
    """Return a Transformer encoder of our width: feed-forward 4 d_model, about twice our parameters."""
    return nn.Sequential(*(AttentionLayer(d_model, 4 * d_model) for _ in range(n_layers)))


def attention_equal_parameters(d_model: int, n_layers: int) -> nn.Module:
    """Return a Transformer encoder of our width whose feed-forward part gives it our parameter count."""
    spare = parameters(Backbone(config_of(d_model, 1))) - parameters(AttentionLayer(d_model, 1))
    hidden = 1 + round(spare / (2 * d_model))
    return nn.Sequential(*(AttentionLayer(d_model, hidden) for _ in range(n_layers)))


def segment_sums(steps: Tensor) -> Tensor:
    """Return ``s[..., i, j] = steps[..., j + 1] + ... + steps[..., i]``, and -inf where j > i."""
    total = steps.cumsum(-1)
    above = torch.ones(2 * steps.shape[-1:], dtype=torch.bool, device=steps.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).masked_fill(above, -torch.inf)


def chunked_scan(x: Tensor, decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan ``S_t = exp(decay_t) S_{t-1} + x_t B_t'``, ``y_t = S_t C_t`` in chunks of `CHUNK` steps.

    The plain form of section 6 of Dao & Gu 2024 (Mamba-2, arXiv 2405.21060): products inside a chunk, the
    state that each chunk adds, a scan over chunks by one matrix, and what entering states give.

    Parameters
    ----------
    x
        ``(b, T, h, p)``, already multiplied by the step size.
    decay
        ``(b, T, h)``, at most 0.
    B, C
        ``(b, T, n)``.

    Returns
    -------
    Tensor
        ``(b, T, h, p)``.
    """
    length = x.shape[1]
    short = -length % CHUNK
    x, decay = F.pad(x, (0, 0, 0, 0, 0, short)), F.pad(decay, (0, 0, 0, short))
    B, C = F.pad(B, (0, 0, 0, short)), F.pad(C, (0, 0, 0, short))
    x, B, C = (part.unflatten(1, (-1, CHUNK)) for part in (x, B, C))
    decay = decay.unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2)  # (b, h, chunk, step)
    total = decay.cumsum(-1)

    scores = torch.einsum("bcln,bcsn->bcls", C, B)[:, None] * torch.exp(segment_sums(decay))
    inside = torch.einsum("bhcls,bcshp->bclhp", scores, x)
    to_end = torch.exp(total[..., -1:] - total)
    states = torch.einsum("bcln,bhcl,bclhp->bchpn", B, to_end, x)
    between = torch.exp(segment_sums(F.pad(total[..., -1], (1, 0))))[:, :, :-1, 1:]
    entering = torch.einsum("bhzc,bchpn->bzhpn", between, states)
    across = torch.einsum("bcln,bchpn,bhcl->bclhp", C, entering, torch.exp(total))
    return (inside + across).flatten(1, 2)[:, :length]


def causal_mixer(mixer: BiMamba2, x: Tensor) -> Tensor:
    """Run the whole Mamba-2 mixer, from projection to projection, in one direction."""
    conv, norm, heads = mixer.conv1d, mixer.norm, mixer.dt_bias.numel()
    d_inner = norm.weight.numel()
    n = (conv.out_channels - d_inner) // 2
    z, xbc, dt = mixer.in_proj(x).split([d_inner, d_inner + 2 * n, heads], dim=-1)
    xbc = F.pad(xbc.transpose(1, 2), (conv.kernel_size[0] - 1, 0))
    xbc = F.silu(F.conv1d(xbc, conv.weight, conv.bias, groups=conv.groups)).transpose(1, 2)
    inner, B, C = xbc.split([d_inner, n, n], dim=-1)
    inner = inner.unflatten(-1, (heads, -1))
    dt = F.softplus(dt + mixer.dt_bias)
    y = chunked_scan(inner * dt[..., None], -torch.exp(mixer.A_log) * dt, B, C)
    y = (y + mixer.D[:, None] * inner).flatten(2)
    return mixer.out_proj(norm(y * F.silu(z)))


class TwoPass(Backbone):
    """Our parameters in the structure of the released code: every layer runs its whole mixer twice."""

    def forward(self, x: Tensor, lengths: Tensor | None = None, first_only: bool = False) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape; there are no pads here and all tokens are wanted."""
        assert lengths is None and not first_only
        for layer in self.layers:
            assert isinstance(layer, Layer)
            back = x.flip(1)
            there = causal_mixer(layer.mamba, x) + x
            x = 0.5 * (there + (causal_mixer(layer.mamba, back) + back).flip(1))
        return x


class TransformersMamba2(nn.Module):
    """Two passes through the Mamba-2 mixer of the package transformers, with its default chunk of 256."""

    def __init__(self, d_model: int, n_layers: int) -> None:
        super().__init__()
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        sizes = config_of(d_model, n_layers)
        config = Mamba2Config(
            hidden_size=d_model,
            num_heads=sizes.n_heads,
            head_dim=sizes.headdim,
            state_size=sizes.d_state,
            conv_kernel=sizes.d_conv,
            expand=sizes.expand,
            n_groups=1,
        )
        self.layers = nn.ModuleList(Mamba2Mixer(config, layer_idx=i) for i in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, T, d_model)`` to the same shape."""
        for mixer in self.layers:
            x = x + 0.5 * (mixer(x) + mixer(x.flip(1)).flip(1))
        return x


BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "scmamba2": lambda d_model, n_layers: Backbone(config_of(d_model, n_layers)),
    "attention": attention,
    "attention_equal_parameters": attention_equal_parameters,
    "two_pass": lambda d_model, n_layers: TwoPass(config_of(d_model, n_layers)),
    "transformers": TransformersMamba2,
}
