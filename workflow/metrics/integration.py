"""Integration metrics, by the definitions of scib and of scib-metrics side by side.

One embedding can score .57 and .50 under two versions of one package, because the versions search
other clusterings. So NMI, ARI and AvgBIO carry the name of the rule in ``metric_impl``:

``scib-1.1.5``
    Louvain at 20 resolutions 0.1, 0.2, ..., 2.0. The version that the paper's authors pin.
``scib-1.1.7``
    Leiden at 10 resolutions 0.2, 0.4, ..., 2.0 (scib 1.1.6 and later).
``scib-metrics``
    k-means with as many clusters as there are labels (the default of scib-metrics 0.5).
``leiden-r1``
    Leiden at resolution 1.0: no search that has seen the labels.

The first two keep the resolution whose clustering has the highest NMI *with the labels*, so they are
upper bounds. ``scib`` marks a metric that does not depend on the rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)

N_NEIGHBORS = 15
#: The stream called "permuted", and how often labels are permuted.
PERMUTED, N_PERMUTED = 0x9E2407ED, 3


def knn_graph(embedding: np.ndarray) -> ad.AnnData:
    """Return an AnnData with scanpy's kNN graph (k = 15, Euclidean) of ``embedding`` (n, d).

    The neighbours are exact at every size. Left to itself, scanpy takes approximate ones from 8,192 cells on,
    and its 1.11.5 cannot read what pynndescent 0.7 returns.
    """
    graph = ad.AnnData(np.zeros((len(embedding), 0), dtype=np.float32))
    graph.obsm["X_emb"] = embedding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(
            graph, n_neighbors=N_NEIGHBORS, use_rep="X_emb", transformer="sklearn", random_state=0
        )
    return graph


def clusterings(graph: ad.AnnData, cluster: Callable, resolutions: np.ndarray) -> list[np.ndarray]:
    """Cluster a graph at each resolution (scanpy's ``louvain`` or ``leiden``, started from 0)."""
    found = []
    for resolution in resolutions:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster(graph, resolution=float(resolution), random_state=0, key_added="cluster")
        found.append(graph.obs["cluster"].to_numpy())
    return found


def best_match(found: list[np.ndarray], labels: np.ndarray) -> tuple[float, float, int]:
    """Return NMI (arithmetic mean normalisation) and ARI of the clustering that fits the labels best.

    The third is its index; the first of equal ones is kept.
    """
    scores = [normalized_mutual_info_score(labels, clusters) for clusters in found]
    best = int(np.argmax(scores))
    return float(scores[best]), float(adjusted_rand_score(labels, found[best])), best


def best_clustering(
    graph: ad.AnnData, labels: np.ndarray, cluster: Callable, resolutions: np.ndarray
) -> tuple[float, float, float]:
    """Search the resolution with the highest NMI to the labels (scib's ``opt_louvain``).

    Returns
    -------
    tuple of float
        NMI (arithmetic mean normalisation), ARI of that same clustering, and its resolution. The
        first of equal resolutions is kept.
    """
    nmi, ari, best = best_match(clusterings(graph, cluster, resolutions), labels)
    return nmi, ari, float(resolutions[best])


def asw_label(embedding: np.ndarray, labels: np.ndarray) -> float:
    """Return (mean silhouette of the labels + 1) / 2 (scib's ``silhouette``)."""
    return float((silhouette_score(embedding, labels) + 1) / 2)


def asw_batch(embedding: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> float:
    """Return the mean over labels of the mean of 1 - |silhouette of the batch| (scib).

    Labels seen in one batch only, or in which every cell is a batch of its own, do not count;
    NaN if none is left.
    """
    scores = []
    for label in np.unique(labels):
        cells = labels == label
        n_batches = len(np.unique(batches[cells]))
        if 1 < n_batches < cells.sum():
            widths = silhouette_samples(embedding[cells], batches[cells])
            scores.append(1 - np.abs(widths).mean())
    return float(np.mean(scores)) if scores else float("nan")


def graph_connectivity(connectivities: sp.csr_matrix, labels: np.ndarray) -> float:
    """Return the mean over labels of |largest component of the label's subgraph| / |label| (scib)."""
    shares = []
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        _, component = sp.csgraph.connected_components(connectivities[cells][:, cells], connection="strong")
        shares.append(np.bincount(component).max() / len(cells))
    return float(np.mean(shares))


def score_embedding(
    embedding: np.ndarray, *, labels: np.ndarray, batches: np.ndarray, seed: int
) -> list[dict]:
    """Score one embedding by every rule.

    Parameters
    ----------
    embedding
        (n, d) float64, finite.
    labels, batches
        (n,) strings.
    seed
        Seed of the run: k-means is started from it.

    Returns
    -------
    list of dict
        ``metric``, ``metric_impl``, ``unit_level``, ``unit_id``, ``value``, ``n_units``. Every value
        lies in [0, 1] and higher is better, except ``resolution``. Rows of the level ``permuted`` are
        AvgBIO against labels that were shuffled among the cells.
    """
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    n = len(embedding)
    rows: list[dict] = []

    def add(metric: str, metric_impl: str, value: float, level: str = "run", unit: str = "") -> None:
        rows.append(
            {
                "metric": metric,
                "metric_impl": metric_impl,
                "unit_level": level,
                "unit_id": unit,
                "value": float(value),
                "n_units": n,
            }
        )

    graph = knn_graph(embedding)
    width = asw_label(embedding, labels)
    louvain = clusterings(graph, sc.tl.louvain, np.arange(1, 21) / 10)
    nmi, ari, best = best_match(louvain, labels)
    found = {
        "scib-1.1.5": (nmi, ari, (best + 1) / 10),
        "scib-1.1.7": best_clustering(graph, labels, sc.tl.leiden, np.arange(1, 11) / 5),
        "leiden-r1": best_clustering(graph, labels, sc.tl.leiden, np.array([1.0])),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kmeans = scib_metrics.nmi_ari_cluster_labels_kmeans(embedding.astype(np.float32), labels)
        k = min(90, n - 1)
        distances, indices = NearestNeighbors(n_neighbors=k).fit(embedding).kneighbors(embedding)
        neighbours = NeighborsResults(indices=indices, distances=distances)
        ilisi = scib_metrics.ilisi_knn(neighbours, batches)
        bras = scib_metrics.bras(embedding.astype(np.float32), labels, batches)
    found["scib-metrics"] = (float(kmeans["nmi"]), float(kmeans["ari"]), float("nan"))

    for rule, (nmi, ari, resolution) in found.items():
        add("avg_bio", rule, (nmi + ari + width) / 3)
        add("nmi", rule, nmi)
        add("ari", rule, ari)
        if np.isfinite(resolution):
            add("resolution", rule, resolution)
    mixing = asw_batch(embedding, labels, batches)
    connectivity = graph_connectivity(sp.csr_matrix(graph.obsp["connectivities"]), labels)
    add("asw_label", "scib", width)
    add("asw_batch", "scib", mixing)
    add("graph_connectivity", "scib", connectivity)
    add("avg_batch", "scib", (mixing + connectivity) / 2)
    add("ilisi", "scib-metrics", ilisi)
    add("bras", "scib-metrics", bras)

    # What the same embedding scores against labels that say nothing: a search that has seen them finds more
    # than 0, and that is the chance level that the score must be read against.
    rng = np.random.default_rng(PERMUTED)
    for index in range(N_PERMUTED):
        shuffled = rng.permutation(labels)
        nmi, ari, _ = best_match(louvain, shuffled)
        value = (nmi + ari + asw_label(embedding, shuffled)) / 3
        add("avg_bio", "scib-1.1.5", value, "permuted", str(index))
    return rows
