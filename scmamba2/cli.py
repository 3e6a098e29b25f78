"""The command line: ``scmamba2 embed | finetune | predict | convert | doctor | census``.

Exit codes: 0 done, 1 it could not be done and the last line says why, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

from . import __version__

__all__ = ["main"]

log = logging.getLogger("scmamba2")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    args = parser().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    log.setLevel(logging.WARNING if args.quiet else logging.INFO)
    try:
        args.run(args)
    except KeyboardInterrupt:
        goes_on = ": the same command goes on where it was" if args.run in (finetune, census) else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    return 0


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="scmamba2",
        description="SC-MAMBA2, a single-cell foundation model. Each command explains itself with --help.",
        epilog="examples:\n"
        "  scmamba2 doctor\n"
        "  scmamba2 finetune integration cells.h5ad --key batch --output integrated\n"
        "  scmamba2 embed cells.h5ad --model integrated --output embedded.h5ad",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"scmamba2 {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str, more: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text}. {more}".strip())
        command.set_defaults(run=run)
        command.add_argument("--quiet", action="store_true", help="say nothing but what went wrong")
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        return command

    def computing(command: argparse.ArgumentParser, batch_size: int | None) -> None:
        command.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
        command.add_argument(
            "--batch-size", type=int, default=batch_size, metavar="N", help="cells at a time"
        )
        command.add_argument(
            "--precision",
            default="float32",
            choices=["float32", "bfloat16"],
            help="of the large matrix products (default float32); bfloat16 is about twice as fast on a "
            "GPU, or a CPU, that has it: see doctor",
        )

    data = (
        "An h5ad file, genes named by symbol or Ensembl identifier in var_names or a column of var; values "
    )
    data += "from layers['counts'] if there, else from X: counts, or log-normalised, not scaled."

    command = add("embed", embed, "write cell embeddings to obsm['X_scmamba2']", data)
    command.add_argument("cells", type=Path, help="h5ad file to read")
    command.add_argument("--model", type=Path, required=True, help="a checkpoint's folder")
    command.add_argument("--output", type=Path, required=True, help="h5ad file to write")
    command.add_argument(
        "--backed",
        action="store_true",
        help="leave the matrix in the file and read a few thousand cells at a time; the output then holds "
        "obs and the embeddings alone",
    )
    computing(command, 32)

    command = add("finetune", finetune, "train on your cells, from a checkpoint or from scratch", data)
    command.add_argument("task", choices=["integration", "annotation"])
    command.add_argument("cells", type=Path, help="h5ad file to read")
    command.add_argument("--key", required=True, help="column of obs: the batches or the labels")
    command.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint to")
    start = command.add_mutually_exclusive_group()
    start.add_argument("--model", type=Path, help="a checkpoint's folder to start from")
    start.add_argument("--preset", help="size of a model from scratch (default tiny), see scmamba2.config")
    command.add_argument("--epochs", type=int, metavar="N")
    command.add_argument("--learning-rate", type=float, metavar="X")
    command.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without improvement")
    command.add_argument("--recompute", action="store_true", help="less memory, more time")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="where an interrupted training goes on from (default OUTPUT.training); holds log.jsonl",
    )
    computing(command, None)

    command = add("predict", predict, "write labels of a fine-tuned annotation model to obs", data)
    command.add_argument("cells", type=Path, help="h5ad file to read")
    command.add_argument("--model", type=Path, required=True, help="a checkpoint's folder")
    command.add_argument("--output", type=Path, required=True, help="h5ad file to write")
    computing(command, 32)

    command = add(
        "convert",
        convert,
        "read a checkpoint as the authors published it (args.json, best_model.pt, vocab.json), write ours",
        "Nothing but tensors is read from the pickle. With --to-published, the other way round.",
    )
    command.add_argument("source", type=Path, help="folder to read")
    command.add_argument("target", type=Path, help="folder to write")
    command.add_argument("--to-published", action="store_true", help="from our layout to theirs")

    command = add("doctor", doctor, "say what this installation can do, and check a checkpoint")
    command.add_argument("checkpoint", type=Path, nargs="?", help="a checkpoint's folder")

    command = add(
        "census",
        census,
        "copy the cells of CELLxGENE's census for pre-training, or count them",
        "Cells without a disease and with a known suspension type, as shards of raw counts. The same command "
        "goes on where an earlier one was interrupted. Needs the extra: pip install 'scmamba2[pretrain]'.",
    )
    command.add_argument("output", type=Path, nargs="?", help="folder to write the shards to")
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="read the annotation alone and print how many cells each reading of the paper gives",
    )
    what.add_argument("--check", action="store_true", help="compare the checksums of a copy's files")
    command.add_argument(
        "--release",
        default="2024-07-01",
        help="date of the release (default 2024-07-01, the paper's text; the released code has 2023-05-08)",
    )
    command.add_argument("--uri", help="where a copy of the census is, if not in its public bucket")
    command.add_argument(
        "--groups",
        nargs="+",
        metavar="GROUP",
        help="heart, blood, brain, lung, kidney, intestine, pancreas, others (default these), pan-cancer",
    )
    command.add_argument(
        "--diseases",
        type=Path,
        metavar="FILE",
        help="names of the diseases in pan-cancer, one per line; the authors' list is not public",
    )
    command.add_argument("--primary-only", action="store_true", help="leave out duplicates")
    command.add_argument(
        "--partition-cells", type=int, default=200_000, metavar="N", help="cells of a shard (default 200000)"
    )
    command.add_argument(
        "--min-per-10k",
        type=float,
        default=3,
        metavar="X",
        help="keep a gene if its counts add up to X per 10,000 cells of a shard (default 3)",
    )
    return top


def embed(args: argparse.Namespace) -> None:
    """Embed cells."""
    from .tasks.embedding import load

    _check_output(args.output, args.cells)
    adata = _read(args.cells, backed=args.backed)
    model = load(args.model, args.device, batch_size=args.batch_size, precision=args.precision)
    embedding = model.embed(adata)
    if args.backed:
        import anndata

        adata = anndata.AnnData(obs=adata.obs)
    adata.obsm["X_scmamba2"] = embedding
    _write(adata, args.output)


def finetune(args: argparse.Namespace) -> None:
    """Train and save."""
    from . import checkpoints
    from .tasks.annotation import Annotator
    from .tasks.integration import Integrator

    checkpoints.check_target(args.output)
    if args.output.exists():
        log.info("%s will be replaced", args.output)
    adata = _read(args.cells)
    given = {
        "epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "batch_size": args.batch_size,
        "patience": args.patience,
    }
    tasks: dict[str, type[Integrator] | type[Annotator]] = {
        "integration": Integrator,
        "annotation": Annotator,
    }
    model = tasks[args.task](
        args.preset,
        pretrained=args.model,
        seed=args.seed,
        device=args.device,
        folder=args.work or args.output.with_name(args.output.name + ".training"),
        precision=args.precision,
        recompute=args.recompute,
        **{name: value for name, value in given.items() if value is not None},
    )
    model.fit(adata, args.key)
    model.save(args.output)
    last = model.history[-1]
    say(
        f"{args.output}: {model.n_parameters:,} parameters, {model.coverage:.1%} of the genes known, "
        f"{len(model.history)} epochs, validation loss {last['valid_loss']:.4g} at the end"
    )


def predict(args: argparse.Namespace) -> None:
    """Annotate cells."""
    import numpy as np

    from .tasks.annotation import Annotator
    from .tasks.embedding import load

    _check_output(args.output, args.cells)
    adata = _read(args.cells)
    model = load(args.model, args.device, batch_size=args.batch_size, precision=args.precision)
    if not isinstance(model, Annotator):
        raise ValueError(f"{args.model} was saved by {type(model).__name__}; labels need an Annotator")
    proba = model.predict_proba(adata)
    adata.obs["scmamba2_label"] = np.array(model.classes)[proba.argmax(1)]
    adata.obs["scmamba2_probability"] = proba.max(1)
    _write(adata, args.output)


def convert(args: argparse.Namespace) -> None:
    """Convert a checkpoint."""
    from . import checkpoints

    if args.to_published:
        checkpoints.export(args.source, args.target)
        say("their layout has no place for the task: classes, batches and rules of tokens stay behind")
    else:
        checkpoint = checkpoints.convert(args.source, args.target)
        say(str(checkpoint.report))
        for note in checkpoint.provenance["notes"]:
            say(f"note: {note}")
    say(f"written to {args.target}")


def doctor(args: argparse.Namespace) -> None:
    """Describe the installation."""
    import torch

    from .memory import available
    from .ops import choose, fast_bfloat16, mamba_ssm

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    print(f"scmamba2   {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    for name in devices:
        device = torch.device(name)
        backend, why = choose(device.type)
        free = available(device)
        what = f"{torch.get_num_threads()} threads"
        if device.type == "cuda":
            what = torch.cuda.get_device_name(device)
        print(f"{name:10} {what}, {'?' if free is None else f'{free / 1e9:.1f}'} GB free")
        print(f"{'':10} backend {backend}: {why}")
        print(
            f"{'':10} bfloat16 {'in hardware' if fast_bfloat16(device) else 'not in hardware: keep float32'}"
        )
    print(f"anndata    {version('anndata')}")
    print(
        f"mamba-ssm  {version('mamba-ssm')}" + (f" ({problem})" if (problem := mamba_ssm.missing()) else "")
    )
    if args.checkpoint is not None:
        from . import checkpoints

        loaded = checkpoints.load(args.checkpoint)
        config, total = loaded.model.config, sum(p.numel() for p in loaded.model.parameters())
        print(
            f"checkpoint {args.checkpoint}: {loaded.extra.get('task', 'no task')}, {config.d_model} wide, "
            f"{config.n_layers} layers, {len(loaded.vocabulary):,} tokens, {total:,} parameters"
        )


def census(args: argparse.Namespace) -> None:
    """Count or copy the census."""
    from .pretraining import census as source
    from .pretraining.shards import Shards

    if args.output is None and not args.dry_run:
        raise ValueError("say which folder to write to, or --dry-run to count")
    if args.check:
        shards = Shards(args.output, verify=True)
        files = len(shards.manifest["partitions"])
        say(f"{args.output}: {len(shards):,} cells in {files} shards, every file as it was written")
        return
    lines = args.diseases.read_text(encoding="utf-8").splitlines() if args.diseases else []
    diseases = [name for line in lines if (name := line.strip()) and not name.startswith("#")]
    groups = args.groups or source.GROUPS[: None if diseases else -1]
    opened = source.Census(args.release, args.uri)
    if args.dry_run:
        print(source.report(opened, source.count(opened), diseases))
    else:
        options = {"primary_only": args.primary_only, "partition_cells": args.partition_cells}
        options |= {"groups": groups, "diseases": diseases, "min_per_10k": args.min_per_10k}
        source.download(opened, args.output, **options)


def _read(path: Path, backed: bool = False) -> Any:
    if importlib.util.find_spec("anndata") is None:
        raise ImportError("reading h5ad files needs anndata: pip install anndata")
    import anndata

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as h5ad: {error}") from error


def _check_output(path: Path, source: Path) -> None:
    """Refuse before hours are spent what could not be written after them."""
    if path.suffix != ".h5ad":
        raise ValueError(f"--output must end in .h5ad, not {path.name!r}")
    if path.exists() and path.samefile(source):
        raise ValueError(f"--output {path} is the file to read")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the folder of --output {path} does not exist")


def _write(adata: Any, path: Path) -> None:
    """Write an h5ad file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        adata.write_h5ad(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    say(f"{path}: {adata.n_obs:,} cells")


def say(text: str) -> None:
    """Print what was done, unless asked to be quiet."""
    if log.isEnabledFor(logging.INFO):
        print(text)


if __name__ == "__main__":
    sys.exit(main())
