"""Step 5: score all seeds of one method on one dataset.

Writes one row per run, metric and unit (Parquet), and beside it the records of the runs (JSON) and the
prediction of each cell (``.units.parquet``). A run that is not ok has a record and no row; an output that
changed after its record was written is refused. Labels are opened here, after the run: what chose an epoch
never saw a score.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import anndata as ad
import pandas as pd

from workflow import tasks
from workflow.declarations import load_methods
from workflow.files import atomic, checksum, read_json, write_json

#: Columns of a row that describe the run; the task's score adds metric, unit and value.
RUN_COLUMNS = [
    "run_id", "task", "dataset", "method", "method_kind", "mode", "seed", "departures",
    "n_parameters", "seconds", "cpu_seconds", "peak_memory_mb", "peak_gpu_memory_mb", "device",
    "input_sha256", "output_sha256", "commit", "finished",
]  # fmt: skip
VALUE_COLUMNS = ["metric", "metric_impl", "unit_level", "unit_id", "value", "n_units"]
UNIT_TYPES = {"seed": int, "unit_id": str, "truth": str, "predicted": str}


def describe(run: dict, in_paper: str, paper_scale: dict | None = None) -> dict:
    """Return the columns that every row of a run carries.

    ``departures`` says why a value cannot be held against the paper's, empty if it can: the dataset is
    not the paper's own, the configuration or tuning changed a parameter, or the model is smaller or saw
    fewer cells in pre-training than ``paper_scale`` of its entry in methods.yaml asks for. A run that does
    not say how large its model is counts as smaller.
    """
    info = run.get("info") or {}
    small = any((info.get(key) or 0) < least for key, least in (paper_scale or {}).items())
    tuned = run.get("tuned_params", [])
    departures = {
        "not the paper's dataset": in_paper == "no",
        "part of the paper's dataset": in_paper == "part",
        "changed parameters": bool(set(run["changed_params"]) - set(tuned)),
        "tuned parameters": bool(tuned),
        "at reduced scale": small or bool(info.get("reduced_scale")),
    }
    gpus = run["hardware"]["gpus"]
    return {
        "run_id": run["run_id"],
        "task": run["task"],
        "dataset": run["dataset"],
        "method": run["method"],
        "method_kind": run["kind"],
        "mode": run["mode"],
        "seed": run["seed"],
        "departures": "; ".join(words for words, true in departures.items() if true),
        "n_parameters": info.get("n_parameters"),
        "seconds": run.get("seconds"),
        "cpu_seconds": run.get("cpu_seconds"),
        "peak_memory_mb": run.get("peak_memory_mb"),
        "peak_gpu_memory_mb": run.get("peak_gpu_memory_mb"),
        "device": gpus[0] if run["gpu"] and gpus else run["hardware"]["cpu"],
        "input_sha256": run.get("input_sha256"),
        "output_sha256": run.get("output_sha256"),
        "commit": run["commit"],
        "finished": run["finished"],
    }


def score_run(run: dict, folder: Path, solution: ad.AnnData) -> tuple[list[dict], pd.DataFrame | None]:
    """Score the output of one run that is ok, and its probes where it left some.

    Returns
    -------
    list of dict
        The rows, without the columns of the run.
    pandas.DataFrame or None
        The prediction of each cell, where cells are units of the task.

    Raises
    ------
    ValueError
        If the output is missing or is not the one that the record was written for.
    """
    path, probed = folder / "output.h5ad", folder / "probes.h5ad"
    written = {path: run["output_sha256"]}
    if run.get("probes_sha256"):
        written[probed] = run["probes_sha256"]
    for file, expected in written.items():
        if not file.exists() or checksum(file) != expected:
            raise ValueError(
                f"{file}: missing, or changed after {folder / 'run.json'} was written; "
                "delete that record and run again"
            )
    task = tasks.get(run["task"])
    output = ad.read_h5ad(path)
    rows = task.score(output, solution, run["seed"])
    if probed in written:
        from workflow.probes import probe_rows

        rows += probe_rows(ad.read_h5ad(probed), output, solution, run["task"], run["seed"])
    return rows, task.units(output, solution)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run.json of each seed")
    parser.add_argument("--in-paper", choices=["full", "part", "no"], required=True)
    parser.add_argument("--rows", type=Path, required=True, help="Parquet to write")
    parser.add_argument("--units", type=Path, required=True, help="Parquet to write: predictions of cells")
    parser.add_argument("--records", type=Path, required=True, help="JSON to write")
    parser.add_argument("--cache", type=Path, required=True, help="folder for compiled metrics")
    args = parser.parse_args()
    # scib-metrics compiles its functions; kept on disk, the next process does not compile them again
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(args.cache.resolve())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    methods = load_methods()
    solution = None
    rows: list[dict] = []
    units = [pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in UNIT_TYPES.items()})]
    records = []
    for path in args.runs:
        run = read_json(path)
        records.append(run)
        if run["status"] == "ok":
            if solution is None:
                solution = ad.read_h5ad(args.prepared.parent / "solution.h5ad")
            about = describe(run, args.in_paper, methods[run["method"]].get("paper_scale"))
            scored, predictions = score_run(run, path.parent, solution)
            rows += [about | row for row in scored]
            if predictions is not None:
                units.append(predictions.assign(seed=run["seed"])[list(UNIT_TYPES)].astype(UNIT_TYPES))
    table = pd.DataFrame(rows, columns=[*RUN_COLUMNS, *VALUE_COLUMNS]).astype(
        {"value": float, "seed": int, "n_parameters": float}
    )
    with atomic(args.rows) as part:
        table.to_parquet(part, index=False)
    with atomic(args.units) as part:
        pd.concat(units, ignore_index=True).to_parquet(part, index=False)
    write_json(args.records, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
