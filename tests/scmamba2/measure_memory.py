"""Measure the memory of a training step and compare it with the estimate.

``python tests/scmamba2/measure_memory.py`` prints a table; with the sizes of one case, as JSON, the
bytes by which two steps raise this process's peak, which is how each row of the table is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SIZES = [
    # d_model, n_layers, tokens, cells, mask_ratio
    (64, 2, 1201, 64, 0.4),
    (64, 2, 601, 16, 0.4),
    (128, 4, 301, 64, 0.4),
    (128, 4, 1201, 8, 0.4),
    (256, 6, 601, 16, 0.0),
    (512, 4, 301, 16, 0.4),
    (512, 12, 301, 8, 0.0),
    (512, 2, 1201, 8, 0.4),
    (64, 2, 1201, 16, 0.4),
    (64, 2, 301, 64, 0.4),
    (512, 8, 301, 16, 0.0),
    (256, 6, 601, 64, 0.4),
    (128, 4, 1201, 32, 0.4),
    (256, 2, 3001, 8, 0.0),
    (1024, 3, 601, 8, 0.4),
]
N_TOKENS = 20_000


def case(d_model, n_layers, length, cells, mask_ratio, precision="float32", recompute=False):
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "length": length,
        "cells": cells,
        "mask_ratio": mask_ratio,
        "precision": precision,
        "recompute": recompute,
    }


def peak() -> int:
    """Return the most memory this process ever held, in bytes; ru_maxrss may be the parent's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def step(d_model, n_layers, length, cells, mask_ratio, precision, recompute) -> None:
    """Print the bytes that building a model and two training steps take, and the estimate."""
    import numpy as np
    import torch

    from scmamba2 import Config, memory
    from scmamba2.model.network import ScMamba2
    from scmamba2.tasks import annotation, integration
    from scmamba2.tokenizer import Tokens
    from scmamba2.training import Cells, Training
    from scmamba2.training.trainer import Trainer

    torch.set_num_threads(1)
    torch.nn.Linear(8, 8)(torch.ones(1, 8)).sum().backward()
    config = Config(d_model=d_model, n_layers=n_layers, mask_ratio=mask_ratio, dsbn=mask_ratio > 0)
    n, rng = cells + 1, np.random.default_rng(0)
    tokens = Tokens(
        rng.integers(0, N_TOKENS, (n, length)),
        rng.integers(0, 51, (n, length)).astype(np.float32),
        np.full(n, length),
    )
    data = Cells(tokens, np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64))
    start = peak()
    heads = {"n_batches": 2, "explicit_zeros": True, "mvc": True, "adversarial": True} if mask_ratio else {}
    model = ScMamba2(config, N_TOKENS, **heads)
    model.mamba_encoder.recompute = recompute
    settings = Training(batch_size=cells, precision=precision, recompute=recompute)
    objective = (integration if mask_ratio else annotation).objective
    trainer = Trainer(model, data, objective, config, settings, 0, torch.device("cpu"))
    model.train()
    trainer.train_step([np.arange(1)], "here")  # from now on the optimizer has its state
    trainer.train_step([np.arange(cells)], "here")
    parts = memory.estimate(model, config, cells, length, recompute=recompute)
    print(json.dumps({"measured": peak() - start, "estimated": parts["total"], **parts}))


def measure(case: dict) -> dict:
    """Run :func:`step` in a process of its own."""
    command = [sys.executable, __file__, json.dumps(case)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        step(**json.loads(sys.argv[1]))
        sys.exit()
    for precision in ("float32", "bfloat16"):
        for recompute in (False, True):
            for sizes in SIZES:
                one = case(*sizes, precision, recompute)
                got = measure(one)
                ratio = got["estimated"] / got["measured"]
                name = " ".join(map(str, one.values()))
                print(
                    f"{name:50} {got['measured'] / 1e6:8.0f} MB measured, estimate x {ratio:.2f}", flush=True
                )
