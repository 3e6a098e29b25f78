"""A published split in two files: files that look like the published ones, and what does not fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import look_alikes
import numpy as np
import pytest
import scipy.sparse as sp

from workflow.recipes import reference_query
from workflow.tidy import check_tidy

MS = {
    "obs": {"label": look_alikes.MS_LABEL, "batch": look_alikes.MS_BATCH},
    "var": {"symbol": "gene_name"},
    "values": "lognorm",
}
MYELOID = {
    "obs": {"label": "cell_type", "batch": "batch"},
    "values": "lognorm",
    "options": {"keep_obs": ["cancer_type"]},
}
HPANCREAS = {"obs": {"label": "Celltype"}, "values": "lognorm"}
COVID = {
    "obs": {"label": "celltype", "batch": "str_batch"},
    "var": {"symbol": "gene_name"},
    "values": "lognorm",
}
LUNG_KIM = {"obs": {"label": "cell_type", "batch": "sample"}, "var": {"symbol": "gene_name"}}
CASES = {
    "ms": (look_alikes.write_ms, MS, (24, 32), 30),
    "myeloid": (look_alikes.write_myeloid, MYELOID, (24, 24), 30),
    "hpancreas": (look_alikes.write_hpancreas, HPANCREAS, (21, 21), 30),
    "covid": (look_alikes.write_covid_split, COVID, (72, 36), 30),
    "lung_kim": (look_alikes.write_lung_kim_split, LUNG_KIM, (56, 28), 40),
}


def load(files: dict[str, Path], entry: dict) -> ad.AnnData:
    adata = reference_query.load(files, entry)
    check_tidy(adata, "test", {}, values=entry.get("values", "counts"))
    return adata


def change(path: Path, what: Callable[[ad.AnnData], ad.AnnData | None]) -> None:
    adata = ad.read_h5ad(path)
    adata = what(adata) or adata
    adata.write_h5ad(path)


@pytest.mark.parametrize("name", CASES)
def test_both_files_become_one(tmp_path: Path, assert_tidy, name: str) -> None:
    write, entry, sizes, n_genes = CASES[name]
    files = write(tmp_path)
    adata = load(files, entry)
    counts = entry.get("values", "counts") == "counts"
    obs = ["label", *(["batch"] if "batch" in entry["obs"] else []), "split"]
    assert_tidy(
        adata,
        obs=[*obs, *entry.get("options", {}).get("keep_obs", [])],
        gene_id=name == "ms",
        counts=counts,
        x=not counts,
    )
    assert adata.shape == (sum(sizes), n_genes)
    assert list(adata.var_names) == look_alikes.symbols(n_genes)
    for side, size in zip(("reference", "query"), sizes, strict=True):
        mine, real = adata[adata.obs["split"] == side], ad.read_h5ad(files[side])
        values = mine.layers["counts"] if counts else mine.X
        assert mine.n_obs == size
        assert np.array_equal(values.toarray(), sp.csr_matrix(real.X).toarray().astype(np.float32))
        assert list(mine.obs["label"]) == list(real.obs[entry["obs"]["label"]])
        if "batch" in entry["obs"]:
            assert list(mine.obs["batch"]) == list(real.obs[entry["obs"]["batch"]].astype(str))


def test_ms_has_symbols_in_one_file_and_ids_in_the_other(tmp_path: Path) -> None:
    adata = load(look_alikes.write_ms(tmp_path), MS)
    assert adata.uns["recipe"]["genes_matched_by"] == "symbols"
    assert list(adata.var["gene_id"]) == look_alikes.ensembl(30)


def test_ms_with_ids_in_both_files(tmp_path: Path) -> None:
    files = look_alikes.write_ms(tmp_path)

    def name_by_id(adata: ad.AnnData) -> None:
        adata.var_names = look_alikes.ensembl(30)

    change(files["reference"], name_by_id)
    change(files["query"], lambda adata: adata[:, ::-1].copy())
    adata = load(files, MS)
    assert adata.uns["recipe"]["genes_matched_by"] == "names of var"
    assert list(adata.var_names) == look_alikes.symbols(30)
    assert list(adata.var["gene_id"]) == look_alikes.ensembl(30)
    query = adata[adata.obs["split"] == "query"]
    assert np.array_equal(query.X.toarray(), ad.read_h5ad(files["query"]).X.toarray()[:, ::-1])


def test_myeloid_records_labels_of_one_side(tmp_path: Path) -> None:
    adata = load(look_alikes.write_myeloid(tmp_path), MYELOID)
    facts = adata.uns["recipe"]
    assert facts["labels_only_in_query"] == "cDC3_LAMP3 (8 cells)"
    assert facts["labels_only_in_reference"] == "cDC2_CD1C (6 cells); Mast_KIT (6 cells)"
    assert adata.obs["batch"].nunique() == 6
    cancers = adata.obs.groupby("split", observed=True)["cancer_type"].unique()
    assert set(cancers["query"]) == {"MYE", "OV-FTC", "ESCA"}


def test_hpancreas_is_measured_to_be_log_normalised(tmp_path: Path) -> None:
    """The files are normalised before genes are selected, so the sums are not constant."""
    files = look_alikes.write_hpancreas(tmp_path)
    adata = load(files, HPANCREAS)
    facts = adata.uns["recipe"]
    assert facts["labels_only_in_query"] == f"{look_alikes.PANCREAS_QUERY_ONLY} (7 cells)"
    assert facts["shared_cell_names"] == 21
    assert list(adata.obs_names[[0, -1]]) == ["0-reference", "20-query"]
    for side in ("reference", "query"):
        real = ad.read_h5ad(files[side]).X
        assert facts[f"{side}_values"] == "log-normalised, by measurement"
        assert facts[f"{side}_values_max"] == pytest.approx(real.max())
        assert facts[f"{side}_library_sum_median"] == pytest.approx(np.median(np.expm1(real).sum(1)))
    with pytest.raises(ValueError, match="demo_train.h5ad: X .* non-integer values, first .*; expected raw"):
        load(files, {"obs": {"label": "Celltype"}})  # what the authors' script assumes


def test_genes_of_one_file_are_left_out(tmp_path: Path) -> None:
    files = look_alikes.write_covid_split(tmp_path)
    change(files["reference"], lambda adata: adata[:, 2:].copy())
    change(files["query"], lambda adata: adata[:, [20, 3, 0, 29, 4]].copy())
    adata = load(files, COVID)
    assert list(adata.var_names) == ["GENE3", "GENE4", "GENE20", "GENE29"]  # in the reference's order
    assert adata.uns["recipe"]["genes_only_in_reference"] == 24
    assert adata.uns["recipe"]["genes_only_in_query"] == 1
    query = adata[adata.obs["split"] == "query"].X.toarray()
    assert np.array_equal(query, ad.read_h5ad(files["query"]).X.toarray()[:, [1, 4, 0, 3]])


def test_other_categories_and_kinds_of_the_same_column(tmp_path: Path) -> None:
    files = look_alikes.write_myeloid(tmp_path)

    def plain(adata: ad.AnnData) -> None:
        adata.obs["cell_type"] = "a"
        adata.obs["cancer_type"] = np.arange(adata.n_obs)

    change(files["query"], plain)
    adata = load(files, MYELOID)
    assert list(adata.obs["label"].cat.categories) == [
        "Macro_C1QC",
        "Mast_KIT",
        "Mono_CD14",
        "a",
        "cDC2_CD1C",
    ]
    assert adata.obs["cancer_type"].dtype == "category" and adata.obs["cancer_type"].iloc[-1] == "23"


def repeat_gene(adata: ad.AnnData) -> ad.AnnData:
    adata = adata[:, ::-1].copy()
    adata.var_names = ["GENE1", *adata.var_names[1:]]
    return adata


def rename_genes(adata: ad.AnnData) -> None:
    adata.var_names = [f"other {name}" for name in adata.var_names]


def scale(adata: ad.AnnData) -> None:
    adata.X = adata.X - adata.X.mean(0)


def lose_column(adata: ad.AnnData) -> None:
    del adata.obs["cell_type"]


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (repeat_gene, "source 'query': the gene 'GENE1' is there twice"),
        (
            rename_genes,
            r"no gene is in both files, matched by names of var \(reference: 'GENE0', query",
        ),
        (scale, "query_adata.h5ad: X has negative values"),
        (lose_column, r"query_adata.h5ad: obs column 'cell_type' \(for 'label'\) is missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, breaks: Callable, message: str) -> None:
    files = look_alikes.write_myeloid(tmp_path)
    change(files["query"], breaks)
    with pytest.raises(ValueError, match=message) as caught:
        load(files, MYELOID)
    assert "\n" not in str(caught.value)


def test_both_files_are_needed_and_are_the_split(tmp_path: Path) -> None:
    files = look_alikes.write_myeloid(tmp_path)
    with pytest.raises(ValueError, match="key 'query' is missing, found reference"):
        load({"reference": files["reference"]}, MYELOID)
    with pytest.raises(ValueError, match="obs.split is declared, but the two files are the split"):
        load(files, MYELOID | {"obs": {"label": "cell_type", "split": "cancer_type"}})
