"""One h5ad whose columns and values the declaration names; no recipe of its own is needed.

Serves every dataset without ``recipe``, such as COVID-19, Lung-Kim, perirhinal cortex and Immune Human. The
file may be dense or sparse, by row or by column, of integers or floats. Of ``obs`` only what is declared is
kept. The options are those of ``_cells``, and

* ``counts_from``: ``X``, ``layers/<name>`` or ``raw``, where the counts are. Left out: ``layers/counts`` if
  the file has it, else ``X``;
* ``lognorm_from``: the same for ``values: lognorm``. Left out: ``X``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from workflow.tidy import DataError, read_h5ad

from ._cells import assemble, options, take_obs, take_values, take_var

VERSION = 1
OPTIONS = ("counts_from", "lognorm_from")


def read_cells(path: Path, entry: dict) -> ad.AnnData:
    """Read one h5ad file by the words of its declaration.

    Parameters
    ----------
    path
        The file.
    entry
        The declaration: ``obs``, ``var``, ``values`` and ``options``.

    Returns
    -------
    ``X``: counts or log-normalised values, csr of float32; ``obs``: the suite's columns and those to keep;
    ``var``: under the file's names ``symbol`` and, where known, ``gene_id``; ``uns``: facts.

    Raises
    ------
    ValueError
        If the file is not what the declaration says, or the declaration contradicts itself.
    """
    wanted = options(entry, *OPTIONS)
    kind = entry.get("values", "counts")
    for key in OPTIONS:
        if key in wanted and key != f"{kind}_from":
            raise ValueError(f"options.{key} is there, but the declaration says values: {kind}")
    adata = read_h5ad(path)
    matrix, var, place = _find(adata, wanted.get(f"{kind}_from"), kind, path)
    obs, keep, facts = take_obs(adata.obs, entry, path)
    values, measured = take_values(matrix if keep.all() else matrix[keep], entry, f"{path}: {place}")
    genes = take_var(var, entry, path)
    return ad.AnnData(X=values, obs=obs, var=genes, uns=facts | measured)


def _find(adata: ad.AnnData, place: str | None, kind: str, path: Path) -> tuple[Any, pd.DataFrame, str]:
    """Return the matrix that is asked for, its genes, and what to call it."""
    if place is None and kind == "counts" and "counts" not in adata.layers:
        if adata.X is None:
            raise DataError(
                f"{path}: neither layers['counts'] nor X is there; expected raw counts in one"
                + (" (options.counts_from: raw would take those of raw)" if adata.raw is not None else "")
            )
        return adata.X, adata.var, "X (there is no layers['counts'])"
    place = place or ("layers/counts" if kind == "counts" else "X")
    if place == "raw" and adata.raw is not None:
        return adata.raw.X, adata.raw.var, "raw.X"
    if place == "X" and adata.X is not None:
        return adata.X, adata.var, "X"
    name = place.removeprefix("layers/")
    if place != name and name in adata.layers:
        return adata.layers[name], adata.var, f"layers[{name!r}]"
    there = ["X"] * (adata.X is not None) + [f"layers/{key}" for key in adata.layers]
    there += ["raw"] * (adata.raw is not None)
    raise DataError(
        f"{path}: {place} is missing, found {', '.join(there) or 'no matrix'}; expected {kind} there"
    )


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
