"""PBMC 10k: 10x Genomics' pbmc8k and pbmc4k with the labels of scVI, as the paper uses it.

The recipe does by hand what ``scvi.data.pbmc_dataset`` does (its steps were read in scvi-tools
1.4.2), from the same four files:

* ``pbmc8k``, ``pbmc4k``: Cell Ranger 2.1.0 ``filtered_gene_bc_matrices.tar.gz`` of the two samples,
  with ``filtered_gene_bc_matrices/GRCh38/{matrix.mtx,genes.tsv,barcodes.tsv}`` inside;
* ``gene_info``: csv whose column ``ENSG`` names the 3,346 genes that are kept, in their order;
* ``metadata``: a pickle from pandas 0.2x with the 12,039 barcodes that passed scVI's quality
  control, a cluster number for each, the names of the nine clusters, and the design table of the
  batches. It is read without running it (see ``_old_pickle``).

Steps: in each library drop cells and genes without a single count; keep genes that both libraries
have; keep the metadata's barcodes in the metadata's order; keep ``gene_info``'s genes in its order;
take the label from the cluster number and gene symbols from ``genes.tsv``. Result: 11,990 cells x
3,346 genes, batch 0 = pbmc8k (8,030 cells), batch 1 = pbmc4k (3,960 cells).

The 49 rows that are dropped. Their barcodes end in ``-11``, which no 10x file has. All 49 are
pbmc4k cells by the design table, and 47 of the barcodes, cut back to ``-1``, are also there as
pbmc8k cells: somebody made repeated barcodes unique by appending ``1``. So they are real pbmc4k
cells whose barcode pbmc8k has as well. scvi-tools drops them, and so does this recipe.

One difference from scvi-tools, on purpose. It looks each barcode up in both libraries at once, and
where both have it the pbmc4k cell wins. So at least the 47 pbmc8k rows just named get the counts
and the batch of a pbmc4k cell with their own pbmc8k label (at most 7,983 cells in batch 0, at least
4,007 in batch 1). Here each row is looked up in the library that the design table gives it, so
counts and labels belong together; about 0.4 % of the cells differ from scvi-tools' result. Their
number is recorded as ``uns["recipe"]["shared_barcodes"]``.

Cell names are ``<batch>_<barcode>``, as barcodes alone need not be unique.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.io import mmread

from ._common import as_counts, check_shape, source, tidy
from ._old_pickle import Table, read_old_pickle

VERSION = 1
EXPECTED_SHAPE = (11990, 3346)
EXPECTED_BATCHES = {"0": 8030, "1": 3960}
EXPECTED_LABELS = 9
EXPECTED_DROPPED = 49
LIBRARIES = {"0": "pbmc8k", "1": "pbmc4k"}
FOLDER = PurePosixPath("filtered_gene_bc_matrices/GRCh38")
MEMBERS = ("matrix.mtx", "genes.tsv", "barcodes.tsv")
DROPPED_SUFFIX = "-11"
MAX_BYTES = 2_000_000_000  # that an archive may unpack to; the larger one of 10x is a tenth of it


@dataclass(frozen=True)
class Library:
    """One 10x library.

    Attributes
    ----------
    counts
        Cells x genes.
    barcodes
        Names of the rows.
    genes
        Symbols by Ensembl id, in the order of the columns.
    """

    counts: sp.csr_matrix
    barcodes: pd.Index
    genes: pd.Series


@dataclass(frozen=True)
class Metadata:
    """What the recipe needs of the pickle, one entry per row that is kept.

    Attributes
    ----------
    barcodes
        10x barcodes.
    batch
        ``"0"`` or ``"1"``.
    label
        Cell type.
    n_dropped
        Number of rows that ended in ``-11``.
    """

    barcodes: np.ndarray
    batch: np.ndarray
    label: np.ndarray
    n_dropped: int


def read_library(path: Path) -> Library:
    """Read a Cell Ranger 2.1.0 archive in memory; nothing is extracted to disk.

    Parameters
    ----------
    path
        The tar.gz file.

    Returns
    -------
    The library, without cells and genes that have no counts.

    Raises
    ------
    ValueError
        If the archive or one of its three members is not what is expected.
    """
    parts: dict[str, bytes] = {}
    found: list[str] = []
    size = 0
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # links and folders are passed over, and names are compared as they are
                if not member.isfile():
                    continue
                size += member.size  # before anything is read: a small archive can claim to unpack to much
                if size > MAX_BYTES:
                    raise ValueError(
                        f"{path}: found members of {size} bytes and more, expected at most {MAX_BYTES}"
                    )
                place = PurePosixPath(member.name)
                found.append(str(place))
                if place.parent == FOLDER and place.name in MEMBERS:
                    if place.name in parts:
                        raise ValueError(f"{path}: found member {place} twice, expected it once")
                    stream = archive.extractfile(member)
                    parts[place.name] = stream.read() if stream is not None else b""
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise ValueError(f"{path}: found no readable tar.gz ({error}), expected one") from error
    missing = [str(FOLDER / name) for name in MEMBERS if name not in parts]
    if missing:
        raise ValueError(
            f"{path}: member {missing[0]} is missing, found {', '.join(found[:5]) or 'none'}, "
            f"expected {', '.join(MEMBERS)} in {FOLDER}"
        )
    try:
        matrix = mmread(io.BytesIO(parts["matrix.mtx"]))
        table = pd.read_csv(
            io.BytesIO(parts["genes.tsv"]), sep="\t", header=None, dtype=str, keep_default_na=False
        )
    except (ValueError, MemoryError, OverflowError) as error:  # a header may claim any number of values
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: found a broken member ({reason}), expected 10x files") from error
    if table.shape[1] != 2:
        raise ValueError(f"{path}: member genes.tsv: found {table.shape[1]} columns, expected id and symbol")
    barcodes = pd.Index(parts["barcodes.tsv"].decode().split())
    if matrix.shape != (len(table), len(barcodes)):
        raise ValueError(
            f"{path}: member matrix.mtx: found {matrix.shape[0]} x {matrix.shape[1]}, expected "
            f"{len(table)} genes x {len(barcodes)} barcodes"
        )
    genes = pd.Series(table[1].to_numpy(), index=table[0].to_numpy())
    for what, names in (("barcodes.tsv", barcodes), ("genes.tsv", genes.index)):
        if not names.is_unique:
            raise ValueError(
                f"{path}: member {what}: found {names[names.duplicated()][0]!r} twice, expected unique names"
            )
    counts = as_counts(sp.csr_matrix(matrix).T, path, "matrix.mtx")
    cells = np.asarray(counts.sum(axis=1)).ravel() > 0
    seen = np.asarray(counts.sum(axis=0)).ravel() > 0
    return Library(counts[cells][:, seen].tocsr(), barcodes[cells], genes[seen])


def read_metadata(path: Path) -> Metadata:
    """Read barcodes, batches and labels of the cells that are kept.

    Parameters
    ----------
    path
        ``pbmc_metadata.pickle``.

    Returns
    -------
    The rows without those whose barcode ends in ``-11``.

    Raises
    ------
    ValueError
        If the pickle is not admitted, or holds something else.
    """
    content = read_old_pickle(path)
    for key, kind in {
        "barcodes": Table,
        "design": Table,
        "clusters": np.ndarray,
        "list_clusters": np.ndarray,
    }.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(
                f"{path}: key {key!r}: found {type(content.get(key)).__name__}, expected "
                f"{'a table' if kind is Table else 'an array'}"
            )
    cells, design = content["barcodes"], content["design"]
    clusters, names = content["clusters"], content["list_clusters"]
    assert isinstance(cells, Table) and isinstance(design, Table)
    assert isinstance(clusters, np.ndarray) and isinstance(names, np.ndarray)
    if "batchpbmc4k" not in design.columns:
        raise ValueError(
            f"{path}: key 'design': found columns {', '.join(design.columns)}, "
            "expected 'batchpbmc4k' among them"
        )
    second = design.columns["batchpbmc4k"]
    if not len(cells.index) == len(second) == len(clusters):
        raise ValueError(
            f"{path}: found {len(cells.index)} barcodes, {len(second)} rows of the design and "
            f"{len(clusters)} clusters, expected equally many"
        )
    if not np.isin(second, (0, 1)).all() or not np.isin(clusters, range(len(names))).all():
        raise ValueError(
            f"{path}: found batches or clusters out of range, expected 0 or 1 and the place of a "
            "name in 'list_clusters'"
        )
    barcodes = cells.index.astype(str)
    keep = ~np.char.endswith(barcodes, DROPPED_SUFFIX)
    return Metadata(
        barcodes=barcodes[keep],
        batch=second[keep].astype(int).astype(str),
        label=names[clusters[keep]].astype(str),
        n_dropped=int((~keep).sum()),
    )


def read_gene_ids(path: Path) -> list[str]:
    """Read the Ensembl ids of the genes that are kept.

    Parameters
    ----------
    path
        ``gene_info.csv``.

    Returns
    -------
    The ids in the file's order.

    Raises
    ------
    ValueError
        If there is no column ``ENSG``, or ids repeat.
    """
    try:
        table = pd.read_csv(path, dtype=str)
    except ValueError as error:
        raise ValueError(f"{path}: found no readable csv ({error}), expected one") from error
    if "ENSG" not in table:
        raise ValueError(f"{path}: column 'ENSG' is missing, found {', '.join(map(str, table.columns[:5]))}")
    ids = table["ENSG"]
    if ids.isna().any() or ids.duplicated().any():
        raise ValueError(f"{path}: column 'ENSG': found empty or repeated ids, expected unique ids")
    return ids.tolist()


def load(files: dict[str, Path], entry: dict | None = None) -> ad.AnnData:
    """Return PBMC 10k with raw counts.

    Parameters
    ----------
    files
        ``gene_info``, ``metadata``, ``pbmc8k`` and ``pbmc4k``, as the module describes them.

    Returns
    -------
    Two batches, nine published labels, 11,990 cells x 3,346 genes.

    Raises
    ------
    ValueError
        If a file is not what is expected, or the result has other numbers of cells, genes, labels
        or dropped rows.
    """
    paths = {key: source(files, key) for key in ("gene_info", "metadata", *LIBRARIES.values())}
    metadata = read_metadata(paths["metadata"])
    wanted = read_gene_ids(paths["gene_info"])
    if metadata.n_dropped != EXPECTED_DROPPED:
        raise ValueError(
            f"{paths['metadata']}: key 'barcodes': found {metadata.n_dropped} that end in "
            f"{DROPPED_SUFFIX}, expected {EXPECTED_DROPPED}"
        )
    libraries = {batch: read_library(paths[name]) for batch, name in LIBRARIES.items()}
    genes = [gene for gene in wanted if all(gene in lib.genes.index for lib in libraries.values())]

    blocks, order = [], []
    for batch, library in libraries.items():
        rows = np.flatnonzero(metadata.batch == batch)
        if len(rows) != EXPECTED_BATCHES[batch]:
            raise ValueError(
                f"{paths['metadata']}: key 'design': found {len(rows)} cells of batch {batch}, "
                f"expected {EXPECTED_BATCHES[batch]}"
            )
        places = library.barcodes.get_indexer(pd.Index(metadata.barcodes[rows]))
        if (places < 0).any():
            raise ValueError(
                f"{paths[LIBRARIES[batch]]}: barcodes.tsv: found no {int((places < 0).sum())} of "
                f"the metadata's {len(rows)} barcodes "
                f"(such as {metadata.barcodes[rows][places < 0][0]}), expected all"
            )
        columns = library.genes.index.get_indexer(pd.Index(genes))
        blocks.append(library.counts[places][:, columns])
        order.append(rows)
    into = np.argsort(np.concatenate(order), kind="stable")
    counts = as_counts(sp.vstack(blocks, format="csr")[into], paths["metadata"])
    check_shape(counts.shape, EXPECTED_SHAPE, paths["gene_info"])
    n_labels = len(set(metadata.label))
    if n_labels != EXPECTED_LABELS:
        raise ValueError(
            f"{paths['metadata']}: key 'clusters': found {n_labels} labels, expected {EXPECTED_LABELS}"
        )
    first = metadata.barcodes[metadata.batch == "0"]  # pbmc8k cells whose barcode pbmc4k has too
    n_shared = int(np.isin(first, libraries["1"].barcodes.to_numpy(dtype=str)).sum())
    return tidy(
        counts,
        obs_names=[f"{b}_{code}" for b, code in zip(metadata.batch, metadata.barcodes, strict=True)],
        symbols=libraries["0"].genes.loc[genes].to_numpy(),
        gene_id=genes,
        label=metadata.label,
        batch=metadata.batch,
        facts={
            "label_source": "published",
            "batch_0": "pbmc8k",
            "batch_1": "pbmc4k",
            "dropped_rows": metadata.n_dropped,
            "shared_barcodes": n_shared,
        },
    )
