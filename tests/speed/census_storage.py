"""For developers: which storage and loader feeds pre-training, measured in one run.

    OMP_NUM_THREADS=1 python tests/speed/census_storage.py --folder /tmp/storage

Writes a SYNTHETIC census of 200,000 cells x 60,530 genes in eight forms and reads random mini-batches of 64
cells as csr, each measurement in a process of its own: warm, with the files in the page cache as far as they
fit, and cold, after the kernel was told to drop them. Rates are the best of the rounds. No test: times depend
on the machine. What is not installed is left out and named. annbatch, another candidate, needs Python 3.12.

The model of the cells: gene shares are log-normal with sigma 2.6, which gives the 100 and the 1,000 most
frequent genes 37 % and 67 % of all molecules, as in a real slice of the census; each run of 2,500 cells, a
"dataset", has its own shares (sigma 1 around these); molecules per cell are log-normal (median 5,500, sigma
0.45); a cell's molecules are drawn one by one.

"true random": every batch is a uniform sample. "blocks": blocks of 64 consecutive cells in random order, 256
of them mixed at a time. Mixing is the entropy of the datasets in a batch over that of a true random batch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from scipy import sparse

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

GENES, BATCH, BLOCK, WINDOW, DATASET, CHUNK = 60_530, 64, 64, 256, 2_500, 10_000


def synthesize(folder: Path, cells: int) -> None:
    """Write starts, genes and counts of the synthetic census, plain."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 2.6, GENES)
    starts = [0]
    with open(folder / "genes.u16", "wb") as genes, open(folder / "counts.u16", "wb") as counts:
        for _ in range(0, cells, DATASET):
            shares = (base * rng.lognormal(0, 1, GENES)).cumsum()
            molecules = rng.lognormal(np.log(5_500), 0.45, min(DATASET, cells)).astype(int)
            for some in np.array_split(np.arange(len(molecules)), 5):
                n = molecules[some]
                drawn = shares.searchsorted(rng.random(n.sum()) * shares[-1])
                key, count = np.unique(np.repeat(np.arange(len(some)), n) * GENES + drawn, return_counts=True)
                (key % GENES).astype(np.uint16).tofile(genes)
                count.clip(max=65_535).astype(np.uint16).tofile(counts)
                starts += list(starts[-1] + np.bincount(key // GENES, minlength=len(some)).cumsum())
    np.save(folder / "starts.npy", np.array(starts))


class Plain:
    """Rows of csr arrays that slices can be read from: memory-mapped files, HDF5, zarr."""

    def __init__(self, starts, genes, counts):
        self.starts, self.genes, self.counts = starts, genes, counts

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, rows):
        spans = [(self.starts[i], self.starts[j + 1]) for i, j in runs(rows)]
        genes = np.concatenate([self.genes[a:b] for a, b in spans])
        counts = np.concatenate([self.counts[a:b] for a, b in spans])
        return csr(counts, genes, self.starts[rows + 1] - self.starts[rows])


def csr(counts, genes, lengths):
    """Return what every candidate must deliver."""
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    values = counts.astype(np.float32), genes.astype(np.int32), indptr
    return sparse.csr_matrix(values, shape=(len(lengths), GENES))


def runs(rows):
    """Yield first and last of each run of consecutive rows."""
    ends = np.flatnonzero(np.diff(rows) != 1)
    return zip(rows[np.r_[0, ends + 1]], rows[np.r_[ends, len(rows) - 1]], strict=True)


def source(folder: Path) -> Plain:
    files = (np.memmap(folder / "source" / f"{name}.u16", np.uint16, "r") for name in ("genes", "counts"))
    return Plain(np.load(folder / "source/starts.npy"), *files)


def chunks(plain: Plain, n: int = CHUNK):
    for first in range(0, len(plain), n):
        yield plain[np.arange(first, min(first + n, len(plain)))]


# One class per candidate: write() makes the files, random() and blocks() yield (row numbers or None, csr).


class Generic:
    """Reads with self.open(), an object that maps sorted row numbers to a csr."""

    direct = False  # whether a batch is read by itself, or a window at once

    def random(self, folder):
        data, rng = self.open(folder), np.random.default_rng()
        while True:
            rows = np.sort(rng.choice(len(data), BATCH, replace=False))
            yield rows, data[rows]

    def blocks(self, folder):
        data, rng = self.open(folder), np.random.default_rng()
        order = rng.permutation(len(data) // BLOCK)
        for first in range(0, len(order), WINDOW):
            rows = np.sort(order[first : first + WINDOW])[:, None] * BLOCK + np.arange(BLOCK)
            rows = rows.ravel()
            window, mixed = None if self.direct else data[rows], rng.permutation(len(rows))
            for i in range(0, len(rows), BATCH):
                some = np.sort(mixed[i : i + BATCH])
                yield rows[some], data[rows[some]] if window is None else window[some]


class ScDataset:
    """Reads with scDataset over self.open()."""

    def batches(self, folder, block, factor):
        from scdataset import BlockShuffling, scDataset

        options = dict(batch_size=BATCH, fetch_factor=factor, seed=int(time.time()))
        data = self.open(folder)

        class Rows:  # anndata's lacks a length
            __len__ = lambda self: data.shape[0]  # noqa: E731
            __getitem__ = lambda self, rows: data[rows]  # noqa: E731

        yield from ((None, x) for x in scDataset(Rows(), BlockShuffling(block), **options))

    def random(self, folder):
        return self.batches(folder, 1, 1)

    def blocks(self, folder):
        return self.batches(folder, BLOCK, WINDOW)


class Shards(Generic):
    """Two bytes per value, memory-mapped: what scmamba2.pretraining.shards writes and reads."""

    files = "shards"

    def write(self, plain, folder):
        from scmamba2.pretraining import shards

        partitions = []
        for first in range(0, len(plain), 100_000):
            name = f"synthetic-{len(partitions)}"
            (folder / name).mkdir()
            rows = np.arange(first, min(first + 100_000, len(plain)))
            parts = (plain[rows[i : i + CHUNK]] for i in range(0, len(rows), CHUNK))
            partitions.append({"name": name, **shards.write_shard(folder / name, parts, {}, min_per_10k=0)})
        (folder / "genes.tsv").write_text("".join(f"ENSG{i}\tG{i}\n" for i in range(GENES)))
        genes = shards.describe(folder / "genes.tsv")
        shards.write_manifest(folder, {"genes": genes, "partitions": partitions})

    def open(self, folder):
        from scmamba2.pretraining.shards import Shards

        class Rows(Shards):
            __getitem__ = Shards.rows

        return Rows(folder)

    def blocks(self, folder):
        from scmamba2.pretraining.shards import Minibatches

        options = dict(batch_size=BATCH, block=BLOCK, window=WINDOW, seed=int(time.time()))
        yield from Minibatches(self.open(folder), **options)


class NpyPlain(Generic):
    """csr as it is: uint16 genes, uint16 counts."""

    files, direct = "plain", True

    def write(self, plain, folder):
        np.save(folder / "starts.npy", plain.starts)
        for name, array in (("genes", plain.genes), ("counts", plain.counts)):
            with open(folder / name, "wb") as file:
                for i in range(0, len(array), 10**7):
                    array[i : i + 10**7].tofile(file)

    def open(self, folder):
        files = (np.memmap(folder / name, np.uint16, "r") for name in ("genes", "counts"))
        return Plain(np.load(folder / "starts.npy"), *files)


class Hdf5(Generic):
    """csr in HDF5 as h5ad has it, chunks of about 64 cells, gzip 1; read with h5py."""

    files = "hdf5"

    def write(self, plain, folder):
        import h5py

        with h5py.File(folder / "cells.h5ad", "w") as file:
            x = file.create_group("X")
            x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
            x.attrs["shape"] = len(plain), GENES
            options = dict(maxshape=(None,), chunks=(131_072,), compression="gzip", compression_opts=1)
            for name, kind in (("indices", np.int32), ("data", np.float32)):
                x.create_dataset(name, (len(plain.genes),), dtype=kind, **options)
            x["indptr"] = plain.starts
            for first, chunk in zip(plain.starts[::CHUNK], chunks(plain), strict=False):
                x["indices"][first : first + chunk.nnz] = chunk.indices
                x["data"][first : first + chunk.nnz] = chunk.data

    def open(self, folder):
        import h5py

        x = h5py.File(folder / "cells.h5ad")["X"]
        return Plain(x["indptr"][:], x["indices"], x["data"])


class Hdf5ScDataset(ScDataset, Hdf5):
    """The same file through scDataset and anndata."""

    def open(self, folder):
        import h5py
        from anndata.io import sparse_dataset

        return sparse_dataset(h5py.File(folder / "cells.h5ad")["X"])


class Zarr(Generic):
    """csr in zarr 3, chunks of about 64 cells in shards of 128 chunks, zstd."""

    files = "zarr"

    def write(self, plain, folder):
        import zarr

        x = zarr.open_group(folder, mode="w", zarr_format=3).create_group("X")
        x.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [len(plain), GENES]}
        )
        sizes = dict(chunks=(131_072,), shards=(131_072 * 128,))
        step = 131_072 * 128
        for name, array, kind in (("indices", plain.genes, "uint16"), ("data", plain.counts, "uint16")):
            stored = x.create_array(name, shape=array.shape, dtype=kind, **sizes)
            for i in range(0, len(array), step):
                stored[i : i + step] = array[i : i + step]
        x.create_array("indptr", data=plain.starts)

    def open(self, folder):
        import zarr

        x = zarr.open_group(folder, mode="r")["X"]
        return Plain(x["indptr"][:], x["indices"], x["data"])


class ZarrScDataset(ScDataset, Zarr):
    """The same store through scDataset and anndata."""

    def open(self, folder):
        import zarr
        from anndata.io import sparse_dataset

        return sparse_dataset(zarr.open_group(folder, mode="r")["X"])


class Parquet(Generic):
    """A row per cell, list<uint16> twice, row groups of 64 cells, zstd."""

    files = "parquet"

    def write(self, plain, folder):
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({name: pa.list_(pa.uint16()) for name in ("genes", "counts")})
        with pq.ParquetWriter(
            folder / "cells.parquet", schema, compression="zstd", use_dictionary=False
        ) as out:
            for x in chunks(plain):
                columns = [
                    pa.ListArray.from_arrays(x.indptr.astype(np.int32), v.astype(np.uint16))
                    for v in (x.indices, x.data)
                ]
                out.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=BLOCK)

    def open(self, folder):
        import pyarrow.parquet as pq

        class Rows:
            def __init__(self):
                self.file = pq.ParquetFile(folder / "cells.parquet", memory_map=True)
                n = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
                self.starts = np.concatenate([[0], np.cumsum(n)])

            def __len__(self):
                return int(self.starts[-1])

            def __getitem__(self, rows):
                group = self.starts.searchsorted(rows, side="right") - 1
                groups, index = np.unique(group, return_inverse=True)
                table = self.file.read_row_groups([int(g) for g in groups])
                sizes = np.diff(self.starts)[groups]
                within = (sizes.cumsum() - sizes)[index] + rows - self.starts[group]
                return from_arrow(table.take(within))

        return Rows()


class ArrowFile(Generic):
    """The same table as an uncompressed Arrow file, memory-mapped."""

    files, direct = "arrow", True

    def write(self, plain, folder):
        import pyarrow as pa

        schema = pa.schema({name: pa.large_list(pa.uint16()) for name in ("genes", "counts")})
        with pa.ipc.new_file(folder / "cells.arrow", schema) as out:
            for x in chunks(plain):
                columns = [
                    pa.LargeListArray.from_arrays(x.indptr.astype(np.int64), v.astype(np.uint16))
                    for v in (x.indices, x.data)
                ]
                out.write_table(pa.Table.from_arrays(columns, schema=schema))

    def open(self, folder):
        import pyarrow as pa

        table = pa.ipc.open_file(pa.memory_map(str(folder / "cells.arrow"))).read_all()

        class Rows:
            def __len__(self):
                return len(table)

            def __getitem__(self, rows):
                return from_arrow(table.take(rows))

        return Rows()


def from_arrow(table):
    parts = []
    for batch in table.to_batches():
        genes, counts = batch.columns
        parts.append(
            csr(
                counts.flatten().to_numpy(),
                genes.flatten().to_numpy(),
                genes.value_lengths().to_numpy(),
            )
        )
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


class Soma:
    """TileDB-SOMA as the census is stored, through tiledbsoma-ml."""

    files = "soma"

    def write(self, plain, folder):
        import pandas as pd
        import pyarrow as pa
        import tiledbsoma as soma

        shape = len(plain), GENES
        with soma.Experiment.create(str(folder / "soma")) as experiment:
            for name, n, parent in (("obs", shape[0], experiment), ("var", shape[1], None)):
                if parent is None:
                    ms = experiment.add_new_collection("ms")
                    parent = rna = ms.add_new_collection("RNA", soma.Measurement)
                schema = pa.schema({"soma_joinid": pa.int64(), "n": pa.int64()})
                options = dict(schema=schema, index_column_names=["soma_joinid"], domain=[(0, n - 1)])
                frame = parent.add_new_dataframe(name, **options)
                table = pd.DataFrame({"soma_joinid": np.arange(n), "n": np.arange(n)})
                frame.write(pa.Table.from_pandas(table, preserve_index=False))
            zstd = {"_type": "ZstdFilter", "level": 9}
            layout = {  # the census's own
                "capacity": 2**16,
                "dims": {
                    "soma_dim_0": {"tile": 2048, "filters": [zstd]},
                    "soma_dim_1": {"tile": 2048, "filters": ["ByteShuffleFilter", zstd]},
                },
                "attrs": {"soma_data": {"filters": ["ByteShuffleFilter", zstd]}},
                "cell_order": "row-major",
                "tile_order": "row-major",
                "allows_duplicates": True,
            }
            options = dict(type=pa.float32(), shape=shape, platform_config={"tiledb": {"create": layout}})
            x = rna.add_new_collection("X").add_new_sparse_ndarray("raw", **options)
            first = 0
            for chunk in chunks(plain):
                coo = chunk.tocoo()
                columns = first + coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data
                x.write(pa.table(columns, names=["soma_dim_0", "soma_dim_1", "soma_data"]))
                first += chunk.shape[0]

    def batches(self, folder, io, chunk):
        import tiledbsoma as soma
        from tiledbsoma_ml import ExperimentDataset

        with soma.open(str(folder / "soma")) as experiment, experiment.axis_query("RNA") as query:
            options = dict(batch_size=BATCH, io_batch_size=io, shuffle_chunk_size=chunk)
            yield from (
                (obs["soma_joinid"].to_numpy(), x)
                for x, obs in ExperimentDataset(query, layer_name="raw", return_sparse_X=True, **options)
            )

    def random(self, folder):
        return self.batches(folder, BATCH, 1)

    def blocks(self, folder):
        return self.batches(folder, BLOCK * WINDOW, BLOCK)


CANDIDATES = {
    "packed shards (ours)": Shards,
    "npy, uint16 csr": NpyPlain,
    "Arrow file": ArrowFile,
    "Parquet": Parquet,
    "HDF5": Hdf5,
    "HDF5, scDataset": Hdf5ScDataset,
    "zarr": Zarr,
    "zarr, scDataset": ZarrScDataset,
    "SOMA, tiledbsoma-ml": Soma,
}


def status(name: str) -> float:
    """Return a line of /proc/self/status in MB."""
    return next(int(x.split()[1]) / 1e3 for x in open("/proc/self/status") if x.startswith(name))


def work(name: str, what: str, folder: Path, seconds: float) -> dict:
    """Do one measurement; this process is for nothing else."""
    candidate, place = CANDIDATES[name](), folder / CANDIDATES[name].files
    if what == "write":
        plain = source(folder)
        list(chunks(plain))  # into the page cache
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        start = time.perf_counter()
        candidate.write(plain, place)
        return {"write_s": time.perf_counter() - start}
    batches = getattr(candidate, what.split()[-1])(place)
    whole = WINDOW if "blocks" in what else 1  # loaders deliver a window at once: count whole ones
    mixing, cells, start = [], 0, time.perf_counter()
    for n, (rows, x) in enumerate(batches, 1):
        assert x.shape[1] == GENES and x.nnz > x.shape[0] * 100
        cells += x.shape[0]
        if rows is not None:
            share = np.unique(rows // DATASET, return_counts=True)[1] / BATCH
            mixing.append(-(share * np.log(share)).sum())
        if n % whole == 0 and time.perf_counter() - start > seconds:
            break
    rate = cells / (time.perf_counter() - start)
    return {
        "rate": rate,
        "peak": status("VmHWM"),
        "private": status("RssAnon"),
        "mixing": np.mean(mixing) if mixing else np.nan,
    }


def measure(name: str, what: str, folder: Path, seconds: float) -> dict:
    """Call work() in a new process."""
    if what.startswith("cold"):
        for path in (folder / CANDIDATES[name].files).rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--folder", folder, "--seconds", seconds, "--one", name, what]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=6, help="per measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(work(*args.one, args.folder, args.seconds)))
        return
    where = args.folder / "source"
    if not where.exists():
        where.mkdir(parents=True)
        start = time.perf_counter()
        synthesize(where, args.cells)
        print(f"synthesized in {time.perf_counter() - start:.0f} s")
    plain = source(args.folder)
    ones = sum(int((plain.counts[i : i + 10**7] == 1).sum()) for i in range(0, len(plain.counts), 10**7))
    print(
        f"SYNTHETIC: {len(plain):,} cells, {len(plain.genes) / len(plain):,.0f} values per cell "
        f"({len(plain.genes) / len(plain) / GENES:.1%}), {ones / len(plain.counts):.0%} of them 1"
    )
    results: dict[str, dict] = {name: {} for name in args.only}
    for name in args.only:
        results[name]["write"] = measure(name, "write", args.folder, 0)
        place = args.folder / CANDIDATES[name].files
        results[name]["bytes"] = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    kinds = [f"{state} {order}" for state, order in product(("warm", "cold"), ("random", "blocks"))]
    for kind, turn, name in product(kinds, range(args.rounds + 1), args.only):
        found = measure(name, kind, args.folder, args.seconds)
        before = results[name].get(kind, {"rate": 0})
        if "error" in found or (found["rate"] > before["rate"] and (turn or kind.startswith("cold"))):
            results[name][kind] = found  # the first warm round fills the page cache
    rng, share = np.random.default_rng(0), []
    for _ in range(1_000):
        drawn = rng.choice(len(plain), BATCH, replace=False) // DATASET
        share.append(np.unique(drawn, return_counts=True)[1] / BATCH)
    random = -np.mean([(s * np.log(s)).sum() for s in share])
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; rates in cells per second, memory in MB")
    columns = ["write/s", "B/value", *kinds, "peak", "private", "mixing"]
    print(f"{'':<22}", *(f"{c:>11}" for c in columns))
    for name, found in results.items():
        errors = [r["error"] for r in found.values() if isinstance(r, dict) and "error" in r]
        if errors:
            print(f"{name:<22} {errors[0]}")
            continue
        last, written = found["warm blocks"], found["write"]["write_s"]
        row = [len(plain) / written, found["bytes"] / len(plain.genes), *(found[k]["rate"] for k in kinds)]
        row += [last["peak"], last["private"], last["mixing"] / random]
        shown = ["-" if np.isnan(x) else f"{x:,.2f}" if x < 10 else f"{x:,.0f}" for x in row]
        print(f"{name:<22}", *(f"{x:>11}" for x in shown))


if __name__ == "__main__":
    main()
