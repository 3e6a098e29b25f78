"""PBMC 10k: the archives are made up, the metadata are made up or real."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from workflow.recipes import _old_pickle, pbmc10k
from workflow.tidy import check_tidy

GENES = [("ENSG3", "C"), ("ENSG1", "A"), ("ENSG2", "B"), ("ENSG4", "A"), ("ENSG5", "E")]
FIRST = ["AAA-1", "CCC-1", "GGG-1", "TTT-1"]  # pbmc8k; GGG-1 did not pass quality control
SECOND = ["CCC-1", "CAT-1", "TAG-1"]  # pbmc4k; it has CCC-1 too
METADATA = ["TTT-1", "AAA-1", "CCC-1", "CCC-11", "TAG-1", "CAT-1"]
COUNTS = {
    "pbmc8k": [[1, 2, 0, 0, 1], [0, 5, 1, 0, 0], [9, 9, 9, 0, 9], [3, 0, 0, 0, 4]],
    "pbmc4k": [[7, 7, 7, 7, 7], [0, 1, 2, 6, 0], [5, 0, 4, 0, 0]],
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch, write_metadata, write_10x) -> dict[str, Path]:
    """Six rows of metadata, two libraries, five genes of which four are wanted."""
    monkeypatch.setattr(pbmc10k, "EXPECTED_SHAPE", (5, 3))
    monkeypatch.setattr(pbmc10k, "EXPECTED_BATCHES", {"0": 3, "1": 2})
    monkeypatch.setattr(pbmc10k, "EXPECTED_LABELS", 3)
    monkeypatch.setattr(pbmc10k, "EXPECTED_DROPPED", 1)
    gene_info = tmp_path / "gene_info.csv"
    gene_info.write_text("x,ENSG,GS\n1,ENSG1,A\n2,ENSG2,B\n3,ENSG4,A\n4,ENSG3,C\n")
    barcodes = {"pbmc8k": FIRST, "pbmc4k": SECOND}
    return {
        "gene_info": gene_info,
        "metadata": write_metadata(
            tmp_path / "metadata.pickle",
            METADATA,
            [0, 0, 0, 1, 1, 1],
            [2, 0, 1, 1, 1, 0],
            ["B", "NK", "T"],
        ),
        **{
            name: write_10x(tmp_path / f"{name}.tar.gz", sp.csr_matrix(counts), GENES, barcodes[name])
            for name, counts in COUNTS.items()
        },
    }


def test_small(small: dict[str, Path], assert_tidy) -> None:
    adata = pbmc10k.load(small)
    assert_tidy(adata, batches=True, gene_id=True)
    assert list(adata.obs_names) == ["0_TTT-1", "0_AAA-1", "0_CCC-1", "1_TAG-1", "1_CAT-1"]
    assert list(adata.obs["label"]) == ["T", "B", "NK", "NK", "B"]
    assert list(adata.obs["batch"]) == ["0", "0", "0", "1", "1"]
    # ENSG4 has no counts in pbmc8k, so it is not in both libraries
    assert list(adata.var["gene_id"]) == ["ENSG1", "ENSG2", "ENSG3"]
    assert list(adata.var_names) == ["A", "B", "C"]
    # CCC-1 of pbmc8k keeps its own counts, not those of pbmc4k's CCC-1
    expected = [[0, 0, 3], [2, 0, 1], [5, 1, 0], [0, 4, 5], [1, 2, 0]]
    assert np.array_equal(adata.layers["counts"].toarray(), expected)
    assert adata.uns["recipe"]["dropped_rows"] == 1
    assert adata.uns["recipe"]["shared_barcodes"] == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("EXPECTED_SHAPE", (5, 4), "gene_info.csv: shape: found 5 cells x 3 genes, expected 5 x 4"),
        ("EXPECTED_BATCHES", {"0": 4, "1": 2}, "found 3 cells of batch 0, expected 4"),
        ("EXPECTED_LABELS", 9, "found 3 labels, expected 9"),
        ("EXPECTED_DROPPED", 49, "found 1 that end in -11, expected 49"),
    ],
)
def test_numbers_are_checked(small, monkeypatch, name: str, value, message: str) -> None:
    monkeypatch.setattr(pbmc10k, name, value)
    with pytest.raises(ValueError, match=message):
        pbmc10k.load(small)


def test_wrong_files_are_named(small: dict[str, Path], write_10x) -> None:
    good = sp.csr_matrix(COUNTS["pbmc8k"])
    path = small["pbmc8k"]

    def fails(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pbmc10k.load(small)

    write_10x(path, good, GENES, [*FIRST[:3], "ACG-1"])
    fails(r"pbmc8k.tar.gz: barcodes.tsv: found no 1 of the metadata's 3 .*such as TTT-1")
    write_10x(path, good, GENES, FIRST[:3])
    fails("pbmc8k.tar.gz: member matrix.mtx: found 5 x 4, expected 5 genes x 3 barcodes")
    write_10x(path, good, GENES, [*FIRST[:3], FIRST[0]])
    fails("pbmc8k.tar.gz: member barcodes.tsv: found 'AAA-1' twice")
    write_10x(path, good, GENES, FIRST, folder="filtered_gene_bc_matrices/mm10")
    fails("GRCh38/matrix.mtx is missing, found filtered_gene_bc_matrices/mm10/matrix.mtx")
    write_10x(path, good, GENES, FIRST, folder="../filtered_gene_bc_matrices/GRCh38")
    fails("GRCh38/matrix.mtx is missing")
    path.write_bytes(b"<html>a download that failed</html>")
    fails("pbmc8k.tar.gz: found no readable tar.gz")
    small["gene_info"].write_text("x,GS\n1,A\n")
    fails("gene_info.csv: column 'ENSG' is missing, found x, GS")
    small["gene_info"].write_text("ENSG\nE1\nE1\n")
    fails("gene_info.csv: column 'ENSG': found empty or repeated ids")


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **about) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in about.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


MATRIX = "filtered_gene_bc_matrices/GRCh38/matrix.mtx"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda a: add(a, MATRIX, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "matrix.mtx is missing"),
        (lambda a: add(a, MATRIX, type=tarfile.LNKTYPE, linkname="genes.tsv"), "matrix.mtx is missing"),
        (lambda a: add(a, MATRIX, type=tarfile.FIFOTYPE), "matrix.mtx is missing"),
        (lambda a: add(a, f"/{MATRIX}", b"x"), "matrix.mtx is missing"),
        (lambda a: add(a, f"x/../{MATRIX}", b"x"), "matrix.mtx is missing"),
        (lambda a: (add(a, MATRIX, b"x"), add(a, MATRIX, b"y")), "found member .*matrix.mtx twice"),
        (
            lambda a: add(a, MATRIX, bytes(3000)),
            "found members of 3000 bytes and more, expected at most 2000",
        ),
        (
            lambda a: add(a, "other", bytes(3000)),
            "found members of 3000 bytes and more, expected at most 2000",
        ),
    ],
)
def test_dangerous_archives_are_refused(
    small: dict[str, Path], monkeypatch, write: Callable, message: str
) -> None:
    monkeypatch.setattr(pbmc10k, "MAX_BYTES", 2000)
    before = sorted(small["pbmc8k"].parent.rglob("*"))
    with tarfile.open(small["pbmc8k"], "w:gz") as archive:
        write(archive)
    with pytest.raises(ValueError, match=rf"pbmc8k.tar.gz: .*{message}"):
        pbmc10k.load(small)
    assert sorted(small["pbmc8k"].parent.rglob("*")) == before  # nothing was unpacked


def test_a_claim_of_much_is_refused_before_it_is_read(small: dict[str, Path]) -> None:
    """The header says 100 GB; of the few bytes that follow none is read."""
    info = tarfile.TarInfo(MATRIX)
    info.size = 100_000_000_000
    small["pbmc8k"].write_bytes(gzip.compress(info.tobuf() + bytes(512)))
    with pytest.raises(ValueError, match="of 100000000000 bytes and more, expected at most 2000000000"):
        pbmc10k.load(small)


def test_a_matrix_that_claims_much_is_refused(small: dict[str, Path], write_10x, monkeypatch) -> None:
    path = write_10x(small["pbmc8k"], sp.csr_matrix(COUNTS["pbmc8k"]), GENES, FIRST)
    lie = b"%%MatrixMarket matrix coordinate integer general\n5 4 999999999999999\n1 1 1\n"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, MATRIX, lie)
        add(archive, MATRIX.replace("matrix.mtx", "genes.tsv"), b"E\tG\n" * 5)
        add(archive, MATRIX.replace("matrix.mtx", "barcodes.tsv"), b"A\nB\nC\nD\n")
    with pytest.raises(ValueError, match="pbmc8k.tar.gz: found a broken member"):
        pbmc10k.load(small)


class Malicious:
    """An object whose pickle makes a file when it is loaded in the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_does_nothing(small: dict[str, Path], tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    data = pickle.dumps({"barcodes": Malicious(trace)}, protocol=protocol)
    pickle.loads(data)
    assert trace.exists(), "the pickle must be dangerous for this test to mean anything"
    trace.unlink()
    small["metadata"].write_bytes(data)
    with pytest.raises(ValueError, match=r"metadata.pickle: .*not (admitted|read)"):
        pbmc10k.load(small)
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        b"cnumpy\nload\n(X\x01\x00\x00\x00xtR.",
        b"cpandas.core.frame\nDataFrame.to_pickle\n.",
        b"(ibuiltins\nprint\n.",
        b"Px\n.",
        b"X\x01\x00\x00\x00xQ.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x02\x82\x01.",
        b"cpandas.core.frame\nDataFrame\n}X\x04\x00\x00\x00argsK\x01sb.",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.pickle: found a pickle that is not read"):
        _old_pickle.read_old_pickle(path)


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps([1]), pickle.dumps({"a": 1})])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pickle: found a pickle that is not read"):
        _old_pickle.read_old_pickle(path)


def test_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="key 'barcodes': found NoneType, expected a table"):
        pbmc10k.read_metadata(path)


def test_made_up_metadata_are_what_pandas_reads(small: dict[str, Path]) -> None:
    """The writer in these tests speaks the real format: pandas itself understands it."""
    theirs = pd.read_pickle(small["metadata"])
    assert theirs["barcodes"].index.tolist() == METADATA
    assert theirs["design"]["batchpbmc4k"].tolist() == [0, 0, 0, 1, 1, 1]


def test_real_metadata_are_what_pandas_reads(shared_data) -> None:
    path = shared_data("pbmc10k_mini/pbmc_metadata.pickle")
    ours, theirs = _old_pickle.read_old_pickle(path), pd.read_pickle(path)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        mine = ours[key]
        if isinstance(value, pd.DataFrame):
            assert isinstance(mine, _old_pickle.Table)
            assert np.array_equal(mine.index, value.index.to_numpy())
            assert list(mine.columns) == list(value)
            assert all(np.array_equal(mine.columns[str(name)], value[name]) for name in value)
        else:
            assert isinstance(mine, np.ndarray)
            assert np.array_equal(mine, value) and mine.dtype == value.dtype


def test_real_metadata(shared_data) -> None:
    path = shared_data("pbmc10k_mini/pbmc_metadata.pickle")
    metadata = pbmc10k.read_metadata(path)
    assert metadata.n_dropped == 49
    assert pd.Series(metadata.batch).value_counts().to_dict() == {"0": 8030, "1": 3960}
    assert len(set(metadata.label)) == 9
    # the rows that are dropped are pbmc4k's, and 47 of them repeat a barcode of pbmc8k
    content = _old_pickle.read_old_pickle(path)
    cells, design = content["barcodes"], content["design"]
    assert isinstance(cells, _old_pickle.Table) and isinstance(design, _old_pickle.Table)
    barcodes = cells.index.astype(str)
    odd = np.char.endswith(barcodes, "-11")
    assert (design.columns["batchpbmc4k"][odd] == 1).all()
    twins = np.isin(metadata.barcodes, [barcode[:-1] for barcode in barcodes[odd]])
    assert twins.sum() == 47 and (metadata.batch[twins] == "0").all()


@pytest.fixture
def full(shared_data, tmp_path: Path, write_10x) -> SimpleNamespace:
    """Archives of full length with random counts and the real barcodes and genes."""
    metadata = shared_data("pbmc10k_mini/pbmc_metadata.pickle")
    gene_info = shared_data("pbmc10k_mini/gene_info.csv")
    content = _old_pickle.read_old_pickle(metadata)
    listed, design = content["barcodes"], content["design"]
    assert isinstance(listed, _old_pickle.Table) and isinstance(design, _old_pickle.Table)
    barcodes = listed.index.astype(str)
    second = design.columns["batchpbmc4k"] == 1
    real = np.array([b[:-1] if b.endswith("-11") else b for b in barcodes])
    table = pd.read_csv(gene_info)
    genes = [("ENSG_other", "OTHER"), *zip(table["ENSG"], table["GS"], strict=True)]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(genes))
    files = {"gene_info": gene_info, "metadata": metadata}
    counts = {}
    for name, rows in (("pbmc8k", ~second), ("pbmc4k", second)):
        cells = rng.permutation([*real[rows], f"QC_{name}-1"])
        matrix = sp.random_array(
            (len(cells), len(genes)),
            density=0.003,
            rng=rng,
            format="lil",
            data_sampler=lambda size: rng.integers(1, 9, size),
        )
        matrix[np.arange(len(cells)), rng.integers(0, len(genes), len(cells))] = 1
        matrix[rng.integers(0, len(cells), len(genes)), np.arange(len(genes))] = 2
        counts[name] = (sp.csr_matrix(matrix), pd.Index(cells))
        files[name] = write_10x(
            tmp_path / f"{name}.tar.gz", counts[name][0], [genes[i] for i in order], cells
        )
    column = pd.Series(np.arange(len(genes)), index=[genes[i][0] for i in order])
    return SimpleNamespace(files=files, counts=counts, column=column, genes=table)


def test_full_size(full: SimpleNamespace, assert_tidy) -> None:
    adata = pbmc10k.load(full.files)
    assert_tidy(adata, batches=True, gene_id=True)
    assert adata.shape == (11990, 3346)
    assert adata.obs["batch"].value_counts().to_dict() == {"0": 8030, "1": 3960}
    assert adata.obs["label"].nunique() == 9
    assert list(adata.var_names) == full.genes["GS"].tolist()
    assert list(adata.var["gene_id"]) == full.genes["ENSG"].tolist()
    assert adata.uns["recipe"]["shared_barcodes"] == 47
    for batch, name in pbmc10k.LIBRARIES.items():
        matrix, cells = full.counts[name]
        mine = adata[adata.obs["batch"] == batch]
        rows = cells.get_indexer([cell.split("_", 1)[1] for cell in mine.obs_names])
        expected = matrix[rows][:, full.column.loc[full.genes["ENSG"]].to_numpy()]
        assert (mine.layers["counts"] != expected).nnz == 0


def test_labels_equal_the_development_piece(full: SimpleNamespace, shared_data) -> None:
    from workflow.recipes import pbmc10k_mini

    mini = pbmc10k_mini.load({"cells": shared_data("pbmc10k_mini/pbmc10k_mini_2batch.h5ad")})
    adata = pbmc10k.load(full.files)
    assert mini.obs_names.isin(adata.obs_names).all()
    for key in ("batch", "label"):
        assert (adata.obs.loc[mini.obs_names, key].astype(str) == mini.obs[key].astype(str)).all()


@pytest.mark.filterwarnings("ignore")
def test_same_as_scvi_tools_but_for_shared_barcodes(
    full: SimpleNamespace, tmp_path: Path, monkeypatch
) -> None:
    """scvi-tools' own preparation of the same files differs in the 47 cells of the docstring."""
    module = pytest.importorskip("scvi.data._built_in_data._pbmc")
    tenx = pytest.importorskip("scvi.data._built_in_data._dataset_10x")
    place = tmp_path / "scvi"
    names = {"gene_info_pbmc.csv": "gene_info", "pbmc_metadata.pickle": "metadata"}

    def put(url: str, save_path: str, filename: str) -> None:
        key = names.get(filename) or Path(save_path).name
        Path(save_path).mkdir(parents=True, exist_ok=True)
        (Path(save_path) / filename).write_bytes(full.files[key].read_bytes())

    monkeypatch.setattr(module, "_download", put)
    monkeypatch.setattr(tenx, "_download", put)
    theirs = module._load_pbmc_dataset(save_path=str(place))
    ours = pbmc10k.load(full.files)
    assert ours.shape == theirs.shape
    assert list(ours.var["gene_id"]) == list(theirs.var_names)
    barcodes = [name.split("_", 1)[1] for name in ours.obs_names]
    assert barcodes == list(theirs.obs_names)
    assert list(ours.obs["label"]) == list(theirs.obs["str_labels"])
    other_batch = ours.obs["batch"].to_numpy() != theirs.obs["batch"].astype(str).to_numpy()
    difference = (ours.layers["counts"] - sp.csr_matrix(theirs.X)).tocsr()
    difference.eliminate_zeros()
    other_counts = np.diff(difference.indptr) > 0
    assert other_batch.sum() == 47 and (other_counts <= other_batch).all()
    assert np.isin(np.array(barcodes)[other_batch], full.counts["pbmc4k"][1]).all()
    assert theirs.obs["batch"].value_counts().to_dict() == {0: 7983, 1: 4007}


@pytest.fixture
def real(shared_data, tmp_path: Path, write_10x) -> SimpleNamespace:
    """Archives of full length with real counts where they are at hand, and the two real metadata files.

    1,977 cells of pbmc4k have their counts of all 3,346 genes, 456 of pbmc8k those of 356 of them; both have
    1,411 genes more, which the recipe has no use for. The other cells stand in with a count or a few, so
    that every gene is seen in both libraries and no cell is empty.
    """
    metadata = shared_data("pbmc10k_mini/pbmc_metadata.pickle")
    gene_info = shared_data("pbmc10k_mini/gene_info.csv")
    mini = ad.read_h5ad(shared_data("pbmc10k_mini/pbmc10k_mini_2batch.h5ad"))
    whole = ad.read_h5ad(shared_data("pbmc10k_mini/pbmc4k_subset_scvi_labels.h5ad"))
    table = pd.read_csv(gene_info)
    more = [symbol for symbol in mini.var_names if symbol not in set(table["GS"])]
    genes = [(f"no id of {symbol}", symbol) for symbol in more]
    genes += zip(table["ENSG"], table["GS"], strict=True)
    place = pd.Series(np.arange(len(genes)), index=[symbol for _, symbol in genes])
    content = _old_pickle.read_old_pickle(metadata)
    listed, design = content["barcodes"], content["design"]
    assert isinstance(listed, _old_pickle.Table) and isinstance(design, _old_pickle.Table)
    barcodes = listed.index.astype(str)
    second = design.columns["batchpbmc4k"] == 1
    rng = np.random.default_rng(0)
    files = {"gene_info": gene_info, "metadata": metadata}
    for batch, (name, rows) in enumerate((("pbmc8k", ~second), ("pbmc4k", second))):
        cells = mini[mini.obs["batch"].astype(str) == str(batch)]
        known = [code.split("_", 1)[1] for code in cells.obs_names]
        # the 49 that end in -11 are not in the archives, as in the real ones
        others = sorted({b for b in barcodes[rows] if not b.endswith("-11")} - set(known))
        counts = sp.lil_matrix((len(known) + len(others), len(genes)), dtype=int)
        counts[: len(known), place[cells.var_names]] = sp.lil_matrix(cells.X.astype(int))
        if name == "pbmc4k":
            symbols = whole.var["gene_symbols"].astype(str)
            counts[: len(known), place[symbols]] = sp.lil_matrix(whole[cells.obs_names].X.astype(int))
        stand_in = np.arange(max(len(others), len(table)))
        counts[len(known) + stand_in % len(others), len(more) + stand_in % len(table)] = 1
        codes = np.array([*known, *others])
        order = rng.permutation(len(codes))
        files[name] = write_10x(tmp_path / f"{name}.tar.gz", counts.tocsr()[order], genes, codes[order])
    return SimpleNamespace(files=files, mini=mini, whole=whole)


def test_real_counts_and_real_metadata(real: SimpleNamespace, assert_tidy) -> None:
    adata = pbmc10k.load(real.files)
    assert_tidy(adata, batches=True, gene_id=True)
    check_tidy(adata, "pbmc10k", {"n_obs": 11990, "n_vars": 3346, "labels": 9, "batches": 2})
    # pbmc4k: the very matrix that its published labels were made for, on all genes
    mine = adata[real.whole.obs_names]
    assert list(mine.var["gene_id"]) == list(real.whole.var_names)
    assert list(mine.var_names) == list(real.whole.var["gene_symbols"].astype(str))
    assert (mine.layers["counts"] != sp.csr_matrix(real.whole.X)).nnz == 0
    assert list(mine.obs["label"]) == list(real.whole.obs["str_labels"])
    # both libraries, on the genes of the development piece that are among them
    genes = real.mini.var_names[real.mini.var_names.isin(adata.var_names)]
    assert len(genes) == 356
    mine = adata[real.mini.obs_names, genes]
    assert (mine.layers["counts"] != sp.csr_matrix(real.mini[:, genes].X)).nnz == 0
    assert list(mine.obs["batch"]) == list(real.mini.obs["batch"].astype(str))
    assert list(mine.obs["label"]) == list(real.mini.obs["str_labels"].astype(str))
    # types have the most of their markers, so counts, labels and symbols belong together
    markers = {"CD79A": "B cells", "KLRF1": "NK cells", "CD14": "CD14+ Monocytes", "PF4": "Megakaryocytes"}
    for gene, label in markers.items():
        values = pd.Series(mine[:, gene].layers["counts"].toarray().ravel())
        assert values.groupby(mine.obs["label"].to_numpy()).mean().idxmax() == label
