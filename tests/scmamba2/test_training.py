"""The trainer: settings, one step, interruptions, what may stop it, what it says."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import measure_memory
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from scmamba2 import Annotator, Config, Integrator, memory, progress
from scmamba2.model.network import ScMamba2
from scmamba2.tasks import annotation, integration
from scmamba2.tokenizer import Tokens
from scmamba2.training import Cells, Training, load, split, train

SMALL = Config(d_model=32, n_layers=1, d_state=16, headdim=32, dropout=0.2)
CPU = torch.device("cpu")


def plain(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "cells_per_s")} for row in history]


def same_weights(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


# --- settings


@pytest.mark.parametrize(
    "field, value",
    [
        ("epochs", 0),
        ("batch_size", 2.5),
        ("accumulate", 0),
        ("step_epochs", 0),
        ("warmup_steps", -1),
        ("patience", 0),
        ("save_every", 0),
        ("learning_rate", 0),
        ("learning_rate", math.inf),
        ("weight_decay", -0.1),
        ("clip", 0),
        ("clip", math.inf),
        ("gamma", 1.1),
        ("optimizer", "sgd"),
        ("precision", "float16"),
        ("recompute", "yes"),
        ("keep", "first"),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .*, not {value!r}$"):
        Training(**{field: value})
    with pytest.raises(ValueError, match=f"^{field} must be"):
        Integrator(SMALL, **{field: value})


def test_tasks_fill_in_their_settings():
    assert Integrator(SMALL).training == Training(epochs=15, batch_size=64, keep="last")
    assert Annotator(SMALL, epochs=3).training == Training(epochs=3, batch_size=32, keep="best")
    with pytest.raises(TypeError, match="Annotator has no option 'epoch'.*epochs, learning_rate"):
        Annotator(SMALL, epoch=3)


def test_learning_rate():
    settings = Training(learning_rate=1.0, gamma=0.5, step_epochs=2, warmup_steps=4)
    assert [settings.rate(0, step) for step in (0, 1, 3, 4)] == [0.25, 0.5, 1, 1]
    assert [settings.rate(epoch, 100) for epoch in (1, 2, 4)] == [1, 0.5, 0.25]


def test_optimizer():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    adam = Training(optimizer="adamw", weight_decay=0.1, precision="bfloat16").build(model)
    assert type(adam) is torch.optim.AdamW and adam.defaults["eps"] == 1e-4
    assert [(len(g["params"]), g["weight_decay"]) for g in adam.param_groups] == [(1, 0.1), (3, 0.0)]
    adam = Training().build(model)
    assert type(adam) is torch.optim.Adam and adam.defaults["eps"] == 1e-8


# --- one step


def some_cells(n=20, length=9):
    """Cells of 3 to ``length`` tokens with labels 0, 1."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, length + 1, n)
    pad = np.arange(length) >= lengths[:, None]
    genes, values = rng.integers(0, 30, (n, length)), rng.integers(0, 51, (n, length)).astype(np.float32)
    tokens = Tokens(np.where(pad, 30, genes), np.where(pad, np.float32(-2), values), lengths)
    return Cells(tokens, labels=rng.integers(0, 2, n))


def test_a_mini_batch_ends_with_its_longest_cell():
    cells = some_cells()
    parts = [np.array([4, 2]), np.array([7])]
    batches = list(load(cells, parts, CPU, Config(mask_ratio=0.4), np.random.default_rng(0)))
    for part, batch in zip(parts, batches, strict=True):
        longest = cells.tokens.lengths[part].max()
        for tensor in (batch.genes, batch.values, batch.targets, batch.mask):
            assert tensor.shape == (len(part), longest)
        assert (batch.genes.numpy() == cells.tokens.genes[part, :longest]).all()
    assert len({batch.genes.shape[1] for batch in batches}) == 2


class Scripted(nn.Module):
    """Learns nothing but how many steps were made, and reports given losses."""

    def __init__(self, training, validation):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.losses = {True: iter(training), False: iter(validation)}

    def objective(self, model, batch):
        return {"a": self.weight.sum() * self.training + next(self.losses[self.training])}


def scripted(training, validation, **settings):
    """Return the model and the history of epochs of one step each."""
    model = Scripted(training, validation)
    options = Training(epochs=len(validation), batch_size=100, learning_rate=0.5, gamma=1.0, **settings)
    config = Config(mask_ratio=0.0)
    return model, train(model, some_cells(), model.objective, config, options, seed=0, device=CPU)


@pytest.mark.parametrize("training", [[9, 8, 7, 6, 5], [1, 2, 3, 4, 5], [3, 1, 4, 1, 5]])
def test_only_validation_decides_when_to_stop_and_what_to_keep(training):
    model, history = scripted(training, [3, 1, 2, 2, 0], keep="best", patience=2)
    assert len(history) == 4 and model.weight.item() == pytest.approx(-1, rel=1e-6), "two steps of 0.5"
    model, history = scripted(training, [3, 1, 2, 2, 0], keep="best")
    assert len(history) == 5 and model.weight.item() == pytest.approx(-2.5, rel=1e-6)
    model, history = scripted(training, [3, 1, 2, 2, 4], patience=3)
    assert len(history) == 5 and model.weight.item() == pytest.approx(-2.5, rel=1e-6)


def test_warm_up_counts_all_steps():
    _, history = scripted([1] * 5, [1] * 5, warmup_steps=4)
    assert [row["learning_rate"] for row in history] == [0.125, 0.25, 0.375, 0.5, 0.5]


def annotate(cells, config=SMALL, **settings):
    """Train a classifier on ``cells``; return it and its history."""
    config = Config(**{**vars(config), "mask_ratio": 0.0})
    torch.manual_seed(0)
    model = ScMamba2(config, 31, pad_id=30, n_classes=2)
    options = Training(**{"epochs": 2, "batch_size": 6, "learning_rate": 1e-3, **settings})
    return model, train(model, cells, annotation.objective, config, options, seed=0, device=CPU)


def test_validation_cells_teach_nothing():
    cells, other = some_cells(), some_cells()
    held_out = split(len(cells), 0)[1]
    other.labels[held_out] = 1 - other.labels[held_out]
    (a, history), (b, changed) = annotate(cells), annotate(other)
    assert same_weights(a, b)
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in changed]
    assert [row["valid_loss"] for row in history] != [row["valid_loss"] for row in changed]


def test_accumulated_steps_equal_larger_mini_batches():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

    def objective(model, batch):
        return {"a": (model.layer(batch.values[:, 1:2])[:, 0] - batch.labels).square().mean()}

    def fit(**settings):
        torch.manual_seed(0)
        model = Line()
        options = Training(epochs=2, learning_rate=0.1, clip=None, **settings)
        return model, train(model, some_cells(), objective, Config(), options, seed=0, device=CPU)

    (one, history), (two, other) = fit(batch_size=18), fit(batch_size=10, accumulate=2)
    torch.testing.assert_close(one.layer.weight, two.layer.weight)
    torch.testing.assert_close(one.layer.weight.grad, two.layer.weight.grad)
    assert history[-1]["train_loss"] == pytest.approx(other[-1]["train_loss"])
    unlike, _ = fit(batch_size=10)
    assert (unlike.layer.weight - one.layer.weight).abs() > 1e-3


def test_bfloat16_keeps_weights_residual_stream_and_loss_in_float32(cells, monkeypatch):
    seen = {}

    def objective(model, batch):
        layer = model.mamba_encoder.layers[0]
        for name, module in (("product", model.decoder.fc[0]), ("stream", layer)):
            module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.dtype}))
        terms = real(model, batch)
        seen.update({name: term.dtype for name, term in terms.items()})
        return terms

    real = integration.objective
    monkeypatch.setattr(integration, "objective", objective)
    options = {"epochs": 1, "learning_rate": 1e-3}
    half = Integrator(SMALL, precision="bfloat16", **options).fit(cells)
    assert seen.pop("product") == torch.bfloat16
    assert len(seen) == 6 and set(seen.values()) == {torch.float32}
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    full = Integrator(SMALL, **options).fit(cells)
    losses = [model.history[-1]["train_loss"] for model in (half, full)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


# --- interruptions


OPTIONS = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 16, "save_every": 2}


def integrate(data, folder=None, **options):
    model = Integrator(SMALL, folder=folder, **{**OPTIONS, **options})
    return model, model.fit_transform(data)


def interrupt(monkeypatch, after):
    """Fail in the ``after``-th mini-batch, counted from 1."""
    calls = iter(range(1, 1000))

    def objective(model, batch):
        if next(calls) == after:
            raise KeyboardInterrupt
        return real(model, batch)

    real = integration.objective
    monkeypatch.setattr(integration, "objective", objective)


def same(one, other):
    """Whether two ``(model, embedding)`` are equal bit for bit."""
    equal = plain(one[0].history) == plain(other[0].history) and same_weights(one[0].model, other[0].model)
    return equal and (one[1] == other[1]).all()


@pytest.fixture
def whole(cells):
    return integrate(cells)


@pytest.mark.parametrize(
    "options, sessions",
    [
        ({}, [1, 6, 3, 4]),
        ({"accumulate": 3, "warmup_steps": 5, "save_every": 1}, [5, 3, 7]),
        ({"keep": "best", "patience": 1, "optimizer": "adamw", "weight_decay": 0.1}, [10, 4]),
        ({"precision": "bfloat16"}, [7]),
    ],
)
def test_resumed_training_ends_the_same(cells, tmp_path, options, sessions):
    """Each session ends in so-many-th of its mini-batches: of training, of validation, the first."""
    for after in sessions:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, after)
            integrate(cells, tmp_path, **options)
    resumed = integrate(cells, tmp_path, **options)
    assert same(resumed, integrate(cells, **options))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[1:] == resumed[0].history and [row["epoch"] for row in rows[1:]] == list(range(1, len(rows)))


def test_kill_minus_nine(cells, tmp_path, whole):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import test_training as t
t.torch.set_num_threads(1)
calls, real = iter(range(1, 1000)), t.integration.objective
def objective(model, batch):
    if next(calls) == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(model, batch)
t.integration.objective = objective
t.integrate(t.ad.read_h5ad({str(tmp_path / "cells.h5ad")!r}), {str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert len(state["history"]) == 1 and state["step"] == 4, "in the middle of the second epoch"
    assert same(integrate(ad.read_h5ad(tmp_path / "cells.h5ad"), tmp_path), whole)


def test_interrupted_while_writing_a_checkpoint(cells, tmp_path, whole, monkeypatch):
    real = Path.replace
    with monkeypatch.context() as patch:

        def replace(path, target):
            if path.name == "state.pt.tmp" and (tmp_path / "state.previous.pt").exists():
                raise KeyboardInterrupt
            return real(path, target)

        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            integrate(cells, tmp_path)
    assert not (tmp_path / "state.pt").exists()
    assert same(integrate(cells, tmp_path), whole)


def test_damaged_checkpoints(cells, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 7)
        integrate(cells, tmp_path)
    state = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(state[: len(state) // 2])
    with pytest.warns(UserWarning, match=r"state\.pt cannot be read"):
        assert same(integrate(cells, tmp_path), whole)
    for path in tmp_path.glob("state*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"none of the checkpoints in {tmp_path} can be read"):
        integrate(cells, tmp_path)


def test_a_folder_belongs_to_one_training(cells, tmp_path, monkeypatch):
    first, embedding = integrate(cells, tmp_path, epochs=1)
    other = cells.copy()
    other.X[3, 3] += 7
    for match, data, options in [
        (r"epochs \(1 there, 2 here\)$", cells, {"epochs": 2}),
        (r"learning_rate \(0\.001 there, 0\.002 here\)$", cells, {"learning_rate": 2e-3}),
        (r"Different: data \('\w+' there, '\w+' here\)$", other, {}),
        (r"initial weights .*, seed \(0 there, 1 here\)$", cells, {"seed": 1}),
    ]:
        with pytest.raises(ValueError, match=match):
            integrate(data, tmp_path, **{"epochs": 1, **options})
    # A finished training is read back, at any cost of memory and disk.
    interrupt(monkeypatch, 1)
    again = Integrator(SMALL, folder=tmp_path, **{**OPTIONS, "epochs": 1, "save_every": 9, "recompute": True})
    again.fit(cells)
    assert same((again, again.transform(cells)), (first, embedding))


# --- what it says


def test_log(cells, tmp_path):
    integrate(cells, tmp_path, epochs=2)
    header, *rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert header["training"]["epochs"] == 2 and header["config"]["d_model"] == 32
    assert header["cells"] == {"training": 108, "validation": 12} and header["torch"] == torch.__version__
    assert header["bytes"]["total"] > header["parameters"] * 16 and header["device"] == "cpu"
    assert len(rows) == 2 and {"train_loss", "valid_loss", "cells_per_s"} <= set(rows[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log.jsonl",
        "state.previous.pt",
        "state.pt",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(monkeypatch, capfd, terminal):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=screen, force_terminal=terminal, width=120)
    )
    annotate(some_cells())
    shown = screen.getvalue()
    assert capfd.readouterr() == ("", "")
    if terminal:
        assert "epoch 2/2, loss" in shown and "cells/s" in shown and "0:00:00" in shown
    else:
        assert shown == ""


def test_a_gradient_that_is_not_finite_stops_before_it_is_learnt(cells, tmp_path):
    model = Annotator(SMALL, epochs=2, learning_rate=1e-3, folder=tmp_path, save_every=1)
    real, calls = annotation.objective, []

    def poisoned(net, batch):
        terms = real(net, batch)
        calls.append(1)
        if len(calls) == 3:  # a finite loss whose gradient is not
            weight = net.cls_decoder.out_layer.weight
            terms["poison"] = torch.sqrt((weight - weight.detach()).square().sum())
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation, "objective", poisoned)
        with pytest.raises(RuntimeError, match=r"the gradient is not finite in epoch 1 \(train\)"):
            model.fit(cells)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.isfinite(t).all() for t in state["model"].values())
    assert len(model.fit(cells).history) == 2, "it goes on from the last good step"


# --- memory


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"precision": "bfloat16"}])
def test_a_mini_batch_that_cannot_fit_is_refused(cells, monkeypatch, options):
    room = {"bytes": 10**9}
    monkeypatch.setattr(memory, "available", lambda device: room["bytes"])
    model = Integrator("tiny", epochs=1, batch_size=54, **options)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda device: 100_000_000)
        with pytest.raises(ValueError, match=r"54 and cells of 41 tokens takes .* 0\.10 GB") as refused:
            model.fit(cells)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.transform(cells)
    fits = int(re.search(r"batch_size=(\d+) fits", str(refused.value))[1])
    assert ("recompute" in str(refused.value)) == ("recompute" not in options)
    room["bytes"] = 100_000_000
    assert 1 < fits < 54 and Integrator("tiny", epochs=1, batch_size=fits, **options).fit(cells).history
    with pytest.raises(ValueError, match=f"batch_size={fits} fits"):
        Integrator("tiny", epochs=1, batch_size=fits + 1, **options).fit(cells)
    room["bytes"] = 1000
    with pytest.raises(ValueError, match="not even batch_size=1 fits"):
        model.fit(cells)
    room["bytes"] = None
    assert model.fit(cells).history, "a system that does not say how much memory it has"


def tree(root, files):
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   1000 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "proc/self/cgroup", "0::/job/step\n"
V1 = "proc/self/cgroup", "4:cpu:/x\n3:memory:/host/job\n0::/\n"
STAT = "anon 1\ninactive_file 100\ntotal_inactive_file 200\n"


def group(folder, limit, usage, version=2):
    names = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    folder = f"sys/fs/cgroup/{folder}"
    return {
        f"{folder}memory.{names[0]}": limit,
        f"{folder}memory.{names[1]}": usage,
        f"{folder}memory.stat": STAT,
    }


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 1_024_000),
        (dict([V2]) | group("job/step/", "max\n", "5\n"), 1_024_000),
        (dict([V2]) | group("job/step/", "9000\n", "5000\n"), 4100),
        (dict([V2]) | group("job/step/", "max\n", "5\n") | group("job/", "7000\n", "5000\n"), 2100),
        (dict([V2]) | group("job/step/", "9999999999\n", "5\n"), 1_024_000),
        (dict([V1]) | group("memory/host/job/", "9000\n", "5000\n", 1), 4200),
        (dict([V1]) | group("memory/", "8000\n", "5000\n", 1), 3200),
        (dict([V1]) | group("memory/", "9223372036854771712\n", "5000\n", 1), 1_024_000),
    ],
    ids=["none", "unlimited", "v2", "v2 parent", "v2 large", "v1", "v1 in a container", "v1 unlimited"],
)
def test_available_memory(tmp_path, files, expected):
    assert memory.available(CPU, tree(tmp_path, files)) == expected


def test_available_memory_of_this_machine(tmp_path):
    assert memory.available(CPU) > 10**7
    assert memory.available(CPU, tmp_path) is None, "no Linux"


@pytest.mark.parametrize("sizes", [(128, 4, 301, 64, 0.4), (512, 4, 301, 16, 0.0)])
def test_estimate_is_close(sizes):
    got = measure_memory.measure(measure_memory.case(*sizes))
    assert 0.8 < got["estimated"] / got["measured"] < 1.35, got


def test_estimate_counts_what_it_says():
    with torch.device("meta"):
        model = ScMamba2(Config(), 1000)
    sizes = {b: memory.estimate(model, Config(), b, 100) for b in (0, 1)}
    bytes_of_weights = model.count_parameters() * 4
    fixed = memory.PROCESS + sizes[0]["scan"]
    assert sizes[0]["total"] == fixed + 4 * bytes_of_weights + 1000 * 64 * 4
    # Input 64, projection 2 x 128 + 2 x 64 + 2, norm 128.
    assert sizes[1]["layers"] == 2 * 4 * 100 * (64 + 256 + 128 + 2 + 128)
    # Too large for its projection: input, and two states of 64 x 128 at each of 97 edges of blocks.
    assert memory.estimate(model, Config(), 1, 200_000)["layers"] == 2 * 4 * (
        200_000 * 64 + 2 * 97 * 64 * 128
    )
    deep = Config(n_layers=12)
    kept, computed = (memory.estimate(model, deep, 100, 1000, recompute=r)["layers"] for r in (False, True))
    assert kept > 4 * computed
