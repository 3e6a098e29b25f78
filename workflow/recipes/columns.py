"""One h5ad whose columns and values the declaration names; no recipe of its own is needed.

Serves every dataset without ``recipe``, such as COVID-19, Lung-Kim, perirhinal cortex and Immune Human. The
file may be dense or sparse, by row or by column, of integers or floats. Of ``obs`` only what is declared is
kept. The options are those of ``_cells`` and of its ``read_cells``.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from ._cells import assemble, read_cells

VERSION = 1


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return the cells of one h5ad file.

    Parameters
    ----------
    files
        One source, of any name.
    entry
        The declaration: ``obs``, ``var``, ``values`` and ``options``.

    Returns
    -------
    The tidy dataset. ``uns["recipe"]`` says which cells were dropped, and how log-normalised values were
    normalised, as far as they show it.

    Raises
    ------
    ValueError
        If the file is not what the declaration says, or the declaration contradicts itself.
    """
    if len(files) != 1:
        raise ValueError(f"sources: found {', '.join(files) or 'none'}; expected one h5ad file")
    cells = read_cells(next(iter(files.values())), entry)
    return assemble(cells.X, cells.obs, cells.var, entry, dict(cells.uns))
