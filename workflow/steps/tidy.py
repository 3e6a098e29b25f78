"""Step 2: make a dataset tidy by its recipe, and check it against its declaration.

Writes ``tidy.h5ad`` (``tidy.h5mu`` for several modalities) and the record ``tidy.json``. It is done once
for all tasks that a dataset serves.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from pathlib import Path

import anndata as ad
import mudata

from workflow.declarations import WORKFLOW, load_yaml
from workflow.fetching import lockfile
from workflow.files import ON_FAILURE, atomic, checksum, read_json, write_json
from workflow.tidy import DataError, check_tidy

mudata.set_options(pull_on_update=False)


class Outdated(DataError):
    """A file is not the one that an earlier step saw, so that its record must be made again."""

    def __init__(self, text: str, record: Path):
        results = next((p.parent for p in record.parents if p.name == "data"), record.parent)
        super().__init__(f"{text}; python -m workflow.steps.forget {results}, then the same command again")
        self.record = record


def load_tidy(dataset: str, entry: dict, files: dict[str, Path]) -> tuple[ad.AnnData | mudata.MuData, dict]:
    """Apply the recipe of a dataset to its files, and check the result.

    Parameters
    ----------
    dataset
        Its name.
    entry
        Its declaration.
    files
        Where its sources are. An optional source may be absent.

    Returns
    -------
    data
        The tidy dataset, as :mod:`workflow.recipes` describes it. Large matrices may be on disk.
    found
        What it holds, by :func:`workflow.tidy.describe`.

    Raises
    ------
    DataError
        If the files are not what the declaration says.
    """
    name = entry.get("recipe", "columns")
    recipe = importlib.import_module(f"workflow.recipes.{name}")
    data = recipe.load(files, entry)
    found = check_tidy(data, dataset, entry["expect"], values=entry.get("values", "counts"))
    data.uns["recipe"] = {"name": name, "version": recipe.VERSION, **data.uns.get("recipe", {})}
    return data, found


def check_unchanged(fetched: dict, record: Path) -> None:
    """Raise unless every file is still the one that the fetch step saw.

    Raises
    ------
    Outdated
        If a file is gone or has another checksum.
    """
    for name, file in fetched["files"].items():
        path = Path(file["path"])
        found = checksum(path) if path.is_file() else "gone"
        if found != file["sha256"]:
            raise Outdated(
                f"{path} (source {name!r}) changed after it was fetched: sha256 is {found}, "
                f"expected {file['sha256']}",
                record,
            )


def failure(dataset: str, error: Exception, record: Path) -> dict:
    """Say why a dataset cannot be had, as its record does.

    Parameters
    ----------
    dataset
        Its name.
    error
        What happened. Files may be broken in ways that nobody foresaw, so it may be any: then the log has
        the traceback.
    record
        The record that will say so.

    Returns
    -------
    dict
        ``status`` and ``reason``; ``outdated`` names an earlier record, as seen from this one, without which
        another try would end the same way.
    """
    reason = str(error)
    if not isinstance(error, DataError):
        reason = f"{dataset}: {reason}"
    if not isinstance(error, (ValueError, OSError)):
        traceback.print_exception(error)
        reason = f"{dataset}: {type(error).__name__}: {' '.join(str(error).split())}"
    failed = {"status": "no_data", "reason": reason}
    if isinstance(error, Outdated):
        failed["outdated"] = os.path.relpath(error.record, record.parent)
    return failed


def _take_back(files: dict[str, dict]) -> None:
    """Take the checksums back that fetching has just recorded: nothing vouches for these files."""
    for file in files.values():
        if file["hash"] == "recorded":
            path = Path(file["path"])
            downloads = path.parents[1]
            key = path.relative_to(downloads).as_posix()
            lockfile.forget([key], lockfile.guard_of(downloads))


def write(data: ad.AnnData | mudata.MuData, path: Path) -> None:
    """Write an h5ad or h5mu file by an atomic rename."""
    with atomic(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(data, mudata.MuData):
            data.write_h5mu(part, compression="gzip")
        else:
            data.write_h5ad(part, compression="gzip")


def read(path: Path) -> ad.AnnData | mudata.MuData:
    """Read what :func:`write` wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a gene and its protein may share a name
        return mudata.read_h5mu(path) if path.suffix == ".h5mu" else ad.read_h5ad(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--fetched", required=True, type=Path, help="record of the fetch step")
    parser.add_argument("--record", required=True, type=Path, help="tidy.json to write")
    parser.add_argument("--on-failure", choices=["record", "stop"], default=ON_FAILURE)
    args = parser.parse_args()

    entry = load_yaml(WORKFLOW / "datasets.yaml", "datasets")[args.dataset]
    fetched = read_json(args.fetched)
    for left in args.record.parent.glob(".tidy.*.part.*"):  # by a kill; gigabytes, perhaps
        left.unlink()
    record: dict = {key: fetched[key] for key in ("dataset", "status", "reason")}
    if fetched["status"] == "ok":
        files = {name: Path(file["path"]) for name, file in fetched["files"].items()}
        try:
            check_unchanged(fetched, args.fetched)
            data, found = load_tidy(args.dataset, entry, files)
        except Exception as error:  # one dataset does not cost the run
            record |= failure(args.dataset, error, args.record)
            # Another file may be put in the place of one that was refused.
            record["outdated"] = os.path.relpath(args.fetched, args.record.parent)
            _take_back(fetched["files"])
        else:
            data.uns["source"] = {
                name: {key: file[key] for key in ("url", "sha256", "bytes")}
                for name, file in fetched["files"].items()
            }
            path = args.record.parent / ("tidy.h5mu" if isinstance(data, mudata.MuData) else "tidy.h5ad")
            write(data, path)
            record |= {
                "file": path.name,
                "sha256": checksum(path),
                "sources": {n: f["sha256"] for n, f in fetched["files"].items()},
                "absent": fetched.get("absent", {}),
                "values": entry.get("values", "counts"),
                "found": found,
                "recipe": {k: _plain(v) for k, v in data.uns["recipe"].items()},
            }
    if record["status"] != "ok":
        print(f"[tidy] {record['reason']}", file=sys.stderr)
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
