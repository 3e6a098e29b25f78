"""Step 3b, where the configuration gives trials: try parameters of a method on the reference alone.

Part of the reference plays the query: cells drawn within each label, whose labels are hidden from the method
and opened here. Trial 0 has the values that would be used without tuning; the others are drawn, without
repeats, from the values that the method's entry lists under `tuning`. The best by the task's first headline
metric is chosen; of equals the earliest. The query of the task takes no part.

Every method gets the same number of trials, the same cells and the same seed. Its runs are those of
:mod:`workflow.steps.run_method`, so a trial that fails is a record, too; if all fail, or no cell can be
hidden, nothing is changed. Where this step was stopped, trials that are done are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from workflow import tasks
from workflow.files import ON_FAILURE, checksum, read_json, write_json
from workflow.splits import stratified_split

_STREAM = 0x7123  # the stream called "tuning"


def candidates(params: dict, space: dict[str, list], trials: int, seed: int) -> list[dict]:
    """Return the parameters of each trial, the given ones first.

    Parameters
    ----------
    params
        Parameters without tuning.
    space
        Values to choose from, by parameter.
    trials
        How many; fewer are returned where there are no more combinations.
    seed
        Of the draw, which depends on nothing else but the space.
    """
    grid: list[dict[str, Any]] = [
        dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())
    ]
    own = {key: params[key] for key in space}
    others = [choice for choice in grid if choice != own]
    order = np.random.default_rng([seed, _STREAM]).permutation(len(others))
    return [params] + [params | others[k] for k in order[: trials - 1]]


def hide(given: ad.AnnData, fraction: float, seed: int) -> tuple[ad.AnnData, ad.AnnData, dict]:
    """Part the reference of an annotation task into a smaller reference and a query, as the task itself does.

    Returns
    -------
    input, solution, facts
        As of :func:`workflow.tasks.annotation.make_io`. Genes stay as the whole reference chose them.

    Raises
    ------
    ValueError
        If no cell would be hidden.
    """
    cells = given[(given.obs["split"] == "reference").to_numpy()].copy()
    labels = cells.obs["label"].to_numpy(dtype=str)
    query = stratified_split(labels, fraction, seed)
    if not query.any():
        raise ValueError(f"query_fraction {fraction} hides none of the {len(labels)} cells of the reference")
    known = sorted(set(labels[~query]))
    cells.obs["split"] = pd.Categorical(np.where(query, "query", "reference"))
    cells.obs["label"] = pd.Categorical(np.where(query, None, labels), categories=known)
    truth = pd.DataFrame({"label": labels[query]}, index=cells.obs_names[query])
    solution = ad.AnnData(np.zeros((len(truth), 0), dtype=np.float32), obs=truth)
    solution.uns["reference_labels"] = known
    return cells, solution, {"n_reference": int((~query).sum()), "n_query": int(query.sum())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("task", "dataset", "method"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--prepared", type=Path, required=True, help="record of the prepare step")
    parser.add_argument("--record", type=Path, required=True, help="tuned.json to write")
    parser.add_argument("--params", type=json.loads, required=True, help="JSON: parameters without tuning")
    parser.add_argument("--space", type=json.loads, required=True, help="JSON: parameter -> values")
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--fraction", type=float, required=True, help="share of the reference that is hidden")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="-- and what goes to run_method as it is")
    args = parser.parse_args()

    record: dict = {"task": args.task, "dataset": args.dataset, "method": args.method}
    record |= {"status": "ok", "reason": "", "chosen": {}, "trials": []}
    prepared = read_json(args.prepared)
    if prepared["status"] != "ok":
        write_json(args.record, record | {"status": "no_data", "reason": prepared["reason"]})
        return 0
    folder = args.record.parent / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        whole = ad.read_h5ad(args.prepared.parent / "input.h5ad")
        given, solution, facts = hide(whole, args.fraction, args.seed)
    except (ValueError, OSError) as error:  # it does not cost the run: the method keeps the given values
        print(f"[tune] {args.method} on {args.dataset}: {error}", file=sys.stderr)
        if ON_FAILURE == "stop":
            return 1
        write_json(args.record, record | {"status": "failed", "reason": str(error)})
        return 0
    given.write_h5ad(folder / "input.h5ad")
    write_json(
        folder / "prepared.json",
        {"status": "ok", "reason": "", "input": {"sha256": checksum(folder / "input.h5ad")}},
    )
    module = tasks.get(args.task)
    metric, impl = module.HEADLINE[0]
    record |= facts | {"metric": metric, "metric_impl": impl, "seed": args.seed}
    best = -np.inf
    for k, params in enumerate(candidates(args.params, args.space, args.trials, args.seed)):
        run = folder / str(k) / "run.json"
        if not _done(run, params, folder):
            command = [sys.executable, "-m", "workflow.steps.run_method", "--on-failure", "record"]
            command += ["--task", args.task, "--dataset", args.dataset, "--method", args.method]
            command += ["--seed", str(args.seed), "--prepared", str(folder / "prepared.json")]
            command += ["--record", str(run), "--log", str(run.with_name("log.txt"))]
            command += ["--params", json.dumps(params), *[word for word in args.rest if word != "--"]]
            subprocess.run(command, check=True)
        result = read_json(run)
        trial = {"params": {key: params[key] for key in args.space}, "status": result["status"]}
        trial |= {"reason": result["reason"], "seconds": result.get("seconds"), "value": None}
        if result["status"] == "ok":
            output = ad.read_h5ad(run.with_name("output.h5ad"))
            rows = module.score(output, solution, args.seed)
            trial["value"] = next(
                row["value"]
                for row in rows
                if (row["metric"], row["metric_impl"], row["unit_level"]) == (metric, impl, "run")
            )
            if trial["value"] > best:
                best, record["chosen"] = trial["value"], trial["params"]
        record["trials"].append(trial)
    if best == -np.inf:
        first = record["trials"][0]
        status = "failed" if first["status"] == "ok" else first["status"]
        record |= {"status": status, "reason": first["reason"] or f"no trial has a finite {metric}"}
    write_json(args.record, record)
    return 0


def _done(run: Path, params: dict, folder: Path) -> bool:
    """Whether a trial has run to its end already, on this input and with these parameters."""
    if not run.exists() or not run.with_name("output.h5ad").exists():
        return False
    record = read_json(run)
    sha256 = read_json(folder / "prepared.json")["input"]["sha256"]
    return (record["status"], record["params"], record.get("input_sha256")) == ("ok", params, sha256)


if __name__ == "__main__":
    sys.exit(main())
