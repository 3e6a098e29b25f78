"""What users call, and the training behind it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import sparse

from scmamba2 import Annotator, Config, Integrator
from scmamba2.streams import seed_of, stream, torch_stream
from scmamba2.training import minibatches, split
from scmamba2.vocabulary import Vocabulary

SMALL = Config(d_model=32, n_layers=1, d_state=16, headdim=32)


def integrator(seed=0, **options):
    options = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 32, "seed": seed, **options}
    return Integrator(SMALL, **options)


def without_time(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "cells_per_s")} for row in history]


def test_import_is_light():
    code = "import sys, scmamba2; scmamba2.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_annotator_learns_separable_types(cells):
    model = Annotator("tiny", epochs=10, learning_rate=2e-3, batch_size=16).fit(cells)
    assert (model.predict(cells) == cells.obs["label"]).mean() > 0.9
    assert model.classes == ["type 0", "type 1", "type 2"] and model.coverage == 1
    proba = model.predict_proba(cells)
    assert proba.shape == (120, 3) and proba.dtype == np.float32
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(model.embed(cells), axis=1), 1, rtol=1e-5)
    assert {"epoch", "train_ce", "train_loss", "valid_ce", "valid_loss", "seconds"} <= set(model.history[0])
    assert len(model.history) == 10


def test_integrator(cells):
    model = integrator(epochs=4)
    embedding = model.fit_transform(cells)
    assert embedding.shape == (120, 32) and embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    assert model.batches == ["b0", "b1"]
    assert model.n_parameters == model.model.count_parameters() > 0
    for term in ("gep", "gep_zero", "gepc", "gepc_zero", "dar", "loss"):
        assert np.isfinite(
            [row[f"{side}_{term}"] for row in model.history for side in ("train", "valid")]
        ).all()
    assert model.history[-1]["train_loss"] < model.history[0]["train_loss"]
    assert (model.transform(cells) == embedding).all()
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_allclose(model.transform(cells[order]), embedding[order], atol=1e-5)


def test_same_seed_same_result(cells):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = integrator(), integrator(), integrator(seed=1)
    results = [model.fit_transform(cells) for model in (first, again, other)]
    assert (results[0] == results[1]).all() and (results[0] != results[2]).any()
    assert without_time(first.history) == without_time(again.history)
    assert torch.equal(torch.get_rng_state(), before[0]), "the global generators are left alone"
    assert (np.random.get_state()[1] == before[1]).all()


def test_sparse_layer_and_dense_matrix_agree(cells):
    other = cells.copy()
    other.layers["counts"] = sparse.csr_matrix(cells.X)
    other.X = -np.ones_like(cells.X)
    assert (integrator().fit_transform(cells) == integrator().fit_transform(other)).all()


def test_log_normalised_values_give_the_same_plain_bins(cells):
    other = cells.copy()
    other.X = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)
    assert (integrator().fit_transform(cells) == integrator().fit_transform(other)).all()


def test_unknown_genes_are_dropped(cells):
    vocabulary = Vocabulary.from_genes([*cells.var_names[:30], "elsewhere"])
    model = integrator(vocabulary=vocabulary)
    full = model.fit_transform(cells)
    assert model.coverage == 0.75
    assert (model.transform(cells[:, :30]) == full).all() and model.coverage == 1


def test_errors_say_what_is_wrong(cells):
    def fails(match, change, model=None, **keys):
        data = cells.copy()
        data = change(data) or data
        with pytest.raises(ValueError, match=match):
            (model or integrator()).fit(data, **keys)

    def set_x(value):
        def change(data):
            data.X[2, 3] = value

        return change

    def empty(data):
        data.X[[4, 7]] = 0

    def duplicate(data):
        data.var_names = ["G0", "G0", *data.var_names[2:]]

    def unlabelled(data):
        data.obs.loc["cell5", "label"] = None

    fails("negative", set_x(-1))
    fails("NaN", set_x(np.nan))
    fails("2 of 120 cells have no count.*cell4, cell7", empty)
    fails("G0.*var_names_make_unique", duplicate)
    fails("no batch column 'donor'.*label, batch", lambda data: None, batch_key="donor")
    fails("1 cells have no label.*cell5", unlabelled, Annotator(SMALL))
    fails("none of the 40 genes", lambda d: None, integrator(vocabulary=Vocabulary.from_genes("AB")))
    fails("at least 2 cells", lambda data: data[:1].copy())

    with pytest.raises(RuntimeError, match="call fit first"):
        integrator().transform(cells)
    with pytest.raises(RuntimeError, match="call fit first"):
        Annotator().predict(cells)
    with pytest.raises(ValueError, match="mask_ratio"):
        Integrator(Config(mask_ratio=0.0))
    with pytest.raises(ValueError, match="mask_ratio"):
        Annotator(Config(mask_ratio=0.4))


def test_unseen_batch(cells):
    model = integrator(epochs=1).fit(cells[:60])
    with pytest.raises(ValueError, match="b1"):
        model.transform(cells)


def test_diverging_loss_stops(cells):
    with pytest.raises(RuntimeError, match="not finite in epoch .*learning_rate"):
        integrator(learning_rate=1e30).fit(cells)


def test_split_and_minibatches():
    training, validation = split(105, seed=3)
    assert len(validation) == 10 and sorted([*training, *validation]) == list(range(105))
    groups = np.arange(105) % 2
    parts = minibatches(training, 8, groups, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == training.tolist()
    assert all(len(part) <= 8 and len(set(groups[part])) == 1 for part in parts)
    kinds = [groups[part[0]] for part in parts]
    assert kinds != sorted(kinds), "batches of cells take turns"
    assert np.concatenate(minibatches(training, 8)).tolist() == training.tolist()


def test_streams():
    assert seed_of(0, "mask") != seed_of(0, "split") != seed_of(1, "split")
    assert stream(0, "mask").random() == stream(0, "mask").random()
    state = torch.get_rng_state()
    draws = []
    for name in ("init", "init", "dropout"):
        with torch_stream(0, name):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_fit_leaves_the_task_as_it_was(cells):
    model = Annotator(SMALL, epochs=1, learning_rate=1e-3).fit(cells)
    before = model.predict(cells).tolist()
    other = cells.copy()
    other.obs["label"] = "liver"
    other.X[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.fit(other)
    assert model.classes == ["type 0", "type 1", "type 2"] and model.predict(cells).tolist() == before

    fresh = integrator()
    twice = cells.copy()
    twice.var_names = ["G0", "G0", *cells.var_names[2:]]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        fresh.fit(twice)
    twice.var_names_make_unique()
    assert fresh.fit(twice).coverage == 1
    twice.var_names = [f"other{i}" for i in range(40)]
    assert fresh.fit(twice).coverage == 1, "a second fit has the genes of its own data"


def test_no_cells_and_no_gpu(cells):
    with pytest.raises(ValueError, match="no cells"):
        integrator().fit(cells[:0])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            Annotator(device="cuda")
