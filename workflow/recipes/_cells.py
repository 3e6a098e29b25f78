"""What the recipes share that serve several datasets: cells by the words of their declaration.

A declaration says what the files call things (``obs``, ``var``), what their values are (``values``) and what
is peculiar to them (``options``). Here these words are applied to a table of cells, a table of genes and a
matrix, wherever a recipe found them. Options that all of these recipes know:

* ``unlabelled``: ``refuse`` (default) or ``drop`` the cells without a label;
* ``empty``: ``refuse`` (default) or ``drop`` the cells without a single count;
* ``drop_cells``: ``{column: [values]}``, cells to leave out;
* ``reference``: the values of the column ``obs.split`` that are the reference, where the file does not say
  "reference" and "query" itself; every other cell is query;
* ``keep_obs``: further columns of ``obs`` to keep, under their own names.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.utils import make_index_unique
from scipy.io import mmread

from workflow.declarations import closest
from workflow.tidy import COLUMNS, DataError, check_counts, read_h5ad

OPTIONS = ("unlabelled", "empty", "drop_cells", "reference", "keep_obs")
PLACES = ("counts_from", "lognorm_from")  #: options of :func:`read_cells`
MISSING = ("", "nan", "NaN", "None", "<NA>")  #: what numpy, pandas and Python write for a missing value
#: Natural or binary logarithms of counts scaled to a million per cell stay below it.
MAX_LOGNORM = 20.0


def options(entry: dict, *more: str) -> dict:
    """Return the options of a declaration, and refuse one that the recipe does not know.

    Parameters
    ----------
    entry
        The declaration.
    *more
        Options of this recipe, besides those that all know.

    Raises
    ------
    ValueError
        If there is an unknown option, or one has a value that it cannot have.
    """
    given = entry.get("options", {})
    for key in given:
        if key not in (*OPTIONS, *more):
            raise ValueError(f"options: unknown key {key!r}{closest(key, (*OPTIONS, *more))}")
    for key in ("unlabelled", "empty"):
        if given.get(key, "refuse") not in ("refuse", "drop"):
            raise ValueError(f"options.{key}: found {given[key]!r}; expected refuse or drop")
    return given


def _column(table: pd.DataFrame, column: str, purpose: str, path: Path) -> pd.Series:
    if column not in table:
        raise DataError(
            f"{path}: obs column {column!r} (for {purpose!r}) is missing{closest(column, table.columns)}"
        )
    return table[column]


def _missing(values: pd.Series) -> np.ndarray:
    # text made of a missing value would stand for a cell type or a batch of that name
    return (values.isna() | values.astype(str).str.strip().isin(MISSING)).to_numpy()


def take_obs(table: pd.DataFrame, entry: dict, path: Path) -> tuple[pd.DataFrame, np.ndarray, dict]:
    """Take the suite's columns, and those to keep, out of a table of cells.

    Parameters
    ----------
    table
        One row per cell, as the file has it; its index names the cells.
    entry
        The declaration: ``obs`` and ``options``.
    path
        The file, for messages.

    Returns
    -------
    obs
        ``label``, ``batch`` and ``split`` as far as they are declared (categorical of str), then the
        columns of ``keep_obs``; only the cells that stay.
    keep
        Boolean (cells of the table,): the cells that stay.
    facts
        How many cells were left out, and why.

    Raises
    ------
    DataError
        If a column is missing, or empty for a cell, or does not hold what the options say.
    """
    wanted = entry.get("options", {})
    keep, facts = np.ones(len(table), dtype=bool), {}
    for column, values in wanted.get("drop_cells", {}).items():
        found = _column(table, column, "options.drop_cells", path).astype(str)
        values = [str(value) for value in values]  # YAML reads some as numbers
        for value in values:
            if value not in set(found):
                raise DataError(
                    f"{path}: obs column {column!r} has no {value!r} (options.drop_cells)"
                    f"{closest(value, sorted(set(found)))}"
                )
        keep &= ~found.isin(values).to_numpy()
        facts["dropped_cells"] = int((~keep).sum())
    if wanted.get("unlabelled", "refuse") == "drop":
        unlabelled = keep & _missing(_column(table, entry["obs"]["label"], "label", path))
        keep &= ~unlabelled
        facts["dropped_unlabelled"] = int(unlabelled.sum())
    table = table[keep]

    obs = pd.DataFrame(index=table.index.astype(str))
    for name in ("label", "batch", "split"):
        if name not in entry["obs"]:
            continue
        column = entry["obs"][name]
        values = _column(table, column, name, path)
        missing = _missing(values)
        if missing.any():
            first = ", ".join(map(str, table.index[missing][:3]))
            raise DataError(
                f"{path}: obs column {column!r} (for {name!r}) is missing for {missing.sum()} of "
                f"{len(table)} cells, first {first}; expected a value for every cell"
            )
        text = values.astype(str).to_numpy()
        obs[name] = pd.Categorical(_sides(text, wanted, column, path) if name == "split" else text)
    for column in wanted.get("keep_obs", []):
        if column in COLUMNS and entry["obs"].get(column) != column:
            raise DataError(f"{path}: options.keep_obs: {column!r} is a name of the suite; expected others")
        values = _column(table, column, "options.keep_obs", path)
        if column not in obs:
            numeric = pd.api.types.is_numeric_dtype(values)
            obs[column] = values.to_numpy() if numeric else pd.Categorical(values.astype(str))
    return obs, keep, facts


def _sides(found: np.ndarray, wanted: dict, column: str, path: Path) -> np.ndarray:
    """Turn the values of a column into reference and query."""
    there = sorted(set(found))
    if "reference" not in wanted and there != ["query", "reference"]:
        raise DataError(
            f"{path}: obs column {column!r} (for 'split') has {', '.join(there[:5])}; expected reference and "
            "query, or the values that are the reference in options.reference"
        )
    reference = [str(value) for value in wanted.get("reference", ["reference"])]
    for value in reference:
        if value not in there:
            raise DataError(
                f"{path}: obs column {column!r} (for 'split') has no {value!r}{closest(value, there)}"
            )
    return np.where(np.isin(found, reference), "reference", "query")


def take_values(matrix: Any, entry: dict, place: str) -> tuple[sp.csr_matrix, dict]:
    """Return a matrix as csr of float32, provided it holds what the declaration says.

    Parameters
    ----------
    matrix
        Cells x genes, dense or sparse, of any numbers.
    entry
        The declaration: ``values``.
    place
        The file and the slot, for messages.

    Returns
    -------
    values
        Without stored zeros, with sorted indices.
    facts
        Of log-normalised values, what they were measured to be: the largest, the sum of each cell after
        undoing the logarithm (median, smallest, largest), and whether it is one number for all cells.
        Where a file holds a selection of genes that were normalised with all others, it is not.

    Raises
    ------
    DataError
        If a value is not what it should be, with the share or number of such values and the first.
    """
    values = sp.csr_matrix(matrix)
    values.sum_duplicates()
    values.eliminate_zeros()
    if entry.get("values", "counts") == "counts":
        check_counts(values, place)
        return values.astype(np.float32), {}
    values = values.astype(np.float32)
    return values, _check_lognorm(values, place)


def _check_lognorm(values: sp.csr_matrix, place: str) -> dict:
    data = values.data
    if not np.isfinite(data).all():
        raise DataError(f"{place} has {int((~np.isfinite(data)).sum())} values that are NaN or inf")
    if (data < 0).any():
        raise DataError(
            f"{place} has negative values, smallest {data.min():g}, as z-scores have; expected "
            "log-normalised values (values: lognorm)"
        )
    if (data == np.round(data)).all():
        raise DataError(
            f"{place} has integers only, largest {data.max(initial=0):g}; expected log-normalised values, or "
            "values: counts in the declaration"
        )
    if data.max() > MAX_LOGNORM:
        raise DataError(
            f"{place} has values up to {data.max():g}, {(data > MAX_LOGNORM).mean():.1%} of them above "
            f"{MAX_LOGNORM:g}; expected log-normalised values"
        )
    linear = sp.csr_matrix((np.expm1(data.astype(np.float64)), values.indices, values.indptr), values.shape)
    sums = np.asarray(linear.sum(axis=1)).ravel()
    median = float(np.median(sums))
    constant = median > 0 and np.ptp(sums) < 0.01 * median
    return {
        "values": "log-normalised, by measurement",
        "values_max": float(data.max()),
        "library_sum_median": median,
        "library_sum_min": float(sums.min()),
        "library_sum_max": float(sums.max()),
        "normalised_to": f"{median:.0f} per cell" if constant else "no constant sum over these genes",
    }


def are_ensembl(names: pd.Index) -> bool:
    """Whether most names are Ensembl gene ids."""
    return bool(len(names)) and names.astype(str).str.match(r"ENS[A-Z]*G\d{11}").mean() > 0.5


def take_var(table: pd.DataFrame, entry: dict, path: Path) -> pd.DataFrame:
    """Take symbols and Ensembl ids out of a table of genes.

    Parameters
    ----------
    table
        One row per gene, as the file has it; its index names the genes.
    entry
        The declaration: ``var``. Without a column for symbols, the names are the symbols.
    path
        The file, for messages.

    Returns
    -------
    Under the names of the file, ``symbol`` (the name where none is known; not unique) and, where ids are
    known, ``gene_id`` (empty where not): a declared column, else names that are ids, else a column
    ``gene_id``.

    Raises
    ------
    DataError
        If a declared column is missing.
    """
    columns = entry.get("var", {})
    for name, column in columns.items():
        if column not in table:
            raise DataError(
                f"{path}: var column {column!r} (for {name!r}) is missing{closest(column, table.columns)}"
            )
    names = pd.Index(table.index.astype(str))
    genes = pd.DataFrame({"symbol": names}, index=names)
    if "symbol" in columns:
        found = table[columns["symbol"]].astype(object)
        missing = _missing(found)
        genes["symbol"] = np.where(missing, names, found.astype(str))
    if "gene_id" in columns or ("gene_id" in table and not are_ensembl(names)):
        found = table[columns.get("gene_id", "gene_id")].astype(object)
        genes["gene_id"] = found.where(found.notna(), "").astype(str).to_numpy()
    elif are_ensembl(names):
        genes["gene_id"] = np.where(names.str.startswith("ENS"), names, "")
    return genes


def assemble(
    values: sp.csr_matrix, obs: pd.DataFrame, genes: pd.DataFrame, entry: dict, facts: dict
) -> ad.AnnData:
    """Put the parts of a tidy dataset together.

    Parameters
    ----------
    values
        By :func:`take_values`; counts or log-normalised values, as the declaration says.
    obs, genes
        By :func:`take_obs` and :func:`take_var`.
    entry
        The declaration: ``values`` and the option ``empty``.
    facts
        What goes to ``uns["recipe"]``.

    Returns
    -------
    The tidy AnnData; symbols that repeat get a suffix.
    """
    if entry.get("options", {}).get("empty") == "drop":
        full = np.diff(values.indptr) > 0
        values, obs = values[full], obs[full]
        facts = facts | {"dropped_empty": int((~full).sum())}
    symbols = pd.Index(genes["symbol"].astype(str))
    var = pd.DataFrame(index=pd.Index(make_index_unique(symbols), name=None))
    if "gene_id" in genes:
        var["gene_id"] = genes["gene_id"].to_numpy()
    facts = facts | {"repeated_symbols": int(symbols.duplicated().sum())}
    if entry.get("values", "counts") == "counts":
        return ad.AnnData(obs=obs, var=var, layers={"counts": values}, uns={"recipe": facts})
    return ad.AnnData(X=values, obs=obs, var=var, uns={"recipe": facts})


def read_cells(path: Path, entry: dict) -> ad.AnnData:
    """Read one h5ad file by the words of its declaration.

    Parameters
    ----------
    path
        The file.
    entry
        The declaration: ``obs``, ``var``, ``values`` and ``options``; among these ``counts_from``: ``X``,
        ``layers/<name>`` or ``raw``, where the counts are (left out: ``layers/counts`` if the file has it,
        else ``X``), and ``lognorm_from``: the same for ``values: lognorm`` (left out: ``X``).

    Returns
    -------
    ``X``: counts or log-normalised values, csr of float32; ``obs``: the suite's columns and those to keep;
    ``var``: under the file's names ``symbol`` and, where known, ``gene_id``; ``uns``: facts.

    Raises
    ------
    ValueError
        If the file is not what the declaration says, or the declaration contradicts itself.
    """
    wanted = options(entry, *PLACES)
    kind = entry.get("values", "counts")
    for key in PLACES:
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


def compression(path: Path) -> str | None:
    """``gzip`` for a gzip file, by its first bytes and whatever its name."""
    with open(path, "rb") as file:
        return "gzip" if file.read(2) == b"\x1f\x8b" else None


def read_table(path: Path, **how: Any) -> pd.DataFrame:
    """Read a table of text, compressed or not (pandas.read_csv).

    Raises
    ------
    DataError
        If the file is no such table.
    """
    try:
        return pd.read_csv(path, compression=compression(path), **how)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: not a readable table ({' '.join(str(error).split())})") from error


def read_mtx(path: Path, n_genes: int, n_cells: int) -> sp.csr_matrix:
    """Read a MatrixMarket file of genes x cells, as cells x genes.

    Parameters
    ----------
    path
        The file.
    n_genes, n_cells
        As the tables beside it say.

    Raises
    ------
    DataError
        If the file cannot be read or has another shape.
    """
    try:
        matrix = mmread(path)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable MatrixMarket file ({reason})") from error
    if matrix.shape != (n_genes, n_cells):
        raise DataError(
            f"{path}: found {matrix.shape[0]} x {matrix.shape[1]}, expected {n_genes} genes x {n_cells} cells"
        )
    return sp.csr_matrix(matrix.T)
