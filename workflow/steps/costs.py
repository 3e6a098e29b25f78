"""Step 6b: what a run of each method costs, from the records of the runs.

The record run.json counts: it times the method alone and sees every process of it. Snakemake's
benchmark.tsv beside it is a second clock, which also times the start of the environment and the check of
the output, so it can only be longer. Where it is not, the two files are of different runs, and the log
says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from workflow import tasks
from workflow.costs import costs
from workflow.files import atomic
from workflow.present import declared, read_scores

#: Seconds by which the two clocks may differ by rounding.
CLOCKS = 0.1


def compare_clocks(runs: pd.DataFrame, folder: Path) -> list[str]:
    """Hold run.json against benchmark.tsv.

    Parameters
    ----------
    runs
        Records of runs.
    folder
        Where the folders of the runs lie.

    Returns
    -------
    list of str
        A sentence for each run whose benchmark is shorter than its record, then one that sums up.
    """
    words, beyond = [], []
    for run in runs[runs["status"] == "ok"].itertuples():
        path = folder / run.run_id / "benchmark.tsv"
        if not path.exists():
            continue
        seconds = float(pd.read_csv(path, sep="\t")["s"].iloc[-1])
        beyond.append(seconds - run.seconds)
        if seconds < run.seconds - CLOCKS:
            words.append(
                f"{path}: {seconds:.1f} s, but run.json beside it says {run.seconds:.1f} s; they are of "
                "different runs, and run.json counts"
            )
    if beyond:
        around = pd.Series(beyond).median()
        words.append(
            f"{len(beyond)} runs timed twice; around a method Snakemake's clock sees {around:.1f} s more"
        )
    return words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="Parquet of each method")
    parser.add_argument("--runs-folder", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--cost", type=json.loads, required=True, help="JSON: prices and watts")
    parser.add_argument("--costs", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()

    rows, runs = read_scores(args.scores)
    for sentence in compare_clocks(runs, args.runs_folder):
        print(sentence)
    titles = {name: entry["title"] for name, entry in declared()[1].items()}
    headlines = {task: tasks.get(task).HEADLINE[0] for task in runs["task"].unique()}
    with atomic(args.costs) as part:
        costs(rows, runs, args.cost, titles, headlines).to_csv(part, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
