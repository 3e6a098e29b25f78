"""The network, from embeddings to heads. Start with :mod:`scmamba2.model.network`."""
