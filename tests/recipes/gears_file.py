"""Write made-up screens in the layout of GEARS' ``perturb_processed.h5ad``.

GEARS' files were written by anndata 0.7, whose layout differs from today's: no encodings at the root, on
dense arrays and on text; categories of a column in ``__categories``; no empty groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

TEXT = h5py.string_dtype()


def _write_table(file: h5py.File, name: str, table: pd.DataFrame) -> None:
    group = file.create_group(name)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "dataframe", "0.1.0"
    group.attrs["_index"] = table.index.name
    group.attrs.create("column-order", np.array(table.columns, dtype=object), dtype=TEXT)
    group.create_dataset(table.index.name, data=np.array(table.index, dtype=object), dtype=TEXT)
    for key, values in table.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            names = np.array(values.cat.categories)
            kind = {"dtype": TEXT} if names.dtype == object else {}
            categories = group.create_dataset(f"__categories/{key}", data=names, **kind)
            categories.attrs["ordered"] = False
            group.create_dataset(key, data=values.cat.codes.to_numpy())
            group[key].attrs["categories"] = categories.ref
        else:
            group.create_dataset(key, data=values.to_numpy())


def write_gears(
    path: Path,
    blocks: Iterable[tuple[sp.csr_matrix, sp.csr_matrix]],
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: Mapping[str, Mapping[str, np.ndarray]],
    *,
    counts: str = "dense",
) -> Path:
    """Write a file in that layout, so many rows at a time.

    Parameters
    ----------
    path
        Where to.
    blocks
        Log-normalised values and counts of the next cells, csr.
    obs, var
        Columns; the index has a name.
    uns
        Dicts of arrays.
    counts
        How ``layers["counts"]`` is written: ``dense`` (as in Norman), ``csr``, or ``none`` (as in others).
    """
    shape = (len(obs), len(var))
    with h5py.File(path, "w") as file:
        places = {"X": "csr"} | ({} if counts == "none" else {"layers/counts": counts})
        for place, kind in places.items():
            if kind == "dense":
                file.create_dataset(place, shape, dtype="f4")
                continue
            group = file.create_group(place)
            group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
            group.attrs["shape"] = np.array(shape)
            group.create_dataset("indptr", data=np.zeros(1, dtype=np.int32), maxshape=(None,), chunks=True)
            for name, dtype in (("data", np.float32), ("indices", np.int32)):
                group.create_dataset(name, (0,), maxshape=(None,), dtype=dtype, chunks=(1 << 18,))
        row = 0
        for pair in blocks:
            for (place, kind), block in zip(places.items(), pair, strict=False):
                if kind == "dense":
                    file[place][row : row + block.shape[0]] = block.toarray()
                    continue
                end = file[place]["indptr"][-1]
                new = {"data": block.data, "indices": block.indices, "indptr": end + block.indptr[1:]}
                for name, values in new.items():
                    old = len(file[place][name])
                    file[place][name].resize((old + len(values),))
                    file[place][name][old:] = values
            row += pair[0].shape[0]
        _write_table(file, "obs", obs)
        _write_table(file, "var", var)
        for key, lists in uns.items():
            for name, values in lists.items():
                kind = {"dtype": TEXT} if values.dtype.kind in "OU" else {}
                file.create_dataset(
                    f"uns/{key}/{name}", data=values.astype(object) if kind else values, **kind
                )
    return path
