"""Counts of a study as the Curated Cancer Cell Atlas (3CA, Weizmann Institute) gives them out.

The fallback for Lung-Kim (Kim et al. 2020), whose processed file scGPT made from them. Sources, all of one
archive:

* ``matrix``: ``Exp_data_UMIcounts.mtx``, genes x cells;
* ``genes``: ``Genes.txt``, a symbol a line, quoted or not;
* ``cells``: ``Cells.csv``, a row per cell in the order of the matrix, with ``cell_name``, ``sample``,
  ``cell_type`` (empty where the cell is not annotated) and more.

Options as in ``_cells``. What comes out is not what scGPT's processed file holds: genes are not selected, and
which cells were left out there is not known beyond those without a type.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pandas as pd

from workflow.tidy import DataError

from ._cells import assemble, options, read_mtx, read_table, take_obs, take_values, take_var
from ._common import source

VERSION = 1


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return the cells of a 3CA study.

    Parameters
    ----------
    files
        ``matrix``, ``genes`` and ``cells``, as the module describes them.
    entry
        The declaration: ``obs`` (columns of ``Cells.csv``) and ``options``.

    Returns
    -------
    The tidy dataset with counts.

    Raises
    ------
    ValueError
        If a file is not what is expected.
    """
    options(entry)
    paths = {name: source(files, name) for name in ("matrix", "genes", "cells")}
    table = read_table(paths["cells"])
    if "cell_name" not in table:
        found = ", ".join(map(str, table.columns[:5]))
        raise DataError(f"{paths['cells']}: column 'cell_name' is missing, found {found}")
    table = table.set_index("cell_name")
    genes = read_table(paths["genes"], header=None, dtype=str, keep_default_na=False)  # NA is no symbol here
    matrix = read_mtx(paths["matrix"], len(genes), len(table))
    obs, keep, facts = take_obs(table, entry, paths["cells"])
    values, _ = take_values(matrix[keep], entry, str(paths["matrix"]))
    return assemble(
        values,
        obs,
        take_var(pd.DataFrame(index=pd.Index(genes[0])), entry, paths["genes"]),
        entry,
        facts | {"fallback": "3CA's own files; cells and genes differ from scGPT's processed file"},
    )
