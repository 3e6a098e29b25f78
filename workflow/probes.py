"""Score what a method would have returned otherwise: other epochs, other orders of the genes, more padding.

A method leaves these results beside its output (``probes.h5ad``). They are scored after the run like the
output, by fewer metrics; nothing that is scored here was open to whatever chose the output.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from sklearn.metrics import accuracy_score, f1_score

from workflow.metrics.integration import (
    asw_batch,
    asw_label,
    best_clustering,
    graph_connectivity,
    knn_graph,
)


def unit_of(probe: str) -> tuple[str, str]:
    """Return (unit_level, unit_id) of a probe, such as ("epoch", "3") of ``epoch_3``."""
    if probe == "padding":
        return "padding", ""
    if probe == "cls_last":
        return "cls_position", "last"
    level, _, number = probe.partition("_")
    return level, number


def probe_rows(
    probes: ad.AnnData, output: ad.AnnData, solution: ad.AnnData, task: str, seed: int
) -> list[dict]:
    """Score the probes of one run.

    Parameters
    ----------
    probes
        Checked (:mod:`workflow.contract`): matrices of the cells in ``obsm`` (integration), or labels in
        ``obs`` (annotation), named ``epoch_<n>``, ``order_<k>``, ``padding`` or ``cls_last``.
    output
        The run's own result.
    solution
        Its answers.
    task
        ``integration`` or ``annotation``.
    seed
        Seed of the run. No metric here draws random numbers that depend on it.

    Returns
    -------
    list of dict
        ``metric``, ``metric_impl``, ``unit_level``, ``unit_id``, ``value``, ``n_units``. Integration: AvgBIO
        as scib 1.1.5 and 1.1.7 compute it, and AvgBATCH; annotation: accuracy and macro F1 over the union of
        labels. For all but epochs also ``shift`` from the output: the mean of 1 - cosine over cells, from 0
        to 2 (``cosine``), or the share of cells whose label changed (``labels``).
    """
    scores = _integration if task == "integration" else _annotation
    names = list(probes.obsm) if task == "integration" else list(probes.obs)
    rows = []
    for name in sorted(names, key=lambda name: (unit_of(name)[0], len(name), name)):
        level, unit = unit_of(name)
        found = scores(probes, name, output, solution)
        if level == "epoch":
            del found["shift", "cosine" if task == "integration" else "labels"]
        rows += [
            {
                "metric": metric,
                "metric_impl": impl,
                "unit_level": level,
                "unit_id": unit,
                "value": float(value),
                "n_units": probes.n_obs,
            }
            for (metric, impl), value in found.items()
        ]
    return rows


def _integration(probes: ad.AnnData, name: str, output: ad.AnnData, solution: ad.AnnData) -> dict:
    embedding = np.asarray(probes.obsm[name], dtype=np.float64)
    labels = solution.obs["label"].to_numpy(dtype=str)
    batches = solution.obs["batch"].to_numpy(dtype=str)
    graph = knn_graph(embedding)
    width = asw_label(embedding, labels)
    louvain = best_clustering(graph, labels, sc.tl.louvain, np.arange(1, 21) / 10)
    leiden = best_clustering(graph, labels, sc.tl.leiden, np.arange(1, 11) / 5)
    connected = graph_connectivity(sp.csr_matrix(graph.obsp["connectivities"]), labels)
    return {
        ("avg_bio", "scib-1.1.5"): (louvain[0] + louvain[1] + width) / 3,
        ("avg_bio", "scib-1.1.7"): (leiden[0] + leiden[1] + width) / 3,
        ("avg_batch", "scib"): (asw_batch(embedding, labels, batches) + connected) / 2,
        ("shift", "cosine"): cosine_shift(embedding, np.asarray(output.obsm["X_emb"], dtype=np.float64)),
    }


def cosine_shift(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean over rows of 1 - cosine of (n, d) matrices; a row of zeros is at right angles."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    cosine = np.divide(products, lengths, out=np.zeros(len(a)), where=lengths > 0)
    return float(np.mean(np.clip(1 - cosine, 0, 2)))  # rounding goes below 0


def _annotation(probes: ad.AnnData, name: str, output: ad.AnnData, solution: ad.AnnData) -> dict:
    truth = solution.obs["label"].to_numpy(dtype=str)
    predicted = probes.obs[name].to_numpy(dtype=str)
    union = sorted(set(truth) | set(predicted))
    f1 = f1_score(truth, predicted, labels=union, average="macro", zero_division=0)
    return {
        ("accuracy", "sklearn"): accuracy_score(truth, predicted),
        ("macro_f1", "sklearn-union"): f1,
        ("shift", "labels"): (predicted != output.obs["label_pred"].to_numpy(dtype=str)).mean(),
    }
