"""Data for pre-training: CELLxGENE's census as shards on disk, and mini-batches of them."""
