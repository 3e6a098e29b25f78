"""The contract of an output: checked at once after a method ends, before anything is scored.

Reads HDF5 directly, because it runs after every run and in every environment: it needs h5py and numpy
and takes a fraction of a second.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np

PROBE = re.compile(r"epoch_[1-9]\d*|order_\d+|padding|cls_last")


class ContractError(ValueError):
    """The output breaks the task's contract; the message says how."""


def _strings(node: h5py.Group | h5py.Dataset) -> np.ndarray:
    """Read a string array, a categorical (missing values become None) or a nullable string array."""
    if isinstance(node, h5py.Dataset):
        return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in node[:]], dtype=object)
    if "codes" in node:
        names = [*_strings(node["categories"]), None]
        return np.array([names[code] for code in node["codes"][:]], dtype=object)
    values = _strings(node["values"])
    values[node["mask"][:]] = None
    return values


def _column(frame: h5py.Group, name: str) -> np.ndarray:
    if name not in frame:
        found = ", ".join(k for k in frame if not k.startswith("_"))
        raise ContractError(f"obs column {name!r} is missing (found: {found or 'none'})")
    return _strings(frame[name])


def _names(file: h5py.File) -> np.ndarray:
    return _strings(file["obs"][file["obs"].attrs["_index"]])


def _check_names(found: np.ndarray, expected: np.ndarray) -> None:
    if len(found) != len(expected):
        missing = sorted(set(expected) - set(found))
        which = f", missing for instance {missing[0]!r}" if missing else ""
        raise ContractError(f"{len(found)} cells in the output, expected {len(expected)}{which}")
    if (found != expected).any():
        first = int(np.flatnonzero(found != expected)[0])
        kind = "in another order than" if set(found) == set(expected) else "not the names of the cells of"
        raise ContractError(
            f"obs names are {kind} the input: cell {first} is {found[first]!r}, expected {expected[first]!r}"
        )


def _matrix(file: h5py.File, key: str, n: int) -> np.ndarray:
    """Read finite numbers of ``n`` cells from ``obsm``."""
    if key not in file["obsm"]:
        raise ContractError(f"obsm[{key!r}] is missing (found: {', '.join(file['obsm']) or 'none'})")
    node = file["obsm"][key]
    if not isinstance(node, h5py.Dataset) or node.ndim != 2:
        raise ContractError(f"obsm[{key!r}] is not a dense cells x dimensions matrix")
    if node.shape[0] != n or node.shape[1] < 1:
        raise ContractError(f"obsm[{key!r}] has shape {node.shape}, expected ({n}, d)")
    if not np.issubdtype(node.dtype, np.number):
        raise ContractError(f"obsm[{key!r}] holds {node.dtype}, expected numbers")
    values = node[:].astype(np.float64)
    bad = int((~np.isfinite(values)).any(axis=1).sum())
    if bad:
        raise ContractError(f"obsm[{key!r}] has NaN or inf in {bad} of {n} cells")
    return values


def _labels(file: h5py.File, key: str, known: set) -> None:
    """Check that a column of ``obs`` holds known labels."""
    predicted = _column(file["obs"], key)
    empty = [p in (None, "", "nan") for p in predicted]
    if any(empty):
        raise ContractError(f"obs[{key!r}] is missing for {sum(empty)} query cells")
    new = sorted(set(predicted) - known)
    if new:
        raise ContractError(f"obs[{key!r}] has labels not in the reference: {new[0]!r}")


def _check_embedding(file: h5py.File, n: int) -> dict:
    values = _matrix(file, "X_emb", n)
    node = file["obsm"]["X_emb"]
    # clustering metrics of one point are decided by ties, not by cells, and come out above random ones
    rounding = 8 * np.finfo(node.dtype if node.dtype.kind == "f" else np.float64).eps
    if (np.ptp(values, axis=0) <= rounding * np.abs(values).max(axis=0)).all():
        raise ContractError(
            f"obsm['X_emb'] is constant: all {n} cells are the same point, expected an embedding"
        )
    return {"dimensions": int(node.shape[1])}


def _check_probes(path: Path, task: str, names: np.ndarray, facts: dict, known: set) -> None:
    """Check what a method left besides its output, if anything (see ``Given.probes``)."""
    if not path.exists():
        return
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ContractError(f"{path.name} is not a readable h5ad file ({error})") from None
    with file:
        try:
            _check_names(_names(file), names)
            slot = file["obsm"] if task == "integration" else file["obs"]
            for key in slot:
                if task == "annotation" and key == file["obs"].attrs["_index"]:
                    continue
                if not PROBE.fullmatch(key):
                    raise ContractError(
                        f"{key!r} is no probe: expected epoch_<n>, order_<k>, padding or cls_last"
                    )
                if task == "annotation":
                    _labels(file, key, known)
                elif (found := _matrix(file, key, len(names)).shape[1]) != facts["dimensions"]:
                    raise ContractError(
                        f"obsm[{key!r}] has {found} dimensions, the output has {facts['dimensions']}"
                    )
        except ContractError as error:
            raise ContractError(f"{path.name}: {error}") from None
        except (KeyError, AttributeError) as error:
            raise ContractError(f"{path.name} lacks a slot of an h5ad file ({error})") from None


def check_output(task: str, input_path: str | Path, output_path: str | Path) -> dict:
    """Check an output against its input.

    Parameters
    ----------
    task
        ``integration`` wants every cell of the input, in its order, and ``obsm["X_emb"]``;
        ``annotation`` wants every query cell, in its order, and ``obs["label_pred"]`` with labels of the
        reference. The same holds for each of the probes, if there is a ``probes.h5ad`` beside the output.
    input_path, output_path
        h5ad files.

    Returns
    -------
    dict
        What the method says of itself (``uns["info"]``, JSON), with the number of dimensions.

    Raises
    ------
    ContractError
        With the first difference.
    """
    try:
        output = h5py.File(output_path, "r")
    except FileNotFoundError:
        raise ContractError("the method ended well but wrote no output") from None
    except OSError as error:
        raise ContractError(f"the output is not a readable h5ad file ({error})") from None
    with output, h5py.File(input_path, "r") as given:
        try:
            found, expected = _names(output), _names(given)
            known: set = set()
            if task == "integration":
                _check_names(found, expected)
                facts = _check_embedding(output, len(expected))
            else:
                query = _column(given["obs"], "split") == "query"
                _check_names(found, expected[query])
                known = set(_column(given["obs"], "label")[~query])
                _labels(output, "label_pred", known)
                facts = {}
            _check_probes(Path(output_path).with_name("probes.h5ad"), task, found, facts, known)
            if "info" in output["uns"]:
                info = output["uns"]["info"][()]
                facts = json.loads(info.decode() if isinstance(info, bytes) else info) | facts
        except (KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ContractError(f"the output lacks a slot of an h5ad file ({error})") from None
    return facts


if __name__ == "__main__":  # python -m workflow.contract TASK INPUT OUTPUT, called by run_method
    try:
        print(json.dumps(check_output(*sys.argv[1:])))
    except ContractError as problem:
        sys.exit(str(problem))
