"""TOSICA: a Transformer over one token per gene set, trained on the reference (Chen et al. 2023).

The code is that of omicverse, which carries TOSICA on PyPI. The authors' own package is on GitHub only and
pins PyTorch 1.7. Both were run on the same 300 cells of PBMC 10k: weights, probabilities and attention were
the same to the last bit. The gene sets are the authors' files; omicverse brings none.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np

from baselines import _io

PACKAGE = "omicverse.external.tosica"
MIN_GENES = 5  # TOSICA drops a gene set with fewer genes in the data
VALIDATION = 0.3  # the share that TOSICA's fit_model holds out to report on
MAX_BALANCED = 2_000_000  # cells, at which it stops to draw more of the rare classes
#: Sizes below those of the authors make a run "at reduced scale".
PUBLISHED = {"max_gs": 300, "embed_dim": 48, "depth": 2, "num_heads": 4, "epochs": 10}
BRIDGE = [
    "code from omicverse on PyPI: the authors' package pins PyTorch 1.7",
    "fit_model seeds itself with 1; it is given the seed of the run instead",
    "the last epoch is kept: the authors say not which, and their validation cells are drawn after rare "
    "classes were multiplied, so that many of them were trained on",
    "no probability is too low for a label: the authors' default calls a cell below 0.1 Unknown",
]


class Log:
    """Stands in for TensorBoard's writer: what fit_model reports of each epoch becomes ``history``."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def add_scalar(self, name: str, value: float, epoch: int) -> None:
        if epoch == len(self.history):
            self.history.append({"epoch": epoch + 1})
        names = {"val_loss": "valid_loss", "val_acc": "valid_accuracy", "train_acc": "train_accuracy"}
        self.history[epoch][names.get(name, name)] = float(value)


def _gene_sets(given: _io.Given, genes: list[str], read: Any) -> str | None:
    """Return the file of gene sets; None for connections at random.

    Raises
    ------
    ValueError
        If two are named, or the one named is not here.
    """
    name, own = given.params["gene_sets"], given.params["gmt"]
    if name and own:
        raise ValueError(
            f"gene_sets is {name!r} and gmt is {own!r}; give one of them and make the other null"
        )
    if not name and not own:
        return None
    files = given.files.get("gene_sets_tosica", {})
    if name and name not in files:
        found = ", ".join(sorted(files)) or "none"
        raise ValueError(
            f"gene sets {name!r} were not fetched (here: {found}); gmt may name a file of your own"
        )
    path = Path(own or files[name]).resolve()
    if not path.is_file():
        raise ValueError(f"gene sets: {path} is no file")
    known = set(genes)
    kept = [members for members in read(path, max_g=given.params["max_g"]).values()
            if len(known.intersection(members)) >= MIN_GENES]  # fmt: skip
    if not kept:
        _io.not_applicable(
            f"TOSICA needs gene sets with {MIN_GENES} genes of the data or more, and {path.name} has none "
            f"for these {len(genes)} genes"
        )
    given.info["n_gene_sets"] = min(len(kept), given.params["max_gs"])
    # fit_model takes a name with .gmt in it for a path, any other for one of its own
    link = Path("gene_sets.gmt")
    link.symlink_to(path)
    return str(link)


def _check_size(labels: np.ndarray, batch_size: int) -> None:
    """Stop where TOSICA's own loops would crash: no class to tell apart, or not one full mini-batch."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        _io.not_applicable(f"TOSICA tells classes apart, and the reference has {len(counts)}")
    balanced = len(counts) * min(counts.max(), MAX_BALANCED // len(counts))
    if balanced - int(balanced * (1 - VALIDATION)) < batch_size:
        _io.not_applicable(
            f"TOSICA validates on whole mini-batches of {batch_size} cells, and {VALIDATION:.0%} of its "
            f"{balanced} balanced reference cells do not fill one"
        )


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label, by the weights of the last epoch."""
    warnings.filterwarnings("ignore")
    if not given.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # fit_model takes any GPU that it sees
    import torch
    import torch.utils.tensorboard

    train = importlib.import_module(f"{PACKAGE}.train")
    torch.set_num_threads(given.threads)
    params = given.params
    reference, query = (given.highly_variable(cells) for cells in (given.reference, given.query))
    labels, codes = np.unique(reference.obs["label"].astype(str), return_inverse=True)
    _check_size(codes, params["batch_size"])
    # Labels go in as numbers: a label such as "NA" does not survive the csv files that TOSICA writes.
    cells = ad.AnnData(reference.X, var=reference.var[[]], obs=reference.obs[[]].copy())
    cells.obs["Celltype"] = [f"{code:06d}" for code in codes]
    network = ("embed_dim", "depth", "num_heads")
    training = ("max_g", "max_gs", "mask_ratio", "n_unannotated", "batch_size", "epochs", "lrf")
    settings = {name: params[name] for name in (*network, *training)} | {"lr": params["learning_rate"]}
    log, set_seed = Log(), train.set_seed
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        gmt = _gene_sets(given, list(cells.var_names), train.read_gmt)
        with (
            mock.patch.object(train, "set_seed", lambda _: set_seed(given.seed)),
            mock.patch.object(train, "tqdm", functools.partial(train.tqdm, disable=True)),
            mock.patch.object(torch.utils.tensorboard, "SummaryWriter", lambda: log),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            train.fit_model(cells, gmt, project="tosica", **settings)
        mask = np.load("tosica/mask.npy")
        weights = torch.load(
            f"tosica/model-{params['epochs'] - 1}.pth", weights_only=True, map_location="cpu"
        )
    model = train.create_model(
        len(labels), cells.n_vars, mask, **{name: params[name] for name in network}, has_logits=False
    )
    model.load_state_dict(weights)
    _describe(given, model, log.history)
    return labels[_predict(model, query.X, torch.device("cuda" if given.gpu else "cpu"))]


def _predict(model: Any, matrix: Any, device: Any, batch_size: int = 50) -> np.ndarray:
    """Return the number of the most probable class of each cell."""
    import torch

    model.eval().to(device)
    found = []
    with torch.inference_mode():
        for start in range(0, matrix.shape[0], batch_size):
            batch = torch.from_numpy(_io.dense(matrix[start : start + batch_size]))
            n_cells = len(batch)
            if n_cells == 1:  # TOSICA squeezes the axis of the cells away, and crashes
                batch = batch.repeat(2, 1)
            found.append(model(batch.to(device))[1][:n_cells].argmax(dim=1).cpu().numpy())
    return np.concatenate(found)


def _describe(given: _io.Given, model: Any, history: list[dict[str, float]]) -> None:
    """Say what was trained."""
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sets = f"{given.info['n_gene_sets']} gene sets" if "n_gene_sets" in given.info else "no gene sets"
    small = "n_gene_sets" not in given.info or any(given.params[k] < v for k, v in PUBLISHED.items())
    given.info |= {
        "scale": f"{n_parameters / 1e6:.2g} M parameters, {sets}",
        "reduced_scale": small,
        "n_parameters": n_parameters,
        "history": history,
        "selected_epoch": len(history),
        "keep": "last",
        "bridge": BRIDGE,
    }


if __name__ == "__main__":
    _io.main(annotation=annotation)
