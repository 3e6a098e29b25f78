"""Is there anything to integrate, or to annotate? What controls reach on a dataset before any method runs.

Integration: how well unintegrated PCA mixes the batches, beside the same neighbours with shuffled batches,
and how much AvgBIO it leaves. Annotation: what the majority label and PCA + kNN leave of the reachable
accuracy, and how easily the query is told from the reference. The controls are those of ``baselines/``,
called as they are, with their declared parameters; rows of methods add nothing but the unit of seed noise.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.stats.contingency import association
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from baselines import _io, knn, label_onehot, majority, pca, random_embedding
from workflow import tasks
from workflow.declarations import load_methods
from workflow.metrics.integration import asw_label, best_clustering, knn_graph

#: Neighbours of a cell that are asked for their batch; the first decides the verdict.
NEIGHBOURS = (15, 30)
N_SHUFFLES = 20
#: Floor and ceiling of AvgBIO hardly depend on the number of cells, and are measured on no more than these.
FLOOR_CELLS = 3_000
#: From this share on: of the mixing of shuffled batches there is hardly a batch effect, of the way from the
#: floor to the ceiling there is little room.
ENOUGH, HALF = 0.9, 0.5
#: Searches of AvgBIO by the name of their algorithm: as in scib 1.1.5 and 1.1.7.
RULES = {
    "louvain": (sc.tl.louvain, np.arange(1, 21) / 10),
    "leiden": (sc.tl.leiden, np.arange(1, 11) / 5),
}
_STREAM = 0x3003  # the stream called "room"


def mixing(neighbours: np.ndarray, batches: np.ndarray) -> float:
    """Return the mean share of a cell's neighbours that lie in another batch.

    Parameters
    ----------
    neighbours
        (n, k) indices of the k nearest other cells.
    batches
        (n,) batch of each cell.
    """
    return float((batches[neighbours] != batches[:, None]).mean())


def perfect_mixing(batches: np.ndarray) -> float:
    """Return the chance that two different cells drawn at random differ in batch: 2 p q for two batches."""
    n = len(batches)
    shares = np.unique(batches, return_counts=True)[1] / n
    return float((1 - (shares**2).sum()) * n / (n - 1))


def shuffled_mixing(
    neighbours: np.ndarray, batches: np.ndarray, labels: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return mean, 2.5 and 97.5 percentile of the mixing of shuffled batches, over `N_SHUFFLES` shuffles.

    With ``labels`` batches are shuffled among the cells of a label: what can be had where batches differ in
    their cell types and types stay apart.
    """
    rng = np.random.default_rng(_STREAM)
    groups = [np.arange(len(batches))]
    if labels is not None:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    found = []
    for _ in range(N_SHUFFLES):
        shuffled = batches.copy()
        for cells in groups:
            shuffled[cells] = rng.permutation(batches[cells])
        found.append(mixing(neighbours, shuffled))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(np.mean(found)), float(low), float(high)


def cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    """Return Cramer's V of two labellings, from 0 (independent) to 1 (scipy); 0 if one has one value."""
    table = pd.crosstab(a, b).to_numpy()
    return float(association(table, method="cramer")) if min(table.shape) > 1 else 0.0


def avg_bio(embedding: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return AvgBIO of an embedding (n, d) by each of `RULES` (see `workflow.metrics.integration`)."""
    graph, width = knn_graph(embedding), asw_label(embedding, labels)
    return {
        name: (sum(best_clustering(graph, labels, *rule)[:2]) + width) / 3 for name, rule in RULES.items()
    }


def shift_auc(points: np.ndarray, query: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the AUC with which logistic regression tells query cells from reference cells.

    Parameters
    ----------
    points
        (n, d) cells, such as principal components; standardised here.
    query
        (n,) bool.
    weights
        (n,) weight of each cell, in the fit and in the AUC; all equal by default.

    Returns
    -------
    float
        Of cells that the model was not fitted to (5 folds): .5 where the sides cannot be told apart, 1
        where they always can. NaN if a side has fewer than 5 cells.
    """
    if min(query.sum(), (~query).sum()) < 5:
        return float("nan")
    weights = np.ones(len(query)) if weights is None else weights
    scores = np.empty(len(query))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for train, test in folds.split(points, query):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(points[train], query[train], logisticregression__sample_weight=weights[train])
        scores[test] = model.decision_function(points[test])
    return float(roc_auc_score(query, scores, sample_weight=weights))


def _run(method: str, module, task: str, given: ad.AnnData, solution: ad.AnnData | None = None) -> np.ndarray:
    """Return what a control returns for seed 0 with its declared parameters."""
    params = dict(load_methods()[method]["tasks"][task] or {})
    call = _io.Given(adata=given, params=params, seed=0, threads=1, gpu=0, resume=None, solution=solution)
    return getattr(module, task)(call)


def _some_of_each(labels: np.ndarray, n: int) -> np.ndarray:
    """Return a mask of about ``n`` cells in which each label keeps its share, and two cells at the least."""
    rng = np.random.default_rng(_STREAM)
    kept = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        kept[rng.permutation(cells)[: max(2, round(len(cells) * min(1, n / len(labels))))]] = True
    return kept


def _share(value: float, floor: float, ceiling: float) -> float:
    """Return how far a value is on the way from floor to ceiling; NaN where they are the same."""
    return (value - floor) / (ceiling - floor) if ceiling > floor else float("nan")


def integration_room(given: ad.AnnData, solution: ad.AnnData) -> dict:
    """Measure what unintegrated data leave to integrate.

    Parameters
    ----------
    given, solution
        What the prepare step wrote.

    Returns
    -------
    dict
        Sizes; for each k of `NEIGHBOURS` ``mixing_k`` of PCA, ``shuffled_k`` and ``shuffled_in_types_k`` with
        their percentiles, ``mixing_index_k`` (observed / shuffled) and ``mixing_index_in_types_k``;
        ``perfect_mixing``; ``cramers_v`` of batch and type; for each of `RULES` the AvgBIO of PCA, of a
        random embedding and of the true labels, the ``share_reached`` by PCA and the ``room`` above it;
        ``verdict``.
    """
    batches = solution.obs["batch"].to_numpy(dtype=str)
    labels = solution.obs["label"].to_numpy(dtype=str)
    embedding = np.asarray(_run("pca", pca, "integration", given), dtype=np.float64)
    found: dict = {
        "n_cells": len(batches),
        "n_batches": len(set(batches)),
        "n_types": len(set(labels)),
        "cramers_v": cramers_v(batches, labels),
        "perfect_mixing": perfect_mixing(batches),
    }
    search = NearestNeighbors(n_neighbors=min(max(NEIGHBOURS), len(batches) - 1)).fit(embedding)
    nearest = search.kneighbors(return_distance=False)  # without the cell itself
    for k in NEIGHBOURS:
        near = nearest[:, :k]
        observed = mixing(near, batches)
        anywhere, low, high = shuffled_mixing(near, batches)
        found |= {f"mixing_k{k}": observed, f"shuffled_k{k}": anywhere}
        found |= {f"shuffled_low_k{k}": low, f"shuffled_high_k{k}": high}
        inside, low, high = shuffled_mixing(near, batches, labels)
        found |= {f"shuffled_in_types_k{k}": inside, f"shuffled_in_types_low_k{k}": low}
        found |= {f"shuffled_in_types_high_k{k}": high}
        found[f"mixing_index_k{k}"] = observed / anywhere if anywhere else float("nan")
        found[f"mixing_index_in_types_k{k}"] = observed / inside if inside else float("nan")
    of_pca = avg_bio(embedding, labels)
    few = _some_of_each(labels, FLOOR_CELLS)
    noise = avg_bio(_run("random_embedding", random_embedding, "integration", given)[few], labels[few])
    truth = avg_bio(_run("label_onehot", label_onehot, "integration", given, solution)[few], labels[few])
    for rule in RULES:
        found |= {f"pca_avg_bio_{rule}": of_pca[rule], f"random_avg_bio_{rule}": noise[rule]}
        found |= {f"ceiling_avg_bio_{rule}": truth[rule], f"room_{rule}": truth[rule] - of_pca[rule]}
        found[f"share_reached_{rule}"] = _share(of_pca[rule], noise[rule], truth[rule])
    index = found[f"mixing_index_in_types_k{NEIGHBOURS[0]}"]
    words = ("no batch effect can be measured", "hardly a batch effect", "some batch effect")
    found["verdict"] = _grade(index, words, "a strong batch effect")
    return found


def annotation_room(given: ad.AnnData, solution: ad.AnnData) -> dict:
    """Measure what the simplest classifiers leave to annotate.

    Parameters
    ----------
    given, solution
        What the prepare step wrote.

    Returns
    -------
    dict
        Sizes; the rarest type of the reference; accuracy of the ``majority`` label and of PCA + ``knn``; the
        ``ceiling`` (share of query cells whose label the reference has); ``share_reached`` by kNN on the way
        from majority to ceiling, and the ``room`` above it; ``shift_auc`` (reference against query) and
        ``shift_auc_same_types``, with the query's shared types weighted as in the reference; ``verdict``.
    """
    truth = solution.obs["label"].to_numpy(dtype=str)
    query = (given.obs["split"] == "query").to_numpy()
    labels = given.obs["label"].to_numpy(dtype=object)
    labels[query] = truth
    labels = labels.astype(str)
    sizes = pd.Series(labels[~query]).value_counts(sort=True)
    accuracy = {
        name: float((_run(name, module, "annotation", given).astype(str) == truth).mean())
        for name, module in (("majority", majority), ("knn", knn))
    }
    ceiling = float(np.isin(truth, sizes.index).mean())
    genes = _io.dense(given[:, given.var["highly_variable"].to_numpy()].X)
    n_components = min(50, *np.subtract(genes.shape, 1))
    points = PCA(n_components, svd_solver="covariance_eigh").fit_transform(genes)
    found: dict = {
        "n_cells": len(query),
        "n_reference": int((~query).sum()),
        "n_query": int(query.sum()),
        "n_types": len(set(labels)),
        "n_types_of_query_only": len(set(truth) - set(sizes.index)),
        "rarest_type": str(sizes.index[-1]),
        "rarest_type_cells": int(sizes.iloc[-1]),
        **accuracy,
        "ceiling": ceiling,
        "share_reached": _share(accuracy["knn"], accuracy["majority"], ceiling),
        "room": ceiling - accuracy["knn"],
        "shift_auc": shift_auc(points, query),
    }
    shared = np.isin(labels, sorted(set(truth) & set(sizes.index)))
    weights = _weights(labels[shared], query[shared])
    found["shift_auc_same_types"] = shift_auc(points[shared], query[shared], weights)
    words = ("no room can be measured", "little room", "some room")
    found["verdict"] = _grade(found["share_reached"], words, "much room")
    return found


def _weights(labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return weights that give every label in the query the share that it has in the reference."""
    weights = np.ones(len(labels))
    for label in np.unique(labels):
        cells = labels == label
        if (cells & query).any():
            weights[cells & query] = (cells & ~query).sum() / (cells & query).sum()
    return weights


def _grade(value: float, words: tuple[str, str, str], least: str) -> str:
    unknown, enough, half = words
    if not np.isfinite(value):
        return unknown
    return enough if value >= ENOUGH else half if value >= HALF else least


def seed_noise(rows: pd.DataFrame, task: str) -> dict[str, float]:
    """Return the typical SD over seeds of the headline metric, for each rule that the room is given in.

    Parameters
    ----------
    rows
        Rows of the methods of one dataset; controls and oracles do not count.
    task
        ``integration`` or ``annotation``.

    Returns
    -------
    dict
        Suffix of the columns (``_louvain``, ``_leiden``; for annotation empty) to the median over methods of
        the sample SD; NaN where no method varied over two seeds or more.
    """
    metric, impl = tasks.get(task).HEADLINE[0]
    impls = {"_louvain": "scib-1.1.5", "_leiden": "scib-1.1.7"} if task == "integration" else {"": impl}
    noise = {}
    for suffix, rule in impls.items():
        keep = (rows["metric"] == metric) & (rows["metric_impl"] == rule) & (rows["unit_level"] == "run")
        keep &= ~rows["method_kind"].isin(["trivial", "oracle"])
        spread = rows[keep].groupby("method")["value"].std()
        noise[suffix] = float(spread[spread > 1e-12].median())
    return noise


def describe(room: dict, task: str, noise: dict[str, float]) -> dict:
    """Return the room with ``seed_sd`` and ``room_in_sd`` of each rule, and a ``sentence`` that says it."""
    room = dict(room)
    for suffix, sd in noise.items():
        room[f"seed_sd{suffix}"] = sd
        room[f"room_in_sd{suffix}"] = room[f"room{suffix}"] / sd
    first = next(iter(noise))
    in_sd = room[f"room_in_sd{first}"]
    left = f"{100 * room[f'room{first}']:.1f} points are left above it"
    left += f", {in_sd:.0f} times the typical SD over seeds" if np.isfinite(in_sd) else ""
    verdict = room["verdict"][0].upper() + room["verdict"][1:]
    if task == "integration":
        k = NEIGHBOURS[0]
        sentence = (
            f"{verdict}: {room[f'mixing_k{k}']:.3f} of a cell's {k} nearest neighbours in unintegrated PCA "
            f"are of another batch; shuffled batches would give {room[f'shuffled_k{k}']:.3f}, batches "
            f"shuffled within cell types {room[f'shuffled_in_types_k{k}']:.3f}. PCA has AvgBIO "
            f"{room[f'pca_avg_bio{first}']:.3f}, {_percent(room[f'share_reached{first}'])} of the way from a "
            f"random embedding ({room[f'random_avg_bio{first}']:.3f}) to the true labels "
            f"({room[f'ceiling_avg_bio{first}']:.3f}); {left}."
        )
    else:
        sentence = (
            f"{verdict}: PCA + kNN has accuracy {room['knn']:.3f}, {_percent(room['share_reached'])} of the "
            f"way from the majority label ({room['majority']:.3f}) to the ceiling ({room['ceiling']:.3f}); "
            f"{left}. Reference and query are told apart with an AUC of {room['shift_auc']:.2f}, "
            f"{room['shift_auc_same_types']:.2f} once their cell types weigh the same (0.5: not at all)."
        )
    return room | {"sentence": sentence}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "an unknown part"


def room_of(task: str, given: ad.AnnData, solution: ad.AnnData, rows: pd.DataFrame) -> dict:
    """Measure the room of a prepared dataset, and put it in units of seed noise where methods ran."""
    room = integration_room if task == "integration" else annotation_room
    return describe(room(given, solution), task, seed_noise(rows, task))
