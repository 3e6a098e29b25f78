"""Step 6b: what modes, defects, conflicts, metrics, epochs and gene orders do to the numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow.declarations import load_methods, load_register
from workflow.files import atomic
from workflow.present import read_scores
from workflow.sensitivity import sensitivity


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--table", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()

    rows, runs = read_scores(args.scores)
    register = [*load_register("defects"), *load_register("conflicts")]
    with atomic(args.table) as part:
        sensitivity(rows, runs, load_methods(), register).to_csv(part, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
