"""The score step opens just what a run's record vouches for."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from workflow.files import checksum
from workflow.steps.score import describe, score_run

CELLS = [f"cell{i}" for i in range(6)]
TRUTH = ["a", "a", "a", "b", "b", "b"]


def labelled(**columns) -> ad.AnnData:
    return ad.AnnData(np.zeros((6, 0), dtype=np.float32), obs=pd.DataFrame(columns, index=CELLS))


@pytest.fixture
def run(tmp_path):
    """A run of annotation with an output and probes, and the record of both."""
    labelled(label_pred=["a", "a", "b", "b", "b", "b"]).write_h5ad(tmp_path / "output.h5ad")
    labelled(epoch_1=["a"] * 6, order_0=TRUTH).write_h5ad(tmp_path / "probes.h5ad")
    sums = {f"{name}_sha256": checksum(tmp_path / f"{name}.h5ad") for name in ("output", "probes")}
    return {"task": "annotation", "seed": 0, **sums}


@pytest.fixture
def solution():
    answers = labelled(label=TRUTH)
    answers.uns["reference_labels"] = np.array(["a", "b"])
    return answers


def test_output_and_probes_give_rows_and_cells(run, solution, tmp_path):
    rows, units = score_run(run, tmp_path, solution)
    accuracy = {(r["unit_level"], r["unit_id"]): r["value"] for r in rows if r["metric"] == "accuracy"}
    assert accuracy["run", ""] == pytest.approx(5 / 6)
    assert accuracy["epoch", "1"] == pytest.approx(1 / 2)
    assert accuracy["order", "0"] == 1
    assert list(units["truth"]) == TRUTH
    assert list(units["predicted"]) == ["a", "a", "b", "b", "b", "b"]


@pytest.mark.parametrize("name", ["output", "probes"])
def test_a_file_that_changed_after_its_record_is_refused(run, solution, tmp_path, name):
    labelled(label_pred=TRUTH, epoch_1=TRUTH).write_h5ad(tmp_path / f"{name}.h5ad")
    with pytest.raises(ValueError, match=f"{name}.h5ad: missing, or changed after"):
        score_run(run, tmp_path, solution)


def test_probes_that_no_record_names_are_not_opened(run, solution, tmp_path):
    del run["probes_sha256"]
    rows, _ = score_run(run, tmp_path, solution)
    assert {row["unit_level"] for row in rows} == {"run", "label", "permuted"}


LARGE = {"n_parameters": 600_000_000, "pretrained_cells": 57_000_000}


@pytest.mark.parametrize(
    ("info", "departures"),
    [
        (LARGE, ""),
        ({**LARGE, "n_parameters": 240_000}, "at reduced scale"),
        ({**LARGE, "pretrained_cells": 0}, "at reduced scale"),
        ({"n_parameters": 600_000_000}, "at reduced scale"),  # not said counts as none
        ({}, "at reduced scale"),
        ({**LARGE, "reduced_scale": True}, "at reduced scale"),
    ],
)
def test_a_model_that_is_smaller_or_not_pretrained_cannot_be_held_against_the_paper(info, departures):
    run = dict.fromkeys(("run_id", "task", "dataset", "method", "kind", "mode", "commit", "finished"), "")
    run |= {"seed": 0, "changed_params": {}, "gpu": 0, "hardware": {"cpu": "", "gpus": []}, "info": info}
    asked = {"n_parameters": 500_000_000, "pretrained_cells": 30_000_000}
    assert describe(run, "full", asked)["departures"] == departures
