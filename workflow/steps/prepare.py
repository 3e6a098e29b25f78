"""Step 2: make a dataset tidy, check it, and part it into what methods see and what only scoring sees.

Writes ``input.h5ad`` (no label of a test cell in any slot), ``solution.h5ad`` and the record
``prepared.json``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import anndata as ad

from workflow import tasks
from workflow.declarations import WORKFLOW, load_yaml
from workflow.files import ON_FAILURE, atomic, checksum, read_json, write_json
from workflow.tidy import DataError, check_tidy, from_columns, log_normalize


def load_tidy(dataset: str, entry: dict, files: dict[str, Path]) -> ad.AnnData:
    """Read the files of a dataset and return it tidy, checked and log-normalised.

    Raises
    ------
    DataError
        If the files are not what the declaration says.
    """
    if "recipe" in entry:
        recipe = importlib.import_module(f"workflow.recipes.{entry['recipe']}")
        adata = recipe.load(files)
    else:
        adata = from_columns(next(iter(files.values())), entry["obs"])
    check_tidy(adata, dataset, entry["expect"])
    log_normalize(adata)
    return adata


def check_unchanged(fetched: dict, record: Path) -> None:
    """Raise unless every file is still the one that the fetch step saw.

    Raises
    ------
    DataError
        If a file is gone or has another checksum.
    """
    for name, file in fetched["files"].items():
        path = Path(file["path"])
        found = checksum(path) if path.is_file() else "gone"
        if found != file["sha256"]:
            raise DataError(
                f"{path} (source {name!r}) changed after it was fetched: sha256 is {found}, "
                f"expected {file['sha256']}; delete {record} and run again"
            )


def write_h5ad(adata: ad.AnnData, path: Path) -> None:
    """Write an h5ad file by an atomic rename."""
    with atomic(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(part, compression="gzip")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--task", required=True, choices=tasks.NAMES)
    parser.add_argument("--fetched", required=True, type=Path, help="record of the fetch step")
    parser.add_argument("--record", required=True, type=Path, help="prepared.json to write")
    parser.add_argument("--on-failure", choices=["record", "stop"], default=ON_FAILURE)
    args = parser.parse_args()

    entry = load_yaml(WORKFLOW / "datasets.yaml", "datasets")[args.dataset]
    fetched = read_json(args.fetched)
    record: dict = {"dataset": args.dataset, "task": args.task, "status": fetched["status"]}
    record["reason"] = fetched["reason"]
    if fetched["status"] == "ok":
        files = {name: Path(file["path"]) for name, file in fetched["files"].items()}
        try:
            check_unchanged(fetched, args.fetched)
            adata = load_tidy(args.dataset, entry, files)
            given, solution, facts = tasks.get(args.task).make_io(adata, entry["tasks"][args.task])
        except (ValueError, KeyError, OSError) as error:  # DataError is a ValueError
            reason = str(error) if isinstance(error, DataError) else f"{args.dataset}: {error}"
            record |= {"status": "no_data", "reason": reason}
        else:
            for name, part in (("input", given), ("solution", solution)):
                path = args.record.parent / f"{name}.h5ad"
                write_h5ad(part, path)
                record[name] = {"file": path.name, "sha256": checksum(path)}
            record |= {
                "sources": {n: f["sha256"] for n, f in fetched["files"].items()},
                "n_obs": adata.n_obs,
                "n_vars": adata.n_vars,
                "labels": adata.obs["label"].value_counts().to_dict(),
                "batches": adata.obs["batch"].value_counts().to_dict() if "batch" in adata.obs else {},
                "facts": facts,
                "recipe": {k: _plain(v) for k, v in dict(adata.uns.get("recipe", {})).items()},
            }
    if record["status"] != "ok":
        print(f"[prepare] {record['reason']}", file=sys.stderr)
        if args.on_failure == "stop":
            return 1
    write_json(args.record, record)
    return 0


def _plain(value):
    """Turn numpy scalars, arrays and dicts into what JSON can hold."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


if __name__ == "__main__":
    sys.exit(main())
