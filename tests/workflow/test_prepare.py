"""Preparing: no label reaches a method, and bad data gets one clear sentence."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from support import entry, make_cells

from baselines import _io
from workflow import tasks
from workflow.files import checksum
from workflow.splits import batch_split, given_split, stratified_split
from workflow.steps.tidy import load_tidy, write
from workflow.tasks.genes import mark_highly_variable
from workflow.tidy import DataError, check_tidy, log_normalize

SECRET = "a type that only query cells have"


def tidy(adata: ad.AnnData, tmp_path, **changed) -> ad.AnnData:
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    data, _ = load_tidy("test", entry("file:cells.h5ad", **changed), {"cells": path})
    log_normalize(data)
    return data


def part(adata: ad.AnnData, task: str) -> tuple[ad.AnnData, ad.AnnData, dict]:
    return tasks.get(task).make_io(adata, entry("x", task)["tasks"][task])


def every_string(path) -> str:
    """All names, attributes and strings of an HDF5 file, compressed or not."""
    found: list[str] = []

    def visit(name, node):
        found.append(name)
        found.extend(f"{k}={v}" for k, v in node.attrs.items())
        if isinstance(node, h5py.Dataset) and (node.dtype.kind in "OS" or node.dtype.kind == "U"):
            found.extend(str(v) for v in np.atleast_1d(node[()]).astype(str))

    with h5py.File(path) as file:
        found.extend(f"{k}={v}" for k, v in file.attrs.items())
        file.visititems(visit)
    return "\n".join(found)


def test_integration_input_is_the_same_whatever_the_labels(cells, tmp_path):
    adata = tidy(cells, tmp_path)
    permuted = adata.copy()
    permuted.obs["label"] = np.random.default_rng(1).permutation(adata.obs["label"].to_numpy())
    for name, one in (("a", adata), ("b", permuted)):
        given, _, _ = part(one, "integration")
        write(given, tmp_path / f"{name}.h5ad")
    assert checksum(tmp_path / "a.h5ad") == checksum(tmp_path / "b.h5ad")
    assert "type 0" not in every_string(tmp_path / "a.h5ad")


def test_annotation_input_is_the_same_whatever_the_query_labels(cells, tmp_path):
    adata = tidy(cells, tmp_path)
    given, solution, facts = part(adata, "annotation")
    query = (given.obs["split"] == "query").to_numpy()
    assert given.obs["label"][query].isna().all()
    assert given.obs["label"][~query].notna().all()
    assert list(solution.obs["label"]) == list(adata.obs["label"][query].astype(str))
    write(given, tmp_path / "a.h5ad")

    # the same split, given by batch, with other query labels: the input must not move by a byte
    adata.obs["batch"] = np.where(query, "q", "r")
    settings = {"split": {"kind": "batch", "query": ["q"]}}
    changed = adata.copy()
    labels = changed.obs["label"].astype(str).to_numpy()
    labels[query] = SECRET
    changed.obs["label"] = labels
    for name, one in (("b", adata), ("c", changed)):
        write(tasks.get("annotation").make_io(one, settings)[0], tmp_path / f"{name}.h5ad")
    assert checksum(tmp_path / "b.h5ad") == checksum(tmp_path / "c.h5ad")
    assert SECRET not in every_string(tmp_path / "c.h5ad")
    assert "type 0" in every_string(tmp_path / "c.h5ad")  # the reference keeps its labels
    assert facts["accuracy_ceiling"] == 1.0


def test_other_slots_of_the_source_do_not_travel(cells, tmp_path):
    cells.uns["colors"] = ["type 0"]
    cells.obsm["X_umap"] = np.zeros((60, 2))
    cells.obs["louvain"] = cells.obs["cell_type"].astype(str) + SECRET
    cells.var["best_for"] = "type 0"
    cells.raw = cells.copy()
    for task in tasks.NAMES:
        given, _, _ = part(tidy(cells, tmp_path), task)
        write(given, tmp_path / "input.h5ad")
        assert SECRET not in every_string(tmp_path / "input.h5ad")
        assert set(given.obs) <= {"batch", "split", "label"}
        assert not given.obsm and not given.uns and given.raw is None
        assert set(given.var) <= {"highly_variable", "highly_variable_all", "gene_id"}


@pytest.mark.parametrize("task", tasks.NAMES)
def test_gene_ids_reach_the_methods(cells, tmp_path, task):
    ids = [f"ENSG{i:011}" for i in range(39)]
    cells.var["gene_id"] = [*ids, None]
    given, _, _ = part(tidy(cells, tmp_path), task)
    assert list(given.var["gene_id"]) == [*ids, ""]


def test_input_holds_counts_and_log_normalised_values(cells, tmp_path):
    given, _, _ = part(tidy(cells, tmp_path), "integration")
    counts = given.layers["counts"].toarray()
    assert (counts == cells.X.toarray()).all()
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(given.X.toarray(), expected, rtol=1e-5)


def break_column(adata):
    del adata.obs["cell_type"]


def break_batch_column(adata):
    adata.obs = adata.obs.rename(columns={"batch": "sample"})


def break_counts(adata):
    adata.layers["counts"] = adata.X * 0.5


def break_counts_in_x(adata):
    del adata.layers["counts"]
    adata.X = adata.X * 0.5


def break_all_counts(adata):
    del adata.layers["counts"]
    adata.X = None


def lose_labels(adata):
    adata.obs.loc[["cell4", "cell8"], "cell_type"] = np.nan


def lose_batches(adata):
    adata.obs["batch"] = np.where(np.arange(60) < 5, np.nan, 1.0)


def write_nan_as_text(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).where(np.arange(60) != 5, "nan")


def write_none_as_text(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).where(np.arange(60) != 5, "None")


def write_a_blank(adata):
    adata.obs["batch"] = adata.obs["batch"].astype(str).where(np.arange(60) != 5, " ")


def break_sign(adata):
    adata.layers["counts"].data[3] = -1


def break_nan(adata):
    adata.layers["counts"].data[3] = np.nan


def break_cell_names(adata):
    adata.obs_names = ["cell0", "cell0", *adata.obs_names[2:]]


def break_label(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).where(np.arange(60) != 5, "type 9")


def break_empty_cell(adata):
    counts = adata.layers["counts"].toarray()
    counts[7] = 0
    adata.layers["counts"] = sp.csr_matrix(counts)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (break_column, ["cells.h5ad", "'cell_type'", "missing"]),
        (break_batch_column, ["cells.h5ad", "'batch'", "missing", "sample"]),
        (break_counts, ["layers['counts']", "non-integer", "first 6.5", "expected raw counts"]),
        (break_counts_in_x, ["cells.h5ad: X (there is no layers['counts'])", "non-integer", "first 6.5"]),
        (break_all_counts, ["cells.h5ad", "neither layers['counts'] nor X"]),
        (lose_labels, ["cells.h5ad", "'cell_type' (for 'label')", "2 of 60 cells, first cell4, cell8;"]),
        (lose_batches, ["cells.h5ad", "'batch'", "5 of 60 cells, first cell0, cell1, cell2;"]),
        (write_nan_as_text, ["cells.h5ad", "'cell_type'", "1 of 60 cells, first cell5;"]),
        (write_none_as_text, ["cells.h5ad", "'cell_type'", "1 of 60 cells, first cell5;"]),
        (write_a_blank, ["cells.h5ad", "'batch'", "1 of 60 cells, first cell5;"]),
        (break_sign, ["negative", "-1"]),
        (break_nan, ["1 values that are NaN"]),
        (break_cell_names, ["1 duplicated cell names", "'cell0'"]),
        (break_label, ["labels is 4, expected 3", "workflow/datasets.yaml"]),
        (break_empty_cell, ["1 cells have no counts", "'cell7'"]),
    ],
)
def test_bad_data_gets_one_sentence(cells, tmp_path, breaks, words):
    breaks(cells)
    with pytest.raises(DataError) as caught:
        tidy(cells, tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cells\.h5ad: not a readable h5ad file"):
        load_tidy("test", entry("x"), {"cells": path})


def test_gene_names_that_a_recipe_left_repeated_are_refused(cells):
    cells.obs["label"] = cells.obs["cell_type"]
    cells.var_names = ["GENE1", *cells.var_names[1:]]
    with pytest.raises(DataError, match="test: 1 duplicated gene names, first 'GENE1'"):
        check_tidy(cells, "test", {})


def test_one_batch_is_no_integration(cells, tmp_path):
    cells.obs["batch"] = "only"
    adata = tidy(cells, tmp_path, expect={"n_obs": 60, "n_vars": 40, "labels": 3, "batches": 1})
    with pytest.raises(ValueError, match="one value only"):
        part(adata, "integration")


def test_a_split_keeps_a_reference_cell_of_every_label_and_follows_its_seed():
    labels = np.array(["a"] * 10 + ["b"] * 5 + ["c"])
    query = stratified_split(labels, query_fraction=0.4, seed=3)
    assert query[labels == "a"].sum() == 4
    assert query[labels == "b"].sum() == 2
    assert query[labels == "c"].sum() == 0
    assert (query == stratified_split(labels, 0.4, 3)).all()
    assert (query != stratified_split(labels, 0.4, 4)).any()


def test_a_batch_split_names_an_unknown_batch(cells):
    with pytest.raises(ValueError, match="no batch 'b7'; did you mean 'b"):
        batch_split(cells.obs, ["b7"])
    assert batch_split(cells.obs, ["b1"]).sum() == (cells.obs["batch"] == "b1").sum()


def test_a_given_split_is_the_one_of_the_data(cells, tmp_path):
    """It says the same as whole batches do where the two are the same cells."""
    cells.obs["side"] = np.where(cells.obs["batch"] == "b1", "query", "reference")
    adata = tidy(cells, tmp_path, obs={"label": "cell_type", "batch": "batch", "split": "side"})
    given, solution, facts = tasks.get("annotation").make_io(adata, {"split": {"kind": "given"}})
    other, other_solution, other_facts = tasks.get("annotation").make_io(
        adata, {"split": {"kind": "batch", "query": ["b1"]}}
    )
    assert (given.obs["split"] == other.obs["split"]).all() and facts == other_facts
    assert facts["n_query"] == (cells.obs["batch"] == "b1").sum()
    assert list(solution.obs["label"]) == list(other_solution.obs["label"])
    assert given.obs["label"][given.obs["split"] == "query"].isna().all()


def test_a_given_split_must_be_there(cells, tmp_path):
    adata = tidy(cells, tmp_path)
    with pytest.raises(ValueError, match=r"obs column 'split' is missing \(found: label, batch\)"):
        tasks.get("annotation").make_io(adata, {"split": {"kind": "given"}})
    adata.obs["split"] = "train"
    with pytest.raises(ValueError, match="'split'.* has the value 'train'; expected reference or query"):
        given_split(adata.obs)
    adata.obs["split"] = "query"
    with pytest.raises(ValueError, match="leaves the reference or the query empty"):
        tasks.get("annotation").make_io(adata, {"split": {"kind": "given"}})


@pytest.mark.parametrize("task", tasks.NAMES)
def test_without_counts_the_values_are_given_as_they_are(cells, tmp_path, task):
    log_normalize(cells)
    del cells.layers["counts"]
    settings = entry("x", task)["tasks"][task]
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    adata, _ = load_tidy("test", entry("x", values="lognorm"), {"cells": path})
    given, _, facts = tasks.get(task).make_io(adata, settings | {"n_top_genes": 40})
    assert not given.layers
    assert (given.X != cells.X).nnz == 0
    assert given.var["highly_variable"].all()
    assert facts["highly_variable"]["flavor"] == "all genes"
    with pytest.raises(
        ValueError, match="n_top_genes is 39 of 40 genes, but seurat_v3 ranks genes by raw counts"
    ):
        tasks.get(task).make_io(adata, settings | {"n_top_genes": 39})


def test_one_batch_is_no_split(cells):
    cells.obs["batch"] = "only"
    with pytest.raises(ValueError, match="one batch only \\('only'\\); a split by batch needs two"):
        batch_split(cells.obs, ["only"])


def test_genes_are_chosen_on_the_reference_alone(tmp_path):
    adata = make_cells(n=300, genes=60)
    log_normalize(adata)
    reference = np.arange(300) < 200
    disturbed = adata.copy()
    counts = disturbed.layers["counts"].toarray()
    counts[200:] = np.random.default_rng(0).poisson(50, (100, 60))
    disturbed.layers["counts"] = sp.csr_matrix(counts)
    for one in (adata, disturbed):
        facts = mark_highly_variable(one, 15, cells=reference)
        assert facts["scope"] == "reference cells"
    assert (adata.var["highly_variable"] == disturbed.var["highly_variable"]).all()
    assert adata.var["highly_variable"].sum() == 15
    mark_highly_variable(disturbed, 15)
    assert (adata.var["highly_variable"] != disturbed.var["highly_variable"]).any()


def test_gene_choice_retries_a_wider_span_and_says_so(mini):
    """At span 0.3 the loess of seurat_v3 fails on the small batch of this real data."""
    adata, _ = load_tidy(
        "mini",
        entry("x")
        | {
            "recipe": "pbmc10k_mini",
            "expect": {"n_obs": 2433, "n_vars": 1767, "labels": 9, "batches": 2},
        },
        {"cells": mini},
    )
    facts = mark_highly_variable(adata, 1200, batch_key="batch")
    assert facts["flavor"] == "seurat_v3"
    assert facts["span"] > 0.3
    assert adata.var["highly_variable"].sum() == 1200


def test_both_scopes_of_the_choice_of_genes_are_in_the_input(cells):
    """Of the reference alone, and of all cells for a method that is told so; only these see the query."""
    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    settings = {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}, "n_top_genes": 15}
    given, _, facts = tasks.get("annotation").make_io(cells.copy(), settings)
    disturbed = cells.copy()
    query = (given.obs["split"] == "query").to_numpy()
    counts = disturbed.layers["counts"].toarray()
    counts[query] = counts[query][:, ::-1]
    disturbed.layers["counts"] = sp.csr_matrix(counts)
    other, _, _ = tasks.get("annotation").make_io(disturbed, settings)
    assert (given.var["highly_variable"] == other.var["highly_variable"]).all()
    assert (given.var["highly_variable_all"] != other.var["highly_variable_all"]).any()
    shared = given.var["highly_variable"] & given.var["highly_variable_all"]
    assert facts["highly_variable"]["shared_with_all_cells"] == shared.sum()
    for scope, column in (("train", "highly_variable"), ("all", "highly_variable_all")):
        params = {"feature_scope": scope}
        chosen = _io.Given(given, params, seed=0, threads=1, gpu=0, resume=None).highly_variable()
        assert (chosen.var_names == given.var_names[given.var[column]]).all()
    with pytest.raises(ValueError, match="feature_scope must be train or all, not 'query'"):
        _io.Given(given, {"feature_scope": "query"}, 0, 1, 0, None).highly_variable()
