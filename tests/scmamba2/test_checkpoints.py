"""Checkpoints of this package and of the published layout, and what can be wrong with them."""

from __future__ import annotations

import json
import os

import pytest
import torch
from layout import expected_keys, generator_keys

from scmamba2 import checkpoints
from scmamba2.checkpoints import convert, export, load, read_published, save, transfer
from scmamba2.config import Config
from scmamba2.model.generator import Generator
from scmamba2.model.network import ScMamba2
from scmamba2.vocabulary import Vocabulary

D, DEPTH = 64, 2
GENES = [f"G{i}" for i in range(17)]
VOCABULARY = Vocabulary.from_genes(GENES)  # 20 tokens
FULL = Config(d_model=32, n_layers=2, d_state=8, headdim=16, dsbn=True, value_encoder="category")
HEADS = {"n_batches": 2, "n_classes": 4, "explicit_zeros": True, "mvc": True, "adversarial": True}
MODELS = {
    "plain": lambda: ScMamba2(Config(d_model=D, n_layers=DEPTH), 20, pad_id=17),
    "all heads": lambda: ScMamba2(FULL, 20, pad_id=17, n_modalities=2, **HEADS),
    "generator": lambda: Generator(Config(d_model=D, n_layers=1), 20, pad_id=17, scale_bias=True),
}
LAYOUTS = {
    "plain": expected_keys(D, DEPTH, 20, D, 0, 1, False, False, False, False),
    "all heads": expected_keys(D, DEPTH, 20, 2 * D, 3, 7, True, True, True, True, 2),
    "own norms": expected_keys(D, DEPTH, 20, 2 * D, 3, 1, False, True, True, True, 0, affine=True),
    "generator": generator_keys(D, DEPTH, 20, zeros=False),
    "generator, zeros": generator_keys(D, DEPTH, 20, zeros=True),
}


def random_state(layout):
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(shape, generator=generator) for name, shape in LAYOUTS[layout].items()}
    return {k: torch.tensor(7) if k.endswith("num_batches_tracked") else t for k, t in state.items()}


def renamed(state, prefix):
    return {
        name.replace("mamba_encoder", prefix).replace("transformer_encoder", prefix): tensor
        for name, tensor in state.items()
    }


def publish(folder, content, vocabulary=VOCABULARY.ids, **args):
    folder.mkdir(parents=True, exist_ok=True)
    args = {"embsize": D, "nlayers": DEPTH, "dropout": 0.1, "pad_value": -2, "pad_token": "<pad>", **args}
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    torch.save(content, folder / "best_model.pt")
    return folder


def assert_equal(state, other):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_save_and_load(tmp_path, name):
    model = MODELS[name]()
    extra, before = {"classes": ["a", "b"], "epoch": 3}, torch.get_rng_state()
    save(tmp_path / "new" / "model", model, VOCABULARY, extra, {"notes": ["by hand"]})
    loaded = load(tmp_path / "new" / "model")
    assert type(loaded.model) is type(model) and not loaded.model.training
    assert_equal(loaded.model.state_dict(), model.state_dict())
    assert loaded.model.config == model.config and loaded.model.heads == model.heads
    assert loaded.vocabulary.ids == VOCABULARY.ids and loaded.extra == extra
    assert loaded.provenance == {"notes": ["by hand"], "scmamba2": checkpoints.__version__}
    assert loaded.model.encoder.embedding.padding_idx == 17
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    names = {path.name for path in (tmp_path / "new" / "model").iterdir()}
    assert names == {"model.safetensors", "config.json", "vocab.json"}


def test_saving_replaces_a_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder, MODELS["plain"](), VOCABULARY)
    second = MODELS["generator"]()
    save(folder, second, VOCABULARY)
    assert_equal(load(folder).model.state_dict(), second.state_dict())
    assert os.listdir(tmp_path) == ["model"]

    def full_disk(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(checkpoints, "save_file", full_disk)
        save(folder, MODELS["plain"](), VOCABULARY)
    assert_equal(load(folder).model.state_dict(), second.state_dict())
    assert os.listdir(tmp_path) == ["model"], "a failed save leaves no trace"

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a checkpoint"):
        save(folder, second, VOCABULARY)
    (folder / "notes.txt").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is not of a scmamba2 checkpoint"):
        save(folder, second, VOCABULARY)
    with pytest.raises(ValueError, match="not a checkpoint"):
        save(folder / "vocab.json", second, VOCABULARY)


def test_what_cannot_be_saved(tmp_path):
    model = MODELS["plain"]()
    with pytest.raises(ValueError, match="Linear"):
        save(tmp_path / "a", torch.nn.Linear(1, 1), VOCABULARY)
    with pytest.raises(ValueError, match="JSON.*ndarray|JSON.*Tensor"):
        save(tmp_path / "a", model, VOCABULARY, {"classes": torch.zeros(2)})
    with pytest.raises(ValueError, match="vocabulary has 21 tokens.*20 rows"):
        save(tmp_path / "a", model, Vocabulary.from_genes([*GENES, "more"]))
    assert not os.listdir(tmp_path)


def change(file, **keys):
    def apply(folder):
        document = json.loads((folder / file).read_text())
        for key, value in keys.items():
            document[key] = {**document[key], **value} if isinstance(value, dict) else value
        (folder / file).write_text(json.dumps(document))

    return apply


def cut(file, share):
    def apply(folder):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(share * len(content))])

    return apply


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        *((lambda folder, name=name: (folder / name).unlink(), name) for name in sorted(checkpoints.FILES)),
        (cut("model.safetensors", 0.9), "model.safetensors cannot be read"),
        (cut("model.safetensors", 0), "model.safetensors cannot be read"),
        (cut("config.json", 0.5), "config.json cannot be read"),
        (cut("vocab.json", 0.5), "vocab.json"),
        (change("config.json", format="other"), "config.json is not of a scmamba2 checkpoint.*other"),
        (change("config.json", version=2), "version 2"),
        (change("config.json", model="bert"), "bert"),
        (change("config.json", heads=[]), "no object 'heads'"),
        (change("config.json", config={"d_modle": 3}), "config.json.*d_modle"),
        (change("config.json", config={"n_layers": 0}), "config.json.*n_layers"),
        (change("config.json", heads={"n_cats": 3}), "config.json.*n_cats"),
        (change("config.json", heads={"n_classes": 3}), "shape differs +2 +195 .*out_layer"),
        (change("config.json", config={"n_layers": 3}), "missing +8 .*layers.2.mamba"),
        (change("vocab.json", more=20), "vocab.json has 21 tokens.*20 rows"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json must hold a JSON object"),
    ],
)
def test_damaged_checkpoints(tmp_path, damage, match):
    save(tmp_path, MODELS["plain"](), VOCABULARY)
    damage(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){match}"):
        load(tmp_path)


def module(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["mamba_encoder", "transformer_encoder"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        module,
        lambda state: {"epoch": 3, "model_state_dict": module(state), "best": torch.tensor(0.5)},
    ],
    ids=["bare", "module", "nested"],
)
def test_published_checkpoints_come_and_go_unchanged(tmp_path, layout, prefix, wrap):
    state = renamed(random_state(layout), prefix)
    source = publish(tmp_path / "published", wrap(state), nheads=9)
    read = convert(source, tmp_path / "ours")
    assert read.report.complete and read.provenance["notes"] == []
    assert set(read.provenance["files"]) == {"args.json", "best_model.pt", "vocab.json"}
    assert (read.model.config.dropout, read.model.config.pad_value) == (0.1, -2)

    loaded = load(tmp_path / "ours")
    assert loaded.provenance["files"] == read.provenance["files"]
    model = loaded.model
    assert type(model) is (Generator if "generator" in layout else ScMamba2)
    config = model.config
    assert (config.d_model, config.n_layers, config.d_state, config.headdim) == (D, DEPTH, 64, 64)
    assert (config.expand, config.d_conv) == (2, 4)
    assert_equal(renamed(model.state_dict(), prefix), state)

    export(tmp_path / "ours", tmp_path / "again", prefix)
    again = torch.load(tmp_path / "again" / "best_model.pt", weights_only=True)
    assert_equal(again, state)
    assert json.loads((tmp_path / "again" / "vocab.json").read_text()) == VOCABULARY.ids
    args = json.loads((tmp_path / "again" / "args.json").read_text())
    assert (args["embsize"], args["nlayers"], args["nheads"], args["dropout"]) == (D, DEPTH, 9, 0.1)
    assert_equal(read_published(tmp_path / "again").model.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_export_of_a_model_from_here(tmp_path, name):
    model = MODELS[name]()
    save(tmp_path / "ours", model, VOCABULARY)
    export(tmp_path / "ours", tmp_path / "published")
    state = torch.load(tmp_path / "published" / "best_model.pt", weights_only=True)
    assert_equal(state, model.state_dict())  # the backbone is called what the released code calls it
    read = read_published(tmp_path / "published")
    assert type(read.model) is type(model) and read.provenance["notes"] == []
    assert_equal(read.model.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="is there already"):
        export(tmp_path / "ours", tmp_path / "published")
    with pytest.raises(ValueError, match="prefix"):
        export(tmp_path / "ours", tmp_path / "other", "encoder")


def test_export_of_what_the_layout_cannot_say(tmp_path):
    save(tmp_path / "ours", ScMamba2(Config(combine="sum", n_layers=1), 20), VOCABULARY)
    with pytest.raises(ValueError, match="combine"):
        export(tmp_path / "ours", tmp_path / "published")
    assert os.listdir(tmp_path) == ["ours"]


def test_heads_follow_from_the_tensors(tmp_path):
    read = read_published(publish(tmp_path / "a", random_state("all heads")))
    heads = {"n_batches": 3, "n_classes": 7, "explicit_zeros": True, "mvc": True}
    assert read.model.heads == {**heads, "adversarial": True, "n_modalities": 2}
    assert read.model.config.dsbn and not read.model.config.dsbn_affine
    assert read_published(publish(tmp_path / "b", random_state("own norms"))).model.config.dsbn_affine


def test_vocabulary_without_special_tokens(tmp_path):
    genes = {gene: i for i, gene in enumerate(GENES)}
    read = read_published(publish(tmp_path, random_state("plain"), genes))
    assert (read.vocabulary.pad, read.vocabulary.cls, len(read.vocabulary)) == (17, 18, 20)


def test_contradictions_and_leftovers_are_noted(tmp_path):
    state = random_state("plain") | {"flag_encoder.weight": torch.zeros(2, D)}
    del state["cls_decoder.out_layer.bias"]
    args = {"nlayers": 12, "embsize": 512, "pad_token": "<mask>", "pad_value": 0}
    notes = "\n".join(read_published(publish(tmp_path, state, **args)).provenance["notes"])
    for expected in ("nlayers = 12", "embsize = 512", "'<mask>'", "flag_encoder", "out_layer.bias"):
        assert expected in notes


def test_half_precision_becomes_float32(tmp_path):
    state = {k: t.bfloat16() if t.is_floating_point() else t for k, t in random_state("plain").items()}
    got = read_published(publish(tmp_path, state)).model.state_dict()
    assert got["encoder.embedding.weight"].dtype == torch.float32
    assert torch.equal(got["encoder.embedding.weight"], state["encoder.embedding.weight"].float())


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / "a", random_state("plain"))
    content = {"model": random_state("plain"), "args": Malicious()}
    torch.save(content, tmp_path / "a" / "best_model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="best_model.pt .* nothing else is ever unpickled"):
        read_published(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def without(*names):
    return lambda state: [state.pop(name) for name in names]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (without("mamba_encoder.layers.1.mamba.D"), "(?s)1 tensors of the backbone.*layers.1.mamba.D"),
        (without("encoder.embedding.weight"), "no tensor encoder.embedding.weight; it holds encoder.enc"),
        (lambda s: s.update(renamed(s, "transformer_encoder")), "two tensors are called mamba_encoder"),
        (lambda s: [s.pop(k) for k in list(s) if "mamba" in k], "not an SC-MAMBA2 checkpoint"),
        (lambda s: s.update({"batch_encoder.embedding.weight": torch.zeros(2, D)}), "do not go together"),
    ],
)
def test_published_tensors_that_do_not_make_a_model(tmp_path, damage, match):
    state = random_state("plain")
    damage(state)
    with pytest.raises(ValueError, match=match) as caught:
        read_published(publish(tmp_path, state))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        *((lambda f, name=name: (f / name).unlink(), name) for name in ("args.json", "best_model.pt")),
        *((cut("best_model.pt", share), "best_model.pt is truncated") for share in (0, 0.01, 0.5, 0.999)),
        (cut("args.json", 0.5), "args.json cannot be read"),
        (change("args.json", dropout=1.5), "dropout"),
        (change("vocab.json", more=20), "vocab.json has 21 tokens.*20 rows"),
        (lambda f: torch.save([1], f / "best_model.pt"), "no tensor encoder.embedding.weight; it holds list"),
    ],
)
def test_damaged_published_checkpoints(tmp_path, damage, match):
    damage(publish(tmp_path, random_state("plain")))
    with pytest.raises(ValueError, match=match):
        read_published(tmp_path)


def test_transfer_from_the_pretrained_model_to_the_generator():
    """Released code loses the backbone here, for it has two names."""
    source = MODELS["plain"]()
    target = Generator(source.config, 20, pad_id=17)
    report = transfer(target, source.state_dict())
    assert_equal(target.transformer_encoder.state_dict(), source.mamba_encoder.state_dict())
    assert_equal(target.encoder.state_dict(), source.encoder.state_dict())
    shared = target.transformer_encoder, target.encoder, target.value_encoder
    assert set(report.loaded) == {
        name
        for name in target.state_dict()
        if name.split(".")[0] in ("transformer_encoder", "encoder", "value_encoder")
    }
    total = sum(p.numel() for part in shared for p in part.parameters())
    assert str(report).splitlines()[1].split() == ["loaded", str(len(report.loaded)), f"{total:,}"]
    assert "pert_encoder.weight" in report.missing and not report.complete
    missing, unexpected = str(report).splitlines()[2:4]
    assert "pert_encoder.weight" in missing and missing.endswith(f"and {len(report.missing) - 4} more")
    assert "bn.weight" in unexpected


def test_transfer_of_other_vocabulary_and_classes():
    source = ScMamba2(Config(d_model=D, n_layers=2), 30, n_classes=5)
    target = MODELS["plain"]()
    own = target.encoder.embedding.weight.clone()
    report = transfer(target, module(source.state_dict()))
    assert report.mismatched["encoder.embedding.weight"] == ((30, D), (20, D))
    assert f"encoder.embedding.weight (30, {D}), not (20, {D})" in str(report)
    assert torch.equal(target.encoder.embedding.weight, own)
    assert torch.equal(target.bn.weight, source.bn.weight)


@pytest.mark.parametrize("depth", [1, 3])
def test_transfer_refuses_part_of_a_backbone_unless_forced(depth):
    source = ScMamba2(Config(d_model=D, n_layers=depth), 20)
    target = MODELS["plain"]()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"(?s)8 tensors of the backbone.*layers\..*force"):
        transfer(target, source.state_dict())
    assert_equal(target.state_dict(), before)
    transfer(target, source.state_dict(), force=True)
    first = target.mamba_encoder.layers[0].state_dict()
    assert_equal(first, source.mamba_encoder.layers[0].state_dict())
