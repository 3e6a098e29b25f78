"""Annotation: reference cells with labels and query cells without in, a label per query cell out.

Scored by accuracy and macro precision, recall and F1 in three label sets.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from workflow.splits import batch_split, given_split, stratified_split
from workflow.tasks.genes import mark_highly_variable

HEADLINE = [
    ("accuracy", "sklearn"),
    ("macro_f1", "sklearn-union"),
    ("macro_precision", "sklearn-union"),
    ("macro_recall", "sklearn-union"),
    ("balanced_accuracy", "sklearn"),
]
#: What the headline table shows of them, as in the paper.
PAPER_TABLE = [
    ("accuracy", "sklearn"),
    ("macro_f1", "sklearn-union"),
    ("macro_precision", "sklearn-union"),
    ("macro_recall", "sklearn-union"),
]
#: Rows without which a headline table misleads: a name for people, and the methods that satisfy it.
MUST_HAVE = [
    ("SC-MAMBA2 from scratch", ["scmamba2_scratch"]),
    ("SC-MAMBA2 frozen", ["scmamba2_frozen", "scmamba2_frozen_untrained"]),
    ("L1 logistic regression", ["logistic_l1"]),
    ("L2 logistic regression", ["logistic_l2"]),
    ("linear SVM", ["linear_svm"]),
    ("PCA + kNN", ["knn"]),
    ("nearest centroid", ["nearest_centroid"]),
    ("stratified random", ["stratified_random"]),
    ("majority label", ["majority"]),
]


def make_io(adata: ad.AnnData, settings: dict) -> tuple[ad.AnnData, ad.AnnData, dict]:
    """Part a tidy dataset into the method's input and the solution.

    Parameters
    ----------
    adata
        Tidy dataset (see :mod:`workflow.recipes`) with ``obs["label"]``.
    settings
        ``split`` (see the schema of datasets.yaml) and ``n_top_genes`` (default 3000).

    Returns
    -------
    input
        Log-normalised X, ``layers["counts"]`` where the data has counts, ``obs["split"]`` (reference or
        query), ``obs["label"]`` (missing for every query cell; its categories are those of the reference
        alone), ``obs["batch"]`` where the data has one, ``var["highly_variable"]`` chosen on the reference,
        ``var["highly_variable_all"]`` chosen on all cells, for a method whose ``feature_scope`` is ``all``.
    solution
        The query cells with ``obs["label"]``; no genes.
    facts
        Sizes of the split, ceiling of the accuracy, and how genes were chosen.

    Raises
    ------
    ValueError
        If a side of the split is empty, a batch named in the split does not exist, the data came without
        the split that is asked for, or genes cannot be chosen.
    """
    split = dict(settings["split"])
    kind = split.pop("kind")
    if kind == "stratified":
        query = stratified_split(adata.obs["label"].to_numpy(dtype=str), **split)
    elif kind == "given":
        query = given_split(adata.obs)
    else:
        query = batch_split(adata.obs, **split)
    if query.all() or not query.any():
        raise ValueError(f"split {settings['split']} leaves the reference or the query empty")

    labels = adata.obs["label"].to_numpy(dtype=object)
    known = sorted(set(labels[~query]))
    obs = pd.DataFrame(
        {
            "split": pd.Categorical(np.where(query, "query", "reference")),
            "label": pd.Categorical(np.where(query, None, labels), categories=known),
        },
        index=adata.obs_names,
    )
    if "batch" in adata.obs:
        obs["batch"] = adata.obs["batch"]
    given = ad.AnnData(
        X=adata.X,
        obs=obs,
        var=adata.var[[c for c in ("gene_id",) if c in adata.var]].copy(),
        layers=dict(adata.layers),
    )
    n_top = settings.get("n_top_genes", 3000)
    mark_highly_variable(given, n_top)
    given.var["highly_variable_all"] = given.var["highly_variable"]
    facts = mark_highly_variable(given, n_top, cells=~query)
    both = given.var["highly_variable"] & given.var["highly_variable_all"]
    facts["shared_with_all_cells"] = int(both.sum())  # of those that all cells would choose
    truth = adata.obs.loc[query, ["label"]].astype(str)
    solution = ad.AnnData(X=np.zeros((len(truth), 0), dtype=np.float32), obs=truth)
    solution.uns["reference_labels"] = known
    return (
        given,
        solution,
        {
            "highly_variable": facts,
            "n_reference": int((~query).sum()),
            "n_query": int(query.sum()),
            "accuracy_ceiling": float(np.isin(labels[query].astype(str), known).mean()),
        },
    )


def score(output: ad.AnnData, solution: ad.AnnData, seed: int) -> list[dict]:
    """Score one set of predictions; see :mod:`workflow.metrics.annotation` for every definition."""
    from workflow.metrics.annotation import score_labels

    return score_labels(
        truth=solution.obs["label"].to_numpy(dtype=str),
        predicted=output.obs["label_pred"].to_numpy(dtype=str),
        reference_labels=[str(v) for v in solution.uns["reference_labels"]],
    )


def units(output: ad.AnnData, solution: ad.AnnData) -> pd.DataFrame:
    """Return truth and prediction of each query cell: ``unit_id``, ``truth``, ``predicted``."""
    return pd.DataFrame(
        {
            "unit_id": solution.obs_names.to_numpy(dtype=str),
            "truth": solution.obs["label"].to_numpy(dtype=str),
            "predicted": output.obs["label_pred"].to_numpy(dtype=str),
        }
    )
