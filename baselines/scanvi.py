"""scANVI (Xu et al. 2021): scVI trained on all cells, then its latent space fitted to the labels.

It sees the genes of the query cells, though not their labels, while it learns.
"""

import logging
import warnings

import numpy as np

from baselines import _io


def annotation(given: _io.Given) -> np.ndarray:
    """Return the most probable label, from the counts of the highly variable genes."""
    params = given.params
    if "counts" not in given.adata.layers:
        _io.not_applicable("scANVI models raw counts and this dataset has none")
    if given.reference.obs["label"].nunique() < 2:
        _io.not_applicable("scANVI needs two labels in the reference; found one")
    warnings.filterwarnings("ignore")
    import scvi
    import torch

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    torch.set_num_threads(given.threads)
    scvi.settings.seed = given.seed
    adata = given.highly_variable().copy()
    is_query = (adata.obs["split"] == "query").to_numpy()
    labels, n_cells = np.unique(adata.obs["label"][~is_query].astype(str), return_counts=True)
    unknown = "?" * (1 + max(map(len, labels)))  # no label is called so
    adata.obs["label"] = np.where(is_query, unknown, adata.obs["label"].astype(str))
    batch = "batch" if "batch" in adata.obs else None
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key=batch, labels_key="label")
    shape = {key: params[key] for key in ("n_latent", "n_layers", "gene_likelihood")}
    how = {"accelerator": "gpu" if given.gpu else "cpu", "devices": 1, "logger": False}
    how |= {"enable_checkpointing": False, "enable_progress_bar": False}
    pretrained = scvi.model.SCVI(adata, **shape)
    pretrained.train(max_epochs=params["scvi_epochs"], **how)
    model = scvi.model.SCANVI.from_scvi_model(pretrained, unlabeled_category=unknown)
    # Nothing is chosen on a validation part, so none is held out: a label may have one cell. Of each label
    # so many cells are drawn; a last mini-batch of one cell would stop the batch normalisation.
    drawn = int(np.minimum(n_cells, params["n_samples_per_label"]).sum())
    size = next(size for size in range(128, 1, -1) if adata.n_obs % size != 1 and drawn % size != 1)
    model.train(
        max_epochs=params["max_epochs"],
        n_samples_per_label=params["n_samples_per_label"],
        train_size=1.0,
        batch_size=size,
        **how,
    )
    given.info["n_parameters"] = sum(p.numel() for p in model.module.parameters())
    return model.predict(indices=np.flatnonzero(is_query)).astype(str)


if __name__ == "__main__":
    _io.main(annotation=annotation)
