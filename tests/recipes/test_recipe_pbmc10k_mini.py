"""The development piece of PBMC 10k; it is no part of the project, so these tests may skip."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from workflow.recipes import pbmc10k_mini

FILE = "pbmc10k_mini/pbmc10k_mini_2batch.h5ad"


def test_recipe(shared_data, assert_tidy) -> None:
    adata = pbmc10k_mini.load({"cells": shared_data(FILE)})
    assert_tidy(adata, batches=True)
    assert adata.shape == (2433, 1767)
    assert adata.obs["batch"].value_counts().to_dict() == {"0": 456, "1": 1977}
    assert adata.obs["label"].nunique() == 9


@pytest.mark.parametrize("shape", [(3, 2), pbmc10k_mini.EXPECTED_SHAPE])
def test_wrong_content_is_named(tmp_path: Path, shape: tuple[int, int]) -> None:
    adata = ad.AnnData(np.ones(shape, dtype=np.float32))
    adata.obs["batch"] = ["0"] * (shape[0] - 1) + ["1"]
    adata.obs["str_labels"] = "B cells"
    path = tmp_path / "wrong.h5ad"
    adata.write_h5ad(path)
    message = "found 3 cells x 2 genes" if shape == (3, 2) else "found 1 labels, expected 9"
    with pytest.raises(ValueError, match=f"wrong.h5ad: .*{message}"):
        pbmc10k_mini.load({"cells": path})
