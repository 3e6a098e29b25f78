"""Perturbation screens in the form that GEARS distributes: one ``perturb_processed.h5ad`` each.

Source ``cells`` is that file: Norman, Adamson, Replogle K562 and RPE1 as GEARS gives them, or scGPT's own
subset of Replogle. Its layout, as GEARS writes it (read in cell-gears 0.1.2, ``data_utils.py``):

* ``X``: log-normalised values (counts scaled to the median total of all cells, then log1p), csr;
* ``layers["counts"]``: raw counts, dense; Norman only;
* ``obs``: ``condition`` (``ctrl``, ``A+ctrl``, ``ctrl+A`` or ``A+B``), ``cell_type``, ``dose_val`` (``1`` for
  controls, else ``1+1``), ``control`` (1 or 0), ``condition_name`` (``<cell_type>_<condition>_<dose_val>``);
* ``var``: Ensembl ids, and symbols in ``gene_name``;
* ``uns``: five dicts by ``condition_name``, those of ``LISTS`` below.

The result has the file's X and counts, and these columns of obs: ``condition`` in canonical form,
``condition_original`` exactly as in the file, ``control`` (bool), ``cell_type``, and ``dose_val`` and
``condition_name`` as in the file (the latter also where ``cell_type`` is corrected).

Canonical conditions. The parts of a label are sorted by code point, and ``ctrl`` comes last: ``ctrl+A``
becomes ``A+ctrl``, and ``B+A`` becomes ``A+B``. Which of the two guides targets a gene does not change what
is perturbed, so cells of both orders belong together. GEARS' split however draws among the labels as
they are written, so it needs ``condition_original``.

Lists of differentially expressed genes. ``uns["de"]`` holds the file's lists as arrays with one row per
``condition_name`` but the controls' (sorted), because text takes gigabytes: up to 1,543 lists of 5,000 names.

* ``rank_genes_groups_cov_all``: columns of the matrix, from the most to the least differentially expressed;
* ``top_non_dropout_de_20``, ``top_non_zero_de_20``: the first 20 of that ranking among the genes named next;
* ``non_zeros_gene_idx``: True for the genes that some cell of the condition expresses;
* ``non_dropout_gene_idx``: True for those, and for the genes that no control expresses either.

Columns are -1 where a list is shorter or absent. :func:`gears_uns` gives the dicts back in GEARS' form. All
lists are also computed anew from X (Welch's t-test of each condition against the controls of its cell type,
ranked by absolute score: what GEARS asks of scanpy's ``rank_genes_groups``), and ``uns["recipe"]`` says how
well both agree.

Options of the entry, each of which may be left out:

* ``cell_type: {A549: K562}``: what the file says, and what the cells are;
* ``drop: [unassigned]``: conditions whose cells are left out;
* ``de: recompute``: the file has no lists; the computed ones are kept.

With ``values: counts`` and no ``layers["counts"]``, X of the file holds counts; X of the result is then made
of them as GEARS does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata.io import read_elem
from anndata.utils import make_index_unique

from ._common import as_counts, column, open_h5ad, source

VERSION = 1
CONTROL = "ctrl"
N_TOP = 20
RANKING = "rank_genes_groups_cov_all"
TOPS = {"top_non_dropout_de_20": "non_dropout_gene_idx", "top_non_zero_de_20": "non_zeros_gene_idx"}
LISTS = (RANKING, *TOPS, *TOPS.values())
_ROWS = 8192  # of a matrix on disk, read at a time


def canonical(label: str) -> str:
    """Return a condition with its genes sorted by code point and ``ctrl`` last.

    Parameters
    ----------
    label
        ``ctrl``, or two parts joined by ``+`` of which at most one is ``ctrl``.

    Returns
    -------
    The canonical label; ``A+ctrl`` for both ``A+ctrl`` and ``ctrl+A``.

    Raises
    ------
    ValueError
        If the label has another form.
    """
    parts = label.split("+")
    if label != CONTROL and (len(parts) != 2 or parts[0] == parts[1] or not all(parts)):
        raise ValueError(f"condition {label!r}: expected ctrl, GENE+ctrl, ctrl+GENE or GENE+GENE")
    return "+".join(sorted(parts, key=lambda part: (part == CONTROL, part)))


def count_conditions(labels: Iterable[str], symbols: Iterable[str] = ()) -> dict[str, str | int]:
    """Count what a list of conditions holds.

    Parameters
    ----------
    labels
        Conditions as the file writes them; repeats count once.
    symbols
        The measured genes.

    Returns
    -------
    Numbers of labels and of canonical conditions (with the control), of singles, doubles and perturbed
    genes; how many occur under both orders; and the perturbed genes that are not measured.
    """
    original = set(labels)
    perturbed = {label: canonical(label) for label in original if canonical(label) != CONTROL}
    single = {label: name for label, name in perturbed.items() if name.endswith(f"+{CONTROL}")}
    double = {label: name for label, name in perturbed.items() if label not in single}
    genes = {part for label in perturbed for part in label.split("+")} - {CONTROL}
    absent = sorted(genes - set(symbols))
    return {
        "labels_original": len(original),
        "conditions": len(set(map(canonical, original))),
        "single_labels": len(single),
        "singles": len(set(single.values())),
        "singles_in_both_orders": len(single) - len(set(single.values())),
        "double_labels": len(double),
        "doubles": len(set(double.values())),
        "genes_perturbed": len(genes),
        "genes_not_measured": len(absent),
        "genes_not_measured_names": ",".join(absent),
    }


def moments(matrix: Any, group: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute size, mean and variance of each gene in each group of cells, reading the matrix once.

    Parameters
    ----------
    matrix
        Cells x genes, csr in memory or on disk.
    group
        Group of each cell (n_obs,), 0 to ``n_groups`` - 1.
    n_groups
        Their number.

    Returns
    -------
    Cells of each group (n_groups,); mean and unbiased variance (n_groups, n_vars), ``float64``. A
    variance of fewer than two cells is NaN.
    """
    total, squares = np.zeros((2, n_groups, matrix.shape[1]))
    for start in range(0, matrix.shape[0], _ROWS):
        block = sp.csr_matrix(matrix[start : start + _ROWS]).astype(np.float64)
        rows = group[start : start + _ROWS]
        member = sp.csr_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))), (n_groups, len(rows)))
        total += (member @ block).toarray()
        squares += (member @ block.power(2)).toarray()
    n = np.bincount(group, minlength=n_groups).astype(np.float64)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = np.where(n > 1, np.maximum(squares / n - mean**2, 0) * n / (n - 1), np.nan)
    return n.ravel(), mean, variance


def t_scores(
    n: np.ndarray, mean: np.ndarray, variance: np.ndarray, own: np.ndarray, control: np.ndarray
) -> np.ndarray:
    """Compute Welch's t statistic of groups against others, as scanpy's ``rank_genes_groups`` does.

    Parameters
    ----------
    n, mean, variance
        As :func:`moments` returns them.
    own, control
        Numbers of the groups to compare, and of those to compare them with (n_pairs,).

    Returns
    -------
    Score of each gene (n_pairs, n_vars); 0 where both groups are equal and constant.
    """
    error = variance / n[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (mean[own] - mean[control]) / np.sqrt(error[own] + error[control])
    score[np.isnan(score)] = 0
    return score


def compute_lists(
    matrix: Any, condition_name: np.ndarray, control_of: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Rank the genes of each condition against its controls, as GEARS does.

    Parameters
    ----------
    matrix
        Log-normalised values, cells x genes, csr in memory or on disk, without negative values.
    condition_name
        Group of each cell (n_obs,).
    control_of
        For each perturbed group, the group of its controls.

    Returns
    -------
    ``condition_name`` (sorted) and the arrays of ``LISTS``. The ranking of a group of one cell, which no
    t-test can rank, is -1. Genes of equal score stand in the order of the matrix.
    """
    groups, code = np.unique(condition_name, return_inverse=True)
    n, mean, variance = moments(matrix, code, len(groups))
    names = np.array(sorted(control_of), dtype=object)
    own = np.searchsorted(groups, names)
    control = np.searchsorted(groups, [control_of[name] for name in names])
    score = t_scores(n, mean, variance, own, control)
    ranking = np.argsort(-np.abs(score), axis=1, kind="stable").astype(np.int32)
    ranking[(n[own] < 2) | (n[control] < 2)] = -1
    expressed = mean != 0
    lists = {
        "condition_name": names,
        RANKING: ranking,
        "non_zeros_gene_idx": expressed[own],
        "non_dropout_gene_idx": expressed[own] | ~expressed[control],
    }
    return lists | {top: _first(ranking, lists[among]) for top, among in TOPS.items()}


def _first(ranking: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The first 20 genes of each ranking that are among some genes; -1 where there are fewer."""
    first = np.full((len(ranking), N_TOP), -1, dtype=np.int32)
    for row, genes in enumerate(ranking):
        kept = genes[(genes >= 0) & among[row, genes]][:N_TOP]
        first[row, : len(kept)] = kept
    return first


def read_lists(path: Path, names: np.ndarray, genes: pd.Index) -> dict[str, np.ndarray]:
    """Read the lists in ``uns`` of a file, one condition at a time.

    Parameters
    ----------
    path
        The file.
    names
        The perturbed ``condition_name`` to read. One that a dict of the file lacks has an empty list.
    genes
        Names of the file's genes, of which the lists are made.

    Returns
    -------
    The same as :func:`compute_lists` returns.

    Raises
    ------
    ValueError
        If a dict is missing, or a list names what is no gene of the file.
    """
    lists: dict[str, np.ndarray] = {"condition_name": names}
    with h5py.File(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.OldFormatWarning)  # one for each of thousands of arrays
        uns = file["uns"] if "uns" in file else {}
        for key in LISTS:
            if key not in uns:
                raise ValueError(
                    f"{path}: uns key {key!r} is missing, found {', '.join(uns) or 'none'}, expected GEARS' "
                    "lists, or options: {de: recompute} in the entry"
                )
            named = key == RANKING or key in TOPS  # a list of names; else of numbers
            width = N_TOP if key in TOPS else len(genes)
            shape = (len(names), width)
            rows = np.full(shape, -1, dtype=np.int32) if named else np.zeros(shape, dtype=bool)
            for row, name in zip(rows, names, strict=True):
                if name not in uns[key]:
                    continue
                values = np.asarray(read_elem(uns[key][name]))
                found = genes.get_indexer(pd.Index(values.astype(str))) if named else values.astype(int)
                wrong = values[(found < 0) | (found >= len(genes))]
                if len(wrong) or len(found) > width:
                    what = wrong[0] if len(wrong) else f"{len(found)} genes"
                    raise ValueError(
                        f"{path}: uns key {key!r}, {name!r}: found {what}, expected at most {width} of the "
                        "file's genes"
                    )
                if named:
                    row[: len(found)] = found
                else:
                    row[found] = True
            lists[key] = rows
    return lists


def agreement(file: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]) -> dict[str, int | float]:
    """Compare the lists of a file with those computed from its matrix.

    Parameters
    ----------
    file, computed
        Lists of the same conditions, as :func:`read_lists` and :func:`compute_lists` return them.

    Returns
    -------
    Number of conditions that both rank; over these the share whose list holds the same genes, of the
    ranking its first 20; and for lists of 20 the mean share of genes in common.
    """
    ranked = (file[RANKING][:, 0] >= 0) & (computed[RANKING][:, 0] >= 0)
    facts: dict[str, int | float] = {"de_conditions_compared": int(ranked.sum())}
    if not ranked.any():
        return facts
    for key in LISTS:
        a, b = file[key][ranked], computed[key][ranked]
        if a.dtype == bool:
            facts[f"de_same_{key}"] = round(float((a == b).all(axis=1).mean()), 4)
            continue
        pairs = [(set(x) - {-1}, set(y) - {-1}) for x, y in zip(a[:, :N_TOP], b[:, :N_TOP], strict=True)]
        name = "ranking_20" if key == RANKING else key
        common = [len(x & y) / max(len(x), len(y), 1) for x, y in pairs]
        facts[f"de_same_{name}"] = round(float(np.mean([x == y for x, y in pairs])), 4)
        facts[f"de_common_{name}"] = round(float(np.mean(common)), 4)
    return facts


def gears_uns(de: Mapping[str, np.ndarray], genes: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Give the lists back in the form that GEARS reads from ``uns``.

    Parameters
    ----------
    de
        ``uns["de"]`` of a tidy dataset.
    genes
        Names to give the genes, in the order of the matrix: GEARS wants those of its var index, which are
        the Ensembl ids.

    Returns
    -------
    For each of ``LISTS`` a dict by ``condition_name``: names of genes in order, or numbers of genes sorted.
    """
    ids = np.array(list(genes), dtype=object)
    form: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        key: (lambda row: ids[row[row >= 0]]) if key in (RANKING, *TOPS) else np.flatnonzero for key in LISTS
    }
    return {
        key: {str(name): form[key](row) for name, row in zip(de["condition_name"], de[key], strict=True)}
        for key in LISTS
    }


def _columns(adata: ad.AnnData, options: Mapping[str, Any], path: Path) -> tuple[pd.DataFrame, dict]:
    """Make the columns of obs, and the facts about what was corrected in them."""
    label = column(adata, "condition", path)
    in_file = column(adata, "cell_type", path)
    try:
        name_of = {value: canonical(value) for value in label.unique()}
    except ValueError as error:
        raise ValueError(
            f"{path}: obs key 'condition': {error}; or its name among options: {{drop: [...]}}"
        ) from error
    obs = pd.DataFrame({"condition": label.map(name_of), "condition_original": label}, index=adata.obs_names)
    control = label == CONTROL
    if not control.any():
        raise ValueError(f"{path}: obs key 'condition': found no cell with {CONTROL!r}, expected controls")
    facts: dict[str, str | int | float] = {}
    correct = dict(options.get("cell_type", {}))
    absent = sorted(set(correct) - set(in_file))
    if absent:
        raise ValueError(
            f"{path}: obs key 'cell_type': found {', '.join(sorted(set(in_file))[:5])}, expected "
            f"{absent[0]!r}, which options: {{cell_type: ...}} of the entry corrects"
        )
    if correct:
        facts["cell_type_corrected"] = ", ".join(f"{old} -> {new}" for old, new in sorted(correct.items()))
    if "control" in adata.obs:
        wrong = int((column(adata, "control", path).isin(["1", "1.0", "True"]) != control).sum())
        if wrong:
            raise ValueError(
                f"{path}: obs key 'control': found {wrong} cells where it says other than 'condition', "
                f"expected 1 where that is {CONTROL!r}"
            )
    dose = control.map({True: "1", False: "1+1"})
    made = {"dose_val": dose, "condition_name": in_file + "_" + label + "_" + dose}
    given = {key: column(adata, key, path) if key in adata.obs else made[key] for key in made}
    triples = pd.DataFrame(
        {"type": in_file, "label": label, "name": given["condition_name"]}
    ).drop_duplicates()
    if triples["name"].duplicated().any() or triples.duplicated(["type", "label"]).any():
        raise ValueError(
            f"{path}: obs key 'condition_name': found {triples['name'].nunique()} names, expected one for "
            f"each of {len(triples[['type', 'label']].drop_duplicates())} pairs of cell_type and condition"
        )
    obs["control"] = control
    obs["cell_type"] = in_file.replace(correct)
    obs["dose_val"], obs["condition_name"] = given["dose_val"], given["condition_name"]
    for key in obs.columns.drop("control"):
        obs[key] = pd.Categorical(obs[key])
    return obs, facts


def _controls(obs: pd.DataFrame, cell_type: pd.Series, path: Path) -> dict[str, str]:
    """For each perturbed ``condition_name`` the one of the controls of its cell type, as the file has it."""
    table = obs[["condition_name", "control"]].astype({"condition_name": str}).assign(type=cell_type)
    table = table.drop_duplicates()
    control = table[table["control"]].set_index("type")["condition_name"]
    perturbed = table[~table["control"]]
    lonely = sorted(set(perturbed["type"]) - set(control.index))
    if lonely:
        raise ValueError(
            f"{path}: obs key 'condition': found no {CONTROL!r} of cell type {lonely[0]!r}, expected controls"
        )
    return dict(zip(perturbed["condition_name"], perturbed["type"].map(control), strict=True))


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return a perturbation screen with the file's log-normalised values, and its counts if it has any.

    Parameters
    ----------
    files
        ``cells``, as the module describes it.
    entry
        The declaration; read are ``values``, ``options`` and ``var["symbol"]`` (default ``gene_name``).

    Returns
    -------
    The screen. Its matrices, which may be large, stay on disk where the file holds them as csr.

    Raises
    ------
    ValueError
        If the file is not what the module describes.
    """
    path = source(files, "cells")
    options = entry.get("options") or {}
    # an entry of log-normalised values has no counts, whatever else is in the file
    with_counts = (entry.get("values") or "counts") == "counts"
    layer = with_counts and _has_counts(path)
    adata = open_h5ad(path, "X", *(["layers/counts"] if layer else []))
    dropped, label = list(options.get("drop", [])), column(adata, "condition", path)
    unknown = sorted(set(dropped) - set(label))
    if unknown:
        raise ValueError(
            f"{path}: obs key 'condition': found no {unknown[0]!r}, expected the conditions that options: "
            "{drop: [...]} of the entry leaves out"
        )
    keep = ~label.isin(dropped).to_numpy()
    matrices = {"X": adata.X, "counts": adata.layers["counts"] if layer else None}
    if not keep.all():
        matrices = {k: None if m is None else sp.csr_matrix(m[:])[keep] for k, m in matrices.items()}
    adata = ad.AnnData(obs=adata.obs[keep], var=adata.var)
    values, counts = matrices["X"], matrices["counts"]
    if with_counts and not layer:
        counts = as_counts(values[:], path)
        values = _log_normalised(counts)
    values, counts = _float32(values), _float32(counts)
    some = sp.csr_matrix(values[:_ROWS]).data
    if (some == np.round(some)).all():
        raise ValueError(f"{path}: X: found whole numbers only, expected log-normalised values")

    obs, corrected = _columns(adata, options, path)
    control_of = _controls(obs, column(adata, "cell_type", path), path)
    symbols = _symbols(adata, (entry.get("var") or {}).get("symbol", "gene_name"), path)
    de = compute_lists(values, obs["condition_name"].astype(str).to_numpy(), control_of)
    facts: dict[str, str | int | float] = {
        **count_conditions(obs["condition_original"].cat.categories, symbols),
        "cells_dropped": int((~keep).sum()),
        "conditions_dropped": ",".join(dropped),
        "symbols_repeated": int(symbols.duplicated().sum()),
        **corrected,
        "de_lists": "computed",
        "de_conditions": len(control_of),
        "de_conditions_of_one_cell": int((de[RANKING][:, 0] < 0).sum()),
    }
    if options.get("de") != "recompute":
        given = read_lists(path, de["condition_name"], adata.var_names)
        facts["de_lists"] = "file"
        facts["de_conditions_without_list"] = int((given[RANKING][:, 0] < 0).sum())
        facts |= agreement(given, de)
        de = given
    var = pd.DataFrame(index=make_index_unique(pd.Index(symbols)))
    if not symbols.equals(pd.Index(adata.var_names.astype(str))):  # else the index holds no ids
        var["gene_id"] = adata.var_names.astype(str)
    return ad.AnnData(
        X=values,
        obs=obs,
        var=var,
        layers={"counts": counts} if counts is not None else {},
        uns={"recipe": facts, "de": de},
    )


def _has_counts(path: Path) -> bool:
    """Whether a file has ``layers["counts"]``; one that cannot be read has none."""
    try:
        with h5py.File(path) as file:
            return "layers/counts" in file
    except OSError:
        return False


def _float32(matrix: Any) -> Any:
    """The matrix itself, on disk or not, if it is ``float32``; else such a copy in memory."""
    return (
        matrix if matrix is None or matrix.dtype == np.float32 else sp.csr_matrix(matrix[:], dtype=np.float32)
    )


def _log_normalised(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Scale counts to the median total and take log1p, with scanpy's defaults: GEARS' X."""
    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata.X


def _symbols(adata: ad.AnnData, key: str, path: Path) -> pd.Index:
    """The gene symbols, as the file has them."""
    if key not in adata.var or adata.var[key].isna().any():
        found = ", ".join(map(str, adata.var.columns)) or "no columns"
        raise ValueError(f"{path}: var key {key!r}: found {found}, expected it with a symbol for every gene")
    return pd.Index(adata.var[key].astype(str))
