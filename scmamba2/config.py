"""Sizes of the model and rules for its input, in one immutable object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["PRESETS", "Config", "resolve"]

_CHOICES = {
    "combine": ("mean", "sum", "sum_residual_once"),
    "value_encoder": ("continuous", "category", "scaling"),
    "readout": ("cls", "average", "weighted"),
    "binning": (None, "plain", "spreading"),
    "oov": ("drop", "pad"),
}


@dataclass(frozen=True)
class Config:
    """Configuration of a model.

    A field that is None is decided by the task: integration uses plain bins, zeros included, a
    mask ratio of 0.4, 1,201 tokens and domain-specific batch norm; annotation uses spreading
    bins, non-zero genes only, no mask, 3,001 tokens and one batch norm. The defaults are those
    of the SC-MAMBA2 preprint (bioRxiv 2024.09.30.615775) and of mamba-ssm 2.2.2.

    Parameters
    ----------
    d_model, n_layers
        Width and depth.
    d_state, headdim, expand, d_conv
        Mamba-2: state size, channels per head, inner width over width, convolution taps.
    chunk_size
        Longest chunk of the scan. Affects speed, not results.
    dropout
        In the value encoder.
    combine
        How a layer joins its directions F(X) = M(X) + X: ``"mean"`` (released code), ``"sum"``
        (the text; doubles the residual stream each layer) or ``"sum_residual_once"``.
    n_bins
        Expression bins, 0 for zero included.
    binning
        ``"plain"``, ``"spreading"`` or None. See :func:`scmamba2.tokenizer.bin_values`.
    max_length
        Longest token sequence, ``<cls>`` included, or None.
    include_zero_genes
        Whether genes without a count become tokens, or None.
    oov
        What becomes of genes outside the vocabulary: ``"drop"`` leaves them out, ``"pad"`` makes
        them ``<pad>`` tokens amid the others that keep their value, as the released code does.
    mask_ratio
        Share of a cell's genes whose value is hidden in training, from 0 to below 1, or None.
    mask_cls
        Whether ``<cls>``, whose value is 0, may be hidden too, as the released code does.
    dsbn
        Domain-specific batch norm, one per batch, or None.
    dsbn_affine
        Whether these have a scale and a shift of their own.
    value_encoder
        ``"continuous"``: a small network on the value. ``"category"``: a lookup table with a row
        per bin. ``"scaling"``: the gene's embedding times the value, without parameters.
    readout
        What stands for the cell. See :meth:`scmamba2.model.network.ScMamba2.read_cell`.
    pad_value, mask_value, cls_value
        Values that stand for a pad and for a hidden value, and that of ``<cls>``. Perturbation pads
        with 0; in pre-training ``<cls>`` has the pad's value.

    Raises
    ------
    ValueError
        For a value out of range, naming the field.
    """

    d_model: int = 64
    n_layers: int = 2
    d_state: int = 64
    headdim: int = 64
    expand: int = 2
    d_conv: int = 4
    chunk_size: int = 64
    dropout: float = 0.2
    combine: str = "mean"
    n_bins: int = 51
    binning: str | None = None
    max_length: int | None = None
    include_zero_genes: bool | None = None
    oov: str = "drop"
    mask_ratio: float | None = None
    mask_cls: bool = False
    dsbn: bool | None = None
    dsbn_affine: bool = False
    value_encoder: str = "continuous"
    readout: str = "cls"
    pad_value: float = -2.0
    mask_value: float = -1.0
    cls_value: float = 0.0

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "d_state", "headdim", "expand", "d_conv", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        if self.d_inner % self.headdim:
            raise ValueError(
                f"expand * d_model = {self.d_inner} is not a multiple of headdim = {self.headdim}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {self.dropout}")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be from 0 to below 1, not {self.mask_ratio}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must leave room for <cls> and a gene: {self.max_length}")
        if self.n_bins < 3:
            raise ValueError(f"n_bins must be at least 3, not {self.n_bins}")
        if self.pad_value > 0 or self.mask_value >= 0 or self.pad_value == self.mask_value:
            raise ValueError(
                "pad_value must be at most 0, mask_value below 0 and another one, "
                f"not {self.pad_value} and {self.mask_value}"
            )
        if self.value_encoder == "category" and self.pad_value == 0:
            raise ValueError("value_encoder 'category' needs a pad_value below 0: 0 is a bin")

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        return self.d_inner // self.headdim


PRESETS = {
    # 64 wide, 2 layers; 90,318 parameters + 64 per token. Demonstrations, tests, a laptop.
    "tiny": Config(d_model=64, n_layers=2),
    # 128 wide, 4 layers; 553,906 parameters + 128 per token. From scratch on one data set.
    "small": Config(d_model=128, n_layers=4),
    # 512 wide, 12 layers; 21,161,538 parameters + 512 per token. The perturbation scripts' default.
    "d512x12": Config(d_model=512, n_layers=12),
    # 512 wide, 24 layers; 41,002,626 parameters + 512 per token. Sizes of the 24-layer checkpoint.
    "d512x24": Config(d_model=512, n_layers=24),
    # 1536 wide, 36 layers; 531,857,474 parameters + 1,536 per token: 625,088,066 with the 60,697
    # tokens of the 2023 census. The preprint's "over 625 million"; integration, annotation.
    "whole_body_1536x36": Config(d_model=1536, n_layers=36),
}
"""Sizes by name. Counts are of the plain model: one batch norm, one class, no optional head."""


def resolve(config: Config | str, **defaults: Any) -> Config:
    """Look up a preset by name and fill the fields that are None with a task's ``defaults``.

    Raises
    ------
    ValueError
        Unknown preset.
    """
    if isinstance(config, str):
        if config not in PRESETS:
            raise ValueError(f"unknown preset {config!r}: choose from {', '.join(PRESETS)}")
        config = PRESETS[config]
    return replace(config, **{k: v for k, v in defaults.items() if getattr(config, k) is None})
