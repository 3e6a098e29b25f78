"""The checks that all recipes share, and what holds for every recipe."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from workflow.declarations import WORKFLOW, load_yaml
from workflow.recipes import _common

RECIPES = ("pbmc_cite", "pbmc68k", "pbmc10k", "pbmc10k_mini")
DECLARED = {entry.get("recipe", "columns") for entry in load_yaml(WORKFLOW / "datasets.yaml").values()}
ALL = sorted({*RECIPES, *DECLARED, "reference_query", "gxa", "threeca", "geo_myeloid"})


@pytest.mark.parametrize("name", ALL)
def test_recipe_has_a_version_and_one_way_in(name: str) -> None:
    module = importlib.import_module(f"workflow.recipes.{name}")
    assert module.__doc__
    assert list(inspect.signature(module.load).parameters) == ["files", "entry"]
    assert isinstance(module.VERSION, int)
    assert inspect.getdoc(module.load)


@pytest.mark.parametrize("name", RECIPES)
def test_missing_source_is_named(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"workflow.recipes.{name}")
    with pytest.raises(ValueError, match=r"key '\w+' is missing, found other, expected"):
        module.load({"other": tmp_path})


@pytest.mark.parametrize("name", ["pbmc_cite", "pbmc68k", "pbmc10k_mini"])
@pytest.mark.parametrize("content", [None, b"<html>not found</html>"])
def test_absent_or_wrong_file(name: str, content: bytes | None, tmp_path: Path) -> None:
    module = importlib.import_module(f"workflow.recipes.{name}")
    path = tmp_path / "cells.h5ad"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cells\.h5ad: .*found no .*expected"):
        module.load({"cells": path})


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_as_counts_refuses_anything_but_counts(value: float) -> None:
    with pytest.raises(ValueError, match="x.h5ad: X: found 1 values that are no raw counts"):
        _common.as_counts(np.array([[1.0, value], [0.0, 2.0]]), Path("x.h5ad"))


def test_as_counts_is_canonical() -> None:
    matrix = sp.csr_matrix(([3, 0, 1, 1], ([0, 0, 1, 1], [1, 0, 2, 0])), shape=(2, 3))
    counts = _common.as_counts(matrix, Path("x"))
    assert counts.dtype == np.float32 and counts.nnz == 3 and counts.has_sorted_indices
    assert np.array_equal(counts.toarray(), [[0, 3, 0], [1, 0, 1]])


def test_tidy_makes_symbols_unique_and_wants_unique_cells() -> None:
    counts = sp.csr_matrix(np.eye(2, dtype=np.float32))
    adata = _common.tidy(counts, obs_names=["a", "b"], symbols=["G", "G"], label=["x", "y"], facts={})
    assert list(adata.var_names) == ["G", "G-1"]
    with pytest.raises(ValueError, match="found 'a' twice"):
        _common.tidy(counts, obs_names=["a", "a"], symbols=["G", "H"], label=["x", "y"], facts={})
    with pytest.raises(ValueError, match="found a single batch"):
        _common.tidy(counts, obs_names="ab", symbols="GH", label="xy", batch=["0", "0"], facts={})
