"""GEARS' files about genes: GO terms of each gene, and the graph of genes that share terms.

They are no cells, so they are downloaded and not prepared; a method that uses GO terms reads them with
these functions. cell-gears itself would unpickle the download: give it what :func:`read_gene2go` returns,
pickled anew.

* ``gene2go``: a pickled dict, gene symbol -> set of GO ids (such as ``GO:0005515``);
* ``go_graph``: ``go_essential_all.csv`` with the columns ``source``, ``target`` and ``importance``. The
  importance of two genes is the number of GO terms that both have, over the number that either has.
  GEARS writes importances above 0.1 only, in both directions, and of each gene with itself. So its
  genes are the perturbations that GEARS knows by default, and its third file, a pickle that lists them, is
  not needed.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ._old_pickle import read_sets

COLUMNS = ("source", "target", "importance")


def read_gene2go(path: Path) -> dict[str, set[str]]:
    """Read the GO terms of genes, running nothing of the pickle.

    Parameters
    ----------
    path
        ``gene2go_all.pkl``.

    Returns
    -------
    Gene symbols and their GO ids.

    Raises
    ------
    ValueError
        If the file holds anything but a dict of sets of GO ids.
    """
    terms = read_sets(path)
    for gene, ids in terms.items():
        wrong = sorted(term for term in ids if not term.startswith("GO:"))
        if wrong:
            raise ValueError(f"{path}: key {gene!r}: found {wrong[0]!r}, expected ids such as GO:0005515")
    return terms


def read_go_graph(path: Path) -> pd.DataFrame:
    """Read the graph of genes that share GO terms.

    Parameters
    ----------
    path
        ``go_essential_all.csv``.

    Returns
    -------
    One row per directed edge: ``source`` and ``target`` (gene symbols, categorical), and ``importance``
    (``float64``, above 0 up to 1).

    Raises
    ------
    ValueError
        If the columns are others, a gene is missing, or an importance is out of range.
    """
    try:
        # a gene may be called NA or NAN, which is no missing value
        text = {"source": "category", "target": "category", "importance": "float64"}
        table = pd.read_csv(path, dtype=text, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{path}: found no readable csv ({error}), expected one") from error
    if tuple(table.columns) != COLUMNS:
        raise ValueError(
            f"{path}: found columns {', '.join(map(str, table.columns[:5]))}, expected {', '.join(COLUMNS)}"
        )
    if "" in table["source"].cat.categories or "" in table["target"].cat.categories:
        raise ValueError(f"{path}: columns source and target: found an empty gene name, expected symbols")
    wrong = table["importance"][~table["importance"].between(0, 1, inclusive="right")]
    if len(wrong):
        raise ValueError(
            f"{path}: column 'importance': found {len(wrong)} values such as {wrong.iloc[0]:g}, "
            "expected shares above 0 up to 1"
        )
    return table
