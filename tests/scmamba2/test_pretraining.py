"""The census as shards: which cells, downloads that break off, files that were damaged, mini-batches."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from scmamba2.cli import main
from scmamba2.config import Config
from scmamba2.pretraining import census, shards
from scmamba2.pretraining.census import FIGURE, GROUPS, count, download, group, plan, report, tally
from scmamba2.pretraining.shards import Minibatches, Shards, pack, unpack, write_manifest, write_shard
from scmamba2.tokenizer import bin_values, tokenize
from scmamba2.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
GENES = 3_000


class Memory:
    """A census in memory: the annotation of SYNTHETIC cells and their counts."""

    def __init__(self, obs, counts, symbols=None, slow=0.0):
        self.table, self.matrix, self.slow = obs, counts, slow
        self.symbols = symbols or [f"G{i}" for i in range(counts.shape[1])]

    def describe(self):
        return {"release": "test", "built": None, "schema": None}

    def genes(self):
        return [f"ENSG{i:011d}" for i in range(len(self.symbols))], self.symbols

    def obs(self, columns, joinids=None):
        rows = np.arange(len(self.table["soma_joinid"]))
        if joinids is not None:
            rows = np.flatnonzero(np.isin(self.table["soma_joinid"], joinids))
        for some in np.array_split(rows, 3):
            yield {name: self.table[name][some] for name in columns}

    def counts(self, joinids):
        time.sleep(self.slow)
        return self.matrix[np.searchsorted(self.table["soma_joinid"], joinids)]


def make(n=500, seed=0, slow=0.0):
    """Return synthetic cells of every kind that the filters know, a few counts of theirs very high."""
    rng = np.random.default_rng(seed)
    matrix = sparse.random(n, GENES, 0.02, format="csr", rng=rng)
    matrix.data = np.floor(rng.pareto(1.0, matrix.nnz) + 1).clip(max=70_000)
    text = {
        "dataset_id": [f"d{k}" for k in np.arange(n) // 50],
        "tissue_general": rng.choice([*census.TISSUES, "liver", "bone marrow"], n),
        "disease": rng.choice(["normal", "normal", "glioma", "influenza"], n),
        "suspension_type": rng.choice(["cell", "nucleus", "na"], n, p=[0.6, 0.3, 0.1]),
        "cell_type": rng.choice(["T cell", "B cell", "naïve µ cell"], n),
        "assay": rng.choice(["10x 3' v3", "Smart-seq2"], n),
        "donor_id": rng.choice(["a", "b"], n),
    }
    obs = {name: np.array(values, dtype=object) for name, values in text.items()}
    obs["soma_joinid"] = np.arange(n, dtype=np.int64) * 3 + 7  # a release has gaps only in what is chosen
    obs["is_primary_data"] = rng.random(n) < 0.7
    return Memory(obs, matrix, slow=slow)


@pytest.fixture
def source():
    return make()


@pytest.fixture
def folder(source, tmp_path):
    download(source, tmp_path / "shards", partition_cells=20, min_per_10k=0)
    return tmp_path / "shards"


def all_obs(opened, name):
    return np.concatenate(list(opened.obs(name)))


# Which cells


def test_filters_by_hand():
    rows = [  # suspension, disease, tissue, primary -> group, with cancers, primary only
        ("cell", "normal", "heart", True, "heart", "heart", "heart"),
        ("nucleus", "normal", "brain", False, "brain", "brain", None),
        ("na", "normal", "brain", True, None, None, None),
        ("cell", "normal", "small intestine", True, "others", "others", "others"),
        ("cell", "normal", "intestine", True, "intestine", "intestine", "intestine"),
        ("cell", "glioma", "brain", True, None, "pan-cancer", None),
        ("na", "glioma", "brain", True, None, None, None),
        ("cell", "influenza", "lung", True, None, None, None),
        ("cell", "normal", "Heart", True, "others", "others", "others"),
    ]
    columns = list(zip(*rows, strict=True))
    cells = {n: np.array(c, dtype=object) for n, c in zip(census.FILTERED, columns[:4], strict=True)}

    def names(*arguments):
        return [None if i < 0 else GROUPS[i] for i in group(cells, *arguments)]

    assert names() == [row[4] for row in rows]
    assert names(["glioma", "normal"]) == [row[5] for row in rows]
    assert names([], True) == [row[6] for row in rows]


def test_count_and_tally(source):
    cells, obs = count(source), source.table
    assert cells.total() == 500
    readings = tally(cells, ["glioma"])
    normal = (obs["suspension_type"] != "na") & (obs["disease"] == "normal")
    cancer = (obs["suspension_type"] != "na") & (obs["disease"] == "glioma")
    for tissue in ("brain", "liver"):
        here = obs["tissue_general"] == tissue
        for name, these in {
            "all": here,
            "normal": here & normal,
            "normal + cancer": here & (normal | cancer),
        }.items():
            assert readings[name][tissue] == these.sum()
            assert readings[f"{name}, primary"][tissue] == (these & obs["is_primary_data"]).sum()
    assert list(tally(cells)) == ["all", "all, primary", "normal", "normal, primary"]


def test_report_says_which_reading_is_closest(source, caplog):
    cells = Counter()
    for organ, n in FIGURE.items():
        cells["cell", "normal", organ, True] = int(n)
        cells["cell", "normal", organ, False] = 1_000_000  # the organs' rank stays, their numbers do not
    cells["cell", "normal", "skin", True] = 57_000_000 - sum(cells.values())
    cells["cell", "cold", "skin", True] = 20_000_000
    text = report(source, cells, ["cold", "no such disease"])
    assert "57 M (abstract, introduction): closest is normal, all tissues, 57,000,000 (+0.0%)" in text
    assert (
        "36.1 M (sum of the figure's organs): closest is all, primary, these ten, 36,145,000 (+0.1%)" in text
    )
    assert "one by one: closest is all, primary, off by a factor of 1.00" in text
    line = next(line.split() for line in text.splitlines() if line.startswith("brain"))
    assert line[1:4] == ["21,500,000", "22,500,000", "21,500,000"]
    others = next(line.split() for line in text.splitlines() if line.startswith("others "))
    seven = sum(int(FIGURE[t]) + 1_000_000 for t in census.TISSUES)
    assert others[1] == f"{77_000_000 - seven:,}"
    assert "all, primary 302 GB" in text
    assert "no such disease" in caplog.text and "cold" not in caplog.text.replace("no such", "")
    source.describe = lambda: {"release": "2024-07-01", "built": "2024-05-20"}
    assert "documented: 74,322,510 cells, 44,265,932 of them primary: NOT as counted" in report(source, cells)


def test_numbers_are_those_of_the_table_of_published_values():
    with open(ROOT / "workflow/published.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if row[3].startswith("pretraining_cells")]
    table = {row[3].removeprefix("pretraining_cells").lstrip("_"): float(row[5]) for row in rows}
    assert {organ: table.get(organ) for organ in FIGURE} == FIGURE
    totals = {float(row[5]) for row in rows if row[3] == "pretraining_cells"}
    assert sum(FIGURE.values()) in totals
    assert {total // 1e5 * 1e5 for total in totals} == set(census.CLAIMS.values())


def test_plan_has_every_chosen_cell_once(source):
    members = plan(source, partition_cells=20)
    taken = np.concatenate(list(members.values()))
    numbers = group(source.table)
    assert sorted(taken) == list(source.table["soma_joinid"][numbers >= 0])
    for name, ids in members.items():
        rows = np.searchsorted(source.table["soma_joinid"], ids)
        assert 0 < len(ids) <= 20 and {GROUPS[i] for i in numbers[rows]} == {name.rsplit("-", 1)[0]}
    assert sum(len(ids) < 20 for ids in members.values()) <= len(GROUPS) - 1


# A shard


@pytest.mark.parametrize("density", [0, 0.001, 0.03, 0.9])
@pytest.mark.parametrize("top", [3, 255, 65_535])
def test_pack_and_unpack(density, top):
    rng = np.random.default_rng(1)
    matrix = sparse.random(30, GENES, density, format="csr", rng=rng)
    matrix.data = np.floor(rng.pareto(0.7, matrix.nnz) + 1).clip(max=100 * top)
    gaps = np.zeros((1, GENES))
    gaps[0, np.cumsum([0, 1, 254, 255, 256, 257, 510, 511])] = 1, top, top + 1, 2 * top, 2 * top + 1, 1, 1, 1
    empty = sparse.csr_matrix((2, GENES))
    matrix = sparse.vstack([empty, matrix, gaps, empty, gaps]).tocsr()
    matrix.sort_indices()
    entries, lengths = pack(matrix, top)
    back = unpack(entries, lengths, GENES)
    assert len(entries) == lengths.sum() and entries["count"].max(initial=0) <= top
    assert back.dtype == np.float32 and back.has_canonical_format and (back.data > 0).all()
    assert np.array_equal(back.toarray(), matrix.toarray())


def test_gene_filter_at_its_threshold(tmp_path):
    counts = np.zeros((20_000, 3), dtype=int)
    counts[::400, 0] = 1  # 50 in all
    counts[:1, 1] = 6  # 3 per 10,000 are 6 in 20,000
    counts[:5, 2] = 1
    facts = write_shard(tmp_path, [sparse.csr_matrix(counts)], {}, 3)
    assert (facts["cells"], facts["genes_kept"], facts["values"]) == (20_000, 2, 51)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["entries.npy", "obs.npz", "starts.npy"]
    (tmp_path / "genes.tsv").write_text("E0\tA\nE1\tB\nE2\tC\n")
    manifest = {"genes": shards.describe(tmp_path / "genes.tsv"), "partitions": [{"name": ".", **facts}]}
    write_manifest(tmp_path, manifest)
    counts[:, 2] = 0
    assert np.array_equal(Shards(tmp_path).rows(np.arange(20_000)).toarray(), counts)


@pytest.mark.parametrize("value", [1.5, -1, np.nan, 2.0**32])
def test_only_counts(tmp_path, value):
    with pytest.raises(ValueError, match="is no count; raw counts are expected"):
        write_shard(tmp_path, [sparse.csr_matrix([[1, value]])], {})


def test_high_counts_take_two_bytes(tmp_path):
    high = sparse.csr_matrix(np.full((4, 5), 60_000))
    write_shard(tmp_path, [high], {})
    assert np.load(tmp_path / "entries.npy").dtype.itemsize == 3


# Download


def test_download(source, folder):
    opened = Shards(folder, verify=True)
    members = np.concatenate(list(plan(source, partition_cells=20).values()))
    rows = np.searchsorted(source.table["soma_joinid"], members)
    assert len(opened) == len(members)
    for name in census.KEPT:
        assert np.array_equal(all_obs(opened, name), source.table[name][rows])
    cells = np.random.default_rng(0).permutation(len(opened))  # any order, several shards at once
    assert np.array_equal(opened.rows(cells).toarray(), source.matrix[rows[cells]].toarray())
    assert opened.rows(np.zeros(0, dtype=np.int64)).shape == (0, GENES)
    assert (opened.gene_ids, opened.symbols) == source.genes()
    manifest = opened.manifest
    assert manifest["source"]["release"] == "test" and manifest["filter"]["primary_only"] is False
    assert manifest["software"]["numpy"] == np.__version__ and manifest["min_per_10k"] == 0
    assert {p.name for p in folder.iterdir()} == {
        *(p["name"] for p in manifest["partitions"]),
        *("manifest.json", "genes.tsv", ".lock"),
    }


def test_shards_of_one_and_two_byte_counts_together(tmp_path):
    source = make()
    members = plan(source, ["brain"], partition_cells=20)
    first = np.searchsorted(source.table["soma_joinid"], members["brain-00000"])
    source.matrix = source.matrix.tolil()
    source.matrix[first] = 60_000
    source.matrix = source.matrix.tocsr()
    download(source, tmp_path / "s", groups=["brain"], partition_cells=20, min_per_10k=0)
    opened = Shards(tmp_path / "s")
    assert len({entries.dtype for _, entries in opened._entries}) == 2
    rows = np.searchsorted(source.table["soma_joinid"], np.concatenate(list(members.values())))
    cells = np.arange(len(opened))[::-1]
    assert np.array_equal(opened.rows(cells).toarray(), source.matrix[rows[cells]].toarray())


def hashes(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return [(p["name"], p["files"]["entries.npy"]["sha256"]) for p in manifest["partitions"]]


def test_killed_download_goes_on(source, folder, tmp_path):
    again = tmp_path / "again"
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_pretraining import download, make; from pathlib import Path\n"
        f"download(make(slow=0.3), Path({str(again)!r}), partition_cells=20, min_per_10k=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        for _ in range(3_000):
            if len(list(again.glob("[a-z]*-0000?"))) >= 3 and list(again.glob(".*.part")):
                break
            assert process.poll() is None
            time.sleep(0.02)
        with pytest.raises(ValueError, match=f"another process is writing to {again}"):
            download(source, again, partition_cells=20, min_per_10k=0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = list(again.glob("[a-z]*-0000?/entries.npy"))
    dates = {path: path.stat().st_mtime_ns for path in done[:2]}
    with pytest.raises(ValueError, match=r"of \d+ partitions are not there yet"):
        Shards(again)
    download(source, again, partition_cells=20, min_per_10k=0)
    assert hashes(again) == hashes(folder) and not list(again.glob(".*.part"))
    kept = [path for path, date in dates.items() if path.stat().st_mtime_ns == date]
    assert kept and len(Shards(again, verify=True)) == len(Shards(folder))


def test_whole_download_is_left_alone(source, folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.np?")}
    source.counts = None  # not to be called
    download(source, folder, partition_cells=20, min_per_10k=0)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.np?")} == before


def test_partition_that_the_manifest_was_never_told_of(source, folder):
    manifest, before = shards.read_manifest(folder), hashes(folder)
    for key in ("files", "values", "genes_kept"):
        del manifest["partitions"][2][key]
    write_manifest(folder, manifest)
    download(source, folder, partition_cells=20, min_per_10k=0)
    assert hashes(folder) == before and len(Shards(folder, verify=True))


def test_lost_connection(source, folder, tmp_path):
    counts, calls = source.counts, []

    def lost(joinids):
        calls.append(len(joinids))
        if len(calls) == 4:
            raise OSError("census test has no readable counts: timeout")
        return counts(joinids)

    source.counts, again = lost, tmp_path / "again"
    with pytest.raises(OSError, match=r"heart-0000\d|blood-0000\d") as error:
        download(source, again, partition_cells=20, min_per_10k=0)
    assert "timeout; the same command goes on there" in str(error.value)
    assert len(list(again.glob("[a-z]*-0000?"))) == 3 and not list(again.glob(".*.part"))
    download(source, again, partition_cells=20, min_per_10k=0)
    assert hashes(again) == hashes(folder) and len(calls) == 4 + len(hashes(folder)) - 3


def test_no_room(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"has 0\.0 GB free; the \d+ cells that are left need about 0\.0 GB"):
        download(source, tmp_path / "s", partition_cells=20)
    assert not list((tmp_path / "s").glob("*-0000?"))


def test_disk_full_in_the_middle(source, tmp_path, monkeypatch):
    def full(folder, chunks, obs, least):
        (folder / "entries.npy").write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(census, "write_shard", full)
    with pytest.raises(OSError, match="No space left on device; the same command goes on there"):
        download(source, tmp_path / "s", partition_cells=20)
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"manifest.json", "genes.tsv", ".lock"}


def test_what_is_refused(source, folder, tmp_path):
    with pytest.raises(ValueError, match=r"has partition_cells 20, not 30: choose another folder"):
        download(source, folder, partition_cells=30, min_per_10k=0)
    with pytest.raises(ValueError, match="has filter"):
        download(source, folder, primary_only=True, partition_cells=20, min_per_10k=0)
    source.table["disease"][:100] = "cold"
    with pytest.raises(ValueError, match="begun when the release had other cells"):
        download(source, folder, partition_cells=20, min_per_10k=0)
    with pytest.raises(ValueError, match="unknown group 'skin'"):
        download(source, tmp_path / "s", groups=["skin"])
    with pytest.raises(ValueError, match="pan-cancer and a list of diseases need each other"):
        download(source, tmp_path / "s", groups=["pan-cancer"])
    with pytest.raises(ValueError, match="1 cell or more, not 0"):
        download(source, tmp_path / "s", partition_cells=0)
    with pytest.raises(ValueError, match="no cell of the release is in pan-cancer"):
        download(source, tmp_path / "s", groups=["pan-cancer"], diseases=["plague"])
    source.obs = lambda columns, joinids=None, obs=source.obs: (
        {name: x[1:] if joinids is not None else x for name, x in part.items()}
        for part in obs(columns, joinids)
    )
    with pytest.raises(OSError, match="the source has"):
        download(source, tmp_path / "s", groups=["brain"])


# Damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("damage", "verify", "message"),
    [
        (lambda f: edit(f / "manifest.json", min_per_10k=7), False, "was changed after it was written"),
        (lambda f: edit(f / "manifest.json", version=9), False, "has version 9; this package reads 1"),
        (lambda f: edit(f / "manifest.json", format="x"), False, "is not of scmamba2 census shards"),
        (lambda f: (f / "manifest.json").write_text("{"), False, "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), False, "manifest.json cannot be read"),
        (lambda f: flip(f / "genes.tsv"), False, "genes.tsv has SHA-256"),
        (lambda f: os.truncate(f / "brain-00000/entries.npy", 999), False, "has 999 bytes, not"),
        (lambda f: (f / "brain-00000/obs.npz").unlink(), False, "obs.npz is missing"),
        (lambda f: flip(f / "brain-00000/entries.npy"), True, "entries.npy has SHA-256"),
        (lambda f: flip(f / "brain-00000/obs.npz"), True, "obs.npz has SHA-256"),
    ],
)
def test_damage_is_named(folder, damage, verify, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        Shards(folder, verify)


def test_manifest_that_does_not_fit_its_files(folder):
    manifest = shards.read_manifest(folder)
    manifest["partitions"][0]["cells"] += 1
    write_manifest(folder, manifest)
    with pytest.raises(ValueError, match=r"do not go together with \d+ cells"):
        Shards(folder)


# Mini-batches


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("batch", "block", "window"), [(16, 8, 4), (7, 5, 3), (64, 64, 256), (1, 1, 1), (10, 300, 1)]
)
def test_every_cell_once_per_epoch(folder, ranks, batch, block, window):
    opened = Shards(folder)
    options = dict(batch_size=batch, block=block, window=window, seed=3, ranks=ranks)
    parts = [Minibatches(opened, rank=r, **options) for r in range(ranks)]
    batches = [b for part in parts for b in part]
    assert sorted(np.concatenate([b.cells for b in batches])) == list(range(len(opened)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for b in batches[:3]:
        assert b.counts.shape == (len(b.cells), GENES)
        assert (b.counts != opened.rows(b.cells)).nnz == 0
    whole = [b.cells.tolist() for b in Minibatches(opened, **(options | {"ranks": 1}))]
    assert [b.cells.tolist() for b in batches] == whole  # the number of ranks does not change the batches
    same = [Minibatches(opened, rank=r, equal=True, **options) for r in range(ranks)]
    assert len({len(part) for part in same}) == 1
    cells = [b.cells for part in same for b in part]
    assert all(len(c) == batch for c in cells) and len(cells) == len(opened) // (batch * ranks) * ranks
    assert len(set(np.concatenate([[], *cells]))) == len(cells) * batch


def test_order_follows_from_seed_and_epoch(folder):
    opened = Shards(folder)

    def order(**options):
        return np.concatenate(
            [b.cells for b in Minibatches(opened, 16, block=4, window=8, **options)]
        ).tolist()

    np.random.seed(0)
    assert order(seed=1) == order(seed=1) == order(seed=1, epoch=0)
    orders = [order(seed=1), order(seed=2), order(seed=1, epoch=1), order(seed=1, epoch=2)]
    assert len({tuple(x) for x in orders}) == 4
    # Other blocks come together, not only their cells in another order.
    assert all(len(set(x[:32]) & set(y[:32])) < 20 for x, y in itertools.combinations(orders, 2))


def test_mini_batches_are_mixed(folder):
    """With blocks of 4, a random cell's neighbour comes from its own block for 3 of 4 cells unless mixed."""
    opened = Shards(folder)
    cells = np.concatenate([b.cells for b in Minibatches(opened, 16, block=4, window=32)])
    assert (np.abs(np.diff(cells)) < 4).mean() < 0.15
    first = Minibatches(opened, 16, block=4, window=32)[0].cells
    assert len(np.unique(np.searchsorted(opened.bounds, first, side="right"))) > 5


def test_going_on_in_mid_epoch(folder):
    def batches():
        return Minibatches(Shards(folder), 16, block=8, window=4, seed=5, rank=1, ranks=2)

    whole = [b.cells.tolist() for b in batches()]
    fresh = batches()
    assert [fresh[i].cells.tolist() for i in range(4, len(fresh))] == whole[4:]
    with pytest.raises(IndexError):
        fresh[len(fresh)]


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_workers_share_the_batches(folder, workers):
    batches = Minibatches(Shards(folder), 16, block=8, window=4, seed=5)
    expected = [b.cells.tolist() for b in batches][2:]
    loader = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(2, len(batches)),
        num_workers=workers,
        collate_fn=lambda batch: batch,
        multiprocessing_context="fork" if workers else None,
    )
    assert [b.cells.tolist() for b in loader] == expected


def test_shards_travel_to_other_processes(folder):
    import pickle

    opened = Shards(folder)
    assert len(pickle.dumps(opened)) < 1_000
    there = pickle.loads(pickle.dumps(opened))
    assert (there.rows(np.arange(9)) != opened.rows(np.arange(9))).nnz == 0


def test_numbers_that_make_no_sense(folder):
    for wrong in ({"batch_size": 0}, {"block": 0}, {"window": 0}, {"ranks": 0}, {"rank": 1}, {"rank": -1}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            Minibatches(Shards(folder), **wrong)


def test_tokens_of_a_mini_batch(source, folder):
    opened = Shards(folder)
    vocabulary = Vocabulary.from_genes(opened.symbols[:-100])
    ids, share = vocabulary.lookup(opened.symbols)
    assert 0.9 < share < 1
    known = np.flatnonzero(ids >= 0)
    config, rng = Config(max_length=40), np.random.default_rng(0)
    batch = Minibatches(opened, 16)[0]
    bins = bin_values(batch.counts[:, known], config.n_bins)
    tokens = tokenize(bins, ids[known], vocabulary.cls, vocabulary.pad, config, rng)
    assert tokens.genes.shape == (16, 40) and (tokens.lengths == 40).all()
    for cell, genes in zip(batch.cells, tokens.genes, strict=True):
        assert set(genes[1:]) <= set(ids[opened.rows(np.array([cell])).indices])


# The command line, TileDB-SOMA, real cells


def test_command_line(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(census, "Census", lambda release, uri: source)
    assert main(["census", "--dry-run"]) == 0
    assert "closest is" in capsys.readouterr().out
    diseases = tmp_path / "diseases.txt"
    diseases.write_text("# cancers\nglioma\n\n")
    options = ["--diseases", str(diseases), "--partition-cells", "50"]
    assert main(["census", str(tmp_path / "s"), *options]) == 0
    assert main(["census", str(tmp_path / "s"), "--check"]) == 0
    said = capsys.readouterr()
    assert "every file as it was written" in said.out
    names = {p["name"].rsplit("-", 1)[0] for p in Shards(tmp_path / "s").manifest["partitions"]}
    assert names == set(GROUPS)
    flip(next((tmp_path / "s").glob("*/entries.npy")))
    assert main(["census", str(tmp_path / "s"), "--check"]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert main(["census"]) == 1
    assert "say which folder" in capsys.readouterr().err


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    assert main(["census", "--dry-run"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "pip install 'scmamba2[pretrain]'" in lines[0]


def soma(path, source, columns=()):
    """Write the cells as a TileDB-SOMA tree laid out like the census."""
    pytest.importorskip("cellxgene_census", reason="the extra pretrain is not installed")
    import anndata
    import pandas as pd
    import pyarrow as pa
    import tiledbsoma
    import tiledbsoma.io

    n = len(source.table["soma_joinid"])
    obs = pd.DataFrame(
        {k: v for k, v in source.table.items() if k != "soma_joinid"}, index=[f"c{i}" for i in range(n)]
    )
    for name in columns:
        obs[name] = obs[name].astype("category")  # as releases from December 2023 on have their text
    ids, symbols = source.genes()
    var = pd.DataFrame({"feature_id": ids, "feature_name": symbols}, index=ids)
    adata = anndata.AnnData(sparse.csr_matrix(source.matrix, dtype=np.float32), obs=obs, var=var)
    path.mkdir()
    with tiledbsoma.Collection.create(str(path / "soma")) as root:
        info = root.add_new_collection("census_info")
        schema = pa.schema({"soma_joinid": pa.int64(), "label": pa.string(), "value": pa.string()})
        summary = info.add_new_dataframe(
            "summary", schema=schema, index_column_names=["soma_joinid"], domain=[(0, 1)]
        )
        rows = {"soma_joinid": [0, 1], "label": ["census_schema_version", "census_build_date"]}
        summary.write(pa.table(rows | {"value": ["2.0.1", "2024-05-20"]}, schema=schema))
        root.add_new_collection("census_data")
    where = str(path / "soma/census_data/homo_sapiens")
    tiledbsoma.io.from_anndata(where, adata, "RNA", X_layer_name="raw")
    with tiledbsoma.open(str(path / "soma/census_data"), "w") as data:
        data.set("homo_sapiens", tiledbsoma.open(where), use_relative_uri=True)
    source.table["soma_joinid"] = np.arange(n, dtype=np.int64)
    return str(path / "soma")


@pytest.mark.parametrize("columns", [(), ("tissue_general", "disease", "suspension_type", "assay")])
def test_tiledb_soma(source, tmp_path, capsys, columns):
    uri = soma(tmp_path / "census", source, columns)
    opened = census.Census("2024-07-01", uri)
    assert opened.describe() == {"release": "2024-07-01", "built": "2024-05-20", "schema": "2.0.1"}
    assert opened.genes() == source.genes() and count(opened) == count(source)
    folder = tmp_path / "s"
    options = ["--uri", uri, "--primary-only", "--partition-cells", "30", "--min-per-10k", "0"]
    assert main(["census", str(folder), *options]) == 0
    assert main(["census", "--dry-run", "--uri", uri]) == 0
    assert "closest is" in capsys.readouterr().out
    download(source, tmp_path / "memory", primary_only=True, partition_cells=30, min_per_10k=0)
    assert hashes(folder) == hashes(tmp_path / "memory")
    first, second = Shards(folder, verify=True), Shards(tmp_path / "memory")
    assert all(np.array_equal(all_obs(first, name), all_obs(second, name)) for name in census.KEPT)


def test_soma_that_cannot_be_read(source, tmp_path):
    uri = soma(tmp_path / "census", source)
    with pytest.raises(OSError, match="census 2024-07-01 cannot be opened: "):
        census.Census("2024-07-01", str(tmp_path / "no"))
    with pytest.raises(OSError, match="no longer served, 2023-05-15 is the nearest"):
        census.Census("2023-05-08", str(tmp_path / "no"))
    opened = census.Census("2024-07-01", uri)
    with pytest.raises(OSError, match="annotation of cells: 'there is no column moon'"):
        list(opened.obs(["moon"]))
    shutil.rmtree(tmp_path / "census/soma/census_data/homo_sapiens/ms/RNA/X")
    with pytest.raises(OSError, match="has no readable counts"):
        opened.counts(np.arange(3))


@pytest.fixture
def real():
    """220 real cells of the census; what the slice lacks, disease and the like, is made up."""
    path = ROOT.parent / "shared/data/census_slice/cellxgene.h5ad"
    if not path.exists():
        pytest.skip("the real slice of the census is not beside the project")
    import anndata

    adata = anndata.read_h5ad(path)
    obs = {name: adata.obs[name].astype(object).to_numpy() for name in adata.obs}
    obs |= {name: np.array(["x"] * 220, dtype=object) for name in ("dataset_id", "assay")}
    obs["disease"] = np.array(["normal"] * 220, dtype=object)
    obs["soma_joinid"], obs["is_primary_data"] = np.arange(220), np.arange(220) % 2 == 0
    return Memory(obs, adata.X, list(adata.var_names))


def test_real_cells(real, tmp_path):
    download(real, tmp_path / "s", partition_cells=100)
    opened = Shards(tmp_path / "s", verify=True)
    names = [(p["name"], p["cells"]) for p in opened.manifest["partitions"]]
    assert names == [("blood-00000", 23), ("others-00000", 100), ("others-00001", 97)]  # placenta
    rows = np.concatenate(list(opened.obs("soma_joinid")))
    # 3 per 10,000 are less than 1 in so few cells: no count is dropped.
    assert (opened.rows(np.arange(220)) != real.matrix[rows]).nnz == 0
    size = sum(p["files"]["entries.npy"]["bytes"] for p in opened.manifest["partitions"])
    assert size / real.matrix.nnz < 2.1  # bytes per value
    batches = list(Minibatches(opened, 32, block=8))
    assert sum(len(b.cells) for b in batches) == 220
    bins = bin_values(batches[0].counts)
    assert bins.nnz == batches[0].counts.nnz and bins.max() == 50


def test_real_cells_through_tiledb_soma(real, tmp_path):
    uri = soma(tmp_path / "census", real)
    download(census.Census("2024-07-01", uri), tmp_path / "s", partition_cells=100)
    download(real, tmp_path / "memory", partition_cells=100)
    assert hashes(tmp_path / "s") == hashes(tmp_path / "memory")
