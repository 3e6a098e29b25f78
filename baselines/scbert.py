"""scBERT: a Performer over one token per gene, pretrained on PanglaoDB, fine-tuned (Yang et al. 2022).

The network is the authors' ``performer_pytorch``, installed from their repository. Their fine-tuning script
needs several GPUs and cannot be called, so the classifier that it puts on top and its loop are written here
again, with its settings; what had to differ is listed in ``BRIDGE``.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from baselines import _io

PRETRAINED_CELLS = 1_126_580  # PanglaoDB as the paper counts it
BRIDGE = [
    "fine-tuning loop and classifier rewritten for one process: the authors' script needs torch.distributed "
    "with NCCL",
    "each cell is seen once an epoch and once in validation: the authors' loader draws a cell at random for "
    "every index, in validation too",
    "a step is taken at the end of an epoch as well: the authors' script leaves what does not fill "
    "a group of mini-batches to the next epoch, and takes no step at all on few cells",
    "no cell is dropped: the authors' preprocessing drops those with fewer than 200 genes",
]


def read_genes(path: Path) -> list[str]:
    """Return the genes of the checkpoint in their order.

    Parameters
    ----------
    path
        An h5ad file, of which only the names of the genes are read; or JSON, a list or gene -> position; or
        text, a gene a line.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return list(ad.read_h5ad(path, backed="r").var_names)
    text = path.read_text()
    if text.lstrip()[:1] in ("[", "{"):
        found = json.loads(text)
        return sorted(found, key=lambda gene: found[gene]) if isinstance(found, dict) else list(found)
    return text.split()


def tokens(adata: ad.AnnData, columns: np.ndarray, scope: np.ndarray, n_bins: int) -> sp.csr_matrix:
    """Return the bin of every gene: log2(1 + counts per 10,000), cut to a whole number of at most ``n_bins``.

    Parameters
    ----------
    adata
        With raw counts; or X, log1p of counts scaled to any sum, which is turned back.
    columns
        For each position of the model the column of its gene, -1 for none.
    scope
        Columns over which the counts of a cell are scaled to 10,000.
    """
    if "counts" in adata.layers:
        values = sp.csr_matrix(adata.layers["counts"], dtype=np.float32)
    else:
        values = sp.csr_matrix(adata.X, dtype=np.float32).expm1()
    total = np.asarray(values[:, scope].sum(axis=1)).ravel()
    scaled = sp.diags_array(1e4 / np.where(total > 0, total, 1)).astype(np.float32) @ values
    here = np.flatnonzero(columns >= 0)
    bins = scaled[:, columns[here]].tocsc()
    bins.data = np.minimum(np.log1p(bins.data) / np.float32(np.log(2)), n_bins).astype(np.uint8)
    places = sp.csc_matrix(
        (np.ones(len(here), dtype=np.uint8), (np.arange(len(here)), here)), shape=(len(here), len(columns))
    )
    return (bins @ places).tocsr()


def learning_rate(epoch: int, top: float, least: float, cycle: int, warmup: int, gamma: float) -> float:
    """Return the learning rate of an epoch, counted from 0.

    It climbs in a line over ``warmup`` epochs and falls along half a cosine to the end of the cycle. Each
    following cycle is twice as long without its warm-up, and its top is ``gamma`` times as high.

    Raises
    ------
    ValueError
        If the warm-up does not end before the cycle.
    """
    if cycle <= warmup:
        raise ValueError(f"warmup must be less than cycle ({cycle} epochs), not {warmup}")
    while epoch >= cycle:
        epoch, cycle, top = epoch - cycle, 2 * (cycle - warmup) + warmup, top * gamma
    if epoch < warmup:
        share = epoch / warmup
    else:
        share = (1 + math.cos(math.pi * (epoch - warmup) / (cycle - warmup))) / 2
    return least + (top - least) * share


def hold_out(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return True for validation cells, the same share of every class, which keeps one to train on."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        chosen[cells[: min(round(share * len(cells)), len(cells) - 1)]] = True
    return chosen


def classifier(d_model: int, length: int, hidden: int, n_classes: int) -> nn.Sequential:
    """Return scBERT's classifier: each position's vector to one number, then three dense layers."""
    return nn.Sequential(
        nn.Linear(d_model, 1),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(length, 512),
        nn.ReLU(),
        nn.Linear(512, hidden),
        nn.ReLU(),
        nn.Linear(hidden, n_classes),
    )


def network(params: dict[str, Any], length: int, weights: Path | None) -> Any:
    """Return the Performer, with the weights of the checkpoint if there is one.

    Raises
    ------
    ValueError
        If the checkpoint is of another size.
    """
    from performer_pytorch import PerformerLM
    from performer_pytorch.performer_pytorch import AbsolutePositionalEmbedding

    model = PerformerLM(
        num_tokens=params["n_bins"] + 2,
        dim=params["d_model"],
        depth=params["n_layers"],
        max_seq_len=length,
        heads=params["n_heads"],
        dim_head=params["d_head"],
        local_attn_heads=0,
        g2v_position_emb=False,  # true reads ../data/gene2vec_16906.npy, which the checkpoint contains
    )
    model.pos_emb = AbsolutePositionalEmbedding(params["d_model"], length)
    if weights is not None:
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state_dict"]
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{weights} does not fit a model of these parameters: {reason}") from None
    return model


def freeze(model: Any) -> None:
    """Leave the last norm and the last layer but one to training, as the authors do."""
    model.requires_grad_(False)
    model.norm.requires_grad_(True)
    model.performer.net.layers[-2].requires_grad_(True)


class Cells:
    """Cells as mini-batches of tokens; a position without a gene, always 0, stands at the end."""

    def __init__(self, bins: sp.csr_matrix, device: torch.device) -> None:
        self.bins, self.device = bins, device

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(self.bins[rows].toarray()).to(self.device).long()
        return nn.functional.pad(found, (0, 1))


def predict(model: Any, cells: Cells, rows: np.ndarray, batch_size: int) -> torch.Tensor:
    """Return the logits of each cell, once and in order."""
    model.eval()
    with torch.inference_mode():
        parts = [model(cells[rows[k : k + batch_size]]) for k in range(0, len(rows), batch_size)]
    return torch.cat(parts).float().cpu()


def fit(
    model: Any, cells: Cells, labels: np.ndarray, params: dict[str, Any], seed: int, resume: Path | None
) -> tuple[list[dict[str, float]], int]:
    """Train, and leave the weights of the epoch of highest validation accuracy in the model.

    Returns
    -------
    history
        Losses, accuracy and learning rate by epoch.
    selected_epoch
        Counted from 1.
    """
    held = hold_out(labels, params["valid_fraction"], np.random.default_rng([seed, 0]))
    training, validation = np.flatnonzero(~held), np.flatnonzero(held)
    truth = torch.from_numpy(labels)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    size, group = params["batch_size"], params["accumulate"]
    schedule = [params[key] for key in ("learning_rate", "min_learning_rate", "cycle", "warmup", "gamma")]
    history: list[dict[str, float]] = []
    best, selected, kept = -1.0, 0, None
    saved = resume / "epoch.pt" if resume else None
    if saved and saved.exists():
        state = torch.load(saved, map_location=cells.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history, best, selected, kept = (state[key] for key in ("history", "best", "selected", "kept"))

    for epoch in range(len(history), params["epochs"]):
        if epoch - selected >= params["patience"] + 1:
            break
        torch.manual_seed(seed * 1_000_003 + epoch)  # each epoch anew, so that a resumed run draws the same
        order = np.random.default_rng([seed, 1, epoch]).permutation(training)
        rate = learning_rate(epoch, *schedule)
        for part in optimizer.param_groups:
            part["lr"] = rate
        model.train()
        batches, total = [order[k : k + size] for k in range(0, len(order), size)], 0.0
        for number, rows in enumerate(batches, start=1):
            target = truth[rows].to(cells.device)
            loss = nn.functional.cross_entropy(model(cells[rows]), target)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of epoch {epoch + 1} is {loss.item()}")
            loss.backward()
            total += loss.item() * len(rows)
            if number % group == 0 or number == len(batches):
                optimizer.step()
                optimizer.zero_grad()
        row = {"epoch": epoch + 1, "train_loss": total / len(order), "learning_rate": rate}
        if len(validation):
            logits = predict(model, cells, validation, size)
            row["valid_loss"] = nn.functional.cross_entropy(logits, truth[validation]).item()
            row["valid_accuracy"] = (logits.argmax(dim=1) == truth[validation]).float().mean().item()
        history.append(row)
        score = row.get("valid_accuracy", float(epoch))  # without validation cells the last epoch
        if score > best:
            best, selected = score, epoch + 1
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        if saved:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            state |= {"best": best, "selected": selected, "kept": kept}
            part_file = saved.with_suffix(".part")
            torch.save(state, part_file)
            part_file.replace(saved)
    model.load_state_dict(kept)
    return history, selected


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label."""
    warnings.filterwarnings("ignore", message="torch.qr is deprecated")
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    params = given.params
    genes, weights = list(given.adata.var_names), None
    if params["pretrained"]:
        files = given.files.get("checkpoint_scbert", {})
        if "weights" not in files:
            raise ValueError("pretrained is true, and --files names no checkpoint_scbert with its weights")
        if "genes" not in files:
            _io.not_applicable(
                "the weights of scBERT do not name their genes, and the list of them (panglao_10000.h5ad) "
                "could not be had"
            )
        weights, vocabulary = files["weights"], read_genes(files["genes"])
        columns = given.adata.var_names.get_indexer(vocabulary)
        scope = columns[columns >= 0]
        if not len(scope):
            _io.not_applicable(f"scBERT knows none of the {len(genes)} genes (the first is {genes[0]})")
        given.info["n_genes"] = len(scope)
        positions = "gene positions: the checkpoint's own gene2vec vectors"
    else:
        columns = given.adata.var_names.get_indexer(given.highly_variable().var_names)
        scope = np.arange(len(genes))
        positions = "gene positions: random and trained, not gene2vec, whose file is not public"

    length = len(columns) + 1
    model = network(params, length, weights)
    if weights is not None:
        freeze(model)
    classes, labels = np.unique(given.reference.obs["label"].astype(str), return_inverse=True)
    model.to_out = classifier(params["d_model"], length, params["hidden"], len(classes))
    device = torch.device("cuda" if given.gpu else "cpu")
    model.to(device)
    reference, query = (
        Cells(tokens(cells, columns, scope, params["n_bins"]), device)
        for cells in (given.reference, given.query)
    )
    history, selected = fit(model, reference, labels, params, given.seed, given.resume)
    # One cell at a time, as the authors predict: the Performer's kernel takes a maximum over the mini-batch,
    # so that in company a cell's last digits would depend on the other cells.
    logits = predict(model, query, np.arange(query.bins.shape[0]), 1)

    n_parameters = sum(p.numel() for p in model.parameters())
    how = "fine-tuned" if weights is not None else "from scratch"
    given.info |= {
        "scale": f"{n_parameters / 1e6:.2g} M parameters, {how}",
        "reduced_scale": weights is None,
        "n_parameters": n_parameters,
        "history": history,
        "selected_epoch": selected,
        "keep": "best",
        "criterion": "accuracy",
        "bridge": [*BRIDGE, positions],
    }
    if weights is not None:
        given.info["pretrained_cells"] = PRETRAINED_CELLS
    return classes[logits.argmax(dim=1).numpy()]


if __name__ == "__main__":
    _io.main(annotation=annotation)
