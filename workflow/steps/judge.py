"""Step 6: gather every row, and give each claim its verdict."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workflow.declarations import WORKFLOW, load_methods, load_yaml
from workflow.files import atomic, read_json
from workflow.present import read_scores
from workflow.verdicts import judge

#: What runs.csv keeps of a record.
KEPT = [
    "run_id", "task", "dataset", "method", "kind", "mode", "seed", "status", "why", "reason",
    "seconds", "cpu_seconds", "peak_memory_mb", "peak_gpu_memory_mb", "threads", "gpu",
    "changed_params", "info", "versions", "hardware", "commit", "finished",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--efficiency", type=Path, nargs="?", help="measurements.json, if it was measured")
    parser.add_argument("--rows", type=Path, required=True, help="Parquet to write: all rows")
    parser.add_argument("--runs", type=Path, required=True, help="CSV to write: all runs")
    parser.add_argument("--verdicts", type=Path, required=True, help="CSV to write: all claims")
    args = parser.parse_args()

    rows, runs = read_scores(args.scores)
    verdicts = judge(
        load_yaml(WORKFLOW / "claims.yaml", "claims"),
        rows,
        runs,
        datasets=set(load_yaml(WORKFLOW / "datasets.yaml", "datasets")),
        methods=set(load_methods()),
        selected=set(zip(runs["task"], runs["dataset"], runs["method"], strict=True)),
        efficiency=read_json(args.efficiency) if args.efficiency else None,
    )
    for table, path in ((runs[KEPT], args.runs), (verdicts, args.verdicts)):
        with atomic(path) as part:
            table.to_csv(part, index=False)
    with atomic(args.rows) as part:
        rows.to_parquet(part, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
