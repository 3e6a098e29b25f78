"""PBMC CITE-seq, 5k and 10k of 10x Genomics, 200 cells each; labels made from surface proteins.

Source ``cells`` is ``workflow/demo_data/pbmc_cite.h5ad`` (its README says where that comes from).
The RNA counts are raw and untouched. The data come without cell types, so this recipe derives
them: each cell was also stained with antibodies, and the protein counts are gated the way one
gates flow cytometry. Because the labels come from proteins and the benchmarked methods see RNA
only, nothing of a label leaks into the input; the proteins are left out of the result.

Gates. Per batch and protein, the cut is Otsu's (1979, IEEE Trans. SMC 9:62-66, the threshold with
the largest variance between the two sides) on log1p counts. Cuts are per batch on purpose: the
10k library's background is far brighter (median counts, of mostly negative cells: CD8a 28 against
7, CD56 20 against 4). Cuts common to both batches were tried; they change 7 of the 400 labels, for
the worse where RNA can tell: two 5k cells with CD8A and NKG7 RNA are no longer CD8 T, and a 10k
cell with NKG7 and GNLY RNA is no longer NK.

These labels are coarse and derived, not published: use them to see that a pipeline works, not to
rank methods.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from ._common import as_counts, check_shape, column, read_h5ad, source, tidy

VERSION = 1
EXPECTED_SHAPE = (400, 15792)
GATES = ("CD3", "CD4", "CD8a", "CD14", "CD19", "CD56")
UNGATED = "ungated"


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Return Otsu's threshold: the cut with the largest variance between its two sides.

    Where several neighbouring cuts are equally good (an empty stretch between two humps), the
    middle of them is returned, as far as possible from the cells on either side.

    Parameters
    ----------
    values
        One value per cell.
    bins
        Number of equal bins between the smallest and the largest value.

    Returns
    -------
    The threshold; values above it are positive.

    Raises
    ------
    ValueError
        If there are not two different values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or values.min() == values.max():
        raise ValueError("otsu: found a single value, expected two or more different ones")
    height, edges = np.histogram(values, bins=bins)
    centre = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(height)[:-1]  # cells up to and with each bin; the first bin is never empty
    above = values.size - below
    mass = np.cumsum(height * centre)
    mean_below = mass[:-1] / below
    mean_above = (mass[-1] - mass[:-1]) / above
    between = below * above * (mean_below - mean_above) ** 2
    best = np.flatnonzero(np.isclose(between, between.max(), rtol=1e-9, atol=0))
    return float(edges[1:-1][best].mean())


def gate(positive: pd.DataFrame) -> np.ndarray:
    """Name the type of each cell from its positive and negative proteins.

    Parameters
    ----------
    positive
        One boolean column for each of ``GATES``.

    Returns
    -------
    One label per row.
    """
    cd3, cd4, cd8a, cd14, cd19, cd56 = (positive[name].to_numpy(dtype=bool) for name in GATES)
    # Precedence, first match wins:
    # 1. Two of CD3 (T), CD19 (B) and CD14 (monocyte) at once: a doublet or free antibody. No type
    #    is right for it, so it is left out before any rule could take it.
    # 2. CD19, then CD14: each marks its lineage alone. After rule 1 their order does not matter.
    #    They stand before NK because NK has no marker of its own here: CD56 with no other lineage.
    # 3. CD3 with exactly one of CD4 and CD8a. Both: a doublet, or a rare double-positive T cell.
    #    Neither: gamma-delta, or a dim stain. Both cases stay ungated. T cells stand before NK
    #    because some T cells carry CD56. CD4 alone makes no T cell: monocytes are CD4 dim.
    # 4. CD56 without CD3, CD19 or CD14: NK.
    # 5. The rest (dendritic cells, CD14-negative monocytes, platelets) stays ungated.
    conflict = (cd3.astype(int) + cd19 + cd14) > 1
    rules = [
        (conflict, UNGATED),
        (cd19, "B"),
        (cd14, "CD14 monocyte"),
        (cd3 & cd4 & ~cd8a, "CD4 T"),
        (cd3 & cd8a & ~cd4, "CD8 T"),
        (~cd3 & cd56, "NK"),
    ]
    return np.select([rule for rule, _ in rules], [name for _, name in rules], default=UNGATED)


def load(files: dict[str, Path], entry: dict | None = None) -> ad.AnnData:
    """Return the two CITE-seq batches with labels derived from their proteins.

    Parameters
    ----------
    files
        ``cells``: ``pbmc_cite.h5ad``.

    Returns
    -------
    Two batches of 200 cells, 15,792 genes, six labels (``"ungated"`` is one of them); the
    thresholds, on the log1p scale, are in ``uns["recipe"]`` as ``threshold_<batch>_<protein>``.

    Raises
    ------
    ValueError
        If the file is not the one that is described above.
    """
    path = source(files, "cells")
    adata = read_h5ad(path)
    batch = column(adata, "batch", path)
    check_shape(adata.shape, EXPECTED_SHAPE, path)
    if "protein" not in adata.obsm:
        raise ValueError(f"{path}: obsm key 'protein' is missing, found {', '.join(adata.obsm) or 'none'}")
    protein = adata.obsm["protein"]
    missing = [name for name in GATES if name not in getattr(protein, "columns", ())]
    if missing:
        raise ValueError(
            f"{path}: obsm key 'protein': found no column {', '.join(missing)}, "
            f"expected a table with {', '.join(GATES)}"
        )
    log_counts = np.log1p(protein[list(GATES)].astype(np.float64))
    positive = pd.DataFrame(False, index=log_counts.index, columns=list(GATES))
    facts: dict[str, str | int | float] = {
        "label_source": "derived",
        "label_rule": "gates on log1p protein counts, Otsu threshold per batch and protein",
        "ungated_label": UNGATED,
    }
    for name in sorted(batch.unique()):
        rows = (batch == name).to_numpy()
        for key in GATES:
            values = log_counts.loc[rows, key].to_numpy()
            threshold = otsu(values)
            positive.loc[rows, key] = values > threshold
            facts[f"threshold_{name}_{key}"] = round(threshold, 4)
    return tidy(
        as_counts(adata.X, path),
        obs_names=adata.obs_names,
        symbols=adata.var_names,
        label=gate(positive),
        batch=batch,
        facts=facts,
    )
