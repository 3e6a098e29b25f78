"""Splits of cells into reference and query. Pure functions of labels and a seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workflow.declarations import closest


def stratified_split(labels: np.ndarray, query_fraction: float = 0.5, seed: int = 0) -> np.ndarray:
    """Draw the query within each label; a label always keeps one cell in the reference.

    Parameters
    ----------
    labels
        Label of each cell (n,).
    query_fraction
        Share of each label that becomes query, rounded to the nearest cell.
    seed
        Seed of the draw. The draw depends on nothing but ``labels`` and ``seed``.

    Returns
    -------
    numpy.ndarray
        Boolean (n,): True for the query.
    """
    rng = np.random.default_rng([seed, 0x5B117])  # the stream called "split"
    query = np.zeros(len(labels), dtype=bool)
    for label in sorted(set(labels)):
        cells = np.flatnonzero(labels == label)
        n_query = min(round(query_fraction * len(cells)), len(cells) - 1)
        query[rng.permutation(cells)[:n_query]] = True
    return query


def batch_split(obs: pd.DataFrame, query: list[str]) -> np.ndarray:
    """Make whole batches the query.

    Raises
    ------
    ValueError
        If ``obs`` has no batch column or no cell is in a named batch.
    """
    if "batch" not in obs:
        raise ValueError(f"obs column 'batch' is missing (found: {', '.join(obs.columns)})")
    batches = obs["batch"].astype(str)
    for name in query:
        if name not in set(batches):
            raise ValueError(f"split.query: no batch {name!r}{closest(name, sorted(set(batches)))}")
    return batches.isin(query).to_numpy()


def given_split(obs: pd.DataFrame) -> np.ndarray:
    """Take the split that the data came with.

    Raises
    ------
    ValueError
        If ``obs`` has no column ``split``, or it holds anything but "reference" and "query".
    """
    if "split" not in obs:
        raise ValueError(
            f"split.kind is given, but obs column 'split' is missing (found: {', '.join(obs.columns)}); "
            "expected a dataset that came with a reference and a query"
        )
    sides = obs["split"].astype(str)
    other = sorted(set(sides) - {"reference", "query"})
    if other:
        raise ValueError(f"obs['split'] has the value {other[0]!r}; expected reference or query")
    return (sides == "query").to_numpy()
