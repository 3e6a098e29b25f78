"""CELLxGENE's census: which of its cells the paper can mean, and a copy of them as shards.

The paper's text trains on the release of 2024-07-01, the released code on that of 2023-05-08, which was a
weekly one and is no longer served; the long-term release nearest to it is 2023-05-15. The code takes cells
with a known suspension type and no disease, tissue by tissue, duplicates included, and a set of cancers by
a list of disease names. That list was not published, so it has to be given.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from ..progress import Bar
from .shards import describe, read_manifest, write_manifest, write_shard

__all__ = ["GROUPS", "RELEASES", "Census", "Source", "count", "download", "group", "report"]

log = logging.getLogger(__name__)

RELEASES = {
    "2024-07-01": (74_322_510, 44_265_932),
    "2023-05-15": (53_794_728, 33_758_887),
    "2023-05-08": None,
}
"""Human cells of a release, all and unique, as the census documents them; None where it does not."""

TISSUES = ("heart", "blood", "brain", "lung", "kidney", "intestine", "pancreas")
GROUPS = (*TISSUES, "others", "pan-cancer")
"""Parts in which the cells are kept: seven tissues, all other tissues, and diseases from a list."""

CLAIMS = {"abstract, introduction": 57e6, "results": 30e6, "sum of the figure's organs": 36.1e6}
FIGURE = {
    "brain": 21.5e6,
    "blood": 5.4e6,
    "lung": 3.2e6,
    "heart": 2.3e6,
    "liver": 1.6e6,
    "kidney": 1.0e6,
    "bone": 657e3,
    "pancreas": 227e3,
    "stomach": 167e3,
    "intestine": 94e3,
}
"""Cells that the paper's figure gives for each organ."""

BONE = ("bone", "bone marrow")
"""What the figure's "bone" may stand for."""

FILTERED = ("suspension_type", "disease", "tissue_general", "is_primary_data")
KEPT = ("soma_joinid", "dataset_id", "tissue_general", "cell_type", "assay", "is_primary_data", "donor_id")
CHUNK = 8_192  # cells read at a time
BYTES_PER_CELL = 4_500  # on disk, before any shard tells: 2,000 values of 2 bytes, annotation


class Source(Protocol):
    """Where cells come from."""

    def describe(self) -> dict[str, Any]:
        """Return release, date of build, versions: what the manifest should say."""

    def genes(self) -> tuple[list[str], list[str]]:
        """Return Ensembl identifiers and symbols, in the order of the columns."""

    def obs(
        self, columns: Sequence[str], joinids: np.ndarray | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the annotation of all cells, or of these, in order, some rows at a time."""

    def counts(self, joinids: np.ndarray) -> sparse.csr_matrix:
        """Return raw counts ``(n, genes)`` of the cells with these ascending numbers."""


class Census:
    """The human cells of a census release.

    Parameters
    ----------
    release
        Its date, as in ``RELEASES``.
    uri
        Where a copy of it is, if not in the public bucket.

    Raises
    ------
    ImportError
        cellxgene-census is not installed.
    OSError
        The release cannot be opened or read.
    """

    def __init__(self, release: str, uri: str | None = None) -> None:
        try:
            import cellxgene_census
        except ImportError as error:
            raise ImportError(
                f"the census needs cellxgene-census, which fails to import ({error}): "
                "pip install 'scmamba2[pretrain]'"
            ) from error
        self.release = release
        buffer = 256 * 1024**2
        gone = (
            "; it is no longer served, 2023-05-15 is the nearest that is" if release == "2023-05-08" else ""
        )
        with self._reading(f"cannot be opened{gone}"):
            config = {"soma.init_buffer_bytes": buffer, "py.init_buffer_bytes": buffer}
            root = cellxgene_census.open_soma(census_version=release, uri=uri, tiledb_config=config)
            self._root, self._human = root, root["census_data"]["homo_sapiens"]
            self._rna = self._human.ms["RNA"]
            self._n_genes = len(self._rna.var)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of TileDB, S3 and the network, all unlike
            request = getattr(error, "request", None)  # requests' message is an essay
            reason = f"{request.url} cannot be reached" if request else " ".join(str(error).split())
            raise OSError(f"census {self.release} {what}: {reason or type(error).__name__}") from error

    def describe(self) -> dict[str, Any]:
        with self._reading("has no readable summary"):
            table = self._root["census_info"]["summary"].read().concat().to_pandas()
        summary = dict(zip(table["label"], table["value"], strict=True))
        return {
            "release": self.release,
            "built": summary.get("census_build_date"),
            "schema": summary.get("census_schema_version"),
        }

    def genes(self) -> tuple[list[str], list[str]]:
        with self._reading("has no readable table of genes"):
            names = ["soma_joinid", "feature_id", "feature_name"]
            var = self._rna.var.read(column_names=names).concat().to_pandas()
        var = var.sort_values("soma_joinid")
        if not np.array_equal(var["soma_joinid"], np.arange(len(var))):
            raise OSError(f"census {self.release}: its genes are not numbered from 0 on")
        return [str(x) for x in var["feature_id"]], [str(x) for x in var["feature_name"]]

    def obs(
        self, columns: Sequence[str], joinids: np.ndarray | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        with self._reading("has no readable annotation of cells"):
            obs = self._human.obs
            if missing := [c for c in columns if c not in obs.keys()]:
                raise KeyError(f"there is no column {', '.join(missing)}")
            coordinates = () if joinids is None else (joinids,)
            tables = iter(obs.read(coordinates, column_names=list(columns)))
        while True:
            with self._reading("has no readable annotation of cells"):
                table = next(tables, None)
                if table is None:
                    return
            for some in table.to_batches(1_000_000):  # text as objects is large
                yield {name: some.column(name).to_pandas().to_numpy() for name in columns}

    def counts(self, joinids: np.ndarray) -> sparse.csr_matrix:
        with self._reading("has no readable counts"):
            table = self._rna.X["raw"].read((joinids,)).tables().concat()
            rows, genes, values = (
                table.column(name).to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data")
            )
        places = np.searchsorted(joinids, rows), genes
        return sparse.coo_matrix((values, places), shape=(len(joinids), self._n_genes)).tocsr()


def group(
    cells: Mapping[str, np.ndarray], diseases: Sequence[str] = (), primary_only: bool = False
) -> np.ndarray:
    """Return the place in ``GROUPS`` of each cell, -1 for cells that are not taken.

    Parameters
    ----------
    cells
        Columns ``FILTERED`` of the annotation, ``(n,)`` each.
    diseases
        Names of the diseases in "pan-cancer"; "normal" is none.
    primary_only
        Leave out the cells that the census marks as duplicates.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` int8.
    """
    tissue, disease = cells["tissue_general"], cells["disease"]
    groups = np.full(len(tissue), -1, dtype=np.int8)
    normal = disease == "normal"
    groups[normal] = GROUPS.index("others")
    for number, name in enumerate(TISSUES):
        groups[normal & (tissue == name)] = number
    for name in set(diseases) - {"normal"}:
        groups[disease == name] = GROUPS.index("pan-cancer")
    groups[cells["suspension_type"] == "na"] = -1
    if primary_only:
        groups[~cells["is_primary_data"].astype(bool)] = -1
    return groups


def count(source: Source) -> Counter[tuple[str, str, str, bool]]:
    """Count the cells by suspension type, disease, tissue and whether they are primary data."""
    cells: Counter[tuple[str, str, str, bool]] = Counter()
    for part in source.obs(FILTERED):
        cells.update(zip(*(part[name].tolist() for name in FILTERED), strict=True))
    return cells


def tally(
    cells: Mapping[tuple[str, str, str, bool], int], diseases: Sequence[str] = ()
) -> dict[str, Counter[str]]:
    """Return the cells per tissue for each reading of what the paper trained on.

    "all" is the whole release, "normal" what the released code's filter leaves, "normal + cancer" also the
    given diseases; each with and without the cells that the census marks as duplicates.
    """
    columns = {name: np.array([key[i] for key in cells], dtype=object) for i, name in enumerate(FILTERED)}
    taken = group(columns, diseases)
    cancer = taken == GROUPS.index("pan-cancer")
    chosen = {"all": taken >= -1, "normal": (taken >= 0) & ~cancer}
    if diseases:
        chosen["normal + cancer"] = taken >= 0
    readings: dict[str, Counter[str]] = {}
    for name, these in chosen.items():
        for title, kept in (
            (name, these),
            (f"{name}, primary", these & columns["is_primary_data"].astype(bool)),
        ):
            readings[title] = Counter()
            for tissue, n, keep in zip(columns["tissue_general"], cells.values(), kept, strict=True):
                readings[title][tissue] += n * bool(keep)
    return readings


def report(
    source: Source, cells: Mapping[tuple[str, str, str, bool], int], diseases: Sequence[str] = ()
) -> str:
    """Return a table of the readings beside the paper's numbers, and which reading is closest to each."""
    about = source.describe()
    readings = tally(cells, diseases)
    if unknown := sorted(set(diseases) - {disease for _, disease, _, _ in cells}):
        log.warning("no cell of this release has the disease %s", ", ".join(unknown))
    organs = {organ: BONE if organ == "bone" else (organ,) for organ in FIGURE}
    table = {
        organ: [sum(reading[tissue] for tissue in tissues) for reading in readings.values()]
        for organ, tissues in organs.items()
    }
    ten = [sum(column) for column in zip(*table.values(), strict=True)]
    every = [reading.total() for reading in readings.values()]
    paper = FIGURE | {"these ten": sum(FIGURE.values())}
    lines = [f"census {about['release']}, built {about.get('built') or 'on an unknown date'}: human cells"]
    width = max(map(len, readings)) + 2
    lines.append(f"{'tissue':<12}{'paper':>12}" + "".join(f"{name:>{width}}" for name in readings))
    others = [sum(n for tissue, n in r.items() if tissue not in TISSUES) for r in readings.values()]
    rows = {**table, "these ten": ten, "all tissues": every, "others": others}
    for tissue, row in rows.items():
        said = f"{paper[tissue]:,.0f}" if tissue in paper else ""
        lines.append(f"{tissue:<12}{said:>12}" + "".join(f"{n:>{width},}" for n in row))
    sums = {
        f"{name}, {where}": n
        for where, row in (("all tissues", every), ("these ten", ten))
        for name, n in zip(readings, row, strict=True)
    }
    for claim, n in CLAIMS.items():
        closest = min(sums, key=lambda name: abs(sums[name] - n))
        lines.append(
            f"paper's {n / 1e6:.3g} M ({claim}): closest is {closest}, {sums[closest]:,} "
            f"({sums[closest] / n - 1:+.1%})"
        )
    logs = np.abs(np.log(np.maximum(list(table.values()), 1)) - np.log(list(FIGURE.values()))[:, None])
    factors = dict(zip(readings, np.exp(logs.mean(axis=0)), strict=True))
    closest = min(factors, key=lambda name: factors[name])
    lines.append(
        f"figure's organs one by one: closest is {closest}, off by a factor of {factors[closest]:.2f} "
        "(geometric mean)"
    )
    lines.append(f"others: all tissues but {', '.join(TISSUES)}, the groups of the released code")
    sizes = (f"{name} {n * BYTES_PER_CELL / 1e9:,.0f} GB" for name, n in zip(readings, every, strict=True))
    lines.append(f"as shards about {BYTES_PER_CELL / 1e3} kB per cell: {'; '.join(sizes)}")
    if known := RELEASES.get(about["release"]):
        same = known == (readings["all"].total(), readings["all, primary"].total())
        lines.append(
            f"documented: {known[0]:,} cells, {known[1]:,} of them primary"
            + (": as counted" if same else ": NOT as counted, this is not the whole release")
        )
    return "\n".join(lines)


def download(
    source: Source,
    folder: Path,
    *,
    groups: Sequence[str] = GROUPS[:-1],
    diseases: Sequence[str] = (),
    primary_only: bool = False,
    partition_cells: int = 200_000,
    min_per_10k: float = 3.0,
) -> None:
    """Copy the chosen cells into shards, one partition at a time.

    A call that was interrupted goes on, with the same arguments, after the last whole partition.

    Parameters
    ----------
    source
        The census.
    folder
        Made if need be; holds ``manifest.json``, ``genes.tsv`` and a folder per partition.
    groups
        Which of ``GROUPS``; a partition has cells of one group.
    diseases
        Names of the diseases in "pan-cancer".
    primary_only
        Leave out duplicates.
    partition_cells
        Cells of a partition.
    min_per_10k
        See :func:`scmamba2.pretraining.shards.write_shard`.

    Raises
    ------
    ValueError
        Arguments that make no sense; a folder with other cells, or that another process writes to; no cells.
    OSError
        Not enough room; the source cannot be read.
    """
    if wrong := sorted(set(groups) - set(GROUPS)):
        raise ValueError(f"unknown group {wrong[0]!r}; there are {', '.join(GROUPS)}")
    if ("pan-cancer" in groups) != bool(diseases):
        raise ValueError("the group pan-cancer and a list of diseases need each other")
    if partition_cells < 1:
        raise ValueError(f"partitions must have 1 cell or more, not {partition_cells}")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        request = {
            "source": source.describe(),
            "filter": {
                "suspension_type": "not na",
                "groups": [g for g in GROUPS if g in groups],
                "diseases": sorted(diseases),
                "primary_only": primary_only,
            },
            "partition_cells": partition_cells,
            "min_per_10k": min_per_10k,
        }
        manifest = read_manifest(folder) if (folder / "manifest.json").exists() else None
        for key, value in request.items():
            if manifest is not None and manifest[key] != value:
                raise ValueError(f"{folder} has {key} {manifest[key]}, not {value}: choose another folder")
        members = plan(source, groups, diseases, primary_only, partition_cells)
        listed = [
            {"name": name, "cells": len(ids), "joinids": sha256(ids.tobytes()).hexdigest()}
            for name, ids in members.items()
        ]
        if manifest is None:
            genes = "".join(f"{gene}\t{symbol}\n" for gene, symbol in zip(*source.genes(), strict=True))
            (folder / "genes.tsv").write_text(genes, encoding="utf-8")
            manifest = {
                **request,
                "genes": describe(folder / "genes.tsv"),
                "partitions": listed,
                "software": _software(),
            }
            write_manifest(folder, manifest)
        partitions = manifest["partitions"]
        if [{key: p[key] for key in listed[0]} for p in partitions] != listed:
            raise ValueError(f"{folder} was begun when the release had other cells: choose another folder")
        for left in folder.glob(".*.part"):
            shutil.rmtree(left)
        todo = [p for p in partitions if "files" not in p]
        total = sum(p["cells"] for p in partitions)
        with Bar("census", total, total - sum(p["cells"] for p in todo)) as bar:
            for partition in todo:
                _check_room(folder, partitions, partition["cells"])
                _write_partition(source, folder, partition, members[partition["name"]], min_per_10k, bar)
                write_manifest(folder, manifest)
        log.info("%s: %s cells in %d partitions", folder, f"{total:,}", len(partitions))


def plan(
    source: Source,
    groups: Sequence[str] = GROUPS[:-1],
    diseases: Sequence[str] = (),
    primary_only: bool = False,
    partition_cells: int = 200_000,
) -> dict[str, np.ndarray]:
    """Return the ascending numbers of each partition's cells, int64, by the partition's name."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in GROUPS if name in groups}
    for part in source.obs(("soma_joinid", *FILTERED)):
        numbers = group(part, diseases, primary_only)
        for name, parts in found.items():
            parts.append(part["soma_joinid"][numbers == GROUPS.index(name)])
    members = {}
    for name, parts in found.items():
        ids = np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))
        if not len(ids):
            log.warning("no cell is in the group %s", name)
        for number, first in enumerate(range(0, len(ids), partition_cells)):
            members[f"{name}-{number:05d}"] = ids[first : first + partition_cells]
    if not members:
        raise ValueError(f"no cell of the release is in {', '.join(found)}")
    return members


def _write_partition(
    source: Source, folder: Path, partition: dict[str, Any], joinids: np.ndarray, min_per_10k: float, bar: Bar
) -> None:
    """Write a partition's folder, which appears whole or not at all, and note its files."""
    name = partition["name"]
    temporary = folder / f".{name}.part"

    def chunks() -> Iterator[sparse.csr_matrix]:
        for first in range(0, len(joinids), CHUNK):
            some = joinids[first : first + CHUNK]
            yield source.counts(some)
            bar.step(len(some), name)

    try:
        temporary.mkdir()
        parts = list(source.obs(KEPT, joinids))
        obs = {column: np.concatenate([part[column] for part in parts]) for column in KEPT}
        order = obs["soma_joinid"].argsort()
        if not np.array_equal(obs["soma_joinid"][order], joinids):
            raise OSError(f"the source has {len(order):,} of {len(joinids):,} cells")
        facts = write_shard(temporary, chunks(), {c: x[order] for c, x in obs.items()}, min_per_10k)
        shutil.rmtree(folder / name, ignore_errors=True)  # whole, but the manifest was never told
        temporary.rename(folder / name)
    except OSError as error:
        raise OSError(f"{folder}: {name} is not done, {error}; the same command goes on there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    partition.update(facts)


def _check_room(folder: Path, partitions: Sequence[Mapping[str, Any]], next_cells: int) -> None:
    """Refuse to begin what the disk has no room for."""
    done = [p for p in partitions if "files" in p]
    cells = sum(p["cells"] for p in done)
    left = sum(p["cells"] for p in partitions) - cells
    written = sum(file["bytes"] for p in done for file in p["files"].values())
    each = written / cells if cells else BYTES_PER_CELL
    needed = each * (left + 4 * next_cells)  # a partition is first written without packing
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:,.1f} GB free; the {left:,} cells that are left need about "
            f"{needed / 1e9:,.1f} GB: make room, and the same command goes on"
        )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second process out; the kernel lets go when this one ends, however it ends."""
    import fcntl

    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is writing to {folder}") from error
        yield


def _software() -> dict[str, str]:
    versions = {}
    for package in ("scmamba2", "cellxgene-census", "tiledbsoma", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
