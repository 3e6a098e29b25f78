"""What is special about the controls and the classical rivals, on tiny synthetic cells.

That each keeps the contract, repeats itself and survives odd inputs is tested for all methods elsewhere.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC
from support import make_cells

from baselines import (
    _io,
    celltypist,
    gradient_boosting,
    harmony,
    hvg_raw,
    knn,
    linear_svm,
    logistic,
    nearest_centroid,
    pca,
    scanvi,
    shuffled_labels,
    stratified_random,
)
from workflow import tasks
from workflow.declarations import WORKFLOW, load_yaml
from workflow.tidy import log_normalize

METHODS = load_yaml(WORKFLOW / "methods.yaml", "methods")
SPLIT = {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}}


def given(method: str, task: str, *, cells: int = 90, genes: int = 40, seed: int = 0, **params) -> _io.Given:
    """What a method is given, with the parameters as declared but for those that are named."""
    adata = make_cells(n=cells, genes=genes)
    adata.obs["label"] = adata.obs["cell_type"]
    log_normalize(adata)
    settings = {"integration": {"n_top_genes": 20}, "annotation": SPLIT}[task]
    made, _, _ = tasks.get(task).make_io(adata, settings)
    declared = METHODS[method]["tasks"][task] or {}
    assert set(params) <= set(declared)
    return _io.Given(made, declared | params, seed=seed, threads=1, gpu=0, resume=None)


def relabel(call: _io.Given, labels: list[str]) -> None:
    """Give the reference other labels: the last one to all cells that are left."""
    reference = np.flatnonzero(call.adata.obs["split"] == "reference")
    new = np.full(call.adata.n_obs, None, dtype=object)
    new[reference] = [*labels, *[labels[-1]] * (len(reference) - len(labels))]
    call.adata.obs["label"] = pd.Categorical(new)


def said(method, task: str, call: _io.Given, capsys) -> str:
    """Return the sentence with which a method says that it is not applicable."""
    with pytest.raises(SystemExit) as ended:
        getattr(method, task)(call)
    assert ended.value.code == _io.NOT_APPLICABLE
    return capsys.readouterr().err


# Controls


def test_random_labels_have_the_frequencies_of_the_reference():
    call = given("stratified_random", "annotation", cells=4000)
    relabel(call, ["rare"] * 200 + ["usual"])  # 200 of 2,000
    found = stratified_random.annotation(call)
    assert (found == "rare").mean() == pytest.approx(0.1, abs=0.02)
    call.seed = 1
    other = stratified_random.annotation(call)
    assert (found != other).any() and (other == "rare").mean() == pytest.approx(0.1, abs=0.02)


def test_shuffled_cells_are_the_points_of_the_pca_in_another_order():
    points = pca.integration(given("pca", "integration"))
    found = shuffled_labels.integration(given("shuffled_labels", "integration"))
    assert (found != points).any(axis=1).mean() > 0.9
    order = [np.lexsort(rows.T) for rows in (points, found)]
    np.testing.assert_array_equal(points[order[0]], found[order[1]])
    assert (found != shuffled_labels.integration(given("shuffled_labels", "integration", seed=1))).any()


def test_raw_genes_are_the_highly_variable_ones_as_they_came():
    call = given("hvg_raw", "integration")
    found = hvg_raw.integration(call)
    np.testing.assert_array_equal(found, call.adata[:, call.adata.var["highly_variable"]].X.toarray())
    assert call.info["n_genes"] == found.shape[1] == 20


# Classifiers


@pytest.mark.parametrize("method", [knn, nearest_centroid, gradient_boosting])
def test_genes_are_chosen_on_the_reference_unless_all_cells_may_take_part(method):
    for scope, expected in (("train", 7), ("all", 11)):
        call = given(method.__name__.split(".")[1], "annotation", feature_scope=scope)
        for column, number in (("highly_variable", 7), ("highly_variable_all", 11)):
            call.adata.var[column] = np.arange(call.adata.n_vars) < number
        method.annotation(call)
        assert call.info["n_genes"] == expected


def test_the_depth_of_a_cell_does_not_move_it_to_another_centroid():
    call = given("nearest_centroid", "annotation")
    relabel(call, ["a", "b", "c", "d"] * 11)  # labels without meaning, so that centroids are close
    found = nearest_centroid.annotation(call)
    query = (call.adata.obs["split"] == "query").to_numpy()
    call.adata.X = call.adata.X.multiply(np.where(query, 0.2, 1.0)[:, None]).tocsr()
    assert (nearest_centroid.annotation(call) == found).all()


def test_the_svm_is_scikit_learns_on_all_genes():
    call = given("linear_svm", "annotation")
    relabel(call, ["a", "b", "c", "d"] * 11)  # hard to tell apart, so that C matters
    call.adata.var["highly_variable"] = False
    reference = call.reference
    expected = LinearSVC(C=1.0, random_state=0).fit(reference.X, reference.obs["label"].astype(str))
    assert (linear_svm.annotation(call) == expected.predict(call.query.X)).all()
    assert call.info["n_genes"] == call.adata.n_vars


def test_boosting_holds_out_a_share_of_each_label_and_never_its_only_cell():
    labels = np.repeat(["many", "nine", "one"], [100, 9, 1])
    held = gradient_boosting.held_out(labels, 0.1, np.random.default_rng(0))
    assert [int(held[labels == label].sum()) for label in ("many", "nine", "one")] == [10, 0, 0]
    other = gradient_boosting.held_out(labels, 0.1, np.random.default_rng(1))
    assert (held != other).any()


def test_boosting_stops_early_and_copes_with_a_label_of_one_cell():
    call = given("gradient_boosting", "annotation", cells=300, learning_rate=1.0, max_iter=80)
    gradient_boosting.annotation(call)
    assert call.info["n_rounds"] < 80  # these cells are easy
    relabel(call, ["one", *["few"] * 60, "many"])
    assert set(gradient_boosting.annotation(call)) <= {"one", "few", "many"}


def test_logistic_regression_copes_with_a_label_of_one_cell(capsys):
    call = given("logistic_l2", "annotation", C=[0.1, 10])
    relabel(call, ["one", "many"])
    assert set(logistic.annotation(call)) <= {"one", "many"}
    few = given("logistic_l2", "annotation", cells=8, C=[0.1, 10])
    relabel(few, ["two", "two", "one"])  # fewer cells of a label than folds
    assert set(logistic.annotation(few)) <= {"one", "two"}
    relabel(call, ["only"])
    assert "needs two labels" in said(linear_svm, "annotation", call, capsys)
    assert "found 1, the largest with 45" in said(logistic, "annotation", call, capsys)


def test_harmony_says_that_one_batch_is_too_few(capsys):
    call = given("harmony", "integration")
    call.adata.obs["batch"] = "the only one"
    assert "there is only one" in said(harmony, "integration", call, capsys)


# CellTypist


def test_the_bridge_fits_one_label_against_the_rest():
    """For two labels too, where scikit-learn fits one of them only."""
    rng = np.random.default_rng(0)
    genes, labels = rng.normal(size=(60, 5)), np.array(["a", "b", "c"] * 20)
    bridged = celltypist.AgainstTheRest(multi_class="ovr", C=1.0).fit(genes, labels)
    expected = OneVsRestClassifier(LogisticRegression(C=1.0)).fit(genes, labels)
    np.testing.assert_allclose(bridged.decision_function(genes), expected.decision_function(genes))
    two = np.where(labels == "a", "a", "z")
    bridged = celltypist.AgainstTheRest(multi_class="ovr", C=1.0).fit(genes, two)
    expected = LogisticRegression(C=1.0).fit(genes, two)
    np.testing.assert_allclose(bridged.decision_function(genes), expected.decision_function(genes))


def test_celltypist_gives_what_its_own_api_gives():
    call = given("celltypist", "annotation", top_genes=5)
    found = celltypist.annotation(call)
    package = celltypist.load()
    reference, query = call.reference.copy(), call.query.copy()
    model = package.train(reference, labels="label", feature_selection=True, top_genes=5, random_state=0)
    assert (found == package.annotate(query, model=model).predicted_labels["predicted_labels"]).all()
    assert call.info["n_genes"] == len(model.features) < call.adata.n_vars
    assert len(call.info["bridge"]) == 1


def test_celltypist_votes_among_the_query_cells(monkeypatch, capsys):
    package, seen = celltypist.load(), []
    own = package.annotate
    monkeypatch.setattr(package, "annotate", lambda *a, **k: seen.append(own(*a, **k)) or seen[0])
    call = given("celltypist", "annotation", cells=120, genes=60, majority_voting=True)
    relabel(call, ["a", "b", "c", "d"] * 15)
    found = celltypist.annotation(call)
    labels = seen[0].predicted_labels
    assert (found == labels["majority_voting"]).all()
    assert (found != labels["predicted_labels"]).any()
    few = given("celltypist", "annotation", majority_voting=True)
    assert "50 principal components" in said(celltypist, "annotation", few, capsys)


def test_celltypist_says_what_cells_of_another_normalisation_mean(capsys):
    call = given("celltypist", "annotation")
    call.adata.X = call.adata.X * 0.5
    celltypist.annotation(call)
    assert "do not sum to 10,000" in call.info["bridge"][-1]
    call.adata.X = call.adata.X * 20
    assert "between 0 and 9.22" in said(celltypist, "annotation", call, capsys)


def test_celltypist_leaves_the_home_folder_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CELLTYPIST_FOLDER", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "celltypist"]:
        monkeypatch.delitem(sys.modules, name)  # as if it had never been imported
    package = celltypist.load()
    assert not (tmp_path / ".celltypist").exists()
    assert not os.path.exists(package.models.models_path)


# scANVI

TINY = {"scvi_epochs": 1, "max_epochs": 1, "n_latent": 4, "n_layers": 1}


def test_scanvi_uses_no_label_of_the_query():
    """(257 cells: in mini-batches of 128 the last would be a single one, which normalisation refuses.)"""
    call = given("scanvi", "annotation", cells=257, **TINY)
    found = scanvi.annotation(call)
    query = (call.adata.obs["split"] == "query").to_numpy()
    labels = call.adata.obs["label"].astype(object)
    assert labels[query].isna().all()
    labels[query] = "type 0"
    call.adata.obs["label"] = pd.Categorical(labels)
    assert (scanvi.annotation(call) == found).all()
    assert set(found) <= set(labels[~query])
    assert call.info["n_parameters"] > 0


def test_scanvi_learns_from_the_batch_where_there_is_one():
    """The batch is a covariate, so it adds parameters."""
    sizes = []
    for batch in (True, False):
        call = given("scanvi", "annotation", cells=60, **TINY)
        if not batch:
            del call.adata.obs["batch"]
        scanvi.annotation(call)
        sizes.append(call.info["n_parameters"])
    assert sizes[0] > sizes[1]
