"""Cells in shards: raw counts as two memory-mapped bytes each, and shuffled mini-batches of them.

On a synthetic census of 200,000 cells and two cores this gave 40,000 to 46,000 cells a second, at random or
by blocks, in 2.0 bytes per value; plain csr in numpy files gave 120,000 to 150,000 in 4.0 bytes, zarr 640 at
random and 13,000 by blocks in 1.8, Parquet 600 and 4,500 in 2.2, HDF5 340 and 4,900 in 2.4 (through scDataset
220 and 3,500), TileDB-SOMA through tiledbsoma-ml 8 and 1,060 in 1.5. So packed bytes: half the disk of plain
csr, far faster than a model learns, random access at no loss, and nothing but numpy and scipy to install
(``tests/speed/census_storage.py`` measures it again).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..streams import stream

__all__ = ["Batch", "Minibatches", "Shards", "read_manifest", "write_manifest", "write_shard"]

FORMAT, VERSION = "scmamba2 census shards", 1
FILES = ("starts.npy", "entries.npy", "obs.npz")
ROWS = 2_000  # cells packed at a time


class Batch(NamedTuple):
    """Cells of a mini-batch, as :func:`scmamba2.tokenizer.bin_values` takes them."""

    cells: np.ndarray  # (n,) int64, number of each cell in the shards
    counts: sparse.csr_matrix  # (n, genes) float32


def pack(matrix: sparse.csr_matrix, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn cells into steps from gene to gene and counts that fit into small integers.

    A gap of more than 255 genes is bridged by entries with count 0; a count above ``top`` becomes several
    entries of the same gene, to be added up.

    Parameters
    ----------
    matrix
        ``(n, genes)``, indices sorted within each row, whole positive values.
    top
        Largest value of one entry.

    Returns
    -------
    entries
        ``(entries,)`` with the fields ``step``, uint8: how far the gene is from that of the entry before,
        from gene 0 for a cell's first; and ``count``, of the smallest unsigned type that holds ``top``.
    lengths
        ``(n,)`` int64, entries of each cell.
    """
    genes, values = matrix.indices.astype(np.int64), matrix.data.astype(np.int64)
    firsts = matrix.indptr[:-1][np.diff(matrix.indptr) > 0]
    gaps = np.diff(genes, prepend=0)
    gaps[firsts] = genes[firsts]
    bridges = np.maximum(gaps - 1, 0) // 255
    parts = (values - 1) // top  # entries before the last of a gene
    repeats = bridges + 1 + parts
    ends = repeats.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    entries = np.zeros(total, dtype=[("step", "u1"), ("count", np.min_scalar_type(top))])
    steps, counts = entries["step"], entries["count"]
    counts[:] = top
    # The entry after the bridges has the rest of the gap, the last entry the rest of the count.
    bridged = np.repeat(ends - repeats - bridges.cumsum() + bridges, bridges) + np.arange(bridges.sum())
    steps[bridged], counts[bridged] = 255, 0
    steps[ends - repeats + bridges] = gaps - 255 * bridges
    counts[ends - 1] = values - top * parts
    bounds = np.concatenate([[0], ends])[matrix.indptr]
    return entries, np.diff(bounds)


def unpack(entries: np.ndarray, lengths: np.ndarray, genes: int) -> sparse.csr_matrix:
    """Undo :func:`pack`: ``(n, genes)`` float32, sorted, no zeros stored."""
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    reached = np.zeros(len(entries) + 1, dtype=np.int64)
    entries["step"].cumsum(out=reached[1:])
    indices = (reached[1:] - np.repeat(reached[indptr[:-1]], lengths)).astype(np.int32)
    counts = entries["count"].astype(np.float32)
    matrix = sparse.csr_matrix((counts, indices, indptr), shape=(len(lengths), genes))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def write_shard(
    folder: Path,
    chunks: Iterable[sparse.csr_matrix],
    obs: Mapping[str, np.ndarray],
    min_per_10k: float = 3.0,
) -> dict[str, Any]:
    """Write one shard: pack the cells, without the genes that hardly occur in it.

    Memory is that of a few chunks. The shard is whole once this has returned, not before.

    Parameters
    ----------
    folder
        An empty folder.
    chunks
        Cells in order, ``(n, genes)`` raw counts of any type.
    obs
        Column name to ``(cells,)`` array of text, whole numbers or bool.
    min_per_10k
        A gene is kept if its counts add up to at least this many per 10,000 cells of the shard.

    Returns
    -------
    dict
        For the manifest: cells, genes kept, values stored, and files with bytes and SHA-256.

    Raises
    ------
    ValueError
        Values that are no counts; a column of another length.
    """
    totals: np.ndarray = np.zeros(0)
    lengths, parts = [], np.zeros(2)
    with open(folder / "genes.part", "wb") as genes, open(folder / "values.part", "wb") as values:
        for chunk in chunks:
            matrix = _counts(chunk, folder.name)
            matrix.indices.astype(np.int32).tofile(genes)
            matrix.data.astype(np.uint32).tofile(values)
            lengths.append(np.diff(matrix.indptr))
            added = np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1])
            totals = totals + added if len(totals) else added
            parts += [((matrix.data - 1) // top).sum() for top in (255, 65_535)]
    length = np.concatenate([np.zeros(0, np.int64), *lengths])
    cells, n_values = len(length), int(length.sum())
    for name, column in obs.items():
        if len(column) != cells:
            raise ValueError(f"shard {folder.name}: {cells} cells have {len(column)} values of {name!r}")
    kept = totals >= min_per_10k * cells / 10_000
    # An entry is one byte for the step and one or two for the count, whichever makes the smaller shard.
    top = 255 if 2 * (n_values + parts[0]) <= 3 * (n_values + parts[1]) else 65_535
    starts, stored = [np.zeros(1, dtype=np.int64)], 0
    with (
        open(folder / "genes.part", "rb") as genes,
        open(folder / "values.part", "rb") as values,
        _growing(folder / "entries.npy", [("step", "u1"), ("count", np.min_scalar_type(top))]) as add,
    ):
        for first in range(0, cells, ROWS):
            indptr = np.concatenate([[0], length[first : first + ROWS].cumsum()])
            index = np.fromfile(genes, np.int32, indptr[-1])
            value = np.fromfile(values, np.uint32, indptr[-1])
            take = kept[index]
            indptr = np.concatenate([[0], take.cumsum()])[indptr]
            rows = sparse.csr_matrix((value[take], index[take], indptr), (len(indptr) - 1, len(kept)))
            entries, n_entries = pack(rows, top)
            add(entries)
            starts.append(starts[-1][-1] + n_entries.cumsum())
            stored += rows.nnz
    for part in ("genes.part", "values.part"):
        (folder / part).unlink()
    bounds = np.concatenate(starts)
    np.save(folder / "starts.npy", bounds.astype(np.min_scalar_type(bounds[-1])))
    columns: dict[str, np.ndarray] = {}
    for name, column in obs.items():
        if column.dtype.kind in "OSU":
            categories, codes = np.unique(column.astype(str), return_inverse=True)
            columns[name] = codes.astype(np.min_scalar_type(len(categories)))
            columns[f"{name} categories"] = categories
        else:
            columns[name] = column
    np.savez(folder / "obs.npz", **columns)  # type: ignore[arg-type]
    files = {name: describe(folder / name) for name in FILES}
    return {"cells": cells, "genes_kept": int(kept.sum()), "values": stored, "files": files}


def _counts(chunk: Any, name: str) -> sparse.csr_matrix:
    """Return sorted positive whole numbers, or raise."""
    matrix = sparse.csr_matrix(chunk)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    x = matrix.data
    wrong = x[~((x > 0) & (x < 2**32) & (x == np.floor(x)))]
    if len(wrong):
        raise ValueError(f"shard {name}: {wrong[0]} is no count; raw counts are expected")
    return matrix


@contextmanager
def _growing(path: Path, dtype: Any) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends to a new one-dimensional npy file."""

    def header(length: int) -> None:
        form = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, form | {"shape": (length,)})

    with open(path, "wb") as file:
        header(0)
        start, length = file.tell(), 0

        def add(array: np.ndarray) -> None:
            nonlocal length
            array.astype(dtype, copy=False).tofile(file)
            length += len(array)

        yield add
        file.seek(0)
        header(length)  # numpy leaves room for the length to grow
        assert file.tell() == start


def describe(path: Path) -> dict[str, Any]:
    """Return size and checksum of a file, for the manifest."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` with a checksum of itself; it appears whole or not at all."""
    content = {"format": FORMAT, "version": VERSION, **manifest}
    content["checksum"] = _checksum(content)
    part = folder / f".manifest.json.{os.getpid()}.tmp"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "manifest.json")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``manifest.json``.

    Raises
    ------
    ValueError
        If it is missing, damaged, changed by hand or of another version.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not of {FORMAT}")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{path} has version {manifest.get('version')!r}; this package reads {VERSION}")
    if manifest.pop("checksum", None) != _checksum(manifest):
        raise ValueError(f"{path} was changed after it was written: its checksum is another")
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Shards:
    """Cells on disk, numbered from 0 through all shards.

    Parameters
    ----------
    folder
        What ``scmamba2 census`` wrote.
    verify
        Also compare the checksum of every file, which reads them all. Without it, sizes are compared.

    Attributes
    ----------
    manifest
        Release, filters, partitions, files, versions.
    gene_ids, symbols
        ``(genes,)`` lists of text, Ensembl identifiers and symbols.
    bounds
        ``(shards + 1,)`` int64: number of each shard's first cell, and of all cells.

    Raises
    ------
    ValueError
        If the download is not complete, or a file is missing or not what the manifest says.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        partitions = self.manifest["partitions"]
        if missing := [p["name"] for p in partitions if "files" not in p]:
            raise ValueError(
                f"{folder}: {len(missing)} of {len(partitions)} partitions are not there yet, the first is "
                f"{missing[0]}: the command that made the folder goes on where it was"
            )
        check_file(self.folder / "genes.tsv", self.manifest["genes"], verify=True)
        table = (self.folder / "genes.tsv").read_text(encoding="utf-8")
        pairs = [line.split("\t") for line in table.splitlines()]
        self.gene_ids, self.symbols = [gene for gene, _ in pairs], [symbol for _, symbol in pairs]
        self._starts, self._entries = [], []
        for partition in partitions:
            place = self.folder / partition["name"]
            for name, expected in partition["files"].items():
                check_file(place / name, expected, verify)
            self._starts.append(np.load(place / "starts.npy"))
            self._entries.append(_map(place / "entries.npy"))
            sizes = len(self._starts[-1]) - 1, self._starts[-1][-1]
            if sizes != (partition["cells"], len(self._entries[-1][1])):
                raise ValueError(f"{place}: its arrays do not go together with {partition['cells']} cells")
        self.bounds = np.concatenate([[0], np.cumsum([p["cells"] for p in partitions], dtype=np.int64)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.folder,)  # each process maps the files itself

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def rows(self, cells: np.ndarray) -> sparse.csr_matrix:
        """Return the raw counts of these cells, in their order: ``(n, genes)`` csr float32."""
        shards = np.searchsorted(self.bounds, cells, side="right") - 1
        found, lengths = [], []
        for shard, row in zip(shards.tolist(), (cells - self.bounds[shards]).tolist(), strict=True):
            start, end = self._starts[shard][row : row + 2].tolist()
            found.append(self._entries[shard][1][start:end])
            lengths.append(end - start)
        # Shards may count in different types; numpy finds the one that holds them all.
        entries = np.concatenate(found) if found else np.zeros(0, dtype=[("step", "u1"), ("count", "u1")])
        return unpack(entries, np.array(lengths, dtype=np.int64), len(self.gene_ids))

    def will_need(self, shard: int, first: int, last: int) -> None:
        """Ask the kernel to read rows ``first`` to ``last - 1`` of a shard in the background."""
        if hasattr(mmap, "MADV_WILLNEED"):
            memory, entries = self._entries[shard]
            start, end = (int(self._starts[shard][row]) * entries.itemsize for row in (first, last))
            start -= start % mmap.PAGESIZE
            memory.madvise(mmap.MADV_WILLNEED, start, min(end + mmap.PAGESIZE, len(memory)) - start)

    def obs(self, column: str) -> Iterator[np.ndarray]:
        """Yield a column of the cells' annotation, one array per shard.

        Raises
        ------
        KeyError
            No such column.
        """
        for partition in self.manifest["partitions"]:
            with np.load(self.folder / partition["name"] / "obs.npz") as columns:
                values = columns[column]
                categories = f"{column} categories"
                yield columns[categories][values] if categories in columns else values


class Minibatches:
    """The mini-batches of one epoch, shuffled by blocks; ``self[i]`` is the i-th of this rank.

    Blocks of ``block`` consecutive cells are put in random order, ``window`` of them at a time are pooled
    and their cells shuffled. The order follows from ``seed`` and ``epoch`` alone (stream ``"shuffle"``).
    Each rank has a contiguous part of the epoch's mini-batches, so that ranks read different blocks; in an
    epoch every cell comes exactly once. No position is kept: to go on after ``i`` mini-batches, go on with
    ``self[i]``, and workers may take any share of the numbers::

        DataLoader(batches, batch_size=None, sampler=range(i, len(batches)), num_workers=4)

    Parameters
    ----------
    shards
        The cells.
    batch_size
        Cells of a mini-batch; the epoch's last one may have fewer.
    seed, epoch
        Give the order.
    rank, ranks
        This process and how many there are.
    block, window
        Consecutive cells read together; blocks mixed at a time.
    equal
        Give every rank the same number of full mini-batches, leaving out the fewest possible: fewer than
        ``ranks * batch_size`` cells.

    Raises
    ------
    ValueError
        A number that makes no sense.
    """

    def __init__(
        self,
        shards: Shards,
        batch_size: int = 64,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        block: int = 64,
        window: int = 256,
        equal: bool = False,
    ) -> None:
        if min(batch_size, block, window, ranks) < 1 or not 0 <= rank < ranks:
            raise ValueError(
                f"batch_size {batch_size}, block {block}, window {window} and ranks {ranks} must be 1 or "
                f"more, rank {rank} from 0 to ranks - 1"
            )
        self.shards, self.batch_size, self.window = shards, batch_size, window
        self.seed, self.epoch = seed, epoch
        firsts, lasts = [], []  # of each block, in numbers of cells
        for start, end in itertools.pairwise(shards.bounds.tolist()):
            firsts.append(np.arange(start, end, block))
            lasts.append(np.minimum(firsts[-1] + block, end))
        blocks = np.stack([np.concatenate(x) for x in (firsts, lasts)], axis=1)
        self._blocks = stream(seed, f"shuffle/{epoch}").permutation(blocks)
        # Where each window begins in the epoch's order of cells.
        sizes = np.diff(self._blocks).ravel().cumsum()
        self._bounds = np.concatenate([[0], sizes[window - 1 :: window], sizes[-1:]])
        n = len(shards) // (batch_size * ranks) * ranks if equal else -(-len(shards) // batch_size)
        self._first, self._last = n * rank // ranks, n * (rank + 1) // ranks
        self._window: tuple[int, np.ndarray] = -1, np.zeros(0, np.int64)

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"mini-batch {i} of {len(self)}")
        start = (self._first + i) * self.batch_size
        end = min(start + self.batch_size, len(self.shards))
        cells = []
        while start < end:  # a mini-batch may end in the next window
            number = int(self._bounds.searchsorted(start, side="right")) - 1
            offset = int(self._bounds[number])
            part = self._cells(number)[start - offset : end - offset]
            cells.append(part)
            start += len(part)
        chosen = np.concatenate(cells)
        return Batch(chosen, self.shards.rows(chosen))

    def _cells(self, number: int) -> np.ndarray:
        """Return the shuffled cells of a window; the kernel starts to read them."""
        if self._window[0] != number:
            blocks = self._blocks[number * self.window : (number + 1) * self.window]
            for first, last in blocks.tolist():
                shard = int(self.shards.bounds.searchsorted(first, side="right")) - 1
                offset = int(self.shards.bounds[shard])
                self.shards.will_need(shard, first - offset, last - offset)
            cells = np.concatenate([np.arange(first, last) for first, last in blocks.tolist()])
            stream(self.seed, f"shuffle/{self.epoch}/{number}").shuffle(cells)
            self._window = number, cells
        return self._window[1]


def _map(path: Path) -> tuple[mmap.mmap, np.ndarray]:
    """Map an npy file of packed cells into memory."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memory, np.frombuffer(memory, dtype, offset=file.tell())[: shape[0]]


def check_file(path: Path, expected: Mapping[str, Any], verify: bool) -> None:
    """Raise ValueError unless the file has the size, and if ``verify`` the checksum, of the manifest."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{path} has {size} bytes, not {expected['bytes']} as in the manifest")
    if verify and (found := _sha256(path)) != expected["sha256"]:
        raise ValueError(f"{path} has SHA-256 {found}, not {expected['sha256']} as in the manifest")
