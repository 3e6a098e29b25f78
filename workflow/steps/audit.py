"""Step 6b: audit one task on one dataset, measure what room it leaves, and gather all of that.

``dataset`` writes the audits (CSV) and the room (JSON) of one task on one dataset; ``gather`` puts those of
all together. A dataset that could not be had gives lines that say so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata as ad
import pandas as pd

from workflow.audits import COLUMNS, Case, run_audits
from workflow.declarations import WORKFLOW, load_methods, load_yaml
from workflow.files import atomic, read_json, write_json
from workflow.present import read_scores, read_units

FIRST_COLUMNS = ["task", "dataset", "sentence", "verdict"]


def audit_dataset(
    prepared_path: Path, scores: list[Path], corpus: Path | None = None
) -> tuple[pd.DataFrame, dict]:
    """Audit one prepared dataset.

    Parameters
    ----------
    prepared_path
        ``prepared.json``; ``input.h5ad`` and ``solution.h5ad`` stand beside it, ``fetch.json`` above it.
    scores
        Parquet file of each method, with its records and predictions beside it.
    corpus
        Shards of a pre-training corpus to search for these cells.

    Returns
    -------
    audits
        The columns of :data:`workflow.audits.COLUMNS`.
    room
        One line of room.csv.
    """
    prepared = read_json(prepared_path)
    task, dataset = prepared["task"], prepared["dataset"]
    folder = prepared_path.parent
    rows, runs = read_scores(scores)
    methods = load_methods()
    units = {method: table for (_, _, method), table in read_units(scores).items()}
    fetched = folder.parent / "fetch.json"
    room: dict = {"task": task, "dataset": dataset}
    given = solution = None
    if prepared["status"] == "ok":
        from workflow.room import room_of

        given, solution = ad.read_h5ad(folder / "input.h5ad"), ad.read_h5ad(folder / "solution.h5ad")
        variants = [name for name, entry in methods.items() if entry.get("variant")]
        room |= room_of(task, given, solution, rows[~rows["method"].isin(variants)])
    else:
        room |= {"verdict": "unknown", "sentence": f"not applicable: {prepared['reason']}"}
    case = Case(
        task=task,
        dataset=dataset,
        entry=load_yaml(WORKFLOW / "datasets.yaml", "datasets")[dataset],
        methods=methods,
        prepared=prepared,
        given=given,
        solution=solution,
        rows=rows,
        runs=runs,
        units=units,
        fetched=(read_json(fetched).get("files") or {}) if fetched.exists() else {},
        room=room,
        corpus=corpus,
    )
    return run_audits(case), room


def gather(tables: list[Path], rooms: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put the audits and the rooms of all datasets together, in the order given."""
    audits = pd.concat([pd.read_csv(path) for path in tables], ignore_index=True)[COLUMNS]
    room = pd.DataFrame([read_json(path) for path in rooms])
    first = [column for column in FIRST_COLUMNS if column in room]
    return audits, room[[*first, *(column for column in room if column not in first)]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("dataset")
    one.add_argument("--prepared", type=Path, required=True, help="record of the prepare step")
    one.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    one.add_argument("--corpus", type=Path, help="folder of a pre-training corpus, to search for these cells")
    one.add_argument("--table", type=Path, required=True, help="CSV to write")
    one.add_argument("--room", type=Path, required=True, help="JSON to write")
    every = modes.add_parser("gather")
    every.add_argument("--tables", type=Path, nargs="+", required=True, help="CSV of each dataset")
    every.add_argument("--rooms", type=Path, nargs="+", required=True, help="JSON of each dataset")
    every.add_argument("--audits", type=Path, required=True, help="CSV to write")
    every.add_argument("--room", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()

    if args.mode == "dataset":
        table, room = audit_dataset(args.prepared, args.scores, args.corpus)
        write_json(args.room, room)
        written = [(table, args.table)]
    else:
        audits, rooms = gather(args.tables, args.rooms)
        written = [(audits, args.audits), (rooms, args.room)]
    for frame, path in written:
        with atomic(path) as part:
            frame.to_csv(part, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
