"""scGPT: a transformer over genes and binned expression, pre-trained on 33 million cells (Cui et al. 2024).

Model, tokens, bins, losses and samplers are those of the package ``scgpt``; the loops are ours, because its
authors publish theirs only as notebooks. They follow the notebooks for fine-tuning (integration, annotation)
and, with ``epochs: 0``, for zero-shot integration and reference mapping. With ``pretrained: false`` the same
model starts from random weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from baselines import _io, _torchtext

CHECKPOINT = "checkpoint_scgpt"
PRETRAINED_CELLS = 33_000_000
SPECIAL = ["<pad>", "<cls>", "<eoc>"]
SIZES = ["embsize", "nheads", "d_hid", "nlayers", "n_layers_cls"]
MASK_VALUE, PAD_VALUE = -1, -2  # no bins: they are 0 (no counts) to n_bins - 1
ENCODER = ("encoder.", "value_encoder.", "transformer_encoder.")  # what fine-tuning must not lack


@dataclass
class Start:
    """What a run starts from.

    Attributes
    ----------
    scgpt
        The package.
    vocabulary
        Token -> number, ``scgpt.tokenizer.GeneVocab``.
    sizes
        Sizes of the model.
    weights
        Tensors of the checkpoint; None from scratch.
    genes
        Which of the given genes the vocabulary knows.
    bins
        Cells x known genes: 0 where there is no expression, else the bin, 1 to n_bins - 1.
    ids
        Numbers of the known genes.
    """

    scgpt: Any
    vocabulary: Any
    sizes: dict[str, int]
    weights: dict[str, torch.Tensor] | None
    genes: np.ndarray
    bins: np.ndarray
    ids: np.ndarray


def _bridge(given: _io.Given, sentence: str) -> None:
    """Say where the original could not be run as it is."""
    given.info.setdefault("bridge", []).append(sentence)


def _package(given: _io.Given) -> Any:
    """Import scgpt, quietly, and set up PyTorch for the run."""
    if _torchtext.register():
        _bridge(given, "torchtext, which does not load any more, is replaced by a vocabulary in plain Python")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import scgpt
        import scgpt.model.model
    scgpt.logger.setLevel(logging.ERROR)
    scgpt.model.model.trange = range  # no progress bars
    torch.set_num_threads(given.threads)
    return scgpt


def _start(given: _io.Given, adata: ad.AnnData) -> Start:
    """Return what the run starts from, with the cells binned."""
    scgpt = _package(given)
    scgpt.utils.set_seed(given.seed)  # Python, NumPy (bins, masks) and PyTorch
    genes = adata.var_names.astype(str).to_numpy()
    vocabulary, sizes, weights = _checkpoint(given, scgpt) if given.params["pretrained"] else (None, {}, None)
    if vocabulary is None:
        names = [*genes, *SPECIAL]
        vocabulary = scgpt.tokenizer.GeneVocab.from_dict({name: i for i, name in enumerate(names)})
        sizes = {name: given.params[name] for name in SIZES}
    known = np.array([gene in vocabulary for gene in genes], dtype=bool)
    if not known.any():
        _io.not_applicable(f"scGPT's vocabulary of gene symbols has none of the genes {genes[:3].tolist()}")
    given.info |= {"n_genes": int(known.sum()), "gene_coverage": float(known.mean())}
    ids = np.array(vocabulary(genes[known].tolist()), dtype=np.int64)
    return Start(scgpt, vocabulary, sizes, weights, known, _bins(given, scgpt, adata[:, known]), ids)


def _checkpoint(given: _io.Given, scgpt: Any) -> tuple[Any, dict[str, int], dict[str, torch.Tensor]]:
    """Read vocabulary, sizes and weights of the pretrained model."""
    files = given.files.get(CHECKPOINT, {})
    missing = [name for name in ("args", "weights", "vocabulary") if name not in files]
    if missing:
        raise ValueError(
            f"pretrained: true needs args, weights and vocabulary of {CHECKPOINT}; "
            f"missing: {', '.join(missing)} (pretrained: false starts from scratch)"
        )
    args = json.loads(files["args"].read_text())
    missing = [name for name in SIZES if name not in args]
    if missing:
        raise ValueError(f"{files['args']} gives no {', '.join(missing)}; found: {', '.join(args) or '-'}")
    expected = {"pad_token": SPECIAL[0], "pad_value": PAD_VALUE, "n_bins": given.params["n_bins"]}
    for name, value in expected.items():
        if args.get(name, value) != value:
            raise ValueError(f"{files['args']} says {name}: {args[name]!r}, expected {value!r}")
    vocabulary = scgpt.tokenizer.GeneVocab.from_dict(json.loads(files["vocabulary"].read_text()))
    for token in SPECIAL:
        if token not in vocabulary:
            vocabulary.append_token(token)
    weights = torch.load(files["weights"], map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ValueError(f"{files['weights']} is no table of tensors, as scGPT's best_model.pt is")
    return vocabulary, {name: args[name] for name in SIZES}, weights


def _bins(given: _io.Given, scgpt: Any, adata: ad.AnnData) -> np.ndarray:
    """Put the expression of each cell in bins of its own: quantiles of its values above zero.

    Only the order of a cell's values counts, so log-normalised values serve with or without counts behind
    them; scGPT spreads equal values at random over the bins that they could be in.
    """
    values = _io.dense(adata.X)
    if values.size and values.min() < 0:
        _io.not_applicable(f"scGPT bins expression of at least 0; these values go down to {values.min():.2g}")
    for row in values:
        row[:] = scgpt.preprocess.binning(row, given.params["n_bins"])  # zeros stay zeros
    return values


def _model(given: _io.Given, start: Start, **options: Any) -> Any:
    """Build the model and load what the checkpoint has of it."""
    sizes = start.sizes
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = start.scgpt.model.TransformerModel(
            ntoken=len(start.vocabulary),
            d_model=sizes["embsize"],
            nhead=sizes["nheads"],
            d_hid=sizes["d_hid"],
            nlayers=sizes["nlayers"],
            nlayers_cls=sizes["n_layers_cls"],
            vocab=start.vocabulary,
            dropout=given.params["dropout"],
            pad_token=SPECIAL[0],
            pad_value=PAD_VALUE,
            use_fast_transformer=bool(given.gpu),  # flash attention, where it is installed
            **options,
        )
    if start.weights is not None:
        _load(given, start, model)
    if given.gpu and not model.use_fast_transformer:
        _bridge(given, "flash attention is not installed; PyTorch's own layers compute the same")
    _describe(given, model)
    return model.to("cuda" if given.gpu else "cpu")


def _load(given: _io.Given, start: Start, model: Any) -> None:
    """Load the tensors that the model has too, as the notebooks do; all of its encoder must be among them."""
    assert start.weights is not None
    # Flash attention and PyTorch name the same tensors differently; load_pretrained knows one way only.
    renamed = ("in_proj_", "Wqkv.") if model.use_fast_transformer else ("Wqkv.", "in_proj_")
    weights = {name.replace(*renamed): tensor for name, tensor in start.weights.items()}
    state = model.state_dict()
    lacking = [
        name for name, tensor in state.items() if name not in weights or weights[name].shape != tensor.shape
    ]
    encoder = [name for name in lacking if name.startswith(ENCODER)]
    if encoder:
        n = sum(name.startswith(ENCODER) for name in state)
        raise ValueError(
            f"{given.files[CHECKPOINT]['weights']} fits {n - len(encoder)} of the {n} tensors of scGPT's "
            f"encoder (not {encoder[0]}): weights, args and vocabulary must be of one model"
        )
    start.scgpt.utils.load_pretrained(model, weights, verbose=False)
    given.info["loaded_tensors"] = f"{len(state) - len(lacking)} of {len(state)}"


def _describe(given: _io.Given, model: Any) -> None:
    """Say what is trained."""
    n = sum(p.numel() for p in model.parameters())
    pretrained, trained = given.params["pretrained"], given.params["epochs"] > 0
    how = {
        (True, True): "pre-trained and fine-tuned",
        (True, False): "zero-shot",
        (False, True): "from scratch",
        (False, False): "untrained",
    }[pretrained, trained]
    given.info |= {"n_parameters": n, "scale": f"{n / 1e6:.2g} M parameters, {how}"}
    given.info |= {"pretrained_cells": PRETRAINED_CELLS} if pretrained else {"reduced_scale": True}


def _tokens(given: _io.Given, start: Start, rows: np.ndarray, zeros: bool) -> dict[str, torch.Tensor]:
    """Return numbers of genes and values of cells, ``<cls>`` first; with or without the genes at zero."""
    return start.scgpt.tokenizer.tokenize_and_pad_batch(
        start.bins[rows],
        start.ids,
        max_len=given.params["max_length"],
        vocab=start.vocabulary,
        pad_token=SPECIAL[0],
        pad_value=PAD_VALUE,
        append_cls=True,
        include_zero_gene=zeros,
    )


def _autocast(device: torch.device) -> torch.autocast:
    """Mixed precision on the GPU, as in the notebooks; float32 on the CPU."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda")


@contextlib.contextmanager
def _inference(model: Any) -> Iterator[torch.device]:
    """Without dropout and gradients. PyTorch's "fast path" for this is three times slower on a CPU."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.no_grad(), _autocast(device):
            yield device
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _minibatches(
    given: _io.Given, start: Start, groups: list[np.ndarray], shuffle: bool
) -> Iterator[np.ndarray]:
    """Yield rows of cells; those of a mini-batch are of one group, and the groups come one after another."""
    sampler = start.scgpt.SubsetsBatchSampler(
        [group.tolist() for group in groups],
        given.params["batch_size"],
        intra_subset_shuffle=shuffle,
        inter_subset_shuffle=False,
    )
    for rows in sampler:
        yield np.array(rows)


#: Maps rows of cells, and whether to train on them, to a loss; None if they have nothing to learn from.
Objective = Callable[[np.ndarray, bool], torch.Tensor | None]


def _fit(
    given: _io.Given,
    start: Start,
    model: Any,
    train: list[np.ndarray],
    valid: list[np.ndarray],
    objective: Objective,
    shuffle: bool,
) -> None:
    """Train, and leave the model as it was after the epoch of the lowest validation loss.

    With a folder to resume from, every epoch leaves a checkpoint there, from which a later start goes on as
    if it had never stopped.

    Parameters
    ----------
    train, valid
        Rows of cells, in groups that do not mix in a mini-batch.
    objective
        The loss.
    shuffle
        Whether the order within a group of ``train`` is new in every epoch.
    """
    params, cuda = given.params, bool(given.gpu)
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"], eps=1e-4 if cuda else 1e-8)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=params["gamma"])
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    history: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    checkpoint = given.resume / "scgpt.pt" if given.resume else None
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        history, best = saved["history"], saved["best"]
        given.info["selected_epoch"] = saved["selected_epoch"]
        _set_random_state(saved["random"])

    # Slow on a CPU: PyTorch's fused attention has no dropout there, so that every layer writes out, drops and
    # multiplies cells x heads x tokens x tokens numbers (three quarters of a step at 401 tokens). Neither
    # flushing denormal numbers nor leaving out the padding mask helps; fewer tokens and heads do.
    for epoch in range(len(history) + 1, params["epochs"] + 1):
        model.train()
        losses = []
        for rows in _minibatches(given, start, train, shuffle):
            loss = objective(rows, True)
            if loss is None:
                continue
            model.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=not cuda)
            scaler.step(optimizer)
            scaler.update()
            losses.append((loss.item(), len(rows)))
        checks = []
        with _inference(model):
            for rows in _minibatches(given, start, valid, shuffle=False):
                loss = objective(rows, False)
                if loss is not None:
                    checks.append((loss.item(), len(rows)))
        scheduler.step()
        if not losses or not checks:
            _io.not_applicable(
                f"scGPT has nothing to learn from: of the {len(start.ids)} genes that its vocabulary knows "
                "too few are in a cell to hide any"
            )
        valid_loss = _mean(checks)
        if valid_loss < min((e["valid_loss"] for e in history), default=math.inf):
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            given.info["selected_epoch"] = epoch
        history.append({"epoch": epoch, "train_loss": _mean(losses), "valid_loss": valid_loss})
        if checkpoint is not None:
            saved = {name: part.state_dict() for name, part in parts.items()}
            saved |= {"history": history, "best": best, "random": _random_state()}
            saved["selected_epoch"] = given.info.get("selected_epoch")
            torch.save(saved, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    if not best:
        raise ValueError(f"the validation loss of scGPT was not a number in any of {len(history)} epochs")
    model.load_state_dict(best)
    given.info |= {"history": history, "keep": "best"}


def _mean(losses: list[tuple[float, int]]) -> float:
    """Return the mean over cells of mini-batches' (loss, cells)."""
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def _random_state() -> dict[str, Any]:
    """Return where the random streams of NumPy and PyTorch stand."""
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "key": torch.from_numpy(state["state"]["key"].astype(np.int64)),
        "pos": int(state["state"]["pos"]),
    }


def _set_random_state(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"])
    key = saved["key"].numpy().astype(np.uint32)
    np.random.set_state({"bit_generator": "MT19937", "state": {"key": key, "pos": saved["pos"]}})


def _zero_shot(given: _io.Given, start: Start) -> np.ndarray:
    """Embed the cells with the model as it is, as ``scgpt.tasks.embed_data`` does.

    That function itself starts a process per core, whose number then decides the random draws, and cannot
    take a cell without expression. A test holds this one against it.
    """
    model = _model(given, start, n_cls=1, do_mvc=True)
    pad, cls = (start.vocabulary[token] for token in SPECIAL[:2])
    collate = start.scgpt.DataCollator(
        do_padding=True,
        pad_token_id=pad,
        pad_value=PAD_VALUE,
        do_mlm=False,
        do_binning=False,  # they are binned
        max_length=given.params["max_length"],
        sampling=True,
        keep_first_n_tokens=1,
    )
    result = np.zeros((len(start.bins), start.sizes["embsize"]), dtype=np.float32)
    with _inference(model) as device:
        for rows in _minibatches(given, start, [np.arange(len(result))], shuffle=False):
            cells = []
            for values in start.bins[rows]:
                on = values.nonzero()[0]
                genes = np.insert(start.ids[on], 0, cls)
                values = np.insert(values[on], 0, PAD_VALUE)  # the value that embed_data gives to <cls>
                cells.append({"genes": torch.from_numpy(genes), "expressions": torch.from_numpy(values)})
            batch = collate(cells)
            genes = batch["gene"].to(device)
            hidden = model._encode(genes, batch["expr"].to(device), src_key_padding_mask=genes.eq(pad))
            result[rows] = hidden[:, 0].float().cpu().numpy()
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def integration(given: _io.Given) -> np.ndarray:
    """Return the output at ``<cls>``, every row of length 1.

    Fine-tuning hides 40 % of a cell's values and predicts them from the other tokens (GEP) and from ``<cls>``
    (GEPC), pushes unlike cells apart (ECS) and hides the batch from an adversary (DAR); each batch has a
    normalisation of its own (DSBN). The epoch is chosen by the GEP loss on a tenth of the cells.
    """
    params, adata = given.params, given.highly_variable()
    start = _start(given, adata)
    if not params["epochs"]:
        return _zero_shot(given, start)
    _bridge(given, "the training loop, which its authors publish as notebooks, is written anew")
    names, batch = np.unique(adata.obs["batch"].astype(str).to_numpy(), return_inverse=True)
    train, valid = train_test_split(np.arange(adata.n_obs), test_size=0.1, shuffle=True)
    model = _model(
        given,
        start,
        n_cls=1,
        do_mvc=True,
        do_dab=True,
        use_batch_labels=True,
        num_batch_labels=len(names),
        domain_spec_batchnorm=True,
        ecs_threshold=params["ecs_threshold"],
        explicit_zero_prob=True,
    )
    device = next(model.parameters()).device
    squared, bernoulli = start.scgpt.loss.masked_mse_loss, start.scgpt.loss.criterion_neg_log_bernoulli

    def objective(rows: np.ndarray, training: bool) -> torch.Tensor | None:
        tokens = _tokens(given, start, rows, params["include_zero_genes"])
        shown = start.scgpt.tokenizer.random_mask_value(
            tokens["values"], params["mask_ratio"], MASK_VALUE, PAD_VALUE
        ).to(device)
        hidden, truth, genes = shown.eq(MASK_VALUE), tokens["values"].to(device), tokens["genes"].to(device)
        if not hidden.any():
            return None
        batches = torch.from_numpy(batch[rows]).to(device)
        with _autocast(device):
            out = model(
                genes,
                shown,
                src_key_padding_mask=genes.eq(start.vocabulary[SPECIAL[0]]),
                batch_labels=batches,
                MVC=training,
                ECS=training and params["ecs_threshold"] > 0,
            )
            loss = squared(out["mlm_output"], truth, hidden)
            if training:
                loss = loss + bernoulli(out["mlm_zero_probs"], truth, hidden)
                loss = loss + squared(out["mvc_output"], truth, hidden)
                loss = loss + bernoulli(out["mvc_zero_probs"], truth, hidden)
                if "loss_ecs" in out:
                    loss = loss + 10 * out["loss_ecs"]  # the weight of the notebook
                loss = loss + params["dab_weight"] * nn.functional.cross_entropy(out["dab_output"], batches)
        return loss

    def groups(rows: np.ndarray) -> list[np.ndarray]:
        return [rows[batch[rows] == b] for b in range(len(names))]

    _fit(given, start, model, groups(train), groups(valid), objective, shuffle=True)
    result = np.zeros((adata.n_obs, start.sizes["embsize"]), dtype=np.float32)
    with _inference(model):
        # Batch by batch: in the notebook a mini-batch at the border is normalised as its first cell's batch.
        for rows in _minibatches(given, start, groups(np.arange(adata.n_obs)), shuffle=False):
            tokens = _tokens(given, start, rows, params["include_zero_genes"])
            result[rows] = model.encode_batch(
                tokens["genes"],
                tokens["values"],
                src_key_padding_mask=tokens["genes"].eq(start.vocabulary[SPECIAL[0]]),
                batch_size=len(rows),
                batch_labels=torch.from_numpy(batch[rows]),
                time_step=0,
                return_np=True,
            )
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label.

    Fine-tuning classifies the output at ``<cls>`` by cross-entropy alone; the epoch is chosen by the loss on
    a tenth of the reference. With ``epochs: 0`` the nearest reference cells vote.
    """
    params, adata = given.params, given.highly_variable()
    start = _start(given, adata)
    is_reference = (adata.obs["split"] == "reference").to_numpy()
    reference, query = np.flatnonzero(is_reference), np.flatnonzero(~is_reference)
    labels = adata.obs["label"].to_numpy(dtype=object)
    names, found = np.unique(labels[reference].astype(str), return_inverse=True)
    if not params["epochs"]:
        _bridge(given, "neighbours are found by scikit-learn, exactly, instead of faiss")
        embedding = _zero_shot(given, start)
        nearest = KNeighborsClassifier(min(params["n_neighbors"], len(reference)), algorithm="brute")
        nearest.fit(embedding[reference], found)
        return names[nearest.predict(embedding[query])]
    _bridge(given, "the training loop, which its authors publish as notebooks, is written anew")
    truth = np.zeros(adata.n_obs, dtype=np.int64)  # that of the query is never looked up
    truth[reference] = found
    train, valid = train_test_split(reference, test_size=0.1, shuffle=True)
    model = _model(given, start, n_cls=len(names))
    device = next(model.parameters()).device

    def logits(rows: np.ndarray) -> torch.Tensor:
        tokens = _tokens(given, start, rows, params["include_zero_genes"])
        genes = tokens["genes"].to(device)
        pad = genes.eq(start.vocabulary[SPECIAL[0]])
        return model(genes, tokens["values"].to(device), src_key_padding_mask=pad, CLS=True)["cls_output"]

    def objective(rows: np.ndarray, training: bool) -> torch.Tensor:
        with _autocast(device):
            return nn.functional.cross_entropy(logits(rows), torch.from_numpy(truth[rows]).to(device))

    # As in the notebook the order of the cells is random but the same in every epoch.
    _fit(given, start, model, [train], [valid], objective, shuffle=False)
    with _inference(model):
        parts = [logits(rows).argmax(1).cpu() for rows in _minibatches(given, start, [query], shuffle=False)]
    return names[torch.cat(parts).numpy()]


if __name__ == "__main__":
    _io.main(integration=integration, annotation=annotation)
