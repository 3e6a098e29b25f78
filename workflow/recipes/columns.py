"""A single h5ad that needs no recipe of its own: name its columns, find its counts."""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from workflow.tidy import from_columns

VERSION = 1


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    """Return the cells of the single source, with the columns that ``entry["obs"]`` names."""
    return from_columns(next(iter(files.values())), entry["obs"])
