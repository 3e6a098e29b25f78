"""What the recipe tests share: paths, the tidy-AnnData check and writers of made-up input."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture
def demo_file() -> Path:
    """The committed CITE-seq file."""
    return ROOT / "workflow" / "demo_data" / "pbmc_cite.h5ad"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """A function that returns a file of the data folder beside the project, or skips the test."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"development data {name} is not beside the project")
        return path

    return find


@pytest.fixture
def scanpy_file() -> Path:
    """The reduced PBMC 68k file inside the installed scanpy package."""
    spec = importlib.util.find_spec("scanpy")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"


@pytest.fixture
def assert_tidy() -> Callable[..., None]:
    """A function that checks an AnnData against the recipes' contract."""

    def check(
        adata: Any,
        *,
        batches: bool = False,
        obs: list[str] | None = None,
        gene_id: bool = False,
        var: tuple[str, ...] = (),
        counts: bool = True,
        x: bool = False,
        uns: tuple[str, ...] = (),
    ) -> None:
        matrices = [*([adata.layers["counts"]] if counts else []), *([adata.X] if x else [])]
        for matrix in matrices:
            assert isinstance(matrix, sp.csr_matrix) and matrix.dtype == np.float32
            assert matrix.has_sorted_indices and (matrix.data > 0).all()
        assert x == (adata.X is not None)
        if counts:
            values = adata.layers["counts"].data
            assert np.array_equal(values, np.round(values))
        assert list(adata.layers) == ["counts"] * counts
        obs = obs or (["batch", "label"] if batches else ["label"])
        assert list(adata.obs) == obs
        for name in adata.obs:
            if name not in ("label", "batch", "split", "condition", "modality"):
                continue
            assert adata.obs[name].dtype == "category"
            assert all(isinstance(c, str) for c in adata.obs[name].cat.categories)
            assert not adata.obs[name].isna().any()
        if "batch" in adata.obs:
            assert adata.obs["batch"].nunique() > 1
        assert list(adata.var) == [*(["gene_id"] if gene_id else []), *var]
        assert adata.obs_names.is_unique and adata.var_names.is_unique
        assert not len(adata.obsm) and not len(adata.varm) and not len(adata.obsp)
        assert adata.raw is None and sorted(adata.uns) == sorted(["recipe", *uns])
        assert all(isinstance(v, (str, int, float)) for v in adata.uns["recipe"].values())

    return check


@dataclass(frozen=True)
class Name:
    """A global name in a pickle."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of a global name in a pickle, and the state that follows it."""

    function: Name
    args: tuple[Any, ...] = ()
    state: Any = None


def opcodes(value: Any) -> bytes:
    """Write a value as pickle protocol 3, without looking up any name."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(v) for pair in value.items() for v in pair) + b"u"
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, args, state):
            built = b"" if state is None else opcodes(state) + b"b"
            call = b"R" if args else b"\x81"  # what makes an empty object is NEWOBJ
            return opcodes(function) + opcodes(args) + call + built
    raise TypeError(type(value))


def old_array(values: np.ndarray) -> Call:
    """Write an array the way numpy 1 did."""
    array = np.ascontiguousarray(values)
    text = array.dtype == object
    code = "O8" if text else array.dtype.str[1:]
    order = "|" if text or code.endswith("1") else "<"
    dtype = Call(
        Name("numpy", "dtype"),
        (code, 0, 1),
        (3, order, None, None, None, -1, -1, 63 if text else 0),
    )
    raw = array.ravel().tolist() if text else array.tobytes()
    return Call(
        Name("numpy.core.multiarray", "_reconstruct"),
        (Name("numpy", "ndarray"), (0,), b"b"),
        (1, array.shape, dtype, False, raw),
    )


def old_table(index: np.ndarray, columns: dict[str, np.ndarray]) -> Call:
    """Write a table of numbers of one kind the way pandas 0.2x did."""

    def axis(values: np.ndarray) -> Call:
        kind = Name("pandas.core.indexes.base", "Index")
        data = {"data": old_array(values), "name": None}
        return Call(Name("pandas.core.indexes.base", "_new_Index"), (kind, data))

    axes = [axis(np.array(list(columns), dtype=object)), axis(index)]
    places = Call(Name("builtins", "slice"), (0, len(columns), 1))
    block = {"values": old_array(np.vstack(list(columns.values()))), "mgr_locs": places}
    state: tuple[Any, ...] = (axes, [], [], {"0.14.1": {"axes": axes, "blocks": [block]}})
    blocks = Call(Name("pandas.core.internals", "BlockManager"), (), state)
    return Call(
        Name("pandas.core.frame", "DataFrame"),
        (),
        {"_data": blocks, "_typ": "dataframe", "_metadata": []},
    )


@pytest.fixture
def write_metadata() -> Callable[..., Path]:
    """A function that writes a metadata pickle in the layout of the real one."""

    def write(
        path: Path,
        barcodes: Sequence[str],
        batch: Sequence[int],
        clusters: Sequence[int],
        names: Sequence[str],
    ) -> Path:
        rows = np.arange(1, len(barcodes) + 1)
        content = {
            "design": old_table(rows, {"(Intercept)": rows * 0 + 1, "batchpbmc4k": np.array(batch)}),
            "barcodes": old_table(np.array(barcodes, dtype=object), {"Unnamed: 0": rows}),
            "clusters": old_array(np.array(clusters)),
            "list_clusters": old_array(np.array(names, dtype=object)),
        }
        path.write_bytes(b"\x80\x03" + opcodes(content) + b".")
        return path

    return write


@pytest.fixture
def write_10x() -> Callable[..., Path]:
    """A function that writes an archive in Cell Ranger 2.1.0's layout."""

    def write(
        path: Path,
        counts: sp.spmatrix,
        genes: Sequence[tuple[str, str]],
        barcodes: Sequence[str],
        folder: str = "filtered_gene_bc_matrices/GRCh38",
    ) -> Path:
        matrix = io.BytesIO()
        mmwrite(matrix, sp.coo_matrix(counts.T), field="integer")
        members = {
            "matrix.mtx": matrix.getvalue(),
            "genes.tsv": "".join(f"{gene}\t{symbol}\n" for gene, symbol in genes).encode(),
            "barcodes.tsv": "".join(f"{barcode}\n" for barcode in barcodes).encode(),
        }
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            place = tarfile.TarInfo(folder)
            place.type, place.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(place)
            for name, content in members.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return write
