"""GEARS' perturbation screens: made-up files in the layout of the real ones, and Norman's real labels."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from gears_file import write_gears

from workflow.recipes import gears
from workflow.steps.tidy import read, write
from workflow.tidy import check_tidy

CELL_TYPE = {"A549": "K562"}
N_GENES = 60
LABELS = ["ctrl", "ctrl", "ctrl", "B+ctrl", "ctrl+B", "A+ctrl", "ctrl+C", "C+A", "A+B", "ABSENT+ctrl"]
OBS = ["condition", "condition_original", "control", "cell_type", "dose_val", "condition_name"]


def screen(cells: int = 300, cell_type: str = "A549", seed: int = 0) -> ad.AnnData:
    """A synthetic screen as GEARS hands it to anndata, lists made by GEARS' steps with scanpy itself."""
    rng = np.random.default_rng(seed)
    label = np.array(LABELS)[np.arange(cells) % len(LABELS)]
    genes = ["A", "B", "C", *(f"G{i}" for i in range(N_GENES - 3))]
    rate = rng.gamma(0.6, 1.5, N_GENES)
    rate[[10, 11, 12]] = 0  # 10: in no cell, 11: in no control, 12: in controls only
    effect = {name: rng.lognormal(0, 0.6, N_GENES) for name in set(LABELS)} | {"ctrl": np.ones(N_GENES)}
    rates = np.array([rate * effect[name] for name in label])
    rates[label != "ctrl", 11] = rates[label == "ctrl", 12] = 1
    counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
    obs = pd.DataFrame({"condition": label, "cell_type": cell_type})
    obs.index = pd.Index([f"CELL{i}-1" for i in range(cells)], name="cell_barcode")
    obs["dose_val"] = np.where(label == "ctrl", "1", "1+1")
    obs["condition_name"] = obs["cell_type"] + "_" + obs["condition"] + "_" + obs["dose_val"]
    obs = obs.astype("category")
    obs.insert(3, "control", (label == "ctrl").astype(np.int64))
    ids = pd.Index([f"ENSG{i:011d}" for i in range(N_GENES)], name="gene_id")
    var = pd.DataFrame({"gene_name": pd.Categorical(genes)}, index=ids)
    adata = ad.AnnData(counts.copy(), obs=obs, var=var, layers={"counts": counts})
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    adata.uns = reference_lists(adata)
    return adata


def scanpy_ranking(adata: ad.AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Names and scores that scanpy gives with the arguments of GEARS."""
    work = ad.AnnData(adata.X, obs=adata.obs[["condition_name"]], var=adata.var[[]])
    control = adata.obs["condition_name"][adata.obs["control"] == 1].iloc[0]
    sc.tl.rank_genes_groups(
        work, "condition_name", reference=control, rankby_abs=True, n_genes=work.n_vars, use_raw=False
    )
    result = work.uns["rank_genes_groups"]
    return pd.DataFrame(result["names"]), pd.DataFrame(result["scores"])


def reference_lists(adata: ad.AnnData) -> dict[str, dict[str, np.ndarray]]:
    """The five dicts by GEARS' definitions, gene by gene."""
    names, _ = scanpy_ranking(adata)
    expressed = {
        name: np.asarray(adata.X[(adata.obs["condition_name"] == name).to_numpy()].sum(axis=0)).ravel() != 0
        for name in adata.obs["condition_name"].cat.categories
    }
    control = expressed[adata.obs["condition_name"][adata.obs["control"] == 1].iloc[0]]
    uns: dict[str, dict[str, np.ndarray]] = {key: {} for key in gears.LISTS}
    for name in names:
        genes = names[name].to_numpy(dtype=object)
        non_zero = np.flatnonzero(expressed[name])
        non_dropout = np.flatnonzero(expressed[name] | ~control)
        uns["rank_genes_groups_cov_all"][name] = genes
        uns["non_zeros_gene_idx"][name] = non_zero
        uns["non_dropout_gene_idx"][name] = non_dropout
        for key, kept in (("top_non_zero_de_20", non_zero), ("top_non_dropout_de_20", non_dropout)):
            ids = set(adata.var_names[kept])
            uns[key][name] = np.array([gene for gene in genes if gene in ids][:20], dtype=object)
    return uns


def save(adata: ad.AnnData, path: Path, counts: str = "dense") -> dict[str, Path]:
    """Write a screen in the layout of anndata 0.7, in two blocks."""
    half = adata.n_obs // 2
    blocks = [(adata.X[rows], adata.layers["counts"][rows]) for rows in (slice(half), slice(half, None))]
    return {"cells": write_gears(path, blocks, adata.obs, adata.var, adata.uns, counts=counts)}


@pytest.fixture(scope="module")
def made() -> ad.AnnData:
    return screen()


@pytest.fixture
def norman(made: ad.AnnData, tmp_path: Path) -> dict[str, Path]:
    return save(made, tmp_path / "perturb_processed.h5ad")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ctrl", "ctrl"),
        ("KLF1+ctrl", "KLF1+ctrl"),
        ("ctrl+KLF1", "KLF1+ctrl"),
        ("zeta+ctrl", "zeta+ctrl"),  # ctrl stands last, whatever its place in the alphabet
        ("UBASH3B+PTPN9", "PTPN9+UBASH3B"),
        ("C19orf26+C3orf72", "C19orf26+C3orf72"),
    ],
)
def test_canonical(label: str, expected: str) -> None:
    assert gears.canonical(label) == expected


@pytest.mark.parametrize("label", ["", "KLF1", "unassigned", "A+B+C", "A+", "+ctrl", "A+A", "ctrl+ctrl"])
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="expected ctrl, GENE.ctrl, ctrl.GENE or GENE.GENE"):
        gears.canonical(label)


def test_the_labels_of_norman() -> None:
    """The 283 labels of the real file, in the split of GEARS with seed 1."""
    with open(Path(__file__).with_name("norman_labels.tsv")) as file:
        rows = list(csv.DictReader(file, delimiter="\t"))

    def manifest(*splits: str) -> str:
        labels = sorted(row["label"] for row in rows if row["split"] in splits)
        return hashlib.sha256("".join(f"{label}\n" for label in labels).encode()).hexdigest()

    whole = manifest("train", "valid", "test")
    assert whole == "b634daebfd062e85052b9449c1085088a56314bfb656765a5bde59932d3a1c00"
    assert manifest("train") == "c6c127daa9456229a36c7030e336597cefcc564fc5140d643441539c8fc16255"
    assert manifest("valid") == "f1ff86c40e706d4a1c0845aeda7c76e0efbd239df979b3f1c4fbc6676e77bb0c"
    assert manifest("test") == "2e18989ab9f3d4a652f9beee3de9d61ae02e04003be77cfedcf08ff388143a83"
    found = gears.count_conditions(["ctrl", *(row["label"] for row in rows)])
    found.pop("genes_not_measured_names")
    assert found == {
        "labels_original": 284,
        "conditions": 237,
        "single_labels": 152,
        "singles": 105,
        "singles_in_both_orders": 47,
        "double_labels": 131,
        "doubles": 131,
        "genes_perturbed": 105,
        "genes_not_measured": 105,
    }


def test_norman(norman: dict[str, Path], made: ad.AnnData, assert_tidy) -> None:
    adata = gears.load(norman, {"options": {"cell_type": CELL_TYPE}})
    found = check_tidy(adata, "norman", {"n_obs": 300, "n_vars": 60, "conditions": 7, "controls": 90})
    assert found["conditions"]["B+ctrl"] == 60
    written = ad.read_h5ad(norman["cells"])
    adata.X = adata.X[:]  # it was left on disk
    assert_tidy(adata, obs=OBS, gene_id=True, x=True, uns=("de",))
    assert (adata.X != written.X).nnz == 0
    assert np.array_equal(adata.layers["counts"].toarray(), written.layers["counts"])
    assert adata.obs["condition_original"].astype(str).tolist() == made.obs["condition"].tolist()
    assert adata.obs["condition"].tolist()[:10] == [
        "ctrl", "ctrl", "ctrl", "B+ctrl", "B+ctrl", "A+ctrl", "C+ctrl", "A+C", "A+B", "ABSENT+ctrl"
    ]  # fmt: skip
    assert adata.obs["control"].tolist() == (made.obs["condition"] == "ctrl").tolist()
    assert set(adata.obs["cell_type"]) == {"K562"}
    assert set(adata.obs["condition_name"]) == set(made.obs["condition_name"])
    assert list(adata.var_names[:3]) == ["A", "B", "C"] and list(adata.var["gene_id"]) == list(made.var_names)
    facts = adata.uns["recipe"]
    assert facts["cell_type_corrected"] == "A549 -> K562"
    assert (facts["labels_original"], facts["conditions"]) == (8, 7)
    assert (facts["singles_in_both_orders"], facts["doubles"], facts["genes_perturbed"]) == (1, 2, 4)
    assert facts["genes_not_measured_names"] == "ABSENT"


def test_lists_of_the_file_are_kept_and_agree(norman: dict[str, Path], made: ad.AnnData) -> None:
    adata = gears.load(norman, {})
    back = gears.gears_uns(adata.uns["de"], adata.var["gene_id"])
    assert set(back) == set(made.uns)
    for key, lists in made.uns.items():
        assert set(back[key]) == set(lists) and len(lists) == 7
        for name, values in lists.items():
            assert np.array_equal(back[key][name], values), (key, name)
    facts = adata.uns["recipe"]
    assert facts["de_lists"] == "file" and facts["de_conditions_compared"] == 7
    assert facts["de_conditions_without_list"] == facts["de_conditions_of_one_cell"] == 0
    compared = {key: value for key, value in facts.items() if key.startswith(("de_same", "de_common"))}
    assert len(compared) == 8 and set(compared.values()) == {1.0}


def test_scores_and_lists_are_those_of_scanpy(norman: dict[str, Path], made: ad.AnnData) -> None:
    adata = gears.load(norman, {"options": {"de": "recompute"}})
    de, name = adata.uns["de"], made.obs["condition_name"]
    assert adata.uns["recipe"]["de_lists"] == "computed"
    names, scores = scanpy_ranking(made)
    n, mean, variance = gears.moments(made.X, name.cat.codes.to_numpy(), 8)
    assert list(n) == name.value_counts(sort=False).tolist()
    order = list(name.cat.categories)
    own = np.array([order.index(value) for value in de["condition_name"]])
    ours = gears.t_scores(n, mean, variance, own, np.full(7, order.index("A549_ctrl_1")))
    gene = pd.Index(made.var_names)
    for row, value in enumerate(de["condition_name"]):
        theirs = np.empty(N_GENES)
        theirs[gene.get_indexer(names[value])] = scores[value]
        np.testing.assert_allclose(ours[row], theirs, rtol=1e-5, atol=1e-5)
    back = gears.gears_uns(de, made.var_names)
    for key in ("non_zeros_gene_idx", "non_dropout_gene_idx", *gears.TOPS):
        for value, genes in made.uns[key].items():
            assert list(back[key][value]) == list(genes), (key, value)
    assert not de["non_zeros_gene_idx"][:, [10, 12]].all() and de["non_zeros_gene_idx"][:, 11].all()
    assert de["non_dropout_gene_idx"][:, 10].all()  # in no cell at all: no dropout


def test_lists_that_disagree_are_reported(made: ad.AnnData, tmp_path: Path) -> None:
    other = made.copy()
    name = "A549_A+B_1+1"
    ranking = other.uns["rank_genes_groups_cov_all"][name]
    other.uns["rank_genes_groups_cov_all"] |= {name: np.r_[ranking[5:], ranking[:5]]}
    other.uns["non_zeros_gene_idx"] |= {name: other.uns["non_zeros_gene_idx"][name][1:]}
    del other.uns["top_non_zero_de_20"]["A549_C+A_1+1"]
    del other.uns["rank_genes_groups_cov_all"]["A549_C+A_1+1"]
    facts = gears.load(save(other, tmp_path / "a.h5ad"), {}).uns["recipe"]
    assert facts["de_conditions_without_list"] == 1 and facts["de_conditions_compared"] == 6
    assert facts["de_same_ranking_20"] == facts["de_same_non_zeros_gene_idx"] == round(5 / 6, 4)
    assert facts["de_common_ranking_20"] == round((5 + 15 / 20) / 6, 4)
    assert facts["de_same_top_non_dropout_de_20"] == 1


@pytest.mark.parametrize("counts", ["dense", "csr"])
def test_blocks_and_layouts_make_no_difference(
    norman: dict[str, Path], made: ad.AnnData, tmp_path: Path, monkeypatch, counts: str
) -> None:
    first = gears.load(norman, {})
    monkeypatch.setattr(gears, "_ROWS", 7)
    old = gears.load(save(made, tmp_path / "old.h5ad", counts), {})
    today = made.copy()
    today.layers["counts"] = made.layers["counts"].toarray() if counts == "dense" else made.layers["counts"]
    today.write_h5ad(tmp_path / "today.h5ad")
    for other in (old, gears.load({"cells": tmp_path / "today.h5ad"}, {})):
        assert other.uns["recipe"] == first.uns["recipe"]
        assert other.obs.equals(first.obs) and other.var.equals(first.var)
        assert (other.X[:] != first.X[:]).nnz == 0
        assert (other.layers["counts"][:] != first.layers["counts"]).nnz == 0
        for key, values in first.uns["de"].items():
            assert np.array_equal(other.uns["de"][key], values), key


def test_replogle(made: ad.AnnData, tmp_path: Path, assert_tidy) -> None:
    """No counts, more columns, a repeated symbol, other things in uns."""
    given = made.copy()
    given.obs.insert(2, "cov_drug_dose_name", given.obs["condition_name"])
    given.obs["control"] = given.obs["control"].astype("category")
    symbols = [*given.var["gene_name"][:-1], "G7"]
    given.var = pd.DataFrame(
        {"gene_name": pd.Categorical(symbols), "start": np.arange(60), "mean": np.linspace(0, 1, 60)},
        index=given.var.index,
    )
    given.uns["hvg"] = {"flavor": np.array("seurat", dtype=object)}
    entry = {"values": "lognorm", "options": {"cell_type": CELL_TYPE}}
    adata = gears.load(save(given, tmp_path / "a.h5ad", "none"), entry)
    check_tidy(adata, "replogle", {"n_obs": 300}, values="lognorm")
    path = tmp_path / "tidy.h5ad"
    write(adata, path)
    back = read(path)
    assert back.X.dtype == np.float32 and (back.X != made.X).nnz == 0
    assert list(back.obs) == OBS and list(back.var) == ["gene_id"] and not back.layers
    assert list(back.var_names[-2:]) == ["G55", "G7-1"]
    assert back.uns["recipe"]["symbols_repeated"] == 1
    assert gears.gears_uns(back.uns["de"], back.var["gene_id"])["top_non_zero_de_20"].keys() == (
        made.uns["top_non_zero_de_20"].keys()
    )
    # counts of the file are left out where the entry says that there are none
    assert not gears.load(save(made, tmp_path / "b.h5ad"), entry).layers


def test_conditions_that_a_test_cannot_rank(made: ad.AnnData, tmp_path: Path) -> None:
    """One cell has no variance; scanpy refuses it, and the recipe leaves the ranking empty."""
    keep = np.ones(made.n_obs, dtype=bool)
    keep[np.flatnonzero(made.obs["condition"] == "C+A")[1:]] = False
    given = made[keep].copy()
    adata = gears.load(save(given, tmp_path / "a.h5ad"), {"options": {"de": "recompute"}})
    row = list(adata.uns["de"]["condition_name"]).index("A549_C+A_1+1")
    assert adata.uns["recipe"]["de_conditions_of_one_cell"] == 1
    assert (adata.uns["de"]["rank_genes_groups_cov_all"][row] == -1).all()
    assert (adata.uns["de"]["top_non_zero_de_20"][row] == -1).all()
    assert (np.delete(adata.uns["de"]["rank_genes_groups_cov_all"], row, axis=0) >= 0).all()


def test_each_cell_type_has_its_own_controls(tmp_path: Path) -> None:
    first, second = screen(seed=1), screen(cell_type="RPE1", seed=2)
    second.obs_names = second.obs_names + "x"
    both = ad.concat([first, second], merge="same")
    both.obs = both.obs.astype(dict.fromkeys(both.obs.columns.drop("control"), "category"))
    both.obs.index.name, both.var.index.name = "cell_barcode", "gene_id"
    entry = {"options": {"de": "recompute"}}
    adata = gears.load(save(both, tmp_path / "a.h5ad"), entry)
    assert len(adata.uns["de"]["condition_name"]) == 14
    back = gears.gears_uns(adata.uns["de"], both.var_names)
    for alone in (first, second):
        for name, genes in alone.uns["top_non_zero_de_20"].items():
            assert list(back["top_non_zero_de_20"][name]) == list(genes)
    lonely = both[(both.obs["cell_type"] == "A549") | (both.obs["control"] == 0)].copy()
    with pytest.raises(ValueError, match="found no 'ctrl' of cell type 'RPE1', expected controls"):
        gears.load(save(lonely, tmp_path / "b.h5ad"), entry)


def test_hill2018(shared_data, assert_tidy) -> None:
    """A real screen with raw counts in X, cells without a guide, and none of GEARS' lists."""
    path = shared_data("cropseq/hill2018_cropseq_28genes.h5ad")
    adata = gears.load({"cells": path}, {"options": {"drop": ["unassigned"], "de": "recompute"}})
    assert_tidy(adata, obs=OBS, x=True, uns=("de",))
    assert adata.shape == (4063, 28) and adata.obs["control"].sum() == 383
    facts = adata.uns["recipe"]
    assert facts["cells_dropped"] == 2166 and facts["conditions_dropped"] == "unassigned"
    assert facts["singles"] == 29 and facts["genes_not_measured_names"] == "MLL2,MLL3"
    file = ad.read_h5ad(path)
    file = file[file.obs["condition"] != "unassigned"].copy()
    assert (adata.layers["counts"] != sp.csr_matrix(file.X)).nnz == 0
    sc.pp.normalize_total(file)
    sc.pp.log1p(file)
    np.testing.assert_allclose(adata.X.toarray(), sp.csr_matrix(file.X).toarray(), rtol=1e-5)
    file.obs["condition_name"] = adata.obs["condition_name"].astype("category")
    file.obs["control"] = adata.obs["control"].astype(int)
    names, scores = scanpy_ranking(file)
    assert np.isfinite(scores.to_numpy()).all()
    for name, genes in gears.gears_uns(adata.uns["de"], file.var_names)["rank_genes_groups_cov_all"].items():
        assert list(genes[:20]) == list(names[name][:20])
    with pytest.raises(ValueError, match=r"condition 'unassigned': expected .*options: {drop: \[\.\.\.\]}"):
        gears.load({"cells": path}, {"options": {"de": "recompute"}})


def _set(column: str, value: object, rows: int = 3):
    def change(adata: ad.AnnData) -> None:
        values = adata.obs[column].astype(object)
        values.iloc[:rows] = value
        adata.obs[column] = values.astype("category")

    return change


def _gene(key: str, value: object):
    def change(adata: ad.AnnData) -> None:
        name, values = next(iter(adata.uns[key].items()))
        adata.uns[key] = adata.uns[key] | {name: np.array([value, *values[1:]])}

    return change


def _counts_in_x(adata: ad.AnnData) -> None:
    adata.X = adata.layers["counts"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("condition", "A"), "obs key 'condition': condition 'A': expected ctrl, GENE"),
        (_set("control", 0), "obs key 'control': found 3 cells where it says other than 'condition'"),
        (_set("condition_name", "x"), "obs key 'condition_name': found 9 names, expected one for each of 8"),
        (_set("condition", None), "obs key 'condition': found 3 missing values"),
        (_set("cell_type", "HeLa", 300), "obs key 'cell_type': found HeLa, expected 'A549', which options"),
        (lambda a: a.obs.pop("cell_type"), "obs key 'cell_type' is missing, found condition, dose_val"),
        (lambda a: a.var.pop("gene_name"), "var key 'gene_name': found no columns, expected it with"),
        (lambda a: a.uns.pop("non_zeros_gene_idx"), "uns key 'non_zeros_gene_idx' is missing, found non_"),
        (_gene("top_non_zero_de_20", "TP53"), "uns key 'top_non_zero_de_20', 'A549_A.B_1.1': found TP53"),
        (_gene("non_zeros_gene_idx", 60), "uns key 'non_zeros_gene_idx', 'A549_A.B_1.1': found 60"),
        (_counts_in_x, "X: found whole numbers only, expected log-normalised values"),
    ],
)  # fmt: skip
def test_wrong_content_is_named(made: ad.AnnData, tmp_path: Path, change, message: str) -> None:
    given = made.copy()
    change(given)
    files = save(given, tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=message) as caught:
        gears.load(files, {"options": {"cell_type": CELL_TYPE}})
    assert str(caught.value).startswith(str(files["cells"])) and "\n" not in str(caught.value)


def test_a_screen_needs_controls(made: ad.AnnData, tmp_path: Path) -> None:
    files = save(made, tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="obs key 'condition': found no cell with 'ctrl', expected controls"):
        gears.load(files, {"options": {"drop": ["ctrl"]}})
    with pytest.raises(
        ValueError, match="obs key 'condition': found no 'D.ctrl', expected the conditions that"
    ):
        gears.load(files, {"options": {"drop": ["D+ctrl"]}})


def test_wrong_files_are_named(norman: dict[str, Path]) -> None:
    path = norman["cells"]
    with h5py.File(path, "a") as file:
        del file["X"]
    with pytest.raises(ValueError, match="perturb_processed.h5ad: X is missing"):
        gears.load(norman, {})
    path.write_bytes(b"<html>a download that failed</html>")
    with pytest.raises(ValueError, match="perturb_processed.h5ad: found no readable AnnData"):
        gears.load(norman, {})
    with pytest.raises(ValueError, match="sources: key 'cells' is missing, found none"):
        gears.load({}, {})
