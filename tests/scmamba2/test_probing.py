"""Cells written otherwise, and a look at each epoch: both leave everything else as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import OPTIONS, SMALL, interrupt, plain, same, same_weights

from scmamba2 import Annotator, Integrator
from scmamba2.tasks import base, probes
from scmamba2.tasks.base import encode, unit
from scmamba2.training import Batch, Cells, load
from scmamba2.vocabulary import Vocabulary

CUT = replace(SMALL, max_length=21)  # room for 20 of 40 genes
UNKNOWN = replace(SMALL, oov="pad")


@pytest.fixture(params=[SMALL, CUT, UNKNOWN], ids=["whole", "cut", "unknown"])
def integrator(request, cells):
    known = Vocabulary.from_genes(cells.var_names[:30]) if request.param is UNKNOWN else None
    return Integrator(request.param, vocabulary=known, **OPTIONS).fit(cells)


@pytest.fixture
def annotator(cells):
    """It has learnt a little, so that some cells are at the border between labels."""
    return Annotator(SMALL, epochs=2, learning_rate=3e-3, batch_size=8).fit(cells)


def tokens_of(model, cells, probe, seed=0):
    """Tokens of all cells in an order of their genes."""
    vocabulary = model.vocabulary
    return next(
        probes.reorder(
            model._tokens(cells, vocabulary), probe, seed, len(vocabulary), vocabulary.pad, model.config
        )
    )


def test_another_order_has_the_same_genes_with_the_same_values(integrator, cells):
    (usual,) = integrator._tokens(cells, integrator.vocabulary)
    other = tokens_of(integrator, cells, "order_0")
    assert (other.lengths == usual.lengths).all()
    assert (other.genes[:, 0] == integrator.vocabulary.cls).all() and (other.values[:, 0] == 0).all()
    moved = 0
    for i, n in enumerate(usual.lengths):
        pairs = [sorted(zip(t.genes[i, 1:n], t.values[i, 1:n], strict=True)) for t in (usual, other)]
        assert pairs[0] == pairs[1]
        moved += (usual.genes[i] != other.genes[i]).any()
        assert (usual.genes[i, n:] == other.genes[i, n:]).all()
    assert moved == 120
    orders = {tuple(row) for row in other.genes}
    if integrator.config.max_length == 21:
        assert len(orders) == 120, "a cut cell has an order of its own"
    else:
        one = integrator.config.oov == "drop"
        assert (len(orders) == 1) == one, "one order for all cells; unknown genes have none"
    again, second = (tokens_of(integrator, cells, probe) for probe in ("order_0", "order_1"))
    assert (again.genes == other.genes).all() and (second.genes != other.genes).any()
    assert (tokens_of(integrator, cells, "order_0", seed=1).genes != other.genes).any()


def test_cells_of_few_genes_share_an_order(annotator, cells):
    """Annotation reads the genes that a cell has: any two stand in the same order in all cells."""
    tokens = tokens_of(annotator, cells, "order_0")
    before = np.zeros((len(annotator.vocabulary),) * 2, dtype=bool)
    for genes, n in zip(tokens.genes, tokens.lengths, strict=True):
        first, second = np.triu_indices(n - 1, 1)
        before[genes[1:n][first], genes[1:n][second]] = True
    assert before.any() and not (before & before.T).any()
    assert (tokens.lengths > 2).all() and len(set(tokens.lengths)) > 3


def test_probes_of_an_embedding(integrator, cells):
    usual = integrator.transform(cells)
    padded = integrator.transform(cells, probe="padding")
    np.testing.assert_allclose(padded, usual, atol=2e-6)
    changed = [integrator.transform(cells, probe=probe) for probe in ("order_0", "order_1", "cls_last")]
    for i, other in enumerate(changed):
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, rtol=1e-5)
        assert all(np.abs(other - one).max() > 1e-3 for one in [usual, *changed[:i]])
    assert (integrator.transform(cells) == usual).all(), "a probe leaves nothing behind"


def test_probes_of_labels(annotator, cells):
    usual = annotator.predict(cells)
    assert (annotator.predict(cells, probe="padding") == usual).all()
    assert (annotator.predict(cells, probe="order_0") != usual).any()
    assert (annotator.predict(cells, probe="cls_last") != usual).any()
    assert annotator.embed(cells, probe="order_0").shape == (120, 32)


def test_an_order_does_not_depend_on_how_many_cells_are_read_at_a_time(integrator, cells, monkeypatch):
    whole = integrator.transform(cells, probe="order_0")
    monkeypatch.setattr(base, "CHUNK", 50)
    np.testing.assert_allclose(integrator.transform(cells, probe="order_0"), whole, atol=1e-5)


def small_batch():
    """Two cells: <cls> (9), genes, pads (8)."""
    genes = torch.tensor([[9, 1, 2, 3], [9, 4, 8, 8]])
    values = torch.tensor([[0.0, 10, 20, 30], [0, 40, -2, -2]])
    lengths = torch.tensor([4, 2])
    return Batch(genes, values, values, values > 99, lengths, None, None, None)


def test_cls_moves_behind_the_last_gene():
    moved = probes.cls_to_the_end(small_batch())
    assert moved.genes.tolist() == [[1, 2, 3, 9], [4, 9, 8, 8]]
    assert moved.values.tolist() == [[10, 20, 30, 0], [40, 0, -2, -2]]


def test_pads_are_added_and_not_read():
    padded = probes.more_pads(small_batch(), 8, -2.0)
    assert padded.genes.shape == (2, 4 + probes.PADS) and padded.lengths.tolist() == [4, 2]
    assert (padded.genes[:, 4:] == 8).all() and (padded.values[:, 4:] == -2).all()


def test_cls_is_read_where_it_stands(annotator, cells):
    """Against the state of each cell by itself, <cls> written last."""
    found = annotator.embed(cells[:5], probe="cls_last")
    (tokens,) = annotator._tokens(cells[:5], annotator.vocabulary)
    for i, n in enumerate(tokens.lengths):
        own = tokens._replace(
            genes=np.roll(tokens.genes[i : i + 1, :n], -1),
            values=np.roll(tokens.values[i : i + 1, :n], -1),
            lengths=tokens.lengths[i : i + 1],
        )
        (batch,) = load(Cells(own), [np.array([0])], torch.device("cpu"))
        with torch.inference_mode():
            expected = unit(encode(annotator.model.eval(), batch)[:, -1])
        np.testing.assert_allclose(found[i], expected[0], atol=1e-5)


def test_probes_that_do_not_exist(annotator, cells):
    for probe in ("order", "order_", "order_-1", "pads", "epoch_1"):
        with pytest.raises(ValueError, match=f"probe must be .* not '{probe}'"):
            annotator.predict(cells, probe=probe)
    average = Annotator(replace(SMALL, readout="average"), epochs=1).fit(cells)
    with pytest.raises(ValueError, match="moves <cls>, which the readout 'average' does not use"):
        average.predict(cells, probe="cls_last")
    np.testing.assert_allclose(
        average.predict_proba(cells, probe="padding"), average.predict_proba(cells), atol=1e-6
    )


# --- a look at each epoch


def wonderful(seen, cells, folder=None):
    """A callback that looks, draws, meddles with what it was given, and returns a perfect score."""

    def look(epoch, task):
        seen.append((epoch, task.embed(cells), task.selected_epoch))
        torch.manual_seed(epoch)
        torch.rand(7), np.random.seed(epoch), np.random.rand(3)
        task.model.train(), task.history.clear()
        task.training = task.config = None
        return {"accuracy": 1.0, "valid_loss": -1e9, "stop": True}

    return look


@pytest.mark.parametrize("options", [{}, {"keep": "best", "learning_rate": 0.05}, {"patience": 1}])
@pytest.mark.parametrize("task", [Integrator, Annotator])
def test_a_look_at_each_epoch_changes_no_number(cells, task, options):
    options = {**OPTIONS, "epochs": 4, **options}
    looks = []
    unseen = task(SMALL, **options).fit(cells)
    seen = task(SMALL, **options).fit(cells, on_epoch=wonderful(looks, cells))
    assert same_weights(unseen.model, seen.model) and plain(unseen.history) == plain(seen.history)
    assert unseen.selected_epoch == seen.selected_epoch
    assert (unseen.embed(cells) == seen.embed(cells)).all()
    assert [epoch for epoch, _, _ in looks] == list(range(1, len(seen.history) + 1))
    # the epoch that is kept is the one that was seen then
    assert (looks[seen.selected_epoch - 1][1] == seen.embed(cells)).all()
    assert looks[-1][2] == seen.selected_epoch


def test_epochs_before_an_interruption_are_not_shown_again(cells, tmp_path):
    whole = Integrator(SMALL, **OPTIONS).fit(cells)
    looks = []
    resumed = Integrator(SMALL, folder=tmp_path, **OPTIONS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 13)  # of 7 mini-batches and a validation of 2 an epoch: in the second
        resumed.fit(cells, on_epoch=wonderful(looks, cells))
    assert [epoch for epoch, _, _ in looks] == [1]

    def stopped(epoch, task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumed.fit(cells, on_epoch=stopped)
    with pytest.raises(RuntimeError, match="not fitted"):
        resumed.transform(cells)
    resumed.fit(cells, on_epoch=wonderful(looks, cells))
    assert [epoch for epoch, _, _ in looks] == [1, 2, 3], "an epoch is over once it was looked at"
    assert same((resumed, resumed.transform(cells)), (whole, whole.transform(cells)))
    resumed.fit(cells, on_epoch=stopped)  # finished: read back, and no epoch is new


def test_a_look_can_predict(cells):
    found = []
    options = {"epochs": 2, "learning_rate": 1e-3}
    model = Annotator(SMALL, **options).fit(cells, on_epoch=lambda n, task: found.append(task.predict(cells)))
    assert (
        set(found[0]) <= set(model.classes)
        and (found[model.selected_epoch - 1] == model.predict(cells)).all()
    )
