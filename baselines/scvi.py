"""scVI: variational autoencoder on raw counts with the batch as covariate (Lopez et al. 2018)."""

import logging
import warnings

import numpy as np

from baselines import _io


def integration(given: _io.Given) -> np.ndarray:
    """Return the posterior mean of the latent variables."""
    if "counts" not in given.adata.layers:
        _io.not_applicable("scVI models raw counts and this dataset has none")
    warnings.filterwarnings("ignore")
    import scvi
    import torch

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    scvi.settings.seed = given.seed
    adata = given.highly_variable().copy()
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    shape = {key: given.params[key] for key in ("n_latent", "n_layers", "gene_likelihood")}
    model = scvi.model.SCVI(adata, **shape)
    model.train(
        max_epochs=given.params["max_epochs"],
        accelerator="gpu" if given.gpu else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    given.info["n_parameters"] = sum(p.numel() for p in model.module.parameters())
    return model.get_latent_representation()


if __name__ == "__main__":
    _io.main(integration=integration)
