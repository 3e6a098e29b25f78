"""Checkpoints: folders of this package, and those in the layout that the authors published.

==================  ======================  =================
                    this package            as published
==================  ======================  =================
tensors             ``model.safetensors``   ``best_model.pt``
settings            ``config.json``         ``args.json``
gene to token       ``vocab.json``          ``vocab.json``
==================  ======================  =================

The published layout is that of the Zenodo record 10.5281/zenodo.14404063. Reading never runs code from
a file: of a pickle nothing but tensors is accepted. Folders appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import __version__
from .config import Config
from .model.generator import Generator
from .model.network import ScMamba2
from .streams import torch_stream
from .vocabulary import Vocabulary

__all__ = [
    "Checkpoint",
    "Report",
    "check_target",
    "convert",
    "export",
    "load",
    "read_published",
    "save",
    "transfer",
]

Model = ScMamba2 | Generator
Folder = str | os.PathLike[str]
Shape = tuple[int, ...]

FORMAT, VERSION = "scmamba2 checkpoint", 1
FILES = {"model.safetensors", "config.json", "vocab.json"}
KINDS: dict[str, type[Model]] = {"scmamba2": ScMamba2, "generator": Generator}
BACKBONES = {"scmamba2": "mamba_encoder", "generator": "transformer_encoder"}
"""Name of the backbone in each kind of model; the released code has two names for one thing."""


@dataclass(frozen=True)
class Report:
    """What became of each tensor in :func:`transfer`: a table when printed."""

    loaded: dict[str, Shape]
    missing: dict[str, Shape]
    """In the model, not in the source."""
    unexpected: dict[str, Shape]
    """In the source, not in the model."""
    mismatched: dict[str, tuple[Shape, Shape]]
    """In both: shape in the source, shape in the model."""

    @property
    def complete(self) -> bool:
        """Whether source and model have the same tensors."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        def row(what: str, shapes: dict[str, Shape], names: list[str]) -> str:
            total = sum(prod(shape) for shape in shapes.values())
            listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            return f"{what:<14}{len(shapes):>9,}{total:>16,}  {listed}".rstrip()

        differ = [f"{name} {found}, not {own}" for name, (found, own) in self.mismatched.items()]
        return "\n".join(
            [
                f"{'':<14}{'tensors':>9}{'parameters':>16}",
                row("loaded", self.loaded, []),
                row("missing", self.missing, list(self.missing)),
                row("unexpected", self.unexpected, list(self.unexpected)),
                row("shape differs", {k: own for k, (_, own) in self.mismatched.items()}, differ),
            ]
        )


@dataclass
class Checkpoint:
    """A model, in evaluation mode, with what is needed to use it."""

    model: Model
    vocabulary: Vocabulary
    extra: dict[str, Any] = field(default_factory=dict)
    """State of a task, such as its classes."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the tensors come from: ``scmamba2`` (version), ``files`` (sha256), ``notes``, ..."""
    report: Report | None = None
    """Of :func:`read_published`."""


def save(
    folder: Folder,
    model: Model,
    vocabulary: Vocabulary,
    extra: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; one that is already in ``folder`` is replaced.

    Parameters
    ----------
    folder
        Absent, empty, or a checkpoint of this package.
    model
        Not changed. Its settings are saved with it.
    vocabulary
        As long as the model's gene embedding.
    extra, provenance
        What JSON can hold. Provenance gets the package's version.

    Raises
    ------
    ValueError
        If ``folder`` holds anything else, the vocabulary does not fit or JSON cannot hold ``extra``.
    """
    folder = Path(folder).resolve()
    kind = next((name for name, known in KINDS.items() if type(model) is known), None)
    if kind is None:
        raise ValueError(f"cannot save a {type(model).__name__}: only {' or '.join(KINDS)}")
    _check_vocabulary(vocabulary, model.state_dict(), "the vocabulary")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": kind,
        "config": asdict(model.config),
        "heads": model.heads,
        "extra": dict(extra or {}),
        "provenance": {**(provenance or {}), "scmamba2": __version__},
    }
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"extra and provenance must be plain JSON: {error}") from error
    check_target(folder)
    with _appearing(folder) as temporary:
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        try:
            save_file(_tensors_of(model), temporary / "model.safetensors")
        except SafetensorError as error:
            raise OSError(f"{folder} cannot be written ({error}): is the disk full?") from error
        # The library makes files that only their owner may read.
        (temporary / "model.safetensors").chmod((temporary / "config.json").stat().st_mode)
        vocabulary.save(temporary / "vocab.json")


def check_target(folder: Folder) -> None:
    """Raise a ValueError if :func:`save` would refuse to write to ``folder``; ask before you train."""
    folder = Path(folder)
    if folder.is_dir() and {path.name for path in folder.iterdir()} == FILES:
        _read_settings(folder)  # not another program's files of these names
    else:
        _check_empty(folder)


def load(folder: Folder, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint that :func:`save` wrote.

    Raises
    ------
    ValueError
        If a file is missing, damaged or does not fit the others, naming it.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    vocabulary = Vocabulary.load(folder / "vocab.json")
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    _check_vocabulary(vocabulary, state, str(folder / "vocab.json"))
    try:
        model = _build(settings["model"], Config(**settings["config"]), vocabulary, settings["heads"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    report = _compare(model, state)
    if not report.complete:
        raise ValueError(f"{path} does not fit {folder / 'config.json'}:\n{report}")
    model.load_state_dict(state)
    model.to(device).eval()
    return Checkpoint(model, vocabulary, settings["extra"], settings["provenance"])


def transfer(model: Model, state: Mapping[str, Tensor], force: bool = False) -> Report:
    """Copy the tensors of ``state`` that fit in name and shape into ``model``.

    A leading ``module.`` is ignored and the backbone may be called ``mamba_encoder`` or
    ``transformer_encoder``, whatever the model calls it.

    Parameters
    ----------
    model
        Changed in place, unless an error is raised.
    state
        Names to tensors, such as another model's ``state_dict()``.
    force
        Whether to go on if tensors of the backbone, of the model or of ``state``, are left out.

    Returns
    -------
    Report
        What was loaded, what was not.

    Raises
    ------
    ValueError
        If a tensor of the backbone is left out and ``force`` is not set.
    """
    kind = "generator" if isinstance(model, Generator) else "scmamba2"
    state = _named(state, BACKBONES[kind])
    report = _compare(model, state)
    left = [*report.missing, *report.unexpected, *report.mismatched]
    left = [name for name in left if name.startswith(f"{BACKBONES[kind]}.")]
    if left and not force:
        raise ValueError(
            f"{len(left)} tensors of the backbone would be left out ({left[0]}, ...); "
            f"force=True goes on without them\n{report}"
        )
    own = model.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(state[name])
    return report


def read_published(folder: Folder) -> Checkpoint:
    """Read ``args.json``, ``best_model.pt`` and ``vocab.json`` as the authors published them.

    The tensors decide on all sizes and heads; ``args.json`` gives the dropout and the pad's value,
    and where it contradicts the tensors a note says so. Any precision becomes float32. Heads
    without tensors keep random values (seed 0).

    Returns
    -------
    Checkpoint
        Its ``provenance`` holds ``files`` (sha256), ``args`` and ``notes``.

    Raises
    ------
    ValueError
        If a file is missing, damaged or does not fit the others, if the pickle holds anything but
        tensors, or if a tensor of the backbone is missing.
    """
    folder = Path(folder)
    path = folder / "best_model.pt"
    args = _read_json(folder / "args.json")
    vocabulary = Vocabulary.load(folder / "vocab.json")
    content = _unpickle(path)
    try:
        state = _find_tensors(content)
        _check_vocabulary(vocabulary, state, "vocab.json")
        kind, config, heads = _infer(state, args)
        model = _build(kind, config, vocabulary, heads)
        report = transfer(model, state)
        if report.mismatched:
            raise ValueError(f"the heads in best_model.pt do not go together\n{report}")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    files = {}
    for name in ("args.json", "best_model.pt", "vocab.json"):
        with open(folder / name, "rb") as file:
            files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    provenance = {"files": files, "args": args, "notes": _notes(config, args, report)}
    return Checkpoint(model.eval(), vocabulary, provenance=provenance, report=report)


def convert(source: Folder, target: Folder) -> Checkpoint:
    """Read a published checkpoint from ``source`` and save it in ``target``; return it.

    Raises
    ------
    ValueError
        As :func:`read_published` and :func:`save`.
    """
    checkpoint = read_published(source)
    save(target, checkpoint.model, checkpoint.vocabulary, provenance=checkpoint.provenance)
    return checkpoint


def export(source: Folder, target: Folder, prefix: str | None = None) -> None:
    """Write a checkpoint of this package in the published layout.

    Parameters
    ----------
    source
        Folder from :func:`save`.
    target
        Absent or empty.
    prefix
        Name of the backbone: ``"mamba_encoder"`` or ``"transformer_encoder"``. None: that of the
        released model of this kind.

    Raises
    ------
    ValueError
        As :func:`load`; if ``target`` holds anything; for another prefix; if the model does not
        average its directions, which the layout cannot say.
    """
    if prefix not in (None, *BACKBONES.values()):
        raise ValueError(f"prefix must be {' or '.join(BACKBONES.values())}, not {prefix!r}")
    checkpoint, target = load(source), Path(target).resolve()
    model, config = checkpoint.model, checkpoint.model.config
    if config.combine != "mean":
        raise ValueError(f"{source}: the published layout means combine 'mean', not {config.combine!r}")
    state = _tensors_of(model)
    args = {
        "nheads": config.n_heads,
        "d_hid": config.d_inner,
        "n_layers_cls": 3,
        "dropout": config.dropout,
        "pad_token": "<pad>",
        "pad_value": config.pad_value,
        "input_emb_style": config.value_encoder,
        **checkpoint.provenance.get("args", {}),  # what it was published with
        "embsize": config.d_model,
        "nlayers": config.n_layers,
    }
    _check_empty(target)
    with _appearing(target) as temporary:
        (temporary / "args.json").write_text(json.dumps(args, indent=2) + "\n", encoding="utf-8")
        torch.save(state if prefix is None else _named(state, prefix), temporary / "best_model.pt")
        checkpoint.vocabulary.save(temporary / "vocab.json")


def _build(kind: str, config: Config, vocabulary: Vocabulary, heads: Mapping[str, Any]) -> Model:
    with torch_stream(0, "init"):
        return KINDS[kind](config, len(vocabulary), pad_id=vocabulary.pad, **heads)


def _tensors_of(model: Model) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}


def _named(state: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """Strip ``module.`` and give the backbone this name."""
    either = re.compile(rf"^(?:module\.)*(?:({'|'.join(BACKBONES.values())})\.)?")
    named = {}
    for name, tensor in state.items():
        name = either.sub(lambda found: f"{backbone}." if found[1] else "", name)
        if name in named:
            raise ValueError(f"two tensors are called {name} once their prefixes are removed")
        named[name] = tensor
    return named


def _compare(model: Model, state: Mapping[str, Tensor]) -> Report:
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    both = [name for name in own if name in found]
    return Report(
        loaded={name: own[name] for name in both if found[name] == own[name]},
        missing={name: shape for name, shape in own.items() if name not in found},
        unexpected={name: shape for name, shape in found.items() if name not in own},
        mismatched={name: (found[name], own[name]) for name in both if found[name] != own[name]},
    )


def _check_vocabulary(vocabulary: Vocabulary, state: Mapping[str, Tensor], what: str) -> None:
    rows = state["encoder.embedding.weight"].shape[0] if "encoder.embedding.weight" in state else None
    if rows != len(vocabulary):
        raise ValueError(
            f"{what} has {len(vocabulary)} tokens, special ones included; "
            f"the model's gene embedding has {rows or 'no'} rows"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(document).__name__}")
    return document


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` and check that this version understands it."""
    path = folder / "config.json"
    settings = _read_json(path)
    if settings.get("format") != FORMAT:
        raise ValueError(f"{path} is not of a {FORMAT}: its format is {settings.get('format')!r}")
    if settings.get("version") != VERSION:
        raise ValueError(f"{path} has version {settings.get('version')!r}; this package reads {VERSION}")
    if settings.get("model") not in KINDS:
        raise ValueError(f"{path}: model is {settings.get('model')!r}, not {' or '.join(KINDS)}")
    for key in ("config", "heads", "extra", "provenance"):
        if not isinstance(settings.get(key), dict):
            raise ValueError(f"{path} has no object {key!r}")
    return settings


def _check_empty(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and is not a checkpoint to replace")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``folder`` once all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpickle(path: Path) -> Any:
    """Read a PyTorch file that holds nothing but tensors and containers of them."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    whole = zipfile.is_zipfile(path)  # what PyTorch writes since 2020; only this can be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:  # damaged bytes fail in many ways
        foreign = whole and isinstance(error, UnpicklingError)
        why = "holds objects other than tensors" if foreign else "is truncated or no file of tensors"
        raise ValueError(f"{path} {why}; nothing else is ever unpickled") from error


def _find_tensors(content: Any) -> dict[str, Tensor]:
    """Return the model's tensors, from the top or one level below it, the backbone's name settled."""
    places = [content, *content.values()] if isinstance(content, Mapping) else []
    for place in places:
        if isinstance(place, Mapping):
            tensors = {str(name): t for name, t in place.items() if isinstance(t, Tensor)}
            tensors = _named(tensors, "mamba_encoder")
            if "encoder.embedding.weight" in tensors:
                return tensors
    keys = ", ".join(str(key) for key in list(places[0])[:5]) if places else type(content).__name__
    raise ValueError(f"best_model.pt has no tensor encoder.embedding.weight; it holds {keys}")


def _infer(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> tuple[str, Config, dict[str, Any]]:
    """Return kind, configuration and heads of the model that these tensors are of."""

    def rows(name: str) -> int:
        return state[name].shape[0] if name in state else 0

    def count(pattern: str) -> int:
        return max((int(found[1]) + 1 for name in state if (found := re.match(pattern, name))), default=0)

    def mixer(name: str) -> Shape:
        shapes = [tuple(t.shape) for key, t in state.items() if key.endswith(f".mamba.{name}")]
        if not shapes:
            raise ValueError(f"no layer has a tensor mamba.{name}: this is not an SC-MAMBA2 checkpoint")
        return shapes[0]

    _, d_model = state["encoder.embedding.weight"].shape
    (d_inner,), (channels, _, d_conv) = mixer("norm.weight"), mixer("conv1d.weight")
    domains = count(r"dsbn\.bns\.(\d+)\.")
    sizes: dict[str, Any] = {
        "d_model": d_model,
        "n_layers": count(r"mamba_encoder\.layers\.(\d+)\.mamba\."),
        "d_state": (channels - d_inner) // 2,
        "headdim": d_inner // mixer("A_log")[0],
        "expand": d_inner // d_model,
        "d_conv": d_conv,
        "dsbn": domains > 0,
        "dsbn_affine": "dsbn.bns.0.weight" in state,
    }
    if "value_encoder.embedding.weight" in state:
        sizes |= {"value_encoder": "category", "n_bins": rows("value_encoder.embedding.weight") - 2}
    elif args.get("input_emb_style") == "scaling":
        sizes["value_encoder"] = "scaling"
    for key in ("dropout", "pad_value"):
        if isinstance(args.get(key), int | float):
            sizes[key] = float(args[key])
    config = Config(**sizes)
    if "pert_encoder.weight" in state or "decoder.coeff_decoder.fc.0.weight" in state:
        zeros = "decoder.coeff_decoder.zero_logit.0.weight" in state
        return "generator", config, {"explicit_zeros": zeros}
    discriminated = rows("grad_reverse_discriminator.out_layer.weight")
    return (
        "scmamba2",
        config,
        {
            "n_batches": max(rows("batch_encoder.embedding.weight"), domains, discriminated),
            "n_classes": max(1, rows("cls_decoder.out_layer.weight")),
            "explicit_zeros": "decoder.zero_logit.0.weight" in state,
            "mvc": "mvc_decoder.W.weight" in state,
            "adversarial": discriminated > 0,
            "n_modalities": max(0, rows("mod_encoder.embedding.weight") - 3),
        },
    )


def _notes(config: Config, args: Mapping[str, Any], report: Report) -> list[str]:
    """Say where the files disagree and what was not loaded."""
    notes = []
    for key, found in (("embsize", config.d_model), ("nlayers", config.n_layers)):
        if key in args and args[key] != found:
            notes.append(f"args.json says {key} = {args[key]}; the tensors, which decide, say {found}")
    if args.get("pad_token", "<pad>") != "<pad>":
        notes.append(f"args.json says pad_token = {args['pad_token']!r}; <pad> is used")
    for what, shapes in (("missing, left random", report.missing), ("not used", report.unexpected)):
        if shapes:
            notes.append(f"{len(shapes)} tensors {what}: {', '.join(shapes)}")
    return notes
