"""What there is to integrate, or to annotate: on made-up cells, and on a piece of PBMC 10k."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from support import make_cells

from workflow import room, tasks
from workflow.tidy import log_normalize


def prepared(n=300, *, task="integration", batch_effect=1.0):
    """Synthetic cells of 3 types, prepared; half of the genes are ``batch_effect`` times as high in b1."""
    cells = make_cells(n)
    rng = np.random.default_rng(1)
    rate = 1 + 6 * (np.arange(cells.n_vars) % 3 == (np.arange(n) % 3)[:, None])
    second = (cells.obs["batch"] == "b1").to_numpy()
    rate = rate * np.where(second[:, None] & (np.arange(cells.n_vars) % 2 == 0), batch_effect, 1.0)
    counts = rng.poisson(rate).astype(np.float32)
    obs = cells.obs.rename(columns={"cell_type": "label"})
    cells = ad.AnnData(counts, obs=obs, var=cells.var, layers={"counts": counts.copy()})
    log_normalize(cells)
    settings = {"n_top_genes": cells.n_vars, "split": {"kind": "stratified"}}
    return tasks.get(task).make_io(cells, settings)[:2]


@pytest.fixture
def short_search(monkeypatch):
    rules = {name: (cluster, np.array([0.2, 0.6, 1.0])) for name, (cluster, _) in room.RULES.items()}
    monkeypatch.setattr(room, "RULES", rules)


def test_mixing_counts_neighbours_of_other_batches():
    batches = np.array(["a", "a", "b"])
    neighbours = np.array([[1, 2], [0, 2], [0, 1]])
    assert room.mixing(neighbours, batches) == pytest.approx((1 + 1 + 2) / 6)
    assert room.perfect_mixing(batches) == pytest.approx(2 / 3)  # every pair but (0, 1)


def test_shuffled_batches_mix_perfectly_and_within_types_only_what_their_composition_allows():
    rng = np.random.default_rng(0)
    n = 4000
    labels = np.repeat(["x", "y"], n // 2)
    # batch b holds 1/10 of type x and 9/10 of type y; neighbours stay within their type
    batches = np.where(rng.random(n) < np.where(labels == "x", 0.1, 0.9), "b", "a")
    neighbours = np.concatenate(
        [rng.integers(0, n // 2, (n // 2, 15)), rng.integers(n // 2, n, (n // 2, 15))]
    )
    anywhere, low, high = room.shuffled_mixing(neighbours, batches)
    inside, _, _ = room.shuffled_mixing(neighbours, batches, labels)
    assert anywhere == pytest.approx(room.perfect_mixing(batches), abs=0.01)
    assert low < anywhere < high
    assert inside == pytest.approx(2 * 0.1 * 0.9, abs=0.01)
    assert room.mixing(neighbours, batches) == pytest.approx(inside, abs=0.01)
    assert room.cramers_v(batches, labels) == pytest.approx(0.8, abs=0.03)
    assert room.cramers_v(np.repeat("a", n), labels) == 0


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [(1.0, "hardly a batch effect"), (2.0, "some batch effect"), (16.0, "a strong batch effect")],
)
def test_the_verdict_follows_the_batch_effect_that_was_put_in(effect, verdict, short_search):
    given, solution = prepared(batch_effect=effect)
    found = room.integration_room(given, solution)
    assert found["verdict"] == verdict
    assert 0.1 < found["random_avg_bio_leiden"] < 0.3
    assert found["ceiling_avg_bio_leiden"] > 0.9
    assert found["random_avg_bio_louvain"] < found["pca_avg_bio_louvain"] <= found["ceiling_avg_bio_louvain"]
    assert found["room_leiden"] == found["ceiling_avg_bio_leiden"] - found["pca_avg_bio_leiden"]


def test_floor_and_ceiling_are_measured_on_some_cells_of_each_type():
    labels = np.repeat(["common", "rare"], [9000, 30])
    kept = room._some_of_each(labels, 3000)
    assert kept.sum() == pytest.approx(3000, abs=2) and (labels[kept] == "rare").sum() == 10
    assert room._some_of_each(labels[:100], 3000).all()


def test_auc_tells_a_shift_from_none_and_composition_from_a_shift():
    rng = np.random.default_rng(0)
    n = 2000
    labels = np.where(rng.random(n) < 0.5, "x", "y")
    query = rng.random(n) < np.where(labels == "x", 0.2, 0.8)  # composition differs, cells do not
    points = rng.normal(size=(n, 3)) + [4, 0, 0] * (labels == "x")[:, None]
    weights = room._weights(labels, query)
    assert room.shift_auc(points, query) > 0.75
    assert room.shift_auc(points, query, weights) == pytest.approx(0.5, abs=0.05)
    assert room.shift_auc(points + [0, 0, 3] * query[:, None], query, weights) > 0.95
    assert math.isnan(room.shift_auc(points[:10], np.arange(10) < 3))


def test_annotation_knows_floor_ceiling_and_the_rarest_type():
    given, solution = prepared(task="annotation")
    found = room.annotation_room(given, solution)
    truth = solution.obs["label"].to_numpy(dtype=str)
    reference = given.obs["label"].dropna().astype(str)
    assert found["majority"] == (truth == reference.value_counts().index[0]).mean()
    assert found["majority"] < found["knn"] <= found["ceiling"] == 1
    assert found["rarest_type_cells"] == reference.value_counts().min()
    assert found["share_reached"] == pytest.approx(
        (found["knn"] - found["majority"]) / (1 - found["majority"])
    )


def test_the_sentence_names_the_numbers_and_needs_no_runs():
    given, solution = prepared(task="annotation")
    none = pd.DataFrame(columns=["metric", "metric_impl", "unit_level", "method_kind", "method", "value"])
    found = room.room_of("annotation", given, solution, none)
    assert f"{found['knn']:.3f}" in found["sentence"] and f"{found['ceiling']:.3f}" in found["sentence"]
    assert math.isnan(found["room_in_sd"]) and "nan" not in found["sentence"]
    rows = pd.DataFrame(
        {
            "metric": "accuracy", "metric_impl": "sklearn", "unit_level": "run", "method_kind": "deep",
            "method": ["a", "a", "b", "b", "c", "c"], "value": [0.5, 0.6, 0.5, 0.5, 0.4, 0.7],
        }
    )  # fmt: skip
    noise = room.seed_noise(rows, "annotation")[""]  # b did not vary, so it does not count
    assert noise == pytest.approx((0.1 + 0.3) / 2 / np.sqrt(2))
    told = room.describe(found, "annotation", {"": noise})
    assert told["room_in_sd"] == pytest.approx(found["room"] / noise)


@pytest.fixture
def prepared_mini(mini):
    from workflow.recipes import pbmc10k_mini

    adata = pbmc10k_mini.load({"cells": mini})
    log_normalize(adata)
    return tasks.get("integration").make_io(adata, {"n_top_genes": 1200})[:2]


def test_pbmc_10k_has_hardly_a_batch_effect(prepared_mini, monkeypatch):
    """Known of this piece: PCA has AvgBIO .803 by Leiden and mixes .309 where perfect mixing is .303."""
    one = {
        "leiden": (room.RULES["leiden"][0], np.array([0.2]))
    }  # where the search ends, in a tenth of the time
    monkeypatch.setattr(room, "RULES", one)
    found = room.integration_room(*prepared_mini)
    assert found["pca_avg_bio_leiden"] == pytest.approx(0.803, abs=0.01)
    assert found["mixing_k15"] == pytest.approx(0.309, abs=0.002)
    assert found["perfect_mixing"] == pytest.approx(2 * 456 * 1977 / 2433**2, abs=0.001)
    assert found["shuffled_k15"] == pytest.approx(0.303, abs=0.004)
    assert found["shuffled_low_k15"] < found["mixing_k15"] < found["shuffled_high_k15"]
    assert found["verdict"] == "hardly a batch effect"
