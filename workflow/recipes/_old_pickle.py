"""Read arrays, tables and sets out of a pickle without running anything in it.

A pickle is a program: loading one with :mod:`pickle` or ``pandas.read_pickle`` may call any
function that it names. Here a few names are answered with inert classes that only keep what they are
given: ``_STAND_INS``, which are all that a pickled dict of arrays and ``DataFrame`` from pandas 0.2x
needs, and ``_SETS``, which is all that sets need before pickle protocol 4. Every other name is refused
before anything of the pickle has run. The values are then rebuilt from what was kept. No numpy or
pandas object is ever built by the pickle itself, so the result does not depend on the pandas version
either.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"i8", "i4", "f8", "f4", "b1", "u1"}


class _Kept:
    """Keeps the arguments and the state that a pickle hands to it, and does nothing else."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Frame(_Kept):
    """Stands in for pandas.DataFrame."""


class _Blocks(_Kept):
    """Stands in for the BlockManager inside a DataFrame."""


class _Index(_Kept):
    """Stands in for the function that makes an Index."""


class _Array(_Kept):
    """Stands in for the function that makes an array."""


class _Dtype(_Kept):
    """Stands in for numpy.dtype."""


class _Slice(_Kept):
    """Stands in for slice."""


class _Set(_Kept):
    """Stands in for set."""


class _Name(_Kept):
    """Stands in for a type that is only named, as an argument of another."""


_STAND_INS: dict[tuple[str, str], type[_Kept]] = {
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals", "BlockManager"): _Blocks,
    ("pandas.core.indexes.base", "_new_Index"): _Index,
    ("pandas.core.indexes.base", "Index"): _Name,
    ("pandas.core.indexes.numeric", "Int64Index"): _Name,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Dtype,
    ("builtins", "slice"): _Slice,
}
_SETS: dict[tuple[str, str], type[_Kept]] = {("builtins", "set"): _Set, ("__builtin__", "set"): _Set}


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins only."""

    def __init__(self, data: bytes, stand_ins: dict[tuple[str, str], type[_Kept]]) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False)  # names stay as they were checked
        self.stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name, or refuse the name.

        Parameters
        ----------
        module, name
            As the pickle gives them.

        Returns
        -------
        One of the classes above.
        """
        if (module, name) not in self.stand_ins:
            raise pickle.UnpicklingError(f"name {module}.{name} is not admitted")
        return self.stand_ins[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to outside objects.

        Parameters
        ----------
        pid
            The reference.
        """
        raise pickle.UnpicklingError("a persistent reference is not admitted")


@dataclass(frozen=True)
class Table:
    """What is needed of a DataFrame.

    Attributes
    ----------
    index
        Row names.
    columns
        Values of each column by its name.
    """

    index: np.ndarray
    columns: dict[str, np.ndarray]


def _load(data: bytes, stand_ins: dict[tuple[str, str], type[_Kept]]) -> Any:
    """Load a pickle, unless it names anything that is not admitted: that is found out before it is loaded."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if (module, name) not in stand_ins:
                raise pickle.UnpicklingError(f"name {module}.{name} is not admitted")
        elif opcode.name in {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"}:
            raise pickle.UnpicklingError(f"operation {opcode.name} is not admitted")
        elif opcode.name == "BINPERSID":
            raise pickle.UnpicklingError("a persistent reference is not admitted")
    return _Unpickler(data, stand_ins).load()


def _array(kept: _Array) -> np.ndarray:
    _, shape, dtype, fortran, raw = kept.state
    if not isinstance(dtype, _Dtype):
        raise TypeError("an array has no dtype")
    code, order = dtype.args[0], dtype.state[1]
    if code == "O8":
        if not isinstance(raw, list) or not all(isinstance(v, (str, type(None))) for v in raw):
            raise TypeError("an array of objects holds more than text")
        values = np.empty(len(raw), dtype=object)
        values[:] = raw
    elif code in _DTYPES and order in {"<", "|"}:
        values = np.frombuffer(raw, dtype=np.dtype(code).newbyteorder("<")).copy()
    else:
        raise TypeError(f"dtype {order}{code} is not admitted")
    return values.reshape(shape, order="F" if fortran else "C")


def _index(kept: _Index) -> np.ndarray:
    return _array(kept.args[1]["data"])


def _table(kept: _Frame) -> Table:
    axes, *_, extra = kept.state["_data"].state
    names, index = _index(axes[0]), _index(axes[1])
    columns: dict[str, np.ndarray] = {}
    for block in extra["0.14.1"]["blocks"]:
        values, places = _array(block["values"]), block["mgr_locs"]
        where = (
            range(len(names))[slice(*places.args)]
            if isinstance(places, _Slice)
            else [int(place) for place in _array(places)]
        )
        if values.shape != (len(where), len(index)):
            raise ValueError("a block of a table has another shape than its axes")
        for place, row in zip(where, values, strict=True):
            columns[str(names[place])] = row
    return Table(index=index, columns={str(n): columns[str(n)] for n in names})


_REBUILD: dict[type, Callable[[Any], Any]] = {_Array: _array, _Frame: _table}


def read_old_pickle(path: Path) -> dict[str, np.ndarray | Table]:
    """Read a pickled dict of numpy arrays and pandas tables, running nothing of it.

    Parameters
    ----------
    path
        The pickle, as pandas 0.2x wrote it.

    Returns
    -------
    The same dict with arrays as they were and tables as :class:`Table`.

    Raises
    ------
    ValueError
        If the file is no such pickle, or names anything but the types that it needs.
    """
    data = Path(path).read_bytes()
    try:
        kept = _load(data, _STAND_INS)
        if not isinstance(kept, dict):
            raise TypeError("it holds no dict")
        return {str(key): _REBUILD[type(value)](value) for key, value in kept.items()}
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(
            f"{path}: found a pickle that is not read ({type(error).__name__}: {error}), "
            "expected a dict of numpy arrays and pandas tables only"
        ) from error


def read_sets(path: Path) -> dict[str, set[str]]:
    """Read a pickled dict of sets of text, running nothing of it.

    Parameters
    ----------
    path
        The pickle, of any protocol.

    Returns
    -------
    The same dict.

    Raises
    ------
    ValueError
        If the file is no such pickle, or names or holds anything but a dict, sets and text.
    """
    data = Path(path).read_bytes()
    try:
        kept = _load(data, _SETS)
        if type(kept) is not dict:
            raise TypeError("it holds no dict")
        sets = {key: set(value.args[0]) if type(value) is _Set else value for key, value in kept.items()}
        for key, value in sets.items():
            if type(value) is not set or not all(type(text) is str for text in (key, *value)):
                raise TypeError(f"entry {key!r:.40} is no set of text")
        return sets
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(
            f"{path}: found a pickle that is not read ({type(error).__name__}: {error}), "
            "expected a dict of sets of text only"
        ) from error
