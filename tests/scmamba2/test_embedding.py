"""Fitted tasks as checkpoints, pretrained models, and what may stand in an AnnData object."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scmamba2
from scmamba2 import Annotator, Config, Embedder, Integrator, Vocabulary, checkpoints
from scmamba2.model.generator import Generator
from scmamba2.model.network import ScMamba2
from scmamba2.tasks import base, data

SMALL = Config(d_model=32, n_layers=2, d_state=16, headdim=32)
TRAINING = {"epochs": 1, "learning_rate": 1e-3}


@pytest.fixture
def pretrained(tmp_path, cells):
    """A checkpoint without a task, of a model that knows the genes of ``cells`` and ten more."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_genes([f"other{i}" for i in range(10)] + list(cells.var_names))
    checkpoints.save(
        tmp_path / "pretrained", ScMamba2(SMALL, len(vocabulary), pad_id=vocabulary.pad), vocabulary
    )
    return tmp_path / "pretrained"


@pytest.mark.parametrize("task", [Integrator, Annotator])
def test_a_fitted_task_is_saved_and_read_back(task, cells, tmp_path):
    model = task(SMALL, seed=3, batch_size=20, **TRAINING).fit(cells)
    model.save(tmp_path / "model")
    for loaded in (task.load(tmp_path / "model"), scmamba2.load(tmp_path / "model")):
        assert type(loaded) is task and loaded.history == model.history
        assert (loaded.embed(cells) == model.embed(cells)).all()
        assert (loaded.seed, loaded.training) == (3, model.training)
    if task is Annotator:
        assert loaded.classes == model.classes and (loaded.predict(cells) == model.predict(cells)).all()
    else:
        assert (loaded.batches, loaded.batch_key) == (model.batches, "batch")
        with pytest.raises(ValueError, match="holds Integrator, not Annotator"):
            Annotator.load(tmp_path / "model")
    with pytest.raises(RuntimeError, match="call fit first"):
        task().save(tmp_path / "other")


def test_embed_writes_to_obsm(pretrained, cells):
    embedding = scmamba2.embed(cells, pretrained, batch_size=7)
    assert embedding.shape == (120, 32) and embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    assert (cells.obsm["X_scmamba2"] == embedding).all()
    again = scmamba2.embed(cells, scmamba2.load(pretrained, batch_size=64), key_added="again")
    np.testing.assert_allclose(cells.obsm["again"], embedding, atol=1e-5)
    assert again is not embedding


def test_backed_and_sparse_data_in_chunks(pretrained, cells, tmp_path, monkeypatch):
    """Chunks change nothing, even where cells are sampled and bins are drawn."""
    monkeypatch.setattr(base, "CHUNK", 50)
    monkeypatch.setattr(data.chunks, "__defaults__", (50,))
    model = scmamba2.load(pretrained)
    object.__setattr__(model, "config", Config(**{**vars(model.config), "max_length": 12}))
    object.__setattr__(model, "config", Config(**{**vars(model.config), "binning": "spreading"}))
    with monkeypatch.context() as patch:
        patch.setattr(base, "CHUNK", 1000)
        expected = model.embed(cells)
    np.testing.assert_allclose(model.embed(cells), expected, atol=1e-6)
    for name, matrix in {"dense": cells.X, "csr": sparse.csr_matrix(cells.X)}.items():
        ad.AnnData(matrix, obs=cells.obs, var=cells.var).write_h5ad(tmp_path / f"{name}.h5ad")
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        assert backed.isbacked
        np.testing.assert_allclose(model.embed(backed), expected, atol=1e-6)


def test_genes_by_symbol_or_ensembl_identifier(pretrained, cells, caplog):
    expected = scmamba2.embed(cells.copy(), pretrained)
    symbols = list(cells.var_names)
    by_column = cells.copy()
    by_column.var_names = [f"ENSG{i:011d}" for i in range(40)]
    by_column.var["feature_name"] = pd.Categorical(symbols)
    by_column.var["length"] = np.arange(40)
    with caplog.at_level(logging.INFO, "scmamba2"):
        assert (scmamba2.embed(by_column, pretrained) == expected).all()
    assert "40 of 40 genes known, by var['feature_name']" in caplog.text

    vocabulary = Vocabulary.from_genes([f"ENSG{i:011d}" for i in range(40)])
    versioned = cells.copy()
    versioned.var_names = [f"ENSG{i:011d}.{i % 7}" for i in range(40)]
    assert data.match_genes(versioned, vocabulary).coverage == 1
    fitted = Annotator(SMALL, **TRAINING).fit(versioned)
    versioned.var_names = [f"ENSG{i:011d}.9" for i in range(40)]
    assert fitted.embed(versioned).shape == (120, 32) and fitted.coverage == 1
    versioned.var_names = [f"ENSG{i:011d}.{i % 7}" for i in range(40)]
    assert (data.match_genes(versioned, vocabulary).ids == np.arange(40)).all()


def test_too_few_known_genes(pretrained, cells):
    model = scmamba2.load(pretrained)
    few = cells.copy()
    few.var_names = [f"G{i}" if i < 3 else f"mouse{i}" for i in range(40)]
    with pytest.raises(ValueError, match=r"7\.5% of the 40 genes .* at least 10% must be.*var_names"):
        model.embed(few)
    model.min_coverage = 0.05
    counted = few[few.X[:, :3].sum(1) > 0].copy()
    assert model.embed(counted).shape == (counted.n_obs, 32) and model.coverage == 0.075
    twice = cells.copy()
    twice.var["symbol"] = ["G0", *twice.var_names[:-1]]
    twice.var_names = [f"ENSG{i:011d}" for i in range(40)]
    with pytest.raises(ValueError, match=r"1 gene names occur more than once in var\['symbol'\] \(G0\)"):
        model.embed(twice)


def test_fine_tuning_starts_from_the_checkpoint(pretrained, cells, caplog):
    with caplog.at_level(logging.INFO, "scmamba2"):
        model = Annotator(pretrained=pretrained, epochs=1, learning_rate=1e-12).fit(cells)
    start = checkpoints.load(pretrained).model.state_dict()
    state = model.model.state_dict()
    name = "mamba_encoder.layers.1.mamba.in_proj.weight"
    torch.testing.assert_close(state[name], start[name], rtol=0, atol=1e-9)
    assert model.vocabulary.ids == Vocabulary.load(pretrained / "vocab.json").ids
    assert model.config.d_model == 32 and model.config.binning == "spreading"
    assert "loaded" in caplog.text and "cls_decoder.out_layer.weight (1, 32), not (3, 32)" in caplog.text
    integrator = Integrator(pretrained=pretrained, **TRAINING).fit(cells)
    assert integrator.config.dsbn and integrator.history[0]["train_gep"] > 0
    with pytest.raises(ValueError, match="backbone would be left out"):
        Annotator(Config(d_model=64), pretrained=pretrained, **TRAINING).fit(cells)


def test_wrong_checkpoints(tmp_path, pretrained, cells):
    with pytest.raises(ValueError, match="config.json cannot be read"):
        scmamba2.embed(cells, tmp_path / "nothing")
    vocabulary = Vocabulary.from_genes(cells.var_names)
    checkpoints.save(tmp_path / "g", Generator(SMALL, len(vocabulary), pad_id=vocabulary.pad), vocabulary)
    with pytest.raises(ValueError, match="not a perturbation generator"):
        scmamba2.embed(cells, tmp_path / "g")
    with pytest.raises(ValueError, match="batch norm per batch"):
        Embedder(Config(dsbn=True))
    assert not (cells.obsm.keys() & {"X_scmamba2"})


def test_cells_alone_equal_the_first_of_all_tokens(cells):
    """Inference computes the last layer for <cls> only."""
    model = Integrator(SMALL, **TRAINING).fit(cells)
    expected = model.transform(cells)
    model.model.mamba_encoder.forward = lambda x, lengths, first_only: type(
        model.model.mamba_encoder
    ).forward(model.model.mamba_encoder, x, lengths, False)
    np.testing.assert_allclose(model.transform(cells), expected, atol=1e-6)


def test_the_order_of_the_genes_does_not_count(cells):
    """The model reads a sequence; it is that of the vocabulary, whatever that of the file."""
    order = np.random.default_rng(0).permutation(40)
    for model in (Integrator(SMALL, **TRAINING), Annotator(SMALL, **TRAINING)):
        expected = model.fit(cells).embed(cells)
        np.testing.assert_allclose(model.embed(cells[:, order].copy()), expected, atol=1e-6)


def test_more_genes_than_tokens_is_said(cells, caplog):
    Integrator(Config(d_model=32, n_layers=1, headdim=32, max_length=21), **TRAINING).fit(cells)
    assert "40 genes, but max_length leaves room for 20" in caplog.text


def test_embed_wants_an_anndata_that_it_can_write_to(pretrained, cells, tmp_path):
    with pytest.raises(TypeError, match="AnnData object, not str"):
        scmamba2.embed("cells.h5ad", pretrained)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="to_memory"):
        scmamba2.embed(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")[:5], pretrained)
