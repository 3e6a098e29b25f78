"""scBERT: values, genes and loop are ours and tested without its package; the network only with it."""

from __future__ import annotations

import importlib.util
import json

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch
from support import make_cells
from torch import nn

from baselines import _io, scbert
from workflow import tasks
from workflow.tidy import log_normalize

PARAMS = {
    "pretrained": False,
    "feature_scope": "train",
    "n_bins": 5,
    "d_model": 8,
    "n_layers": 2,
    "n_heads": 2,
    "d_head": 4,
    "hidden": 16,
    "valid_fraction": 0.2,
    "epochs": 3,
    "patience": 10,
    "batch_size": 4,
    "accumulate": 2,
    "learning_rate": 0.005,
    "min_learning_rate": 0.000001,
    "cycle": 15,
    "warmup": 0,
    "gamma": 0.9,
}
installed = pytest.mark.skipif(
    importlib.util.find_spec("performer_pytorch") is None,
    reason="scBERT's performer_pytorch is not installed (envs/bench.post-deploy.sh, needs GitHub)",
)


def make_input(n: int = 60, types: int = 3, **changed) -> tuple[ad.AnnData, np.ndarray]:
    """Synthetic input of an annotation task, and the labels of its query cells."""
    cells = make_cells(n=n, types=types)
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    split = {"kind": "stratified", "query_fraction": 0.4, "seed": 0}
    given, solution, _ = tasks.get("annotation").make_io(cells, {"n_top_genes": 30, "split": split})
    return given, solution.obs["label"].to_numpy(dtype=str)


def given_for(
    adata: ad.AnnData, files: dict | None = None, resume=None, seed: int = 0, **changed
) -> _io.Given:
    return _io.Given(
        adata.copy(), PARAMS | changed, seed=seed, threads=1, gpu=0, resume=resume, files=files or {}
    )


# Values and genes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [True, False], ids=["from counts", "from X"])
def test_bins_are_those_of_scanpy_on_the_genes_of_the_vocabulary(counts):
    adata, _ = make_input()
    vocabulary = [*adata.var_names[25:5:-1], "UNKNOWN", *adata.var_names[:3]]
    known = adata[:, [gene for gene in vocabulary if gene != "UNKNOWN"]]
    expected = ad.AnnData(known.layers["counts"].copy())
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected, base=2)
    expected = np.insert(np.minimum(expected.X.toarray(), 7).astype(int), 20, 0, axis=1)
    if not counts:
        del adata.layers["counts"]
    columns = adata.var_names.get_indexer(vocabulary)
    found = scbert.tokens(adata, columns, columns[columns >= 0], 7).toarray()
    assert (found == expected).all()
    assert len(np.unique(found)) > 2


def test_a_cell_without_any_value_has_only_zeros():
    adata, _ = make_input()
    adata.layers["counts"][3] = 0
    found = scbert.tokens(adata, np.arange(40), np.arange(40), 5).toarray()
    assert not found[3].any()
    assert found[4].any()


def test_genes_are_read_from_h5ad_json_and_text(tmp_path):
    genes = ["GENE2", "GENE0", "GENE1"]
    cells = ad.AnnData(np.zeros((1, 3), dtype=np.float32))
    cells.var_names = genes
    cells.write_h5ad(tmp_path / "a")
    (tmp_path / "b").write_text(json.dumps({"GENE0": 1, "GENE2": 0, "GENE1": 2}))
    (tmp_path / "c").write_text(json.dumps(genes))
    (tmp_path / "d").write_text("\n".join(genes) + "\n")
    for name in "abcd":
        assert scbert.read_genes(tmp_path / name) == genes, name


# Training ----------------------------------------------------------------------------------------------


def test_the_learning_rate_climbs_falls_and_restarts_lower():
    rates = [scbert.learning_rate(epoch, 1e-4, 1e-6, 15, 5, 0.9) for epoch in range(41)]
    assert rates[0] == 1e-6
    assert rates[5] == pytest.approx(1e-4)  # top of the first cycle
    assert rates[10] == pytest.approx((1e-4 + 1e-6) / 2)  # half way down
    assert rates[15] == pytest.approx(1e-6)  # the second cycle, of 25 epochs
    assert rates[20] == pytest.approx(0.9e-4)
    assert rates[40] == pytest.approx(1e-6)
    with pytest.raises(ValueError, match="warmup must be less than cycle"):
        scbert.learning_rate(0, 1e-4, 1e-6, 5, 5, 0.9)


def test_validation_cells_are_a_share_of_every_class_and_leave_one():
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held = scbert.hold_out(labels, 0.2, np.random.default_rng(0))
    assert [int(held[labels == label].sum()) for label in range(4)] == [10, 2, 0, 0]
    other = scbert.hold_out(labels, 0.2, np.random.default_rng(1))
    assert (held != other).any()


class Small(nn.Module):
    """A network for the loop alone: dropout takes part in chance, as the Performer's redrawing does."""

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.2), nn.Linear(length, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.float())


def trained(resume=None, **changed):
    """Train the small network; return it with what fit returns."""
    adata, _ = make_input()
    reference = adata[(adata.obs["split"] == "reference").to_numpy()]
    _, labels = np.unique(reference.obs["label"].astype(str), return_inverse=True)
    cells = scbert.Cells(scbert.tokens(reference, np.arange(40), np.arange(40), 5), torch.device("cpu"))
    torch.manual_seed(0)
    model = Small(41, 3)
    seed = changed.pop("seed", 0)
    return model, *scbert.fit(model, cells, labels, PARAMS | changed, seed, resume)


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_a_resumed_training_ends_as_one_that_was_not_interrupted(tmp_path):
    whole, history, selected = trained(epochs=6)
    trained(tmp_path, epochs=3)
    resumed, again, same = trained(tmp_path, epochs=6)
    assert torch.equal(weights(whole), weights(resumed))
    assert (again, same) == (history, selected)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    other, *_ = trained(epochs=6, seed=1)
    assert not torch.equal(weights(whole), weights(other))


def test_the_best_epoch_is_kept_and_patience_ends_the_training():
    model, history, selected = trained(epochs=40, patience=2)
    accuracies = [row["valid_accuracy"] for row in history]
    assert selected == int(np.argmax(accuracies)) + 1
    assert len(history) == selected + 3 < 40  # the third epoch without a rise is the last
    short, *_ = trained(epochs=selected)
    assert torch.equal(weights(model), weights(short))


def test_few_cells_take_a_step_although_they_do_not_fill_a_group():
    """The authors' script would take none: 36 cells are 9 mini-batches of 4."""
    torch.manual_seed(0)
    start = weights(Small(41, 3))
    model, history, _ = trained(epochs=2, accumulate=60)
    assert not torch.equal(start, weights(model))
    assert history[1]["train_loss"] != history[0]["train_loss"]


# With the network --------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """Files as the suite hands them: random weights for 25 of the genes, in another order, and 5 unknown."""
    adata, _ = make_input()
    genes = [*adata.var_names[24::-1], *(f"OTHER{k}" for k in range(5))]
    torch.manual_seed(7)
    model = scbert.network(PARAMS, 31, None)
    model.pos_emb.emb.weight.data[-1] = 0
    torch.save({"model_state_dict": model.state_dict(), "epoch": 1}, tmp_path / "weights.pth")
    (tmp_path / "genes.txt").write_text("\n".join(genes))
    return {"checkpoint_scbert": {"weights": tmp_path / "weights.pth", "genes": tmp_path / "genes.txt"}}


@installed
def test_easy_cells_are_annotated_from_scratch_and_the_run_repeats():
    adata, truth = make_input(n=150)
    first = given_for(adata, epochs=6)
    found = scbert.annotation(first)
    assert (found == truth).mean() > 0.8  # a third is chance
    assert (scbert.annotation(given_for(adata, epochs=6)) == found).all()
    assert first.info["n_genes"] == 30
    assert first.info["reduced_scale"] is True
    assert (first.info["keep"], first.info["criterion"]) == ("best", "accuracy")
    assert "from scratch" in first.info["scale"]
    assert "pretrained_cells" not in first.info


@installed
def test_weights_are_loaded_and_only_the_published_part_of_them_is_trained(checkpoint, monkeypatch):
    adata, truth = make_input()
    models = []
    network = scbert.network
    monkeypatch.setattr(scbert, "network", lambda *args: models.append(network(*args)) or models[-1])
    given = given_for(adata, checkpoint, pretrained=True, epochs=1)
    assert len(scbert.annotation(given)) == len(truth)
    before = torch.load(checkpoint["checkpoint_scbert"]["weights"], weights_only=True)["model_state_dict"]
    after = models[0].state_dict()
    changed = {
        name for name, value in before.items() if name in after and not torch.equal(value, after[name])
    }
    changed -= {"performer.calls_since_last_redraw"}
    allowed = ("norm.", "performer.net.layers.0.", "to_out.")  # of two layers the first is the last but one
    assert changed and all(name.startswith(allowed) for name in changed)
    assert given.info["n_genes"] == 25
    assert given.info["pretrained_cells"] > 1e6
    assert given.info["reduced_scale"] is False


@installed
def test_the_label_of_a_query_cell_depends_on_no_other_query_cell(monkeypatch):
    adata, truth = make_input()
    logits = []
    predict = scbert.predict
    monkeypatch.setattr(scbert, "predict", lambda *args: logits.append(predict(*args)) or logits[-1])
    scbert.annotation(given_for(adata, epochs=1))
    query = adata.obs_names[(adata.obs["split"] == "query").to_numpy()]
    alone = adata[[name not in set(query[1:]) for name in adata.obs_names]]
    whole = logits[-1]
    scbert.annotation(given_for(alone, epochs=1))
    assert torch.equal(whole[:1], logits[-1])


@installed
def test_a_checkpoint_of_another_size_is_refused_in_a_sentence(checkpoint):
    adata, _ = make_input()
    with pytest.raises(ValueError, match="does not fit a model of these parameters"):
        scbert.annotation(given_for(adata, checkpoint, pretrained=True, d_model=16))


@installed
@pytest.mark.parametrize("case", ["one class", "class of one cell", "no counts", "an empty query cell"])
def test_odd_inputs_are_survived(case):
    adata, truth = make_input(types=1 if case == "one class" else 3)
    if case == "class of one cell":
        adata.obs["label"] = adata.obs["label"].cat.add_categories("rare")
        adata.obs.loc[adata.obs.index[adata.obs["split"] == "reference"][0], "label"] = "rare"
    elif case == "no counts":
        del adata.layers["counts"]
    elif case == "an empty query cell":
        row = np.flatnonzero(adata.obs["split"] == "query")[0]
        adata.layers["counts"][row] = 0
        adata.X[row] = 0
    found = scbert.annotation(given_for(adata, epochs=1))
    assert len(found) == len(truth)
    assert set(found) <= set(adata.obs["label"].dropna())


# Refusals, for which nothing is loaded -----------------------------------------------------------------


def test_without_the_order_of_the_genes_weights_are_not_applicable(tmp_path, capsys):
    adata, _ = make_input()
    files = {"checkpoint_scbert": {"weights": tmp_path / "weights.pth"}}
    with pytest.raises(SystemExit) as ended:
        scbert.annotation(given_for(adata, files, pretrained=True))
    assert ended.value.code == _io.NOT_APPLICABLE
    assert "do not name their genes" in capsys.readouterr().err


def test_genes_of_which_none_is_known_are_not_applicable(tmp_path, capsys):
    adata, _ = make_input()
    (tmp_path / "genes.txt").write_text("A\nB\n")
    files = {"checkpoint_scbert": {"weights": tmp_path / "w", "genes": tmp_path / "genes.txt"}}
    with pytest.raises(SystemExit) as ended:
        scbert.annotation(given_for(adata, files, pretrained=True))
    assert ended.value.code == _io.NOT_APPLICABLE
    assert "none of the 40 genes (the first is GENE0)" in capsys.readouterr().err


def test_weights_that_were_not_handed_over_are_named():
    adata, _ = make_input()
    with pytest.raises(ValueError, match="names no checkpoint_scbert"):
        scbert.annotation(given_for(adata, pretrained=True))
