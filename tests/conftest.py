"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

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
