"""The release gate as a command: end with an error, and one line per row that a headline table lacks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from workflow.files import write_text
from workflow.gate import missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of a finished selection")
    parser.add_argument("--record", type=Path, help="text to write if nothing is missing")
    args = parser.parse_args()

    paths = [args.results / name for name in ("summary.csv", "runs.csv")]
    for path in paths:
        if not path.is_file():
            print(f"{path}: not there; run the selection first", file=sys.stderr)
            return 1
    summary, runs = (pd.read_csv(path) for path in paths)
    if summary.empty:
        print(f"{paths[0]}: holds no task, so there is no headline table", file=sys.stderr)
        return 1
    rows = [row for task in summary["task"].unique() for row in missing(summary, runs, task)]
    for row in rows:
        print(row, file=sys.stderr)
    if rows:
        print(f"gate: {len(rows)} rows are missing from the headline tables", file=sys.stderr)
        return 1
    print("gate: the headline tables have every row that they must have", file=sys.stderr)
    if args.record:
        write_text(args.record, "The headline tables have every row that they must have.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
