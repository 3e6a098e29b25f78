"""The contract of an output: what each way of breaking it says."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from workflow import tasks
from workflow.contract import ContractError, check_output
from workflow.tidy import log_normalize


@pytest.fixture(params=["integration", "annotation"])
def case(request, cells, tmp_path):
    """(task, path of the input, a valid output)."""
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    settings = {"split": {"kind": "stratified"}, "n_top_genes": 40}
    given, _, _ = tasks.get(request.param).make_io(cells, settings)
    path = tmp_path / "input.h5ad"
    given.write_h5ad(path)
    if request.param == "integration":
        output = ad.AnnData(obs=pd.DataFrame(index=given.obs_names))
        output.obsm["X_emb"] = np.random.default_rng(0).normal(size=(60, 4))
    else:
        names = given.obs_names[given.obs["split"] == "query"]
        output = ad.AnnData(obs=pd.DataFrame({"label_pred": "type 1"}, index=names))
    output.uns["info"] = json.dumps({"n_genes": 40})
    return request.param, path, output


def check(case, output, tmp_path) -> dict:
    output.write_h5ad(tmp_path / "output.h5ad")
    return check_output(case[0], case[1], tmp_path / "output.h5ad")


def test_a_good_output_passes_and_tells_of_itself(case, tmp_path):
    facts = check(case, case[2], tmp_path)
    assert facts["n_genes"] == 40
    assert facts.get("dimensions") == (4 if case[0] == "integration" else None)


def test_categorical_predictions_are_read_too(case, tmp_path):
    if case[0] == "annotation":
        case[2].obs["label_pred"] = case[2].obs["label_pred"].astype("category")
    assert check(case, case[2], tmp_path)["n_genes"] == 40


def test_shuffled_names(case, tmp_path):
    shuffled = case[2][np.random.default_rng(1).permutation(case[2].n_obs)].copy()
    with pytest.raises(ContractError, match="in another order than the input: cell 0 is 'cell"):
        check(case, shuffled, tmp_path)


def test_missing_cells(case, tmp_path):
    with pytest.raises(ContractError, match=r"expected \d+, missing for instance 'cell"):
        check(case, case[2][:-3].copy(), tmp_path)


def test_other_names(case, tmp_path):
    case[2].obs_names = [f"{name}-1" for name in case[2].obs_names]
    with pytest.raises(ContractError, match="not the names of the cells of the input"):
        check(case, case[2], tmp_path)


def test_missing_result(case, tmp_path):
    empty = ad.AnnData(obs=pd.DataFrame(index=case[2].obs_names))
    with pytest.raises(ContractError, match=r"is missing \(found: none\)"):
        check(case, empty, tmp_path)


def test_missing_values(case, tmp_path):
    task, _, output = case
    if task == "integration":
        output.obsm["X_emb"][4, 1] = np.nan
        expected = "NaN or inf in 1 of 60 cells"
    else:
        output.obs["label_pred"] = pd.Categorical(["type 1"] * (output.n_obs - 1) + [None])
        expected = "missing for 1 query cells"
    with pytest.raises(ContractError, match=expected):
        check(case, output, tmp_path)


@pytest.mark.parametrize(
    ("values", "constant"),
    [
        (np.zeros((60, 4)), True),
        (np.full((60, 4), 3), True),
        (np.tile([0.1, 1e6, -3], (60, 1)), True),
        (1 + 1e-7 * np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), True),
        (np.eye(60)[:, :1], False),  # a single cell that lies apart
        (np.column_stack([np.full(60, 1e9), np.linspace(0, 1, 60)]), False),
        (np.arange(60)[:, None], False),
    ],
)
def test_an_embedding_must_tell_cells_apart(cells, tmp_path, values, constant):
    cells.write_h5ad(tmp_path / "input.h5ad")
    output = ad.AnnData(obs=pd.DataFrame(index=cells.obs_names), obsm={"X_emb": values})
    case = ("integration", tmp_path / "input.h5ad")
    if constant:
        with pytest.raises(ContractError, match="is constant: all 60 cells are the same point"):
            check(case, output, tmp_path)
    else:
        assert check(case, output, tmp_path) == {"dimensions": values.shape[1]}


def test_wrong_kind_of_result(case, tmp_path):
    task, _, output = case
    if task == "integration":
        output.obsm["X_emb"] = pd.DataFrame({"a": range(60)}, index=output.obs_names)
        expected = "not a dense cells x dimensions matrix"
    else:
        output.obs["label_pred"] = "type 77"
        expected = "labels not in the reference: 'type 77'"
    with pytest.raises(ContractError, match=expected):
        check(case, output, tmp_path)


def test_no_output_and_half_an_output(case, tmp_path):
    with pytest.raises(ContractError, match="wrote no output"):
        check_output(case[0], case[1], tmp_path / "absent.h5ad")
    case[2].write_h5ad(tmp_path / "output.h5ad")
    (tmp_path / "output.h5ad").write_bytes((tmp_path / "output.h5ad").read_bytes()[:2000])
    with pytest.raises(ContractError, match="not a readable h5ad file"):
        check_output(case[0], case[1], tmp_path / "output.h5ad")
