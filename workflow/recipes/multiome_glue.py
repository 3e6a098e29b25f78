"""10x Multiome PBMC: RNA and ATAC of the same cells, as scGLUE's authors prepared them.

Two h5ad files, ``rna`` (29,095 genes) and ``atac`` (107,194 peaks), raw counts in ``X``, 9,631 cells
each. The cells are those of 10x Genomics' ``pbmc_granulocyte_sorted_10k`` (Cell Ranger ARC 1.0.0) after
quality control and without doublets. The 19 labels are names that scGLUE's authors gave to clusters of a
graph built from RNA and ATAC of these very cells (weighted nearest neighbours, as Seurat's tutorial
does), so agreement with them is partly circular. There is no "naive monocyte": monocytes are ``CD14
Mono`` and ``CD16 Mono``.

Three copies are known, and the recipe reads all of them:

* scGLUE's own server, and a Zenodo record: ``var`` of the peaks has ``chrom``, ``chromStart``, ``chromEnd``;
* a Mendeley record, made for SnapATAC2: the same cells and features, but without these columns.

The positions are therefore read from the names of the peaks (``chr1:9790-10675``), and where the columns
are there they must say the same.

Both files name the cells by barcode. They are paired by name: both must hold the same cells, and where
the order differs that of the RNA counts. A cell type must be the same in both.

There is one sample and so no batch. (The released training script of the paper draws a batch at random
for each cell; this recipe does not, as nothing about batches could be learnt from it.)

Not buildable from 10x Genomics' own ``pbmc_granulocyte_sorted_10k_filtered_feature_bc_matrix.h5`` alone:
that file has the counts of all 11,898 barcodes, but no cell types; they come with scGLUE's files only.
"""

from __future__ import annotations

from pathlib import Path

import mudata
import pandas as pd

from ._common import as_counts, column, modality, multimodal, open_h5ad, peak_positions, source, text_column

VERSION = 1
POSITION = ["chrom", "chromStart", "chromEnd"]


def check_pairing(rna: pd.Index, atac: pd.Index, path: Path) -> None:
    """Raise ``ValueError`` unless both files hold the same cells, each once.

    Parameters
    ----------
    rna, atac
        Cell names of the two files.
    path
        The ATAC file, for the error.
    """
    for kind, names in (("RNA", rna), ("ATAC", atac)):
        if not names.is_unique:
            raise ValueError(
                f"{path}: obs_names: found {names[names.duplicated()][0]!r} twice in the {kind} file, "
                "expected unique cell names"
            )
    only = {"RNA": rna.difference(atac), "ATAC": atac.difference(rna)}
    if any(map(len, only.values())):
        example = next(names[0] for names in only.values() if len(names))
        raise ValueError(
            f"{path}: obs_names: found {len(only['RNA'])} cells of the RNA file missing and "
            f"{len(only['ATAC'])} that it lacks (such as {example!r}), expected the same cells in both"
        )


def load(files: dict[str, Path], entry: dict | None = None) -> mudata.MuData:
    """Return the paired RNA and ATAC counts.

    Parameters
    ----------
    files
        ``rna`` and ``atac``, as the module describes them.
    entry
        Not read.

    Returns
    -------
    Modalities ``rna`` (``var["gene_id"]``: Ensembl ids) and ``atac`` (``var``: ``chrom``,
    ``chromStart``, ``chromEnd``) over the same cells in the same order; labels, no batch.
    ``uns["recipe"]["reordered_cells"]`` is the number of cells that stood at another place in the ATAC
    file.

    Raises
    ------
    ValueError
        If a column is missing, the cells do not pair, a label differs between the files, the positions of
        a peak contradict its name, or the values are no counts.
    """
    rna_path, atac_path = source(files, "rna"), source(files, "atac")
    rna, atac = open_h5ad(rna_path, "X"), open_h5ad(atac_path, "X")
    label = column(rna, "cell_type", rna_path)
    check_pairing(rna.obs_names, atac.obs_names, atac_path)
    other = column(atac, "cell_type", atac_path).loc[label.index]
    if (label != other).any():
        cell = label.index[label != other][0]
        raise ValueError(
            f"{atac_path}: obs key 'cell_type': found {int((label != other).sum())} cells with another type "
            f"than in the RNA file (such as {cell!r}: {other[cell]!r}, {label[cell]!r}), expected the same"
        )

    position = peak_positions(atac.var_names, atac_path)
    if set(POSITION) <= set(atac.var):
        differs = (atac.var[POSITION].astype(str) != position.astype(str)).any(axis=1)
        if differs.any():
            raise ValueError(
                f"{atac_path}: var keys {', '.join(POSITION)}: found {int(differs.sum())} peaks that lie "
                f"elsewhere than their name says (such as {position.index[differs][0]!r}), expected the same"
            )
    order = atac.obs_names.get_indexer(rna.obs_names)
    parts = {
        "rna": modality(
            as_counts(rna.X[:], rna_path),
            obs_names=rna.obs_names,
            var=text_column(rna.var, "gene_ids", rna_path, "var", missing="").to_frame("gene_id"),
        ),
        "atac": modality(as_counts(atac.X[:], atac_path)[order], obs_names=rna.obs_names, var=position),
    }
    return multimodal(
        parts,
        obs=label.to_frame("label"),
        facts={
            "label_source": "published",
            "cell_types": label.nunique(),
            "reordered_cells": int((order != range(len(order))).sum()),
        },
    )
