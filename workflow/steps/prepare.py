"""Step 3: part a tidy dataset, for one task, into what methods see and what only scoring sees.

Writes ``input.h5ad`` (no label of a test cell in any slot), ``solution.h5ad`` and the record
``prepared.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow import tasks
from workflow.declarations import WORKFLOW, load_yaml
from workflow.files import ON_FAILURE, checksum, read_json, write_json
from workflow.steps.tidy import Outdated, failure, read, write
from workflow.tidy import log_normalize


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--task", required=True, choices=tasks.NAMES)
    parser.add_argument("--tidy", required=True, type=Path, help="record of the tidy step")
    parser.add_argument("--record", required=True, type=Path, help="prepared.json to write")
    parser.add_argument("--on-failure", choices=["record", "stop"], default=ON_FAILURE)
    args = parser.parse_args()

    entry = load_yaml(WORKFLOW / "datasets.yaml", "datasets")[args.dataset]
    tidy = read_json(args.tidy)
    record: dict = {"dataset": args.dataset, "task": args.task}
    record |= {key: tidy[key] for key in ("status", "reason")}
    if tidy["status"] == "ok":
        path = args.tidy.parent / tidy["file"]
        try:
            if not path.is_file() or checksum(path) != tidy["sha256"]:
                raise Outdated(f"{path} is gone or changed", args.tidy)
            adata = read(path)
            if tidy["values"] == "counts":
                log_normalize(adata)
            given, solution, facts = tasks.get(args.task).make_io(adata, entry["tasks"][args.task])
        except Exception as error:  # one dataset does not cost the run
            record |= failure(args.dataset, error, args.record)
        else:
            for name, part in (("input", given), ("solution", solution)):
                path = args.record.parent / f"{name}.h5ad"
                write(part, path)
                record[name] = {"file": path.name, "sha256": checksum(path)}
            record |= {
                "sources": tidy["sources"],
                "n_obs": adata.n_obs,
                "n_vars": adata.n_vars,
                "labels": tidy["found"]["labels"],
                "batches": tidy["found"].get("batches", {}),
                "facts": facts,
                "recipe": tidy["recipe"],
            }
    if record["status"] != "ok":
        print(f"[prepare] {record['reason']}", file=sys.stderr)
        if args.on_failure == "stop":
            return 1
    write_json(args.record, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
