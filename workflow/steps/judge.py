"""Step 6: gather every row, summarise each method, and give each claim its verdict."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from workflow import tasks
from workflow.comparisons import Evidence
from workflow.declarations import WORKFLOW, load_methods, load_yaml
from workflow.files import atomic, read_json
from workflow.present import read_scores, read_units
from workflow.verdicts import Selection, judge

#: What runs.csv keeps of a record.
KEPT = [
    "run_id", "task", "dataset", "method", "kind", "mode", "seed", "status", "why", "reason",
    "seconds", "cpu_seconds", "peak_memory_mb", "peak_gpu_memory_mb", "threads", "gpu",
    "changed_params", "tuned_params", "tuning_trials", "info", "versions", "hardware", "commit", "finished",
]  # fmt: skip
SUMMARY = [
    "task", "dataset", "method", "title", "kind", "mode", "variant_of", "variant", "metric", "metric_impl",
    "mean", "low", "high", "n_seeds", "sd", "interval", "mde", "chance", "ceiling",
]  # fmt: skip


def summarise(evidence: Evidence, methods: dict[str, dict]) -> pd.DataFrame:
    """Return a line for each task, dataset, method and metric of the tables, with the columns ``SUMMARY``.

    ``low`` and ``high`` are the 95 % interval, ``interval`` what it resamples. ``mde`` is the smallest
    difference that such an interval shows with 80 % power (see :class:`workflow.comparisons.Estimate`).
    ``chance`` and ``ceiling`` are those of the line's own implementation of the metric.
    """
    lines = []
    runs = evidence.runs[["task", "dataset", "method"]].drop_duplicates()
    for task, dataset, method in runs.itertuples(index=False):
        entry = methods[method]
        for metric, impl in tasks.get(task).HEADLINE:
            estimate = evidence.estimate(task, dataset, metric, method, impl)
            mean = estimate.interval
            line = {"task": task, "dataset": dataset, "method": method, "title": entry["title"]}
            line |= {"kind": entry["kind"], "mode": entry.get("mode", "repaired")}
            line |= {"variant_of": entry.get("variant_of", ""), "variant": entry.get("variant", "")}
            line |= {"metric": metric, "metric_impl": impl}
            line |= {"mean": mean.mean, "low": mean.low, "high": mean.high, "n_seeds": mean.n}
            line |= {"sd": mean.sd, "interval": estimate.kind, "mde": estimate.mde}
            line["chance"] = evidence.chance(task, dataset, metric, method, impl)
            line["ceiling"] = evidence.ceiling(task, dataset, metric, impl)
            lines.append(line)
    return pd.DataFrame(lines, columns=SUMMARY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--efficiency", type=Path, nargs="?", help="measurements.json, if it was measured")
    parser.add_argument("--facts", type=Path, nargs="*", default=[], help="tidy.json of prepared datasets")
    parser.add_argument("--call", required=True, help="the command that makes this selection")
    parser.add_argument("--rows", type=Path, required=True, help="Parquet to write: all rows")
    parser.add_argument("--runs", type=Path, required=True, help="CSV to write: all runs")
    parser.add_argument("--summary", type=Path, required=True, help="CSV to write: every method's means")
    parser.add_argument("--verdicts", type=Path, required=True, help="CSV to write: all claims")
    args = parser.parse_args()

    rows, runs = read_scores(args.scores)
    methods = load_methods()
    evidence = Evidence(rows, runs, read_units(args.scores))
    verdicts = judge(
        load_yaml(WORKFLOW / "claims.yaml", "claims"),
        Selection(
            evidence,
            datasets=frozenset(load_yaml(WORKFLOW / "datasets.yaml", "datasets")),
            methods=frozenset(methods),
            selected=frozenset(zip(runs["task"], runs["dataset"], runs["method"], strict=True)),
            efficiency=read_json(args.efficiency) if args.efficiency else None,
            facts={path.parent.name: read_json(path) for path in args.facts},
            call=args.call,
        ),
    )
    summary = summarise(evidence, methods)
    for table, path in ((runs[KEPT], args.runs), (summary, args.summary), (verdicts, args.verdicts)):
        with atomic(path) as part:
            table.to_csv(part, index=False)
    with atomic(args.rows) as part:
        rows.to_parquet(part, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
