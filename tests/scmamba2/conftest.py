from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def cells():
    """120 cells of 3 types in 2 batches, 40 genes; the types are easy to tell apart."""
    rng = np.random.default_rng(0)
    types, batches = np.arange(120) % 3, np.arange(120) // 60
    rate = np.full((3, 40), 0.3)
    for kind in range(3):
        rate[kind, kind * 10 : kind * 10 + 10] = 6
    counts = rng.poisson(rate[types] * (1 + batches)[:, None]).astype(np.float32)
    obs = pd.DataFrame(
        {"label": [f"type {k}" for k in types], "batch": [f"b{k}" for k in batches]},
        index=[f"cell{i}" for i in range(120)],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)]))
