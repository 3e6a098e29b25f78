"""mamba-ssm's own kernels against the reference: on a GPU, or without one in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from test_ops import NAMES, by, inputs, run

MISSING = [name for name in ("triton", "mamba_ssm", "einops") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

SIZES = {"heads": 2, "headdim": 16, "n": 16, "d_model": 16}
CASES = {"plain": None, "ragged": [70, 33, 4]}


def compare(device: str) -> None:
    for name, lengths in CASES.items():
        lengths = None if lengths is None else torch.tensor(lengths)
        expected = run(by("reference", lengths), *inputs(3, 70, **SIZES))
        x, weights = inputs(3, 70, dtype=torch.float32, **SIZES)
        x, weights = x.to(device), [w.to(device) for w in weights]
        lengths = None if lengths is None else lengths.to(device)
        for which, a, e in zip(NAMES, run(by("mamba_ssm", lengths), x, weights), expected, strict=True):
            error = float((a.double().cpu() - e).abs().max() / e.abs().max())
            assert error <= (1e-2 if device == "cuda" else 1e-4), (name, which, error)  # the GPU has TF32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    compare("cuda")


def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    here = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, __file__], env={**environment, "PYTHONPATH": here}, check=True)


if __name__ == "__main__":
    # mamba-ssm asks CUDA for the device and tunes its kernels by timing them: neither exists here.
    import contextlib
    import types

    import triton

    torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=1)
    tune = triton.autotune
    triton.autotune = lambda configs, key, **_: tune(configs[:1], key)
    compare("cpu")
