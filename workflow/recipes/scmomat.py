"""Datasets in the layout of scMoMaT: one matrix for each batch and modality, some of them absent (a mosaic).

The sources carry scMoMaT's file names in small letters, and those that the dataset declares say what it
consists of:

* ``gxc<n>``, ``rxc<n>``, ``pxc<n>``: raw counts of batch ``n``, features x cells, in ``.npz`` files of
  ``scipy.sparse.save_npz``: genes (``rna``), regions (``atac``), proteins (``protein``). They are read
  without unpickling; none of the real files needs it;
* ``genes``, ``regions``, ``proteins``: names of the rows, one a line, the same for all batches. Regions are
  positions, ``chr1_898633_899089``;
* ``meta_c<n>``: csv, one row for each column of the matrices of batch ``n``, in their order; the first
  column is the barcode. The files cannot prove the order; their numbers of cells must agree;
* ``gxr``, not needed: genes x regions, 1 where scMoMaT's authors count a region to a gene.

``entry["obs"]`` names the column of the label and, where the batches are not the files, that of the batch.

ASAP PBMC is CITE-seq (batches c1, c2: RNA and protein) and ASAP-seq (c3, c4: ATAC and protein) of blood.
Its four-class label ``coarse_cluster`` was made from clusters of the very data, and three cells in four
are ``Tcell``.

Cells are named ``c<n>_<barcode>``, as barcodes repeat between batches. ``obs["modality"]`` says what is
there for a cell, such as ``rna+protein``. A matrix that is declared ``optional`` and could not be had is
left out: the rest is prepared, and ``uns["recipe"]`` names what is missing, so that a task can refuse.

``gxr`` becomes ``varm["gene_activity"]`` of ``atac`` (regions x genes, csr of float32; the genes are
named in its ``uns["gene_activity_genes"]``): counts times this matrix is the activity of the genes, a
stand-in for scores that need fragment files. scMoMaT's map of genes to proteins (``GxP``) is not used.
"""

from __future__ import annotations

import re
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ._common import as_counts, modality, multimodal, peak_positions, source, text_column

VERSION = 1
#: First letter of a matrix: its modality, and the source with the names of its rows.
KINDS = {"g": ("rna", "genes"), "r": ("atac", "regions"), "p": ("protein", "proteins")}
MATRIX = re.compile(r"([grp])xc(\d+)")


def read_npz(path: Path) -> sp.csr_matrix:
    """Read a sparse matrix of ``scipy.sparse.save_npz``, never unpickling anything.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The matrix, as it is in the file.

    Raises
    ------
    ValueError
        If the file is no such matrix, or is not whole.
    """
    try:
        matrix = sp.csr_matrix(sp.load_npz(path))  # scipy loads with allow_pickle=False
        matrix.check_format()
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: found no readable sparse matrix ({reason}), expected npz of scipy"
        ) from error
    return matrix


def read_names(path: Path) -> pd.Index:
    """Read the names of features, one a line, unique.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The names.

    Raises
    ------
    ValueError
        If there are none, one is empty, or one is there twice.
    """
    try:
        names = pd.Index(path.read_text(encoding="utf-8").splitlines(), dtype=object)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found no text, expected one name a line") from error
    if not len(names) or (names.str.strip() == "").any():
        raise ValueError(
            f"{path}: found {len(names)} lines, an empty one among them, expected one name a line"
        )
    if not names.is_unique:
        raise ValueError(f"{path}: found {names[names.duplicated()][0]!r} twice, expected unique names")
    return names


def read_meta(path: Path, keys: list[str]) -> pd.DataFrame:
    """Read the cells of one batch.

    Parameters
    ----------
    path
        The csv.
    keys
        Columns that are needed.

    Returns
    -------
    These columns as str, indexed by barcode.

    Raises
    ------
    ValueError
        If the file is no csv, a column is missing, or a barcode is there twice.
    """
    try:
        table = pd.read_csv(path, index_col=0, dtype=str)
    except ValueError as error:  # also what pandas raises for an empty or broken csv, and for bytes
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: found no readable csv ({reason}), expected one") from error
    if not table.index.is_unique:
        raise ValueError(
            f"{path}: found barcode {table.index[table.index.duplicated()][0]!r} twice, expected unique ones"
        )
    return pd.DataFrame({key: text_column(table, key, path, "csv") for key in keys})


def check_size(found: int, expected: int, what: str, path: Path, names: Path) -> None:
    """Raise ``ValueError`` unless a matrix has as many rows or columns as there are names."""
    if found != expected:
        raise ValueError(f"{path}: found {found} {what}, expected {expected} as in {names.name}")


def load(files: dict[str, Path], entry: dict) -> mudata.MuData:
    """Return the batches of a dataset in scMoMaT's layout as one mosaic.

    Parameters
    ----------
    files
        The sources, as the module describes them; optional ones may be absent.
    entry
        The declaration; ``sources`` and ``obs`` are read.

    Returns
    -------
    Those of the modalities ``rna``, ``atac``, ``protein`` that have a matrix, each over
    the cells that have it; ``obs`` with ``label``, ``batch`` and ``modality``.

    Raises
    ------
    ValueError
        If a file is broken, or two files do not fit together.
    """
    matrices = {key: match for key in entry["sources"] if (match := MATRIX.fullmatch(key))}
    missing = [key for key in matrices if key not in files and entry["sources"][key].get("optional")]
    keys = dict(entry["obs"])
    cells: dict[str, pd.DataFrame] = {}
    blocks: dict[str, dict[str, sp.csr_matrix]] = {}  # by modality and batch
    names: dict[str, pd.Index] = {}
    for number in sorted({match[2] for match in matrices.values()}, key=int):
        batch, meta_path = f"c{number}", source(files, f"meta_c{number}")
        meta = read_meta(meta_path, list(keys.values()))
        table = pd.DataFrame({key: meta[column] for key, column in keys.items()})
        table.index = batch + "_" + meta.index.astype(str)
        held = []
        for letter, (kind, rows) in KINDS.items():
            key = f"{letter}xc{number}"
            if key not in matrices or key in missing:
                continue
            path, names_path = source(files, key), source(files, rows)
            matrix = read_npz(path)
            names.setdefault(kind, read_names(names_path))
            check_size(matrix.shape[0], len(names[kind]), rows, path, names_path)
            check_size(matrix.shape[1], len(table), "cells", path, meta_path)
            blocks.setdefault(kind, {})[batch] = as_counts(matrix.T, path)
            held.append(kind)
        if not held:
            raise ValueError(f"{meta_path}: batch {batch}: found none of its matrices, expected one at least")
        cells[batch] = table.assign(modality="+".join(held))

    parts = {}
    for kind in [kind for kind, _ in KINDS.values() if kind in blocks]:
        var = pd.DataFrame(index=names[kind])
        if kind == "atac":
            var = peak_positions(names[kind], source(files, "regions"))
        parts[kind] = modality(
            sp.vstack(list(blocks[kind].values()), format="csr"),
            obs_names=np.concatenate([cells[batch].index for batch in blocks[kind]]),
            var=var,
        )
    if "gxr" in files and "atac" in parts:
        add_activity(parts["atac"], files)
    obs = pd.concat([table if "batch" in keys else table.assign(batch=b) for b, table in cells.items()])
    if obs["batch"].nunique() < 2:
        del obs["batch"]
    facts: dict[str, str | int | float] = {"label_source": "published", "label_column": keys["label"]}
    if missing:
        lost = {KINDS[key[0]][0] for key in missing}
        facts["missing_matrices"] = ", ".join(sorted(missing))
        facts["missing_modalities"] = ", ".join(sorted(lost - set(parts))) or "none as a whole"
        facts["missing_because"] = "optional sources that could not be had"
    return multimodal(parts, obs=obs, facts=facts)


def add_activity(atac: ad.AnnData, files: dict[str, Path]) -> None:
    """Put the map of regions to genes beside the regions, in place.

    Parameters
    ----------
    atac
        The modality.
    files
        ``gxr``, ``genes`` and ``regions`` are read.

    Raises
    ------
    ValueError
        If the map does not fit the names of genes and regions, or holds anything but 0 and 1.
    """
    path, genes_path = source(files, "gxr"), source(files, "genes")
    genes, links = read_names(genes_path), read_npz(path)
    check_size(links.shape[0], len(genes), "genes", path, genes_path)
    check_size(links.shape[1], atac.n_vars, "regions", path, source(files, "regions"))
    if not np.isin(links.data, (0, 1)).all():
        raise ValueError(f"{path}: found the value {links.data.max()}, expected 0 and 1")
    atac.varm["gene_activity"] = as_counts(links.T, path)
    atac.uns["gene_activity_genes"] = genes.to_numpy(dtype=str)
