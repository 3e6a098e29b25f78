"""scGPT on tiny synthetic data: every start, every end, and the stand-in for torchtext."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import OrderedDict

import anndata as ad
import numpy as np
import pytest
import torch
from support import MINI, ROOT, make_cells

from baselines import _io, _torchtext
from baselines import scgpt as method
from workflow import tasks
from workflow.contract import check_output
from workflow.declarations import WORKFLOW, load_yaml
from workflow.tidy import log_normalize

ENTRY = load_yaml(WORKFLOW / "methods.yaml", "methods")["scgpt"]
TINY = {"embsize": 32, "nheads": 2, "d_hid": 32, "nlayers": 1, "n_layers_cls": 2}
QUICK = {"pretrained": False, "epochs": 2, "batch_size": 16, "learning_rate": 0.003} | TINY
SETTINGS = {
    "integration": {"n_top_genes": 40},
    "annotation": {"n_top_genes": 40, "split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}},
}
needs_scgpt = pytest.mark.skipif(
    importlib.util.find_spec("scgpt") is None, reason="the package scgpt is not installed"
)


# The stand-in for torchtext ----------------------------------------------------------------------------


def test_a_vocabulary_maps_both_ways():
    vocab = _torchtext.Vocab(["A", "B", "C"])
    assert len(vocab) == 3 and "B" in vocab and "D" not in vocab
    assert vocab["B"] == 1 and vocab(["C", "A"]) == [2, 0] == vocab.lookup_indices(["C", "A"])
    assert vocab.lookup_token(2) == "C" and vocab.lookup_tokens([1, 0]) == ["B", "A"]
    assert vocab.get_stoi() == {"A": 0, "B": 1, "C": 2} and vocab.get_itos() == ["A", "B", "C"]


def test_an_unknown_token_is_the_default_or_an_error():
    vocab = _torchtext.Vocab(["A", "<pad>"])
    with pytest.raises(RuntimeError, match="'X' is not in the vocabulary"):
        vocab["X"]
    vocab.set_default_index(1)
    assert vocab["X"] == 1 and "X" not in vocab and vocab.get_default_index() == 1
    copy = _torchtext.Vocab(vocab.vocab)
    copy.append_token("B")
    assert copy["X"] == 1 and len(copy) == 3 and len(vocab) == 2
    vocab.set_default_index(None)
    with pytest.raises(RuntimeError, match="no default index"):
        vocab(["A", "X"])


def test_a_token_is_inserted_once_and_without_a_gap():
    vocab = _torchtext.Vocab(["A", "C"])
    vocab.insert_token("B", 1)
    assert vocab.get_stoi() == {"A": 0, "B": 1, "C": 2}
    with pytest.raises(RuntimeError, match="'B' stands twice, first as number 1"):
        vocab.append_token("B")
    with pytest.raises(RuntimeError, match="'E' cannot be number 4: 3 is the next"):
        vocab.insert_token("E", 4)
    with pytest.raises(RuntimeError, match="stands twice"):
        _torchtext.Vocab(["A", "A"])
    with pytest.raises(RuntimeError, match="index 3 is not one of the 3"):
        vocab.lookup_token(3)


def test_a_vocabulary_of_counted_tokens():
    counted = OrderedDict([("B", 3), ("A", 1), ("<pad>", 1), ("C", 2)])
    assert _torchtext.vocab(counted).get_itos() == ["B", "A", "<pad>", "C"]
    assert _torchtext.vocab(counted, min_freq=2).get_itos() == ["B", "C"]
    specials = ["<pad>", "<cls>"]
    assert _torchtext.vocab(counted, 2, specials).get_itos() == ["<pad>", "<cls>", "B", "C"]
    assert _torchtext.vocab(counted, 2, specials, special_first=False).get_itos() == ["B", "C", *specials]


@needs_scgpt
def test_scgpt_takes_the_stand_in(tmp_path):
    """Its own vocabulary: from genes with special tokens first, to a file and back, unknown genes padded."""
    if not _torchtext.register():
        pytest.skip("the real torchtext is here")
    from scgpt.tokenizer import GeneVocab

    vocab = GeneVocab(["TP53", "CD4", "CD4"], specials=["<pad>", "<cls>"])
    assert vocab.get_itos() == ["<pad>", "<cls>", "CD4", "TP53"]  # by frequency, then by name
    assert vocab["unheard of"] == vocab["<pad>"] == 0
    vocab.save_json(tmp_path / "vocab.json")
    again = GeneVocab.from_file(tmp_path / "vocab.json")
    assert again.get_stoi() == vocab.get_stoi() and again["unheard of"] == 0
    with pytest.raises(RuntimeError, match="cannot be number 5"):
        GeneVocab.from_dict({"A": 0, "B": 5})


def test_the_stand_in_makes_room_for_the_real_one(monkeypatch):
    """Only where ``import torchtext`` fails."""
    import types

    real = types.ModuleType("torchtext")
    real.vocab = types.ModuleType("torchtext.vocab")
    monkeypatch.setitem(sys.modules, "torchtext", real)
    monkeypatch.setitem(sys.modules, "torchtext.vocab", real.vocab)
    assert not _torchtext.register()
    assert sys.modules["torchtext.vocab"] is real.vocab


# Runs --------------------------------------------------------------------------------------------------


def cells(task: str, change=lambda adata: None, **options) -> tuple[ad.AnnData, ad.AnnData]:
    """Input and solution of a task, on synthetic cells that were changed before they were prepared."""
    adata = make_cells(**{"n": 60} | options)
    adata.obs["label"] = adata.obs["cell_type"]
    log_normalize(adata)
    change(adata)
    return tasks.get(task).make_io(adata, SETTINGS[task])[:2]


def run(task: str, adata: ad.AnnData, seed: int = 0, resume=None, files=None, **params):
    """Run the method in this process; return its result and its info."""
    declared = ENTRY["tasks"][task]
    params = {k: v for k, v in (QUICK | params).items() if k in declared}
    given = _io.Given(
        adata.copy(), declared | params, seed, threads=1, gpu=0, resume=resume, files=files or {}
    )
    return getattr(method, task)(given), given.info


def fine(task: str, result: np.ndarray, adata: ad.AnnData) -> bool:
    """Whether a result is one: numbers that differ between cells, or labels of the reference."""
    if task == "integration":
        return len(result) == adata.n_obs and np.isfinite(result).all() and np.ptp(result, axis=0).any()
    return len(result) == (adata.obs["split"] == "query").sum() and set(result) <= set(
        adata.obs["label"].dropna()
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pretrained model as its authors publish one, but tiny and with random weights: path of each file.

    Its vocabulary lacks GENE0 and knows genes that the cells have not; attention is named as flash attention
    names it.
    """
    pytest.importorskip("datasets")
    if importlib.util.find_spec("scgpt") is None:
        pytest.skip("the package scgpt is not installed")
    _torchtext.register()
    import scgpt

    folder = tmp_path_factory.mktemp("checkpoint")
    tokens = [
        *(f"OTHER{i}" for i in range(5)),
        *(f"GENE{i}" for i in range(1, 40)),
        "<pad>",
        "<cls>",
        "<eoc>",
    ]
    vocabulary = scgpt.tokenizer.GeneVocab.from_dict({token: i for i, token in enumerate(tokens)})
    args = TINY | {"dropout": 0.2, "pad_token": "<pad>", "pad_value": -2, "mask_value": -1, "n_bins": 51}
    torch.manual_seed(7)
    model = scgpt.model.TransformerModel(
        len(tokens), 32, 2, 32, 1, 2, vocab=vocabulary, pad_value=-2, do_mvc=True
    )
    weights = {name.replace("in_proj_", "Wqkv."): tensor for name, tensor in model.state_dict().items()}
    assert any("Wqkv" in name for name in weights)
    vocabulary.save_json(folder / "vocab.json")
    (folder / "args.json").write_text(json.dumps(args))
    torch.save(weights, folder / "best_model.pt")
    return {
        "args": folder / "args.json",
        "weights": folder / "best_model.pt",
        "vocabulary": folder / "vocab.json",
    }


@needs_scgpt
@pytest.mark.parametrize("task", tasks.NAMES)
def test_the_same_seed_gives_the_same_and_another_another(task):
    adata, _ = cells(task, n=40)
    first, info = run(task, adata)
    again, same = run(task, adata)
    _, other = run(task, adata, seed=1)
    assert fine(task, first, adata)
    assert (first == again).all() and info == same
    assert info["history"] != other["history"]
    assert info["n_genes"] == 40 and info["gene_coverage"] == 1.0 and info["reduced_scale"]
    assert info["scale"].endswith("parameters, from scratch") and "pretrained_cells" not in info
    assert [e["epoch"] for e in info["history"]] == [1, 2] and info["selected_epoch"] in (1, 2)


@needs_scgpt
def test_it_runs_by_hand_and_is_quiet(tmp_path):
    """As the suite runs it: through the command line, in an empty folder."""
    task = "integration"
    adata, _ = cells(task, n=40)
    adata.write_h5ad(tmp_path / "input.h5ad")
    params = ENTRY["tasks"][task] | {k: v for k, v in QUICK.items() if k in ENTRY["tasks"][task]}
    command = [sys.executable, "-m", "baselines.scgpt", "--task", task, "--params", json.dumps(params)]
    command += ["--input", str(tmp_path / "input.h5ad"), "--output", str(tmp_path / "output.h5ad")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "" and ended.stderr == ""
    check_output(task, tmp_path / "input.h5ad", tmp_path / "output.h5ad")
    here, _ = run(task, adata)
    assert (ad.read_h5ad(tmp_path / "output.h5ad").obsm["X_emb"] == here).all()


@needs_scgpt
def test_easy_cells_are_annotated():
    """From scratch, on cells whose types have genes of their own."""
    adata, solution = cells("annotation", n=150)
    found, info = run("annotation", adata, epochs=9, learning_rate=0.005, dropout=0.0)
    assert (found == solution.obs["label"].to_numpy(dtype=str)).mean() > 0.9
    assert info["history"][-1]["valid_loss"] < info["history"][0]["valid_loss"]


@needs_scgpt
def test_integration_learns_and_each_batch_has_its_own_norm(monkeypatch):
    adata, _ = cells("integration")
    _torchtext.register()
    from scgpt.model import TransformerModel

    encode, seen = TransformerModel.encode_batch, []

    def listen(self, *args, **options):
        seen.append(options["batch_labels"].tolist())
        return encode(self, *args, **options)

    monkeypatch.setattr(TransformerModel, "encode_batch", listen)
    result, info = run("integration", adata, epochs=3)
    losses = [e["train_loss"] for e in info["history"]]
    assert losses[-1] < losses[0]
    assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-5)
    # The norm is that of a mini-batch's first cell, so a mini-batch is of one batch.
    assert all(len(set(labels)) == 1 for labels in seen)
    assert sorted(sum(seen, [])) == sorted(adata.obs["batch"].cat.codes)


@needs_scgpt
def test_the_learning_rate_falls_from_epoch_to_epoch():
    adata, _ = cells("annotation", n=40)
    (_, constant), (_, falling) = (run("annotation", adata, epochs=3, gamma=gamma) for gamma in (1.0, 0.1))
    constant, falling = ([e["train_loss"] for e in info["history"]] for info in (constant, falling))
    assert constant[0] == falling[0] and constant[1] != falling[1]


@needs_scgpt
@pytest.mark.parametrize("task", tasks.NAMES)
def test_a_killed_training_goes_on_as_if_it_had_not_been(task, tmp_path, monkeypatch):
    adata, _ = cells(task, n=40)
    whole, info = run(task, adata, epochs=3)
    real = torch.save

    def killed(state, path):
        real(state, path)
        if len(state["history"]) == 2:
            path.replace(tmp_path / "scgpt.pt")
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(task, adata, epochs=3, resume=tmp_path)
    monkeypatch.undo()
    after, resumed = run(task, adata, epochs=3, resume=tmp_path)
    assert (after == whole).all()
    assert resumed["history"] == info["history"] and resumed["selected_epoch"] == info["selected_epoch"]
    # It did go on, and not start anew: what it went on from decides.
    saved = torch.load(tmp_path / "scgpt.pt", weights_only=True)
    saved["history"][0]["train_loss"] = -1.0
    torch.save(saved, tmp_path / "scgpt.pt")
    assert run(task, adata, epochs=3, resume=tmp_path)[1]["history"][0]["train_loss"] == -1.0


@needs_scgpt
def test_the_epoch_of_lowest_validation_loss_is_kept(monkeypatch):
    adata, _ = cells("annotation", n=40)
    _, info = run("annotation", adata, epochs=4, learning_rate=0.3)
    losses = [e["valid_loss"] for e in info["history"]]
    assert info["selected_epoch"] == 1 + losses.index(min(losses)) and info["keep"] == "best"
    first, _ = run("annotation", adata, epochs=1, learning_rate=0.3)
    means = iter([1.0, 9.0, 5.0, 9.0, 5.0, 9.0])  # in each epoch of validation and of training
    monkeypatch.setattr(method, "_mean", lambda losses: next(means))
    kept, info = run("annotation", adata, epochs=3, learning_rate=0.3)
    assert info["selected_epoch"] == 1 and (kept == first).all()


# The checkpoint ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tasks.NAMES)
def test_a_pretrained_model_is_fine_tuned(task, checkpoint):
    adata, _ = cells(task, n=40)
    files = {"checkpoint_scgpt": checkpoint}
    first, info = run(task, adata, files=files, pretrained=True, embsize=999)  # sizes are the checkpoint's
    assert fine(task, first, adata)
    assert info["n_genes"] == 39 and info["gene_coverage"] == pytest.approx(39 / 40)
    assert info["pretrained_cells"] == 33_000_000 and "reduced_scale" not in info
    assert info["scale"].endswith("parameters, pre-trained and fine-tuned")
    loaded, of = map(int, info["loaded_tensors"].split(" of "))
    assert 21 < loaded < of  # the encoder and some decoders; others have the shape of the task
    slow, _ = run(task, adata, files=files, pretrained=True, learning_rate=1e-9)
    other, _ = run(task, adata, files=files, pretrained=True, learning_rate=1e-9, seed=1)
    if task == "integration":  # hardly trained at all it is the checkpoint, whatever the seed
        assert np.allclose(slow, other, atol=0.05) and not np.allclose(slow, first, atol=0.05)


def continuous(adata: ad.AnnData) -> None:
    """Give the cells values of which no two are equal: then scGPT's bins hold no chance."""
    values = np.random.default_rng(3).gamma(1.0, 1.0, adata.shape).astype(np.float32)
    values[np.random.default_rng(4).random(adata.shape) < 0.5] = 0
    adata.X = values
    adata.layers["counts"] = np.ceil(values)


def test_zero_shot_embeds_as_scgpt_itself_does(checkpoint, monkeypatch):
    adata, _ = cells("integration", continuous)
    ours, info = run(
        "integration",
        adata,
        files={"checkpoint_scgpt": checkpoint},
        pretrained=True,
        epochs=0,
        max_length=1200,
    )
    assert info["scale"].endswith("parameters, zero-shot") and info["pretrained_cells"] == 33_000_000
    assert "history" not in info

    import scgpt.tasks.cell_emb

    monkeypatch.setattr(scgpt.tasks.cell_emb, "tqdm", lambda cells, **_: cells)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set())  # it starts one process per core
    theirs = scgpt.tasks.embed_data(
        adata.copy(), checkpoint["args"].parent, gene_col="index", device="cpu", use_fast_transformer=False
    )
    assert np.allclose(ours, theirs.obsm["X_scGPT"], atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 0.01  # not the same for every cell


def test_zero_shot_annotation_asks_ten_neighbours(checkpoint):
    adata, solution = cells("annotation", n=120)
    files = {"checkpoint_scgpt": checkpoint}
    found, info = run("annotation", adata, files=files, pretrained=True, epochs=0, max_length=1200)
    assert fine("annotation", found, adata) and "selected_epoch" not in info
    assert (found == solution.obs["label"].to_numpy(dtype=str)).mean() > 0.5  # random weights keep something
    all_vote, _ = run("annotation", adata, files=files, pretrained=True, epochs=0, n_neighbors=10**6)
    assert len(set(all_vote)) == 1  # with every cell voting the most frequent label wins everywhere


@needs_scgpt
@pytest.mark.parametrize("task", tasks.NAMES)
def test_an_untrained_control(task):
    adata, _ = cells(task, n=40)
    result, info = run(task, adata, epochs=0)
    assert fine(task, result, adata)
    assert info["scale"].endswith("parameters, untrained") and info["reduced_scale"]


@needs_scgpt
@pytest.mark.parametrize("task", tasks.NAMES)
def test_a_pretrained_run_without_its_files_says_so(task, checkpoint):
    adata, _ = cells(task, n=40)
    with pytest.raises(
        ValueError, match="needs args, weights and vocabulary .*; missing: args, weights, voc"
    ):
        run(task, adata, pretrained=True)
    some = {"checkpoint_scgpt": {k: checkpoint[k] for k in ("args", "weights")}}
    with pytest.raises(ValueError, match=r"missing: vocabulary \(pretrained: false"):
        run(task, adata, pretrained=True, files=some)


def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint, tmp_path):
    adata, _ = cells("integration", n=40)

    def refused(match: str, **changed) -> None:
        with pytest.raises(ValueError, match=match):
            run("integration", adata, pretrained=True, files={"checkpoint_scgpt": checkpoint | changed})

    args = json.loads(checkpoint["args"].read_text())
    (tmp_path / "wider").write_text(json.dumps(args | {"embsize": 64}))
    refused(
        r"fits 1 of the \d+ tensors of scGPT's encoder \(not encoder.embedding.weight\)",
        args=tmp_path / "wider",
    )
    (tmp_path / "less").write_text(json.dumps({"nheads": 2}))
    refused("gives no embsize, d_hid, nlayers, n_layers_cls; found: nheads", args=tmp_path / "less")
    (tmp_path / "bins").write_text(json.dumps(args | {"n_bins": 7}))
    refused("says n_bins: 7, expected 51", args=tmp_path / "bins")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("is no table of tensors", weights=tmp_path / "list.pt")


# Awkward cells -----------------------------------------------------------------------------------------


def no_counts(adata: ad.AnnData) -> None:
    del adata.layers["counts"]


def batch_of_one_cell(adata: ad.AnnData) -> None:
    adata.obs["batch"] = ["b1"] + ["b0"] * (adata.n_obs - 1)


def one_label(adata: ad.AnnData) -> None:
    adata.obs["label"] = "type 0"


def no_batches(adata: ad.AnnData) -> None:
    del adata.obs["batch"]


def constant_genes(adata: ad.AnnData) -> None:
    matrix = adata.X.toarray()
    matrix[:, :20] = 1.0
    adata.X = matrix


AWKWARD = [
    ("integration", no_counts),
    ("annotation", no_counts),
    ("integration", batch_of_one_cell),
    ("annotation", one_label),
    ("annotation", no_batches),
    ("integration", constant_genes),
]


@needs_scgpt
@pytest.mark.parametrize(("task", "change"), AWKWARD, ids=lambda x: getattr(x, "__name__", x))
def test_it_copes_with(task, change):
    adata, _ = cells(task, change, n=40)
    result, _ = run(task, adata, epochs=1)
    assert fine(task, result, adata)


@needs_scgpt
@pytest.mark.parametrize("epochs", [0, 1])
def test_one_batch_is_no_obstacle(epochs):
    adata, _ = cells("integration", n=40)
    adata.obs["batch"] = "b0"
    result, _ = run("integration", adata, epochs=epochs)
    assert fine("integration", result, adata)


@needs_scgpt
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_class_of_one_cell_and_cells_without_expression(epochs):
    adata, _ = cells("annotation", n=40)
    labels = adata.obs["label"].astype(object)
    labels.iloc[int(np.flatnonzero(adata.obs["split"] == "reference")[0])] = "rare"
    adata.obs["label"] = labels
    matrix = adata.X.toarray()
    matrix[np.flatnonzero(adata.obs["split"] == "query")[:2]] = 0
    adata.X = matrix
    result, _ = run("annotation", adata, epochs=epochs)
    assert fine("annotation", result, adata)


@needs_scgpt
def test_counts_make_no_difference():
    """It bins the values within a cell, so it asks for their order alone."""
    adata, _ = cells("integration", n=40)
    bare = adata.copy()
    del bare.layers["counts"]
    assert (run("integration", adata, epochs=1)[0] == run("integration", bare, epochs=1)[0]).all()
    with pytest.raises(SystemExit) as ended:
        negative = adata.copy()
        negative.X = negative.X.toarray() - 1
        run("integration", negative)
    assert ended.value.code == _io.NOT_APPLICABLE


def test_genes_that_the_vocabulary_lacks(checkpoint, capsys):
    files = {"checkpoint_scgpt": checkpoint}

    def only(n: int):
        def rename(adata: ad.AnnData) -> None:
            adata.var_names = [g if 1 <= i <= n else f"UNKNOWN{i}" for i, g in enumerate(adata.var_names)]

        return rename

    for n in (2, 1):  # of 40
        adata, _ = cells("annotation", only(n), n=40)
        found, info = run("annotation", adata, files=files, pretrained=True)
        assert fine("annotation", found, adata) and info["n_genes"] == n and info["gene_coverage"] == n / 40
    adata, _ = cells("integration", only(2), n=40)
    result, _ = run("integration", adata, files=files, pretrained=True)
    assert fine("integration", result, adata)
    for n, words in ((1, "nothing to learn from: of the 1 genes"), (0, "has none of the genes ['GENE0")):
        adata, _ = cells("integration", only(n), n=40)
        with pytest.raises(SystemExit) as ended:
            run("integration", adata, files=files, pretrained=True)
        assert ended.value.code == _io.NOT_APPLICABLE
        assert words.replace("GENE0", "UNKNOWN0") in capsys.readouterr().err


@needs_scgpt
def test_long_cells_are_sampled():
    """More genes than tokens: a random part of them, and <cls> always."""
    adata, _ = cells("integration", n=40)
    result, _ = run("integration", adata, epochs=1, max_length=11)
    assert fine("integration", result, adata)
    assert not np.allclose(result, run("integration", adata, epochs=1)[0])


# The declaration ---------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_notebooks():
    integration, annotation = ENTRY["tasks"]["integration"], ENTRY["tasks"]["annotation"]
    both = {"learning_rate": 1e-4, "gamma": 0.9, "dropout": 0.2, "n_bins": 51, "pretrained": True}
    assert both.items() <= integration.items() and both.items() <= annotation.items()
    assert {
        "batch_size": 64,
        "epochs": 15,
        "mask_ratio": 0.4,
        "ecs_threshold": 0.8,
    }.items() <= integration.items()
    assert {
        "batch_size": 32,
        "epochs": 10,
        "max_length": 3001,
        "n_neighbors": 10,
    }.items() <= annotation.items()
    sizes = {"embsize": 512, "nheads": 8, "d_hid": 512, "nlayers": 12, "n_layers_cls": 3}
    assert sizes.items() <= integration.items() and sizes.items() <= annotation.items()


@pytest.mark.slow
@needs_scgpt
@pytest.mark.skipif(not MINI.exists(), reason="../shared/data/pbmc10k_mini is not here")
def test_it_annotates_real_cells():
    """From scratch, 300 genes: well above the majority label on blood cells of another batch."""
    adata = ad.read_h5ad(MINI)
    adata.layers["counts"] = adata.X.copy()
    adata.obs["label"] = adata.obs["str_labels"]
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    log_normalize(adata)
    settings = {"n_top_genes": 300, "split": {"kind": "batch", "query": ["0"]}}
    given, solution, _ = tasks.get("annotation").make_io(adata, settings)
    found, _ = run("annotation", given, embsize=64, nlayers=2, epochs=3, learning_rate=0.001, batch_size=32)
    truth = solution.obs["label"].to_numpy(dtype=str)
    majority = max((truth == label).mean() for label in set(truth))
    assert (found == truth).mean() > majority + 0.2
