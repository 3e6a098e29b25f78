"""A results folder of made-up rows that covers every verdict, for tests of tables, figures and the page.

No method ran for these numbers: they are synthetic, chosen so that each verdict occurs. What follows from
them (claims.csv, summary.csv, runs.csv) is computed by the suite's own code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from workflow.comparisons import Evidence
from workflow.declarations import load_methods
from workflow.steps.judge import KEPT, summarise
from workflow.steps.score import UNIT_TYPES, describe
from workflow.verdicts import Selection, judge

SEEDS = range(5)
JITTER = np.array([-0.004, 0.002, 0.0, 0.005, -0.003])
#: AvgBIO of each method on each dataset, before the jitter of the seeds.
INTEGRATION = {
    "pbmc10k": {
        "random_embedding": 0.17, "label_onehot": 0.96, "pca": 0.70, "harmony": 0.80, "scvi": 0.835,
        "scmamba2": 0.836,
    },
    "covid19": {
        "random_embedding": 0.12, "label_onehot": 0.95, "pca": 0.60, "harmony": 0.61, "scvi": 0.55,
        "scmamba2": 0.50,
    },
}  # fmt: skip
#: Share of the 400 query cells that each method labels correctly.
ANNOTATION = {"ms": {"majority": 0.34, "knn": 0.80, "logistic_l2": 0.868, "scmamba2": 0.87}}
#: Methods whose runs repeat one number, and one that has no interval worth the name.
FIXED = {"pca", "majority", "knn"}

CLAIM = {"source": "paper", "where": "results (Fig. 3)", "delta_eq": 0.02, "min_seeds": 5}
BATCH = CLAIM | {"task": "integration", "metric": "avg_bio", "rounding": 0.0005, "margin_kind": "abs"}
CELLS = CLAIM | {"task": "annotation", "dataset": "ms", "metric": "accuracy", "rounding": 0.0005}
ASKED = {"source": "suite", "where": "-"}
#: One claim for each verdict, which stands in its text.
CLAIMS = [
    BATCH | {"id": "B1", "text": "Value and advantage hold: REPRODUCED.", "dataset": "pbmc10k",
             "comparator": ["harmony"], "paper_value": 0.836, "comparator_value": 0.8, "margin": 0.036},
    BATCH | {"id": "B2", "text": "The advantage holds, the value differs: DIRECTION ONLY.",
             "dataset": "pbmc10k", "comparator": ["harmony"], "paper_value": 0.70},
    BATCH | {"id": "B3", "text": "The value holds, the advantage is a tie: VALUE ONLY.", "dataset": "pbmc10k",
             "comparator": ["scvi"], "paper_value": 0.836},
    BATCH | {"id": "B4", "text": "Neither holds: NOT REPRODUCED.", "dataset": "covid19",
             "comparator": ["pca"], "paper_value": 0.80, "margin": 0.05},
    BATCH | {"id": "B5", "text": "A rival is missing: NOT RUN <script>alert(1)</script>.",
             "dataset": "pbmc10k", "comparator": ["scgpt"], "paper_value": 0.836},
    BATCH | {"id": "B7", "text": "Nobody can decide: NOT TESTABLE.", "dataset": "pbmc10k",
             "not_testable": {"reason": "spec", "because": "No rule says what distinct means."}},
    CELLS | {"id": "A1", "text": "Cells and seeds vary: INCONCLUSIVE.", "comparator": ["logistic_l2"],
             "paper_value": 0.869, "delta_eq": 0.001, "margin": 0.02, "margin_kind": "abs"},
    CELLS | {"id": "A2", "text": "Cells and seeds vary, and it holds.", "comparator": ["knn"],
             "paper_value": 0.869, "delta_eq": 0.01},
    CLAIM | {"id": "M1", "text": "The paper says two things: INCONSISTENT.", "task": "model",
             "metric": "parameters", "statements": [{"value": 150, "where": "abstract"},
                                                    {"value": 30, "where": "results"}]},
    CLAIM | {"id": "T1", "text": "A gain in words that its numbers give.", "task": "text",
             "arithmetic": {"base": 0.821, "value": 0.836, "percent": [1.83, 1.83]}},
    BATCH | ASKED | {"id": "S1", "text": "Better than PCA? SUPPORTED or REVERSED.", "dataset": "any",
                     "comparator": ["pca"]},
    BATCH | ASKED | {"id": "S2", "text": "Better than scVI? TIE.", "dataset": "pbmc10k",
                     "comparator": ["scvi"]},
]  # fmt: skip
VERDICTS = [
    "REPRODUCED", "SUPPORTED", "DIRECTION ONLY", "VALUE ONLY", "TIE", "REVERSED", "NOT REPRODUCED",
    "INCONSISTENT", "INCONCLUSIVE", "NOT TESTABLE", "NOT RUN",
]  # fmt: skip


def record(task: str, dataset: str, method: str, seed: int, kind: str, **changed) -> dict:
    """The record of one run, as run_method writes it."""
    epochs = [{"epoch": e, "train_loss": 2 / e, "valid_loss": 2.2 / e} for e in (1, 2, 3)]
    ours = kind == "ours"
    return {
        "run_id": f"{task}/{dataset}/{method}/{seed}", "task": task, "dataset": dataset, "method": method,
        "kind": kind, "mode": "repaired", "seed": seed, "status": "ok", "why": "", "reason": "",
        "params": {}, "changed_params": {}, "tuning_trials": 0, "info": {
            "n_parameters": 625_000_000 if ours else 0, "history": epochs if ours else [],
            "selected_epoch": 3 if ours else None, "pretrained_cells": 57_000_000 if ours else 0,
        },
        "seconds": 60.0 + seed, "cpu_seconds": 55.0, "peak_memory_mb": 900.0, "peak_gpu_memory_mb": None,
        "threads": 1, "gpu": 0, "hardware": {"cpu": "made-up CPU", "cores": 2, "gpus": []},
        "versions": {"numpy": "2.4.6", "torch": "2.13.0"}, "python": "3.11", "commit": "0" * 40,
        "finished": "2026-01-01T00:00:00+00:00", "input_sha256": "1", "output_sha256": f"{method}{seed}",
    } | changed  # fmt: skip


def unit(metric: str, impl: str, value: float, level: str = "run", name: str = "", n: int = 400) -> dict:
    """The columns of a row that describe the value."""
    return {
        "metric": metric, "metric_impl": impl, "unit_level": level, "unit_id": name, "value": float(value),
        "n_units": n,
    }  # fmt: skip


def integration_units(level: float, seed: int, method: str) -> list[dict]:
    """Rows of one integration run around a level."""
    jitter = 0 if method in FIXED else JITTER[(seed + len(method)) % 5]
    rules = {"scib-1.1.5": 0.0, "scib-1.1.7": 0.003, "scib-metrics": -0.08}
    units = [unit("avg_bio", rule, level + jitter + shift) for rule, shift in rules.items()]
    units += [unit("avg_batch", "scib", 0.9 + jitter), unit("ilisi", "scib-metrics", 0.6 + jitter)]
    units += [unit("avg_bio", "scib-1.1.5", 0.16, "permuted", str(k)) for k in range(3)]
    if method.startswith("scmamba2"):
        for epoch, less in ((1, 0.2), (2, -0.01), (3, 0.0)):
            units.append(unit("avg_bio", "scib-1.1.5", level + jitter - less, "epoch", str(epoch)))
        for order in range(3):
            units.append(unit("avg_bio", "scib-1.1.5", level - 0.01 * order, "order", str(order)))
            units.append(unit("shift", "cosine", 0.02, "order", str(order)))
    return units


def annotate(truth: np.ndarray, share: float, method: str, seed: int) -> np.ndarray:
    """Predictions that are right in a share of the cells; a cell that is hard is so for every method."""
    if method == "majority":
        return np.full(len(truth), "T cell")
    hard = np.random.default_rng(7).random(len(truth))
    noise = np.random.default_rng(0 if method in FIXED else 1 + seed).normal(0, 0.02, len(truth))
    names = np.unique(truth)
    wrong = np.roll(names, 1)[np.searchsorted(names, truth)]
    return np.where(hard + noise < share, truth, wrong)


def results(folder: Path) -> tuple[Evidence, pd.DataFrame, pd.DataFrame]:
    """Write a results folder; return the evidence, the verdicts and the summary."""
    from workflow.metrics.annotation import score_labels

    methods = load_methods()
    rows, runs, units = [], [], {}
    todo = [("integration", d, m, v) for d, by in INTEGRATION.items() for m, v in by.items()]
    todo += [("annotation", d, m, v) for d, by in ANNOTATION.items() for m, v in by.items()]
    truth = np.random.default_rng(3).choice(["T cell", "B cell", "NK cell"], 400, p=[0.34, 0.33, 0.33])
    for task, dataset, method, level in todo:
        mine, cells, records = [], [], []
        for seed in SEEDS:
            run = record(task, dataset, method, seed, methods[method]["kind"])
            records.append(run)
            about = describe(run, "full")
            if task == "integration":
                scored = integration_units(level, seed, method)
            else:
                predicted = annotate(truth, level, method, seed)
                scored = score_labels(truth=truth, predicted=predicted, reference_labels=sorted(set(truth)))
                names = [f"cell{i}" for i in range(len(truth))]
                cells.append(pd.DataFrame(
                    {"seed": seed, "unit_id": names, "truth": truth, "predicted": predicted}
                ))  # fmt: skip
            mine += [about | row for row in scored]
        if method == "scvi" and dataset == "covid19":
            failed = dict(
                status="failed", why="timeout", reason="stopped after the time limit of 60 s", info={}
            )
            records.append(record(task, dataset, method, 5, methods[method]["kind"], **failed))
        path = folder / f"scores/{task}/{dataset}/{method}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(mine).to_parquet(path, index=False)
        table = (
            pd.concat(cells)
            if cells
            else pd.DataFrame({k: pd.Series(dtype=v) for k, v in UNIT_TYPES.items()})
        )
        table.to_parquet(path.with_suffix(".units.parquet"), index=False)
        path.with_suffix(".json").write_text(json.dumps(records))
        rows += mine
        runs += records
        if cells:
            units[(task, dataset, method)] = table
    runs = pd.DataFrame(runs)
    evidence = Evidence(pd.DataFrame(rows), runs, units, draws=500)
    selected = frozenset((task, dataset, method) for task, dataset, method, _ in todo)
    datasets = frozenset({*INTEGRATION, *ANNOTATION})
    chosen = Selection(evidence, datasets, frozenset({*methods}), selected)
    claims, summary = judge(CLAIMS, chosen), summarise(evidence, methods)
    claims.to_csv(folder / "claims.csv", index=False)
    summary.to_csv(folder / "summary.csv", index=False)
    runs[KEPT].to_csv(folder / "runs.csv", index=False)
    evidence.rows.to_parquet(folder / "rows.parquet", index=False)
    return evidence, claims, summary
