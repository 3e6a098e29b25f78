"""Counts of an experiment as the Single Cell Expression Atlas (EMBL-EBI) gives them out.

The fallback for MS (E-HCAD-35, Schirmer et al. 2019), whose processed files scGPT made from them. Sources:

* ``matrix``, ``rows``, ``cols``: ``<accession>.aggregated_filtered_counts.mtx``, ``.mtx_rows`` and
  ``.mtx_cols`` of the archive of raw counts: genes x cells, Ensembl ids, cell ids;
* ``design``: the experiment design, a tsv with the cell ids under ``Assay`` and columns such as
  ``Factor Value[disease]`` and ``Factor Value[inferred cell type - authors labels]``;
* ``symbols`` (optional): a tsv with ``ensembl_gene_id`` and ``symbol``, such as HGNC's complete set. The
  atlas gives ids only; without this file the ids stand for the symbols, and a method with a vocabulary of
  symbols knows none of the genes.

The atlas estimates counts: a molecule that fits several genes is divided among them, so some counts are
fractions. They are rounded, and their share is recorded.

Options as in ``_cells``. What comes out is not what scGPT's processed files hold: genes are not selected, and
cells of the reference and the query differ as far as the processing did.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from workflow.declarations import closest
from workflow.tidy import DataError

from ._cells import assemble, options, read_mtx, read_table, take_obs, take_values, take_var
from ._common import source

VERSION = 1
MAX_FRACTIONS = 0.5  # of the values of estimated counts; of normalised values nearly all are fractions


def read_symbols(path: Path) -> pd.Series:
    """Read symbols by Ensembl id; an id with two symbols has its first.

    Raises
    ------
    DataError
        If a column is missing.
    """
    table = read_table(path, sep="\t", dtype=str, keep_default_na=False)
    for column in ("ensembl_gene_id", "symbol"):
        if column not in table:
            raise DataError(f"{path}: column {column!r} is missing{closest(column, table.columns)}")
    table = table[table["ensembl_gene_id"] != ""].drop_duplicates("ensembl_gene_id")
    return table.set_index("ensembl_gene_id")["symbol"]


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return the cells of an experiment of the atlas.

    Parameters
    ----------
    files
        ``matrix``, ``rows``, ``cols``, ``design`` and perhaps ``symbols``, as the module describes them.
    entry
        The declaration: ``obs`` (columns of the design) and ``options``.

    Returns
    -------
    The tidy dataset with counts.

    Raises
    ------
    ValueError
        If a file is not what is expected.
    """
    options(entry)
    paths = {name: source(files, name) for name in ("matrix", "rows", "cols", "design")}
    ids = read_table(paths["rows"], sep="\t", header=None, dtype=str)[0]
    cells = read_table(paths["cols"], sep="\t", header=None, dtype=str)[0]
    design = read_table(paths["design"], sep="\t", low_memory=False)
    if "Assay" not in design:
        raise DataError(f"{paths['design']}: column 'Assay' is missing{closest('Assay', design.columns[:5])}")
    design = design.drop_duplicates("Assay").set_index("Assay")
    unknown = ~cells.isin(design.index)
    if unknown.any():
        raise DataError(
            f"{paths['design']}: {unknown.sum()} of {len(cells)} cells of the matrix are not there, first "
            f"{cells[unknown].iloc[0]!r}; expected all"
        )
    matrix = read_mtx(paths["matrix"], len(ids), len(cells))
    obs, keep, facts = take_obs(design.loc[cells], entry, paths["design"])
    matrix = matrix[keep]
    fractions = float(np.mean(matrix.data != np.round(matrix.data)))
    if fractions > MAX_FRACTIONS:
        raise DataError(
            f"{paths['matrix']}: {fractions:.1%} of the values are fractions; expected the counts of the "
            "atlas's archive of raw counts, not its normalised ones"
        )
    facts["rounded_share"] = fractions
    matrix.data = np.round(matrix.data)
    values, _ = take_values(matrix, entry, str(paths["matrix"]))

    table = pd.DataFrame(index=pd.Index(ids))
    naming: dict = {}
    if "symbols" in files:
        table["symbol"] = read_symbols(source(files, "symbols")).reindex(ids).to_numpy()
        naming = {"var": {"symbol": "symbol"}}
        facts["genes_without_symbol"] = int(table["symbol"].isna().sum())
    genes = take_var(table, naming, paths["rows"])
    return assemble(
        values,
        obs,
        genes,
        entry,
        facts | {"fallback": "the atlas's own files; cells and genes differ from scGPT's processed files"},
    )
