"""Metrics: hand-computed values, and agreement with scib-metrics and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import scib_metrics
import scipy.sparse as sp
from sklearn.metrics import classification_report

from workflow.metrics.annotation import score_labels
from workflow.metrics.integration import (
    asw_batch,
    asw_label,
    best_clustering,
    graph_connectivity,
    knn_graph,
    score_embedding,
)


@pytest.fixture(scope="module")
def blobs():
    """Four types in three batches: an embedding with some batch effect in it."""
    rng = np.random.default_rng(0)
    labels, batches = rng.integers(0, 4, 240), rng.integers(0, 3, 240)
    embedding = rng.normal(size=(240, 8)) + 2.5 * np.eye(4, 8)[labels] + 0.8 * np.eye(3, 8, 4)[batches]
    return embedding, labels.astype(str), batches.astype(str)


@pytest.fixture(scope="module")
def scores(blobs):
    embedding, labels, batches = blobs
    rows = score_embedding(embedding, labels=labels, batches=batches, seed=0)
    return {(row["metric"], row["metric_impl"]): row["value"] for row in rows if row["unit_level"] == "run"}


def test_silhouettes_equal_scib_metrics(blobs):
    embedding, labels, batches = blobs
    expected = scib_metrics.silhouette_label(embedding, labels, rescale=True)
    assert asw_label(embedding, labels) == pytest.approx(expected, abs=1e-5)
    expected = scib_metrics.silhouette_batch(embedding, labels, batches, rescale=True)
    assert asw_batch(embedding, labels, batches) == pytest.approx(expected, abs=1e-5)


def test_asw_batch_leaves_out_labels_of_one_batch(blobs):
    embedding, labels, batches = blobs
    alone = np.where(labels == "3", "0", batches)
    kept = labels != "3"
    assert asw_batch(embedding, labels, alone) == pytest.approx(
        asw_batch(embedding[kept], labels[kept], alone[kept])
    )
    assert np.isnan(asw_batch(embedding, labels, np.full(240, "0")))


def test_graph_connectivity_by_hand():
    """a: a path of three and a cell apart (3/4); b: one pair (2/2)."""
    edges = [(0, 1), (1, 2), (4, 5), (3, 4)]
    graph = sp.lil_matrix((6, 6))
    for i, j in edges:
        graph[i, j] = graph[j, i] = 1
    labels = np.array(list("aaaabb"))
    assert graph_connectivity(graph.tocsr(), labels) == pytest.approx((3 / 4 + 1) / 2)


def test_neighbours_are_exact_however_many_cells_there_are():
    """From 8,192 cells on scanpy would take another way, which ends in an error with pynndescent 0.7."""
    points = np.random.default_rng(0).normal(size=(8200, 4))
    graph = knn_graph(points)
    nearest = np.argsort(((points - points[17]) ** 2).sum(axis=1))[1:15]
    assert set(graph.obsp["distances"][17].indices) == set(nearest)


def test_the_search_keeps_the_first_resolution_of_highest_nmi(blobs):
    embedding, labels, _ = blobs
    graph = knn_graph(embedding)
    by_hand = []
    for resolution in np.arange(1, 11) / 5:
        nmi, ari, used = best_clustering(graph, labels, sc.tl.leiden, np.array([resolution]))
        assert used == resolution
        by_hand.append((nmi, ari, resolution))
    best = max(by_hand, key=lambda found: found[0])
    assert best_clustering(graph, labels, sc.tl.leiden, np.arange(1, 11) / 5) == best


def test_averages_are_those_of_their_parts(scores):
    for rule in ("scib-1.1.5", "scib-1.1.7", "scib-metrics", "leiden-r1"):
        parts = scores["nmi", rule], scores["ari", rule], scores["asw_label", "scib"]
        assert scores["avg_bio", rule] == pytest.approx(np.mean(parts))
    parts = scores["asw_batch", "scib"], scores["graph_connectivity", "scib"]
    assert scores["avg_batch", "scib"] == pytest.approx(np.mean(parts))
    for (metric, _), value in scores.items():
        assert 0 <= value <= (2 if metric == "resolution" else 1)


def test_the_searching_rules_are_upper_bounds_of_the_fixed_one(scores):
    assert scores["nmi", "scib-1.1.7"] >= scores["nmi", "leiden-r1"]


def test_scores_are_the_same_twice(blobs, scores):
    embedding, labels, batches = blobs
    again = score_embedding(embedding, labels=labels, batches=batches, seed=0)
    assert {(r["metric"], r["metric_impl"]): r["value"] for r in again if r["unit_level"] == "run"} == scores


def test_labels_that_mean_nothing_score_near_nothing(blobs):
    embedding, labels, batches = blobs
    shuffled = np.random.default_rng(1).permutation(labels)
    rows = score_embedding(embedding, labels=shuffled, batches=batches, seed=0)
    value = {(r["metric"], r["metric_impl"]): r["value"] for r in rows if r["unit_level"] == "run"}
    assert value["nmi", "leiden-r1"] < 0.1
    assert value["ari", "leiden-r1"] < 0.05


def test_permuted_labels_give_the_chance_level_of_the_same_embedding(blobs, scores):
    """Type and cell have nothing to do with each other any more, and the search still finds more than 0."""
    embedding, labels, batches = blobs
    rows = score_embedding(embedding, labels=labels, batches=batches, seed=0)
    chance = [row["value"] for row in rows if row["unit_level"] == "permuted"]
    assert len(chance) == len(set(chance)) == 3
    assert 0.1 < min(chance) and max(chance) < 0.3 < scores["avg_bio", "scib-1.1.5"]


TRUTH = np.array(["a", "a", "a", "b", "b", "new"])
PREDICTED = np.array(["a", "a", "b", "b", "c", "a"])


def labelled(reference=("a", "b", "c")):
    return score_labels(truth=TRUTH, predicted=PREDICTED, reference_labels=list(reference))


def test_macro_scores_in_three_label_sets_by_hand():
    """F1: a 2*2/(3+3) = 2/3, b 2*1/(2+2) = 1/2, c 0 (never true), new 0 (never predicted)."""
    value = {(r["metric"], r["metric_impl"]): r["value"] for r in labelled() if r["unit_level"] == "run"}
    assert value["accuracy", "sklearn"] == pytest.approx(3 / 6)
    assert value["macro_f1", "sklearn-union"] == pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4)
    assert value["macro_f1", "sklearn-query"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value["macro_f1", "sklearn-shared"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert value["macro_precision", "sklearn-union"] == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert value["macro_recall", "sklearn-union"] == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert value["balanced_accuracy", "sklearn"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value["accuracy_ceiling", "sklearn"] == pytest.approx(5 / 6)


def test_macro_scores_over_the_union_equal_scikit_learns_default():
    value = {(r["metric"], r["metric_impl"]): r["value"] for r in labelled() if r["unit_level"] == "run"}
    expected = classification_report(TRUTH, PREDICTED, output_dict=True, zero_division=0)["macro avg"]
    assert value["macro_f1", "sklearn-union"] == pytest.approx(expected["f1-score"])
    assert value["macro_precision", "sklearn-union"] == pytest.approx(expected["precision"])
    assert value["macro_recall", "sklearn-union"] == pytest.approx(expected["recall"])


def test_permuted_truth_gives_the_agreement_that_the_shares_of_the_labels_give():
    """Half a, half b, predicted perfectly: two shuffles agree in about half of the cells."""
    truth = np.array(["a", "b"] * 500)
    rows = score_labels(truth=truth, predicted=truth, reference_labels=["a", "b"])
    chance = {
        m: [r["value"] for r in rows if r["unit_level"] == "permuted" and r["metric"] == m]
        for m in ("accuracy", "macro_f1")
    }
    for values in chance.values():
        assert len(values) == 5
        assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_there_is_a_row_per_label():
    rows = labelled()
    labels = {r["unit_id"]: (r["value"], r["n_units"]) for r in rows if r["unit_level"] == "label"}
    assert labels["a"] == (pytest.approx(2 / 3), 3)
    assert set(labels) == {"a", "b", "new"}
