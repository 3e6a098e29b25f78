"""TOSICA by the copy in omicverse: settings, gene sets, labels, and what it cannot do."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json

import anndata as ad
import numpy as np
import pytest
from support import make_cells

from baselines import _io, tosica
from workflow import tasks
from workflow.tidy import log_normalize

PARAMS = {
    "gene_sets": None,
    "gmt": None,
    "feature_scope": "train",
    "max_g": 300,
    "max_gs": 8,
    "mask_ratio": 0.3,
    "n_unannotated": 1,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "batch_size": 8,
    "learning_rate": 0.02,
    "lrf": 0.01,
    "epochs": 2,
}
LEARNS = {"embed_dim": 48, "epochs": 20}  # long enough to tell types apart, with half of all values dropped
installed = pytest.mark.skipif(
    importlib.util.find_spec("omicverse") is None,
    reason="omicverse is not installed (envs/bench.post-deploy.sh)",
)


def make_input(n: int = 60, types: int = 3) -> tuple[ad.AnnData, np.ndarray]:
    """Synthetic input of an annotation task, and the labels of its query cells."""
    cells = make_cells(n=n, types=types)
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    split = {"kind": "stratified", "query_fraction": 0.4, "seed": 0}
    given, solution, _ = tasks.get("annotation").make_io(cells, {"n_top_genes": 30, "split": split})
    return given, solution.obs["label"].to_numpy(dtype=str)


def given_for(adata: ad.AnnData, seed: int = 0, files: dict | None = None, **changed) -> _io.Given:
    return _io.Given(
        adata.copy(), PARAMS | changed, seed=seed, threads=1, gpu=0, resume=None, files=files or {}
    )


@pytest.fixture
def gene_sets(tmp_path):
    """A file of gene sets: one per type, one too small, one of unknown genes."""
    sets = {f"TYPE{k}": [f"GENE{g}" for g in range(k, 40, 3)] for k in range(3)}
    sets |= {"SMALL": ["GENE1", "GENE2"], "UNKNOWN": [f"OTHER{g}" for g in range(20)]}
    lines = ["\t".join([name, "where", *genes]) for name, genes in sets.items()]
    path = tmp_path / "own sets.gmt"
    path.write_text("\n".join(lines) + "\n")
    return path


@installed
def test_easy_cells_are_annotated_and_the_run_repeats(gene_sets):
    adata, truth = make_input(n=240)
    first = given_for(adata, gmt=str(gene_sets), **LEARNS)
    found = tosica.annotation(first)
    assert (found == truth).mean() > 0.8  # a third is chance
    again = given_for(adata, gmt=str(gene_sets), **LEARNS)
    assert (tosica.annotation(again) == found).all()
    assert first.info["history"] == again.info["history"]
    assert [row["epoch"] for row in first.info["history"]] == list(range(1, 21))
    assert first.info["history"][-1]["valid_loss"] < first.info["history"][0]["valid_loss"]
    assert first.info["selected_epoch"] == 20 and first.info["keep"] == "last"
    assert first.info["n_gene_sets"] == 3  # one is too small, one unknown
    other = given_for(adata, seed=1, gmt=str(gene_sets), **LEARNS | {"epochs": 1})
    tosica.annotation(other)
    assert other.info["history"][0]["train_loss"] != first.info["history"][0]["train_loss"]


@installed
def test_labels_are_those_that_tosicas_own_prediction_gives(gene_sets, tmp_path, monkeypatch):
    """Its train and predict as its users call them, without Unknown, against ours with its seed."""
    import torch
    from omicverse.external.tosica import pre, train

    adata, _ = make_input(n=240)
    given = given_for(adata, seed=1, gmt=str(gene_sets), **LEARNS)  # its prediction knows 48 only
    found = tosica.annotation(given)
    reference, query = (given.highly_variable(cells).copy() for cells in (given.reference, given.query))
    reference.obs["Celltype"] = reference.obs["label"].astype(str)
    monkeypatch.chdir(tmp_path)
    network = {"embed_dim": 48, "depth": 1, "num_heads": 2}
    settings = network | {"max_gs": 8, "batch_size": 8, "lr": 0.02, "epochs": 20}
    with contextlib.redirect_stdout(io.StringIO()):
        train.fit_model(reference, str(gene_sets), project="p", **settings)
        theirs = pre.predict(
            query, "p/model-19.pth", "p", str(tmp_path / "p/mask.npy"), cutoff=0.0, **network
        )
    assert (found == theirs.obs["Prediction"].to_numpy(dtype=str)).all()
    assert len(set(found)) > 1, "one label for all cells would compare nothing"
    n_parameters = sum(
        value.numel()
        for name, value in torch.load("p/model-19.pth", weights_only=True).items()
        if not name.endswith("fe.mask")
    )
    assert given.info["n_parameters"] == n_parameters


@installed
def test_a_gene_set_of_the_suite_is_found_by_its_name(gene_sets):
    adata, truth = make_input()
    files = {"gene_sets_tosica": {"human_own": gene_sets}}
    given = given_for(adata, files=files, gene_sets="human_own", epochs=1)
    assert len(tosica.annotation(given)) == len(truth)
    assert "3 gene sets" in given.info["scale"]


@installed
def test_without_gene_sets_the_run_is_at_reduced_scale_and_says_so():
    adata, _ = make_input()
    given = given_for(adata, **(tosica.PUBLISHED | {"epochs": 1, "max_gs": 8, "embed_dim": 8}))
    tosica.annotation(given)
    assert "no gene sets" in given.info["scale"]
    assert given.info["reduced_scale"] is True


@installed
def test_labels_that_a_csv_file_loses_come_back():
    adata, _ = make_input()
    adata.obs["label"] = adata.obs["label"].cat.rename_categories(["NA", 'a,"b"', "7"])
    assert set(tosica.annotation(given_for(adata, epochs=1))) <= {"NA", 'a,"b"', "7"}


@installed
@pytest.mark.parametrize("case", ["class of one cell", "no counts", "one query cell", "an empty query cell"])
def test_odd_inputs_are_survived(case):
    adata, _ = make_input()
    query = adata.obs["split"] == "query"
    if case == "class of one cell":
        adata.obs["label"] = adata.obs["label"].cat.add_categories("rare")
        adata.obs.loc[adata.obs.index[~query][0], "label"] = "rare"
    elif case == "no counts":
        del adata.layers["counts"]
    elif case == "one query cell":
        adata = adata[~query | (adata.obs_names == adata.obs_names[query][0])].copy()
    else:
        adata.X[np.flatnonzero(query)[0]] = 0
    found = tosica.annotation(given_for(adata, epochs=1))
    assert len(found) == (adata.obs["split"] == "query").sum()
    assert set(found) <= set(adata.obs["label"].dropna())


@installed
@pytest.mark.parametrize(
    ("case", "word"),
    [("one class", "the reference has 1"), ("few cells", "do not fill one"), ("alien genes", "has none")],
)
def test_what_tosica_cannot_do_is_not_applicable(case, word, gene_sets, capsys):
    adata, _ = make_input(types=1 if case == "one class" else 3)
    changed = {"batch_size": 64} if case == "few cells" else {"gmt": str(gene_sets)}
    if case == "alien genes":
        adata.var_names = [f"Gene{k}" for k in range(adata.n_vars)]
    with pytest.raises(SystemExit) as ended:
        tosica.annotation(given_for(adata, **changed))
    assert ended.value.code == _io.NOT_APPLICABLE
    assert word in capsys.readouterr().err


@installed
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gene_sets": "human_gobp", "gmt": "mine.gmt"}, "give one of them"),
        ({"gene_sets": "human_gobp"}, r"'human_gobp' were not fetched \(here: none\)"),
        ({"gmt": "/nowhere/mine.gmt"}, "/nowhere/mine.gmt is no file"),
    ],
)
def test_gene_sets_that_are_not_here_are_named(changed, message):
    adata, _ = make_input()
    with pytest.raises(ValueError, match=message):
        tosica.annotation(given_for(adata, **changed))


def test_what_tosica_reports_becomes_the_history():
    log = tosica.Log()
    for epoch in range(2):
        for name in ("train_loss", "val_loss", "learning_rate"):
            log.add_scalar(name, np.float64(epoch + 0.5), epoch)
    assert json.loads(json.dumps(log.history)) == [
        {"epoch": 1, "train_loss": 0.5, "valid_loss": 0.5, "learning_rate": 0.5},
        {"epoch": 2, "train_loss": 1.5, "valid_loss": 1.5, "learning_rate": 1.5},
    ]
