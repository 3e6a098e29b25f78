"""Audits of the data: who chose the genes, what stands twice, what the input gives away."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.tree import DecisionTreeClassifier

from workflow.audits import PASS, WARN, Case, Finding, absent, audit, verdict
from workflow.declarations import ROOT

#: Fewer genes than this are not what an experiment on whole cells gives: somebody has chosen.
WHOLE_TRANSCRIPTOME = 10_000
TOP_GENES = 10
FEWEST_SHARED_GENES = 100
#: A column that names the type of so many hidden cells gives the labels away.
GIVES_AWAY = 0.99
N_PERMUTED = 3
_STREAM = 0xA2  # the stream called "audit"


@audit("L1", "Which cells chose the genes")
def genes(case: Case) -> Iterator[Finding]:
    yield _choice(case)
    for method, runs in case.ok.groupby("method", sort=False):
        if (runs.iloc[0]["params"] or {}).get("feature_scope") == "all":
            facts = case.prepared["facts"]["highly_variable"]
            shared = facts.get("shared_with_all_cells", facts["n_top"])
            sentence = (
                f"{case.title(str(method))} reads genes that were chosen on all cells, the query among them: "
                f"{facts['n_top'] - shared} of {facts['n_top']} are others than the reference would choose."
            )
            yield Finding(WARN, facts["n_top"] - shared, sentence, str(method))


def _choice(case: Case) -> Finding:
    facts = case.prepared["facts"]["highly_variable"]
    n = case.prepared["n_vars"]
    if facts["flavor"] == "all genes":
        chosen = f"All {n} genes of the file are used"
    else:
        chosen = f"{facts['n_top']} of {n} genes were chosen by {facts['flavor']} on {facts['scope']}"
    if n < WHOLE_TRANSCRIPTOME:
        sentence = (
            f"The file came with {n} genes, fewer than the {WHOLE_TRANSCRIPTOME} and more of a whole "
            f"transcriptome: others chose them, on cells that we do not know. {chosen}."
        )
        return Finding(WARN, n, sentence)
    if case.task == "annotation":
        return Finding(verdict(facts["scope"] == "reference cells"), n, f"{chosen}.")
    sentence = f"{chosen}, which every method sees; no label was read in choosing them."
    return Finding(PASS, n, sentence)


@audit("L5", "No gene set in two splits")
def gene_sets(case: Case) -> Finding:
    assert case.given is not None
    obs = case.given.obs
    if "condition" not in obs or "split" not in obs:
        return absent("Its cells are not perturbed: there are no conditions that could stand in two splits.")
    conditions, splits = obs["condition"].astype(str), obs["split"].astype(str)
    twice = shared_gene_sets(conditions, splits)
    total = len({gene_set(c) for c in conditions})
    sentence = f"{len(twice)} of {total} gene sets stand in more than one split"
    sentence += f", for instance {'+'.join(sorted(twice[0]))}." if twice else "."
    return Finding(verdict(not twice), len(twice), sentence)


def gene_set(condition: str) -> frozenset[str]:
    """Return the perturbed genes of a condition: ``A+ctrl`` and ``ctrl+A`` are one, ``ctrl`` is none."""
    return frozenset(condition.split("+")) - {"ctrl"}


def shared_gene_sets(conditions: Iterable[str], splits: Iterable[str]) -> list[frozenset[str]]:
    """Return the gene sets that stand in more than one split, sorted; controls may."""
    places: dict[frozenset[str], set[str]] = {}
    for condition, split in zip(conditions, splits, strict=True):
        places.setdefault(gene_set(condition), set()).add(split)
    return sorted((s for s, where in places.items() if s and len(where) > 1), key=sorted)


@audit("L6", "Targets among the genes that are scored")
def targets(case: Case) -> Finding:
    return absent("No list of differentially expressed genes is scored here, and no gene was perturbed.")


@audit("L7", "Cells that stand twice, or in the pre-training corpus")
def duplicates(case: Case) -> Iterator[Finding]:
    assert case.given is not None
    adata = case.given
    matrix = sp.csr_matrix(adata.layers["counts"] if "counts" in adata.layers else adata.X)
    hashes = np.array(row_hashes(matrix))
    if case.task == "annotation":
        reference = set(hashes[~case.hidden])
        copies = sum(h in reference for h in hashes[case.hidden])
        sentence = f"{copies} of {case.hidden.sum()} query cells have the very counts of a reference cell."
    else:
        batches = adata.obs["batch"].astype(str).to_numpy()
        places = pd.DataFrame({"hash": hashes, "batch": batches}).drop_duplicates()["hash"].value_counts()
        copies = int(np.isin(hashes, places.index[places > 1]).sum())
        sentence = f"{copies} of {len(hashes)} cells have the very counts of a cell of another batch."
    yield Finding(verdict(copies == 0), copies, sentence)
    yield _corpus(case, matrix)


def _corpus(case: Case, matrix: sp.csr_matrix) -> Finding:
    pretrained = [info for info in case.ok["info"] if (info or {}).get("pretrained_cells")]
    if case.corpus is None:
        if pretrained:
            return Finding(
                WARN,
                None,
                "A model was pre-trained, but its corpus is not here to be searched for these cells.",
            )
        return absent("No method was pre-trained: there is no corpus that could hold these cells.")
    from scmamba2.pretraining.shards import Shards

    assert case.given is not None
    shards = Shards(case.corpus)
    shared = pd.Index(shards.symbols).intersection(case.given.var_names)
    if "counts" not in case.given.layers or len(shared) < FEWEST_SHARED_GENES:
        return absent(
            f"These cells have no counts, or only {len(shared)} genes of the corpus: none to compare."
        )
    ours = signatures(matrix[:, case.given.var_names.get_indexer(shared)])
    known: set[bytes] = set()
    columns = pd.Index(shards.symbols).get_indexer(shared)
    for start in range(0, len(shards), 10_000):
        cells = np.arange(start, min(start + 10_000, len(shards)))
        known.update(set(signatures(shards.rows(cells)[:, columns])) & set(ours))
    found = sum(signature in known for signature in ours)
    sentence = (
        f"{found} of {len(ours)} cells have the signature (counts, genes, {TOP_GENES} highest genes; on "
        f"{len(shared)} shared genes) of one of {len(shards)} cells of the corpus."
    )
    return Finding(verdict(found == 0), found / len(ours), sentence)


def row_hashes(matrix: sp.csr_matrix) -> list[bytes]:
    """Return a hash of each row (genes and values): equal rows have equal ones."""
    matrix = _canonical(matrix)
    found = []
    for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        row = hashlib.blake2b(matrix.indices[start:end].tobytes(), digest_size=16)
        row.update(matrix.data[start:end].tobytes())
        found.append(row.digest())
    return found


def signatures(counts: sp.csr_matrix) -> list[bytes]:
    """Return what is nearly unique to each cell: sum of counts, number of genes, `TOP_GENES` highest genes.

    Of equal counts the gene with the lower index stands first.
    """
    counts = _canonical(counts)
    found = []
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        values, genes = counts.data[start:end], counts.indices[start:end]
        top = genes[np.lexsort((genes, -values))[:TOP_GENES]]
        found.append(np.array([values.sum(), len(values), *top], dtype=np.int64).tobytes())
    return found


def _canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    matrix = sp.csr_matrix(matrix, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.indices = matrix.indices.astype(np.int32)
    return matrix


@audit("L11", "Cell types that one side lacks")
def overlap(case: Case) -> Iterator[Finding]:
    assert case.given is not None and case.solution is not None
    if case.task == "integration":
        seen = pd.crosstab(case.labels, case.solution.obs["batch"].astype(str).to_numpy()) > 0
        alone = seen.index[seen.sum(axis=1) == 1]
        share = float(np.isin(case.labels, alone).mean())
        sentence = (
            f"{len(alone)} of {len(seen)} cell types stand in one batch only ({100 * share:.1f} % of cells)"
        )
        sentence += ": " + ", ".join(alone) + "; ASW_batch leaves them out." if len(alone) else "."
        yield Finding(verdict(share <= 0.05), share, sentence)
        return
    known = {str(label) for label in case.solution.uns["reference_labels"]}
    missing, n = sorted(set(case.labels) - known), len(set(case.labels))
    ceiling = float(np.isin(case.labels, sorted(known)).mean())
    sentence = f"The reference has {n - len(missing)} of the {n} cell types of the query"
    sentence += f", not {', '.join(missing)}" if missing else ""
    yield Finding(verdict(ceiling == 1), ceiling, f"{sentence}: no accuracy can exceed {ceiling:.4f}.")
    sets = ("sklearn-union", "sklearn-query", "sklearn-shared")
    macros = pd.DataFrame({name: case.means("macro_f1", name) for name in sets})
    for method, found in macros.iterrows():
        spread = float(found.max() - found.min())
        shown = ", ".join(f"{found[s]:.3f} ({s.removeprefix('sklearn-')})" for s in sets)
        sentence = f"Macro F1 of {case.title(method)} over three sets of labels: {shown}."
        yield Finding(verdict(spread <= 0.02), spread, sentence, method)


@audit("L16", "Batch labels that say nothing")
def random_batches(case: Case) -> Finding:
    if case.task != "integration":
        return absent("Annotation is not scored by batch.")
    mixing, low = case.room.get("mixing_k15", np.nan), case.room.get("shuffled_low_k15", np.nan)
    index = case.room.get("mixing_index_k15", np.nan)
    fine = bool(mixing < low)
    sentence = (
        f"Unintegrated PCA mixes batches {mixing:.3f}, shuffled batches {case.room['shuffled_k15']:.3f} "
        f"(97.5 % of the shuffles above {low:.3f})"
    )
    sentence += (
        ": the batch labels mark a difference between cells."
        if fine
        else ": these labels cannot be told from random ones, so AvgBATCH and iLISI measure little here."
    )
    return Finding(verdict(fine), index, sentence)


@audit("A2", "Labels shuffled before training")
def permuted_reference(case: Case) -> Finding:
    if case.task != "annotation":
        return absent("Integration is given no label that could be shuffled (A6 looks for one).")
    assert case.given is not None and case.solution is not None
    rng = np.random.default_rng(_STREAM)
    found, chance = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(N_PERMUTED):
            predicted = _knn_on(permute_reference(case.given, rng), Path(folder))
            found.append(float((predicted == case.labels).mean()))
            chance.append(chance_accuracy(case.labels, predicted)[0])
    accuracy, expected = float(np.mean(found)), float(np.mean(chance))
    # of the difference: with the labels that a shuffle makes common, both rise and fall together
    excess = np.subtract(found, chance)
    tolerance = max(0.05, 3 * float(np.std(excess, ddof=1)) / np.sqrt(N_PERMUTED))
    sentence = (
        f"PCA + kNN that learns from shuffled labels has accuracy {accuracy:.3f} (mean of {N_PERMUTED} "
        f"shuffles); predictions that know nothing of the cells would have {expected:.3f} ± {tolerance:.3f} "
        "(from how often each label is predicted and true; 5 points or three standard errors, the larger)."
    )
    return Finding(verdict(accuracy <= expected + tolerance), accuracy, sentence)


def permute_reference(given: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    """Return a copy in which the labels of the reference cells are shuffled among these."""
    adata = given.copy()
    reference = np.flatnonzero(adata.obs["split"] == "reference")
    labels = adata.obs["label"].to_numpy(dtype=object)
    labels[reference] = rng.permutation(labels[reference])
    adata.obs["label"] = pd.Categorical(labels, categories=given.obs["label"].cat.categories)
    return adata


def _knn_on(adata: ad.AnnData, folder: Path) -> np.ndarray:
    """Return what the baseline PCA + kNN predicts, run as the suite runs it."""
    given, output = folder / "input.h5ad", folder / "output.h5ad"
    adata.write_h5ad(given)
    command = [sys.executable, "-m", "baselines.knn", "--task", "annotation", "--input", str(given)]
    command += ["--output", str(output), "--params", '{"n_components": 50, "n_neighbors": 15}']
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"baselines.knn on shuffled labels: {ended.stderr.strip()[-500:]}")
    return ad.read_h5ad(output).obs["label_pred"].to_numpy(dtype=str)


def chance_accuracy(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Return mean and SD of the accuracy over all permutations of the truth.

    Exact, from the shares t and p of each label in truth and prediction: mean = sum t p, variance =
    (sum t p - sum t^2 p - sum t p^2 + (sum t p)^2) / (n - 1); Hoeffding (1951), "A combinatorial central
    limit theorem", Ann. Math. Stat. 22, 558-566, applied to matches.
    """
    n = len(truth)
    labels = sorted(set(truth) | set(predicted))
    t = pd.Series(truth).value_counts().reindex(labels, fill_value=0).to_numpy() / n
    p = pd.Series(predicted).value_counts().reindex(labels, fill_value=0).to_numpy() / n
    mean = float(t @ p)
    variance = (mean - (t**2) @ p - t @ (p**2) + mean**2) / (n - 1)
    return mean, float(np.sqrt(max(variance, 0.0)))


@audit("A6", "Labels that the input gives away")
def unreachable(case: Case) -> Finding:
    assert case.given is not None
    looked, worst, where = 0, 0.0, ""
    for name, values in slots(case.given, case.hidden):
        looked += 1
        share = predicts(values, case.labels)
        if share > worst:
            worst, where = share, name
    most = float(pd.Series(case.labels).value_counts(normalize=True).iloc[0])
    sentence = (
        f"Of {looked} columns and arrays of the input beside the expression, {where or 'none'} says most "
        f"about the hidden labels: it names that of {100 * worst:.1f} % of the cells (judged on cells that "
        f"the rule was not fitted to), the commonest label alone {100 * most:.1f} %."
    )
    return Finding(verdict(worst < GIVES_AWAY), worst, sentence)


def slots(given: ad.AnnData, hidden: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values (of the hidden cells) of everything in the input that has one value per cell.

    Columns of ``obs``, the cell names without their digits, the place in the file, columns of ``obsm``, and
    arrays anywhere in ``uns`` with as many values as there are cells, or hidden cells. Expression is what
    methods are meant to read, and is left out.
    """
    for column in given.obs:
        yield f"obs[{column!r}]", given.obs[column].to_numpy()[hidden]
    yield "the cell names", given.obs_names.str.replace(r"\d+", "", regex=True).to_numpy()[hidden]
    yield "the place in the file", np.flatnonzero(hidden)
    for key in given.obsm:
        matrix = given.obsm[key]
        matrix = np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix)
        for index in range(matrix.shape[1]):
            yield f"obsm[{key!r}] column {index}", matrix[hidden, index]
    for name, values in _arrays(given.uns, "uns"):
        if len(values) == given.n_obs:
            yield name, values[hidden]
        elif len(values) == hidden.sum():
            yield name, values


def _arrays(tree, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _arrays(value, f"{name}[{key!r}]")
    elif isinstance(tree, pd.DataFrame):
        for column in tree:
            yield f"{name}[{column!r}]", tree[column].to_numpy()
    elif isinstance(tree, np.ndarray | list | tuple | pd.Series | pd.Categorical) and np.ndim(tree) == 1:
        yield name, np.asarray(tree)


def predicts(values: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of cells whose label a column names, judged on cells that it was not fitted to.

    Two halves: in each, a decision tree (numbers) or the commonest label of each value (text) that was
    fitted to the other. A column of unique names so predicts nothing. A missing value predicts no label.
    """
    column = pd.Series(values)
    known = column.notna().to_numpy()
    if not known.any():
        return 0.0
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    half = np.random.default_rng(_STREAM).permutation(len(labels)) % 2 == 0
    right = np.zeros(len(labels), dtype=bool)
    for train, test in ((half & known, ~half & known), (~half & known, half & known)):
        if not train.any() or not test.any():
            continue
        if numeric:
            x = column.to_numpy(dtype=float)[:, None]
            tree = DecisionTreeClassifier(min_samples_leaf=2, random_state=0).fit(x[train], labels[train])
            right[test] = tree.predict(x[test]) == labels[test]
        else:
            text = column.astype(str)
            rule = pd.crosstab(text[train], labels[train]).idxmax(axis=1)
            right[test] = text[test].map(rule).to_numpy(dtype=object) == labels[test]
    return float(right.mean())
