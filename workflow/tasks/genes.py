"""Choice of highly variable genes, once per dataset, so that every method is given the same."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np

SPANS = (0.3, 0.5, 0.7, 1.0)


def mark_highly_variable(
    adata: ad.AnnData, n_top: int, *, batch_key: str | None = None, cells: np.ndarray | None = None
) -> dict:
    """Mark ``var["highly_variable"]`` by scanpy's ``seurat_v3`` on raw counts.

    The loess fit behind seurat_v3 fails on small batches ("near singularities") at its default
    span of 0.3, so wider spans are tried in order; the one that worked is returned.

    Parameters
    ----------
    adata
        ``layers["counts"]`` holds raw counts, which are needed unless all genes are marked; changed in
        place.
    n_top
        Number of genes. All genes are marked when there are not more than that.
    batch_key
        Column of ``obs``: genes are ranked within each batch and the ranks are combined.
    cells
        Boolean mask (n_obs,) of the cells that may be looked at (the reference of an annotation
        task); all by default.

    Returns
    -------
    dict
        ``flavor``, ``n_top``, ``span`` and ``scope``: what was done, for the record.

    Raises
    ------
    ValueError
        If genes are to be chosen and there are no counts, or no span works.
    """
    import scanpy as sc  # slow to import, and scoring, which imports this module, has no use for it

    scope = "all cells" if cells is None else "reference cells"
    if n_top >= adata.n_vars:
        adata.var["highly_variable"] = True
        return {"flavor": "all genes", "n_top": adata.n_vars, "scope": scope}
    if "counts" not in adata.layers:
        raise ValueError(
            f"n_top_genes is {n_top} of {adata.n_vars} genes, but seurat_v3 ranks genes by raw counts and "
            f"this dataset has none; expected n_top_genes of {adata.n_vars} or more, which marks all"
        )
    seen = adata if cells is None else adata[cells].copy()
    failure = ""
    for span in SPANS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = sc.pp.highly_variable_genes(
                    seen,
                    layer="counts",
                    flavor="seurat_v3",
                    n_top_genes=n_top,
                    batch_key=batch_key,
                    span=span,
                    inplace=False,
                )
        except ValueError as error:  # the Fortran loess reports its failures so
            failure = str(error)
            continue
        adata.var["highly_variable"] = table["highly_variable"].to_numpy()
        return {"flavor": "seurat_v3", "n_top": n_top, "span": span, "scope": scope}
    raise ValueError(f"seurat_v3 found no highly variable genes at any span {SPANS}: {failure}")
