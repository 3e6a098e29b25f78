"""Two h5ad files, the reference and the query of a published split.

Sources ``reference`` and ``query``, read by the same words of the declaration (see ``columns`` and its
options). The result has the reference's cells first, then the query's, and ``obs["split"]``. Genes are those
that both files have, in the reference's order. They are matched by the names of ``var``; where one file names
its genes by Ensembl ids and the other by symbols, by symbols.

Serves the annotation sets of scGPT and TOSICA (MS, Myeloid, hPancreas) and the reference mapping sets of
scGPT (COVID-19, Lung-Kim). What the split does to labels is recorded: those that only one side has.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from workflow.tidy import COLUMNS

from ._cells import are_ensembl, assemble
from ._common import source
from .columns import read_cells

VERSION = 1
SIDES = ("reference", "query")


def match_genes(reference: pd.DataFrame, query: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, str]:
    """Find the genes that both files have.

    Parameters
    ----------
    reference, query
        Genes of each file, as ``_cells.take_var`` returns them.

    Returns
    -------
    Their places in the reference, in its order; their places in the query; and by what they were matched.

    Raises
    ------
    ValueError
        If a name that has to be matched repeats, or none is shared.
    """
    same_kind = are_ensembl(reference.index) == are_ensembl(query.index)
    by = "names of var" if same_kind else "symbols"
    ours, theirs = (pd.Index(g.index if same_kind else g["symbol"]) for g in (reference, query))
    if ours.equals(theirs):  # in one order, so that repeated names do no harm
        return np.arange(len(ours)), np.arange(len(ours)), by
    for side, names in zip(SIDES, (ours, theirs), strict=True):
        if not names.is_unique:
            raise ValueError(
                f"source {side!r}: the gene {names[names.duplicated()][0]!r} is there twice; expected unique "
                f"names, because genes are matched by {by}"
            )
    places = theirs.get_indexer(ours)
    if (places < 0).all():
        raise ValueError(
            f"no gene is in both files, matched by {by} (reference: {ours[0]!r}, query: {theirs[0]!r}, ...)"
        )
    return np.flatnonzero(places >= 0), places[places >= 0], by


def _only(labels: pd.Series, other: pd.Series) -> str:
    """List the labels, with their cells, that the other side has not."""
    counts = labels[~labels.isin(other)].astype(str).value_counts()
    return "; ".join(f"{label} ({n} cells)" for label, n in counts.items()) or "none"


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return reference and query as one dataset.

    Parameters
    ----------
    files
        ``reference`` and ``query``.
    entry
        The declaration: ``obs``, ``var``, ``values`` and ``options``.

    Returns
    -------
    The tidy dataset with ``obs["split"]``. ``uns["recipe"]`` says how many genes were left out, which labels
    only one side has, and for each side what ``columns`` records. Where a cell name is on both sides, all
    names end in ``-reference`` or ``-query``.

    Raises
    ------
    ValueError
        If a file is not what the declaration says, or the two do not fit together.
    """
    if "split" in entry["obs"]:
        raise ValueError("obs.split is declared, but the two files are the split; expected no such key")
    cells = {side: read_cells(source(files, side), entry) for side in SIDES}
    reference, query = cells["reference"], cells["query"]
    ours, theirs, by = match_genes(reference.var, query.var)
    genes = reference.var.iloc[ours].copy()
    if "gene_id" not in genes and "gene_id" in query.var:
        genes["gene_id"] = query.var["gene_id"].to_numpy()[theirs]

    facts = {
        "genes_matched_by": by,
        "genes_only_in_reference": reference.n_vars - len(ours),
        "genes_only_in_query": query.n_vars - len(theirs),
        "labels_only_in_reference": _only(reference.obs["label"], query.obs["label"]),
        "labels_only_in_query": _only(query.obs["label"], reference.obs["label"]),
        "shared_cell_names": int(query.obs_names.isin(reference.obs_names).sum()),
    }
    facts |= {f"{side}_{key}": value for side in SIDES for key, value in cells[side].uns.items()}

    obs = pd.concat([cells[side].obs.assign(split=side) for side in SIDES])
    if facts["shared_cell_names"]:
        obs.index = [f"{name}-{side}" for name, side in zip(obs.index, obs["split"], strict=True)]
    obs = obs[[*(c for c in COLUMNS if c in obs), *(c for c in obs if c not in COLUMNS)]]
    for column in obs:
        if not pd.api.types.is_numeric_dtype(obs[column]):  # the files may have other categories
            obs[column] = pd.Categorical(obs[column].astype(str))
    values = sp.vstack([reference.X[:, ours], query.X[:, theirs]], format="csr")
    values.sort_indices()
    return assemble(values, obs, genes, entry, facts)
