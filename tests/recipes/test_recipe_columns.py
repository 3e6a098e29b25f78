"""One h5ad named by its declaration: files that look like the published ones, and every way to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import look_alikes
import numpy as np
import pytest
import scipy.sparse as sp

from workflow.recipes import columns
from workflow.tidy import check_tidy

LUNG_KIM = {
    "obs": {"label": "cell_type", "batch": "sample"},
    "var": {"symbol": "gene_name"},
    "options": {"unlabelled": "drop"},
}
COVID = {
    "obs": {"label": "celltype", "batch": "str_batch"},
    "var": {"symbol": "gene_name"},
    "values": "lognorm",
}
PERIRHINAL = {
    "obs": {"label": "cell_type", "batch": "sample_id"},
    "var": {"symbol": "Gene"},
    "options": {"counts_from": "X", "keep_obs": ["donor_id", "total_UMIs"]},
}
IMMUNE = {
    "obs": {"label": "final_annotation", "batch": "batch"},
    "options": {"counts_from": "layers/counts", "drop_cells": {"batch": ["Villani"]}},
}


def load(path: Path, entry: dict) -> ad.AnnData:
    adata = columns.load({"cells": path}, entry)
    check_tidy(adata, "test", {}, values=entry.get("values", "counts"))
    return adata


def test_lung_kim(tmp_path: Path, assert_tidy) -> None:
    path = look_alikes.write_lung_kim(tmp_path)
    adata = load(path, LUNG_KIM)
    assert_tidy(adata, obs=["label", "batch"])
    real = ad.read_h5ad(path)[4:]  # the first four have no type
    assert adata.obs["batch"].nunique() == 14
    assert adata.uns["recipe"]["dropped_unlabelled"] == 4
    assert list(adata.obs_names) == list(real.obs_names)
    assert list(adata.obs["label"]) == list(real.obs["cell_type"])
    assert (adata.layers["counts"] != real.X).nnz == 0
    with pytest.raises(ValueError, match=r"'cell_type' \(for 'label'\) is missing for 4 of 56 cells"):
        load(path, LUNG_KIM | {"options": {}})


def test_covid(tmp_path: Path, assert_tidy) -> None:
    path = look_alikes.write_covid(tmp_path)
    adata = load(path, COVID)
    assert_tidy(adata, obs=["label", "batch"], counts=False, x=True)
    assert adata.obs["batch"].nunique() == 18
    assert (adata.X != ad.read_h5ad(path).X).nnz == 0
    facts = adata.uns["recipe"]
    assert facts["values"] == "log-normalised, by measurement"
    assert 0 < facts["library_sum_min"] < facts["library_sum_median"] < facts["library_sum_max"] < 1e4
    assert facts["normalised_to"] == "no constant sum over these genes"


def test_values_that_show_their_sum_are_said_to(tmp_path: Path) -> None:
    counts, label = look_alikes.draw(20, 30, ["a", "b"], seed=0)
    adata = ad.AnnData(look_alikes.log_normalise(counts, 30))
    adata.obs["type"] = label
    adata.write_h5ad(tmp_path / "x.h5ad")
    facts = load(tmp_path / "x.h5ad", {"obs": {"label": "type"}, "values": "lognorm"}).uns["recipe"]
    assert facts["normalised_to"] == "10000 per cell"
    assert facts["library_sum_median"] == pytest.approx(1e4, rel=1e-4)


def test_perirhinal(tmp_path: Path, assert_tidy) -> None:
    path = look_alikes.write_perirhinal(tmp_path)
    adata = load(path, PERIRHINAL)
    assert_tidy(adata, obs=["label", "batch", "donor_id", "total_UMIs"], gene_id=True)
    assert list(adata.var_names[6:10]) == ["GENE6", "GENE8", "GENE8-1", "GENE9"]
    assert list(adata.var["gene_id"]) == look_alikes.ensembl(60)
    assert adata.uns["recipe"]["repeated_symbols"] == 1
    assert adata.obs["batch"].value_counts().to_dict() == {"10X222_1": 19, "10X222_2": 21}
    assert (adata.obs["total_UMIs"] == adata.layers["counts"].sum(1).A1).all()


def test_immune_human_without_the_batch_that_has_no_counts(tmp_path: Path, assert_tidy) -> None:
    path = look_alikes.write_immune_human(tmp_path)
    adata = load(path, IMMUNE)
    assert_tidy(adata, obs=["label", "batch"])
    assert adata.n_obs == 40 and set(adata.obs["batch"]) == {"10X", "Sun_sample1_CS"}
    assert adata.uns["recipe"]["dropped_cells"] == 20
    with pytest.raises(ValueError, match=r"layers\['counts'\] has \d+\.\d% non-integer values, first"):
        load(path, IMMUNE | {"options": {}})
    wrong = {"options": {"drop_cells": {"batch": ["Vilani"]}}}
    with pytest.raises(
        ValueError, match=r"'batch' has no 'Vilani' \(options.drop_cells\); did you mean 'Villani'"
    ):
        load(path, IMMUNE | wrong)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint16])
def test_any_matrix_gives_the_same_counts(tmp_path: Path, assert_tidy, kind: Callable, dtype: type) -> None:
    counts, label = look_alikes.draw(12, 9, ["a", "b"], seed=1)
    adata = ad.AnnData(kind(counts.astype(dtype)))
    adata.obs["type"] = label
    adata.write_h5ad(tmp_path / "x.h5ad")
    tidy = load(tmp_path / "x.h5ad", {"obs": {"label": "type"}})
    assert_tidy(tidy)
    assert (tidy.layers["counts"].toarray() == counts).all()


def test_each_place_of_counts(tmp_path: Path) -> None:
    counts, label = look_alikes.draw(12, 9, ["a", "b"], seed=2)
    adata = ad.AnnData(sp.csr_matrix(counts + 3.0))
    adata.obs["type"] = label
    adata.raw = ad.AnnData(sp.csr_matrix(counts + 2.0), var=adata.var.rename(index="raw {}".format))
    adata = adata[:, :5].copy()  # raw keeps all genes
    adata.layers["umi"] = sp.csr_matrix(counts[:, :5] + 1.0)
    adata.layers["counts"] = sp.csr_matrix(counts[:, :5])
    path = tmp_path / "x.h5ad"
    adata.write_h5ad(path)
    shapes = {None: (0, 5), "layers/counts": (0, 5), "layers/umi": (1, 5), "raw": (2, 9), "X": (3, 5)}
    for place, (more, n_genes) in shapes.items():
        tidy = load(path, {"obs": {"label": "type"}, "options": {"counts_from": place} if place else {}})
        assert (tidy.layers["counts"].toarray() == counts[:, :n_genes] + more).all(), place
        assert tidy.var_names[0].startswith("raw ") == (place == "raw")
    with pytest.raises(ValueError, match="layers/UMI is missing, found X, layers/counts, layers/umi, raw;"):
        load(path, {"obs": {"label": "type"}, "options": {"counts_from": "layers/UMI"}})


def test_a_split_of_the_file(tmp_path: Path) -> None:
    path = look_alikes.write_lung_kim(tmp_path)
    entry = {"obs": {"label": "cell_type", "split": "source"}, "options": LUNG_KIM["options"]}
    with pytest.raises(
        ValueError, match=r"'source' \(for 'split'\) has tL/B, tLung; expected reference and query"
    ):
        load(path, entry)
    adata = load(path, entry | {"options": {"unlabelled": "drop", "reference": ["tLung"]}})
    real = ad.read_h5ad(path).obs["source"][4:]
    assert list(adata.obs["split"]) == ["reference" if source == "tLung" else "query" for source in real]
    with pytest.raises(ValueError, match="'source' .* has no 'tlung'; did you mean 'tLung'"):
        load(path, entry | {"options": {"unlabelled": "drop", "reference": ["tlung"]}})


def test_values_of_options_may_be_numbers(tmp_path: Path) -> None:
    path = look_alikes.write_myeloid(tmp_path)["reference"]  # its batches are 0, 1 and 2
    entry = {"obs": {"label": "cell_type", "split": "batch"}, "values": "lognorm"}
    adata = load(path, entry | {"options": {"drop_cells": {"batch": [1]}, "reference": [2]}})
    batch = ad.read_h5ad(path).obs["batch"]
    assert list(adata.obs["split"]) == ["reference" if b == 2 else "query" for b in batch[batch != 1]]


def test_missing_symbols_and_ids(tmp_path: Path) -> None:
    counts, label = look_alikes.draw(12, 4, ["a", "b"], seed=3)
    adata = ad.AnnData(sp.csr_matrix(counts))
    adata.obs["type"] = label
    adata.var_names = look_alikes.ensembl(4)
    adata.var["name"] = ["A", None, "B", "A"]
    adata.write_h5ad(tmp_path / "x.h5ad")
    entry = {"obs": {"label": "type"}, "var": {"symbol": "name"}}
    tidy = load(tmp_path / "x.h5ad", entry)
    assert list(tidy.var_names) == ["A", "ENSG00000000001", "B", "A-1"]
    assert list(tidy.var["gene_id"]) == look_alikes.ensembl(4)
    with pytest.raises(ValueError, match=r"var column 'nam' \(for 'symbol'\) is missing; did you mean 'name"):
        load(tmp_path / "x.h5ad", entry | {"var": {"symbol": "nam"}})


WRONG_VALUES: dict[str, tuple[Callable, str]] = {
    "z-scores": (lambda x: x - x.mean(0), "X has negative values, smallest -.*, as z-scores have"),
    "counts": (lambda x: np.round(x), r"X has integers only, largest \d+; expected log-normalised"),
    "not a logarithm": (
        np.expm1,
        r"X has values up to [\de+.]+, \d+\.\d% of them above 20; expected log-norm",
    ),
    "missing": (lambda x: np.where(x > 5, np.nan, x), r"X has \d+ values that are NaN or inf"),
    "nothing": (lambda x: x * 0, "X has integers only, largest 0"),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_log_normalised_values_are_refused(tmp_path: Path, name: str) -> None:
    change, message = WRONG_VALUES[name]
    path = look_alikes.write_covid(tmp_path)
    adata = ad.read_h5ad(path)
    adata.X = change(adata.X.toarray())
    adata.write_h5ad(path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path, COVID)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"obs": {"label": "celltpye"}}, "obs column 'celltpye' .* is missing; did you mean 'celltype'"),
        ({"options": {"unlabeled": "drop"}}, "options: unknown key 'unlabeled'; did you mean 'unlabelled'"),
        (
            {"options": {"unlabelled": "ignore"}},
            "options.unlabelled: found 'ignore'; expected refuse or drop",
        ),
        (
            {"options": {"counts_from": "X"}},
            "options.counts_from is there, but the declaration says .*lognorm",
        ),
        ({"options": {"keep_obs": ["stdy"]}}, "obs column 'stdy' .* is missing; did you mean 'study'"),
        ({"options": {"keep_obs": ["batch"]}}, "options.keep_obs: 'batch' is a name of the suite"),
    ],
)
def test_a_wrong_declaration_is_named(tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(look_alikes.write_covid(tmp_path), COVID | changed)


def test_more_than_one_file_is_refused(tmp_path: Path) -> None:
    path = look_alikes.write_covid(tmp_path)
    with pytest.raises(ValueError, match="sources: found a, b; expected one h5ad file"):
        columns.load({"a": path, "b": path}, COVID)


def test_a_real_slice_of_the_census(shared_data, assert_tidy) -> None:
    path = shared_data("census_slice/cellxgene.h5ad")
    entry = {
        "obs": {"label": "cell_type", "batch": "donor_id"},
        "options": {"keep_obs": ["tissue_general", "suspension_type"]},
    }
    adata = load(path, entry)
    assert_tidy(adata, obs=["label", "batch", "tissue_general", "suspension_type"])
    assert adata.shape == (220, 18357) and adata.obs["label"].nunique() == 22


def test_a_real_piece_with_symbols_in_a_column(shared_data, assert_tidy) -> None:
    path = shared_data("pbmc10k_mini/pbmc4k_subset_scvi_labels.h5ad")
    adata = load(path, {"obs": {"label": "str_labels"}, "var": {"symbol": "gene_symbols"}})
    assert_tidy(adata, gene_id=True)
    real = ad.read_h5ad(path)
    assert list(adata.var_names) == list(real.var["gene_symbols"])
    assert list(adata.var["gene_id"]) == list(real.var_names)
    assert (adata.layers["counts"] != sp.csr_matrix(real.X)).nnz == 0


def test_cells_without_counts_are_refused_or_dropped(tmp_path: Path) -> None:
    adata = ad.read_h5ad(look_alikes.write_lung_kim(tmp_path))
    counts = adata.X.toarray()
    counts[[9, 20]] = 0
    adata.X = sp.csr_matrix(counts)
    adata.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="2 cells have no counts, first 'AAAC9_LUNG_T0'; leave them out"):
        load(tmp_path / "x.h5ad", LUNG_KIM)
    entry = LUNG_KIM | {"options": {"unlabelled": "drop", "empty": "drop"}}
    kept = load(tmp_path / "x.h5ad", entry)
    assert kept.uns["recipe"]["dropped_empty"] == 2
    assert list(kept.obs_names) == [
        name for i, name in enumerate(adata.obs_names) if i not in (0, 1, 2, 3, 9, 20)
    ]
    assert (kept.layers["counts"] != counts[[i for i in range(4, 56) if i not in (9, 20)]]).sum() == 0
