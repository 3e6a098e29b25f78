"""Batch integration: counts and batches in, one embedding row per cell out.

Scored by AvgBIO = (NMI + ARI + ASW_label) / 3 and AvgBATCH = (ASW_batch + graph connectivity) / 2.
"""

from __future__ import annotations

import anndata as ad
import numpy as np

from workflow.tasks.genes import mark_highly_variable

HEADLINE = [
    ("avg_bio", "scib-1.1.5"),
    ("avg_bio", "scib-1.1.7"),
    ("avg_bio", "scib-metrics"),
    ("avg_batch", "scib"),
    ("ilisi", "scib-metrics"),
]
#: What the headline table shows of them, as in the paper and with the price of it in mixing.
PAPER_TABLE = [("avg_bio", "scib-1.1.5"), ("avg_batch", "scib")]
#: Rows without which a headline table misleads: a name for people, and the methods that satisfy it.
MUST_HAVE = [
    ("SC-MAMBA2", ["scmamba2"]),
    ("SC-MAMBA2 untrained", ["scmamba2_untrained"]),
    ("scGPT fine-tuned", ["scgpt"]),
    ("scGPT zero-shot", ["scgpt_zero_shot"]),
    ("scVI", ["scvi"]),
    ("Harmony", ["harmony"]),
    ("PCA", ["pca"]),
    ("raw genes", ["hvg_raw"]),
    ("random embedding", ["random_embedding"]),
    ("shuffled labels", ["shuffled_labels"]),
    ("true labels", ["label_onehot"]),
]


def make_io(adata: ad.AnnData, settings: dict) -> tuple[ad.AnnData, ad.AnnData, dict]:
    """Part a tidy dataset into the method's input and the solution.

    Parameters
    ----------
    adata
        Tidy dataset (see :mod:`workflow.recipes`) with ``obs["batch"]`` and ``obs["label"]``.
    settings
        ``n_top_genes`` (default 1200).

    Returns
    -------
    input
        Log-normalised X, ``layers["counts"]`` where the data has counts, ``obs["batch"]``,
        ``var["highly_variable"]``. No label.
    solution
        ``obs["batch"]`` and ``obs["label"]``; no genes.
    facts
        What was done, for the record.

    Raises
    ------
    ValueError
        If there is no batch column or only one batch, or genes cannot be chosen.
    """
    if "batch" not in adata.obs:
        raise ValueError(
            f"obs column 'batch' is missing (found: {', '.join(adata.obs.columns)}); "
            "batch integration needs one"
        )
    if adata.obs["batch"].nunique() < 2:
        raise ValueError(
            f"obs['batch'] has one value only ({adata.obs['batch'].iloc[0]!r}); "
            "batch integration needs two batches or more"
        )
    given = ad.AnnData(
        X=adata.X,
        obs=adata.obs[["batch"]].copy(),
        var=adata.var[[c for c in ("gene_id",) if c in adata.var]].copy(),
        layers=dict(adata.layers),
    )
    facts = mark_highly_variable(given, settings.get("n_top_genes", 1200), batch_key="batch")
    solution = ad.AnnData(
        X=np.zeros((adata.n_obs, 0), dtype=np.float32), obs=adata.obs[["batch", "label"]].copy()
    )
    return given, solution, {"highly_variable": facts}


def score(output: ad.AnnData, solution: ad.AnnData, seed: int) -> list[dict]:
    """Score one embedding; see :mod:`workflow.metrics.integration` for every definition."""
    from workflow.metrics.integration import score_embedding

    return score_embedding(
        np.asarray(output.obsm["X_emb"], dtype=np.float64),
        labels=solution.obs["label"].to_numpy(dtype=str),
        batches=solution.obs["batch"].to_numpy(dtype=str),
        seed=seed,
    )


def units(output: ad.AnnData, solution: ad.AnnData) -> None:
    """Cells are no units here: a clustering metric is one number of all cells together."""
    return None
