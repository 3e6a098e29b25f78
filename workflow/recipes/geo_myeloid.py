"""Myeloid cells of several cancers as GEO gives them out (GSE154763, Cheng et al. 2021).

The fallback for scGPT's processed Myeloid files. Each cancer has two sources:

* ``<name>_expression``: ``GSE154763_<CANCER>_normalized_expression.csv.gz``, log-normalised values of cells x
  genes with the cells' ids in the first column. Each cancer has its own genes; those that all have stay;
* ``<name>_metadata``: ``GSE154763_<CANCER>_metadata.csv.gz``, with the same ids, ``cancer``, ``patient``,
  ``tissue``, ``MajorCluster`` and more.

There are no counts at GEO. ``MajorCluster`` loses its number (``M09_Macro_SPP1`` is ``Macro_SPP1``), because
types are numbered within a cancer. Options as in ``_cells``, and

* ``query``: the names (as in the sources) of the cancers that are the query; the others are the reference.

What comes out is not what scGPT's processed files hold: genes are not selected, and cells were subsampled
there by a draw that is not published.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from workflow.declarations import closest
from workflow.tidy import DataError

from ._cells import assemble, options, read_table, take_obs, take_values, take_var
from ._common import source

VERSION = 1
OPTIONS = ("query",)
CLUSTER_NUMBER = r"^M\d+_"
ROWS = 500  # of a table of expression, read at a time: a whole one is dense and takes gigabytes


def read_cancer(files: dict[str, Path], name: str) -> tuple[sp.csr_matrix, list[str], pd.DataFrame]:
    """Read the values, genes and metadata of one cancer.

    Raises
    ------
    DataError
        If a file is no such table, or cells have no metadata.
    """
    path, about = source(files, f"{name}_expression"), source(files, f"{name}_metadata")
    metadata = read_table(about, index_col=0, low_memory=False)
    metadata.index = metadata.index.astype(str)
    if not metadata.index.is_unique:
        raise DataError(f"{about}: cell {metadata.index[metadata.index.duplicated()][0]!r} is there twice")
    blocks, cells, genes = [], [], []
    try:
        for block in read_table(path, index_col=0, chunksize=ROWS):
            blocks.append(sp.csr_matrix(block.to_numpy(dtype=np.float32)))
            cells += list(block.index.astype(str))
            genes = list(block.columns)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable table ({' '.join(str(error).split())})") from error
    unknown = [cell for cell in cells if cell not in metadata.index]
    if unknown or not cells:
        raise DataError(
            f"{about}: {len(unknown)} of {len(cells)} cells of {path.name} are not there"
            + (f", first {unknown[0]!r}" if unknown else "")
            + "; expected a row for each"
        )
    if "MajorCluster" in metadata:
        metadata["MajorCluster"] = metadata["MajorCluster"].str.replace(CLUSTER_NUMBER, "", regex=True)
    return sp.vstack(blocks, format="csr"), genes, metadata.loc[cells]


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return the cells of all cancers that the sources hold.

    Parameters
    ----------
    files
        Two for each cancer, as the module describes them.
    entry
        The declaration: ``obs`` (columns of the metadata) and ``options``.

    Returns
    -------
    The tidy dataset with log-normalised X and ``obs["split"]``. Cell names begin with the cancer's.

    Raises
    ------
    ValueError
        If a file is not what is expected.
    """
    query = options(entry, *OPTIONS).get("query", [])
    names = [key.removesuffix("_expression") for key in files if key.endswith("_expression")]
    for name in query:
        if name not in names:
            raise ValueError(f"options.query: no source {name + '_expression'!r}{closest(name, names)}")
    if not names or not query or set(names) == set(query):
        raise ValueError(
            f"sources: found {', '.join(names) or 'none'} with {', '.join(query) or 'none'} as query "
            "(options.query); expected a reference and a query"
        )
    matrices, all_genes, tables = [], [], []
    for name in names:
        matrix, genes, table = read_cancer(files, name)
        table.index = [f"{name}_{cell}" for cell in table.index]
        matrices.append(matrix)
        all_genes.append(pd.Index(genes))
        tables.append(table.assign(side="query" if name in query else "reference"))
    shared = all_genes[0][[all(g in other for other in all_genes[1:]) for g in all_genes[0]]]
    if not len(shared):
        raise ValueError(f"sources: no gene is in all of {', '.join(names)}; expected symbols in each header")
    matrix = sp.vstack(
        [m[:, g.get_indexer(shared)] for m, g in zip(matrices, all_genes, strict=True)], format="csr"
    )
    path = source(files, f"{names[0]}_metadata")
    words = {**entry, "obs": {**entry["obs"], "split": "side"}}
    obs, keep, facts = take_obs(pd.concat(tables), words, path)
    place = f"{path.parent}: the expression of {', '.join(names)}"
    values, measured = take_values(matrix[keep], entry, place)
    genes = take_var(pd.DataFrame(index=shared), entry, path)
    facts |= {f"genes_of_{name}": len(g) for name, g in zip(names, all_genes, strict=True)}
    facts["fallback"] = "GEO's own files; cells and genes differ from scGPT's processed files"
    return assemble(values, obs, genes, entry, facts | measured)
