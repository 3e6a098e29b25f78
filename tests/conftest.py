"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

# Several tests may run at once (make test), so each takes one thread. This must be said before numpy and
# torch are imported; OpenBLAS and MKL listen to it too, and so do the programs that tests start.
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import anndata as ad
import pytest
from support import MINI, Bench, make_cells


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def cells() -> ad.AnnData:
    return make_cells()


@pytest.fixture
def mini() -> Path:
    if not MINI.exists():
        pytest.skip("the real piece of PBMC 10k is not on this machine")
    return MINI
