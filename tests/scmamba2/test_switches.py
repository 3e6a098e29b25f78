"""Switches that bring a flaw of the released code back, and what else training can be told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from test_training import OPTIONS, SMALL, integrate, plain, same, same_weights

from scmamba2 import Annotator, Integrator, load
from scmamba2.model.losses import elastic_similarity
from scmamba2.tasks import integration
from scmamba2.training import Training, split


@pytest.fixture
def mixed(cells):
    """The cells with batches that take turns in the file."""
    return cells[np.arange(120).reshape(2, 60).T.flatten()].copy()


@pytest.fixture
def seen(monkeypatch):
    """What the objective is given: (training, batches, norms, counts of each cell) per mini-batch."""
    calls = []
    real = integration.objective

    def objective(model, batch, **names):
        calls.append((model.training, batch.batches.tolist(), batch.norms.tolist(), batch.targets.sum(1)))
        return real(model, batch, **names)

    monkeypatch.setattr(integration, "objective", objective)
    return calls


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("mix", [True, False])
def test_order_of_the_cells(mixed, seen, shuffle, mix):
    Integrator(SMALL, epochs=2, batch_size=16, shuffle=shuffle, mixed_batches=mix).fit(mixed)
    training = [call for call in seen if call[0]]
    epochs = [training[: len(training) // 2], training[len(training) // 2 :]]
    orders = [torch.cat([call[3] for call in epoch]) for epoch in epochs]
    assert torch.equal(*orders) == (not shuffle)
    assert torch.equal(orders[0].sort()[0], orders[1].sort()[0]), "all cells in both"
    for _, batches, norms, _ in seen:
        assert set(norms) == {batches[0]}, "one norm, the first cell's"
    assert any(len(set(batches)) == 2 for _, batches, _, _ in seen) == mix
    if not shuffle:
        batches = [b for call in epochs[0] for b in call[1]]
        kept = split(120, 0)[0] % 2
        assert batches == (kept.tolist() if mix else sorted(kept)), "the order of the data"


def test_mixed_cells_share_a_norm_when_they_are_embedded_too(mixed):
    model = Integrator(SMALL, **OPTIONS).fit(mixed)
    right = model.transform(mixed)
    model.training = Training(batch_size=1, mixed_batches=True)
    np.testing.assert_allclose(model.transform(mixed), right, atol=1e-5)  # one cell is one batch
    model.training = Training(batch_size=2, mixed_batches=True)
    wrong = model.transform(mixed)
    np.testing.assert_allclose(wrong[::2], right[::2], atol=1e-5)  # first cells keep their own
    assert np.abs(wrong[1::2] - right[1::2]).max() > 1e-3


def test_named_losses_are_the_usual_ones(cells):
    assert same(integrate(cells), integrate(cells, losses=["dar", "gep", "gepc"]))


def test_what_is_not_trained_teaches_nothing_and_may_still_decide(cells):
    options = {"losses": ["gepc", "dar"], "epochs": 6, "learning_rate": 0.02}
    without = Integrator(SMALL, **{**OPTIONS, **options}).fit(cells)
    looked_at = Integrator(SMALL, criterion="gep", **{**OPTIONS, **options}).fit(cells)
    assert "train_gep" not in without.history[0] and "valid_gep_zero" in looked_at.history[0]
    assert same_weights(without.model, looked_at.model), "looking at a term changes nothing"
    for row in looked_at.history:
        parts = ("gepc", "gepc_zero", "dar")
        assert row["valid_loss"] == pytest.approx(sum(row[f"valid_{name}"] for name in parts))
    # D-11: the epoch is that of an untrained decoder's lowest error
    best = Integrator(SMALL, criterion="gep", keep="best", **{**OPTIONS, **options}).fit(cells)
    errors = [row["valid_gep"] for row in best.history]
    assert errors == [row["valid_gep"] for row in looked_at.history]
    assert best.selected_epoch == errors.index(min(errors)) + 1
    usual = Integrator(SMALL, keep="best", **{**OPTIONS, **options}).fit(cells)
    losses = [row["valid_loss"] for row in usual.history]
    assert usual.selected_epoch == losses.index(min(losses)) + 1 != best.selected_epoch
    assert without.selected_epoch == 6


def test_an_untrained_decoder_keeps_its_weights(cells):
    trained = Integrator(SMALL, losses=["gepc"], **OPTIONS).fit(cells)
    fresh = trained._build(trained.vocabulary, trained.model.heads)
    state, first = trained.model.state_dict(), fresh.state_dict()
    for head, moves in (("decoder", False), ("grad_reverse_discriminator", False), ("mvc_decoder", True)):
        names = [name for name in state if name.startswith(f"{head}.")]
        assert names and any(not torch.equal(state[n], first[n]) for n in names) == moves


@pytest.mark.parametrize("trained", [True, False])
def test_elastic_similarity(cells, trained):
    losses = {"losses": ["gep", "gepc", "dar", "ecs"]} if trained else {}
    model = Integrator(SMALL, criterion="ecs", **OPTIONS, **losses).fit(cells)
    row = model.history[-1]
    parts = ["gep", "gep_zero", "gepc", "gepc_zero", "dar", *(["ecs"] if trained else [])]
    assert row["valid_loss"] == pytest.approx(sum(row[f"valid_{name}"] for name in parts))
    usual = Integrator(SMALL, **OPTIONS).fit(cells)
    assert same_weights(model.model, usual.model) != trained
    # one unit vector twice and its opposite: cosines 1 (twice) and 0 for the other seven pairs
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    expected = 1 - (2 * 0.2**2 + 7 * 0.8**2) / 9
    assert elastic_similarity(vectors, 0.8).item() == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_precision_of_evaluation(cells, precision):
    whole, embedding = integrate(cells)
    half, other = integrate(cells, eval_precision=precision)
    assert same_weights(whole.model, half.model), "training is as before"
    assert 0 < np.abs(embedding - other).max() < 0.05
    losses = [model.history[-1]["valid_loss"] for model in (whole, half)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    low, _ = integrate(cells, precision="bfloat16", eval_precision="float32")
    assert not same_weights(low.model, whole.model)


def test_a_validation_loss_that_overflows_float16_never_decides(cells, monkeypatch, caplog):
    """As in the released code, where NaN is never the lowest; in other precisions it is an error."""
    usual = integration.squared_error

    def overflow(prediction, target):  # whenever values are looked at and not trained on, in the first epoch
        error = usual(prediction, target)
        return error if torch.is_grad_enabled() or len(seen) else error * torch.inf

    seen: list[int] = []
    monkeypatch.setattr(integration, "squared_error", overflow)
    model = Integrator(SMALL, eval_precision="float16", keep="best", **{**OPTIONS, "epochs": 2})
    model.fit(cells, on_epoch=lambda epoch, _: seen.append(epoch))
    assert [np.isinf(row["valid_loss"]) for row in model.history] == [True, False]
    assert model.selected_epoch == 2
    assert "float16 ends at 65,504" in caplog.text
    seen.clear()
    with pytest.raises(RuntimeError, match=r"not finite in epoch 1 \(valid\)"):
        Integrator(SMALL, **OPTIONS).fit(cells)


def test_a_precision_that_pytorch_lacks_is_refused_at_once(monkeypatch):
    class Lacking(torch.autocast):
        def __init__(self, device_type, dtype=None, enabled=True):
            if enabled:
                warnings.warn("dtype is not supported. Disabling autocast.", stacklevel=2)
            super().__init__(device_type, enabled=False)

    monkeypatch.setattr(torch, "autocast", Lacking)
    with pytest.raises(ValueError, match=r"PyTorch .* cannot compute in float16 on cpu: .*not supported"):
        Annotator(SMALL, eval_precision="float16", device="cpu")
    Annotator(SMALL, device="cpu")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Integrator, {"losses": "gep"}, "losses must be a list of different terms, not 'gep'"),
        (Integrator, {"losses": []}, "losses must be a list"),
        (Integrator, {"losses": ["gep", "gep"]}, "losses must be a list"),
        (Integrator, {"losses": ["ce"]}, "losses of Integrator are gep, gepc, dar, ecs; not 'ce'"),
        (Integrator, {"criterion": "f1"}, "criterion must be one of gep, .*gepc_zero, loss, not 'f1'"),
        (Annotator, {"criterion": "gep"}, "criterion must be one of ce, loss, not 'gep'"),
        (Annotator, {"losses": ["dar"]}, "losses of Annotator are ce; not 'dar'"),
        (Integrator, {"shuffle": "no"}, "shuffle must be False or True, not 'no'"),
        (Integrator, {"mixed_batches": None}, "mixed_batches must be False or True, not None"),
        (Integrator, {"eval_precision": "int8"}, "eval_precision must be None or 'float32' or .* not 'int8'"),
    ],
)
def test_wrong_values_are_named(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(SMALL, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False, "mixed_batches": True, "losses": ["gepc", "dar"], "criterion": "gep"},
        {"losses": ["gep", "ecs"], "eval_precision": "bfloat16", "keep": "best"},
    ],
)
def test_resumed_training_ends_the_same_with_switches(mixed, tmp_path, options):
    for after in (6, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, after)
            integrate(mixed, tmp_path, **options)
    assert same(integrate(mixed, tmp_path, **options), integrate(mixed, **options))


def interrupt(patch, after):
    """Fail in the ``after``-th mini-batch, counted from 1, whatever terms are asked for."""
    calls, real = iter(range(1, 1000)), integration.objective

    def objective(model, batch, **names):
        if next(calls) == after:
            raise KeyboardInterrupt
        return real(model, batch, **names)

    patch.setattr(integration, "objective", objective)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"mixed_batches": True},
        {"losses": ["gep"]},
        {"criterion": "gep"},
        {"eval_precision": "bfloat16"},
    ],
)
def test_a_folder_knows_the_switches(cells, tmp_path, options):
    integrate(cells, tmp_path, epochs=1)
    with pytest.raises(ValueError, match=f"another training.*Different: {next(iter(options))} "):
        integrate(cells, tmp_path, epochs=1, **options)


def test_a_saved_task_knows_its_switches_and_its_epoch(cells, tmp_path):
    model = Integrator(SMALL, losses=["gepc", "dar"], criterion="gep", keep="best", **OPTIONS).fit(cells)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.training == model.training and again.selected_epoch == model.selected_epoch > 0
    assert plain(again.history) == plain(model.history)
