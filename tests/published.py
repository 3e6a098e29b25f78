"""Tiny files in the layout of what methods download: random weights, so nothing is learned from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def scmamba2(folder: Path, genes: list[str]) -> dict[str, Path]:
    """Write args.json, best_model.pt and vocab.json as the authors of SC-MAMBA2 do."""
    from scmamba2 import Config
    from scmamba2.model.network import ScMamba2
    from scmamba2.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_genes(genes).ids
    torch.manual_seed(0)
    model = ScMamba2(Config(d_model=64, n_layers=2), len(vocabulary), pad_id=vocabulary["<pad>"])
    args = {"embsize": 64, "nlayers": 2, "dropout": 0.0, "pad_value": -2, "pad_token": "<pad>"}
    return _three(folder, args, model.state_dict(), vocabulary)


def scgpt(folder: Path, genes: list[str]) -> dict[str, Path]:
    """Write args.json, best_model.pt and vocab.json as the authors of scGPT do."""
    from baselines import _torchtext

    _torchtext.register()
    from scgpt.model import TransformerModel

    vocabulary = {token: k for k, token in enumerate([*genes, "<pad>", "<cls>", "<eoc>"])}
    args = {"embsize": 16, "nheads": 2, "d_hid": 16, "nlayers": 1, "n_layers_cls": 1, "dropout": 0.0}
    torch.manual_seed(0)
    model = TransformerModel(
        len(vocabulary), args["embsize"], args["nheads"], args["d_hid"], args["nlayers"],
        nlayers_cls=args["n_layers_cls"], n_cls=1, vocab=vocabulary, dropout=0.0, pad_token="<pad>",
        pad_value=-2, do_mvc=True, input_emb_style="continuous", cell_emb_style="cls",
        explicit_zero_prob=False, use_fast_transformer=False,
    )  # fmt: skip
    args |= {"pad_token": "<pad>", "pad_value": -2, "mask_value": -1, "n_bins": 51}
    return _three(folder, args, model.state_dict(), vocabulary)


def scbert(folder: Path, genes: list[str], **params) -> dict[str, Path]:
    """Write weights of the size of ``params`` (see baselines/scbert.py) and the order of their genes."""
    from baselines import scbert

    torch.manual_seed(0)
    model = scbert.network(params, len(genes) + 1, None)
    torch.save({"model_state_dict": model.state_dict(), "epoch": 1}, folder / "weights.pth")
    (folder / "genes.txt").write_text("\n".join(genes))
    return {"weights": folder / "weights.pth", "genes": folder / "genes.txt"}


def tosica(folder: Path, genes: list[str]) -> dict[str, Path]:
    """Write six gene sets of six genes at least (gmt)."""
    sets = [genes[k::6] if len(genes) >= 36 else genes for k in range(6)]
    lines = ["\t".join([f"SET{k}", "made up", *members]) for k, members in enumerate(sets)]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    return {"human_gobp": folder / "sets.gmt"}


def _three(folder: Path, args: dict, state: dict, vocabulary: dict) -> dict[str, Path]:
    paths = {"args": folder / "args.json", "weights": folder / "best_model.pt"}
    paths["vocabulary"] = folder / "vocab.json"
    paths["args"].write_text(json.dumps(args))
    torch.save(state, paths["weights"])
    paths["vocabulary"].write_text(json.dumps(vocabulary))
    return paths
