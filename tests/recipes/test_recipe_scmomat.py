"""scMoMaT's layout: mosaics, matrices that are missing, and the real folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from omics_files import assert_multimodal, write_scmomat

from workflow.recipes import scmomat
from workflow.steps.tidy import read, write

ASAP = {"1": "GP", "2": "GP", "3": "RP", "4": "RP"}
MISSING = ("gxc1", "gxc2", "rxc3", "rxc4")


def declare(files: dict[str, Path], label: str = "coarse_cluster", batch: str | None = None) -> dict:
    """A dataset's declaration with these sources; those of ``MISSING`` are optional."""
    sources: dict[str, dict] = {name: {} for name in files}
    sources |= {name: {"optional": True} for name in MISSING if name in files}
    return {"sources": sources, "obs": {"label": label} | ({"batch": batch} if batch else {})}


def test_complete_mosaic(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path, ASAP)
    data = scmomat.load(files, declare(files))
    assert_multimodal(
        data, {"rna": (17, 11), "atac": (13, 13), "protein": (30, 3)}, ["label", "batch", "modality"]
    )
    assert data.obs["batch"].value_counts().to_dict() == {"c1": 9, "c2": 8, "c3": 7, "c4": 6}
    assert pd.crosstab(data.obs["batch"], data.obs["modality"]).to_dict() == {
        "rna+protein": {"c1": 9, "c2": 8, "c3": 0, "c4": 0},
        "atac+protein": {"c1": 0, "c2": 0, "c3": 7, "c4": 6},
    }
    for key, kind, batch in (("gxc2", "rna", "c2"), ("rxc3", "atac", "c3"), ("pxc4", "protein", "c4")):
        part = data[kind][data[kind].obs_names.str.startswith(batch + "_")]
        meta = pd.read_csv(files[f"meta_{batch}"], index_col=0)
        assert list(part.obs_names) == [f"{batch}_{barcode}" for barcode in meta.index]
        assert (part.layers["counts"] != sp.load_npz(files[key]).T).nnz == 0
        assert list(data.obs.loc[part.obs_names, "label"]) == list(meta["coarse_cluster"])
    assert list(data["protein"].var_names) == ["CD4", "GENE1", "integrin_7"]
    assert list(data["atac"].var) == ["chrom", "chromStart", "chromEnd"]
    assert data.uns["recipe"] == {"label_source": "published", "label_column": "coarse_cluster"}


def test_activity_map_follows_the_regions(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path, ASAP)
    data = scmomat.load(files, declare(files))
    write(data, tmp_path / "tidy.h5mu")
    atac = read(tmp_path / "tidy.h5mu")["atac"]
    genes = list(atac.uns["gene_activity_genes"])
    assert genes == list(data["rna"].var_names)
    links = sp.load_npz(files["gxr"]).toarray()
    assert np.array_equal(atac.varm["gene_activity"].toarray(), links.T)
    activity = atac.layers["counts"] @ atac.varm["gene_activity"]
    assert activity.shape == (13, 11)
    assert np.array_equal(activity.toarray(), atac.layers["counts"].toarray() @ links.T)


def test_without_its_optional_matrices_the_protein_part_is_prepared(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path, ASAP)
    entry = declare(files)
    there = {name: path for name, path in files.items() if name not in MISSING}
    data = scmomat.load(there, entry)
    assert_multimodal(data, {"protein": (30, 3)}, ["label", "batch", "modality"])
    assert set(data.obs["modality"]) == {"protein"}
    facts = data.uns["recipe"]
    assert facts["missing_matrices"] == "gxc1, gxc2, rxc3, rxc4"
    assert facts["missing_modalities"] == "atac, rna"
    assert facts["missing_because"]


def test_one_missing_matrix_leaves_the_others(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path, ASAP)
    entry = declare(files)
    del files["gxc1"]
    data = scmomat.load(files, entry)
    assert data["rna"].n_obs == 8 and data["protein"].n_obs == 30
    assert pd.crosstab(data.obs["batch"], data.obs["modality"]).loc["c1"].idxmax() == "protein"
    assert data.uns["recipe"]["missing_modalities"] == "none as a whole"


def test_batches_from_a_column(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path, {"1": "GR"})
    meta = pd.read_csv(files["meta_c1"], index_col=0).assign(Batch=np.resize(["09A", "09B"], 9))
    meta.to_csv(files["meta_c1"])
    data = scmomat.load(files, declare(files, batch="Batch"))
    assert list(data.obs["batch"]) == list(meta["Batch"])
    assert list(scmomat.load(files, declare(files)).obs) == ["label", "modality"]  # one file, one batch


def cut(files: dict[str, Path]) -> None:
    content = files["pxc2"].read_bytes()
    files["pxc2"].write_bytes(content[: len(content) // 2])


def page(files: dict[str, Path]) -> None:
    files["gxc1"].write_bytes(b"<html>not found</html>")


def damage(files: dict[str, Path]) -> None:
    with np.load(files["gxc1"]) as parts:
        np.savez(files["gxc1"], **(dict(parts) | {"indices": parts["indices"] + 99}))


def drop_gene(files: dict[str, Path]) -> None:
    files["genes"].write_text("\n".join(files["genes"].read_text().splitlines()[1:]) + "\n")


def drop_cell(files: dict[str, Path]) -> None:
    pd.read_csv(files["meta_c3"], index_col=0).iloc[1:].to_csv(files["meta_c3"])


def double_barcode(files: dict[str, Path]) -> None:
    meta = pd.read_csv(files["meta_c3"], index_col=0)
    meta.index = [meta.index[1], *meta.index[1:]]
    meta.to_csv(files["meta_c3"])


def drop_column(files: dict[str, Path]) -> None:
    pd.read_csv(files["meta_c4"], index_col=0)[["cluster"]].to_csv(files["meta_c4"])


def drop_label(files: dict[str, Path]) -> None:
    meta = pd.read_csv(files["meta_c4"], index_col=0)
    meta.loc[meta.index[:2], "coarse_cluster"] = None
    meta.to_csv(files["meta_c4"])


def name_region(files: dict[str, Path]) -> None:
    files["regions"].write_text(files["regions"].read_text().replace("chr1_0_400", "MYC"))


def double_name(files: dict[str, Path]) -> None:
    files["genes"].write_text(files["genes"].read_text().replace("GENE2\n", "GENE1\n"))


def empty_name(files: dict[str, Path]) -> None:
    files["genes"].write_text(files["genes"].read_text().replace("GENE2\n", "\n"))


def no_text(files: dict[str, Path]) -> None:
    files["genes"].write_bytes(b"\x80\x04\x95")


def empty_meta(files: dict[str, Path]) -> None:
    files["meta_c1"].write_bytes(b"")


def fractions(files: dict[str, Path]) -> None:
    sp.save_npz(files["pxc1"], sp.load_npz(files["pxc1"]) * 0.25)


def wide_map(files: dict[str, Path]) -> None:
    sp.save_npz(files["gxr"], sp.load_npz(files["gxr"])[:, 1:])


def weighted_map(files: dict[str, Path]) -> None:
    sp.save_npz(files["gxr"], sp.load_npz(files["gxr"]) * 3)


def lose(files: dict[str, Path]) -> None:
    del files["pxc1"]


def lose_batch(files: dict[str, Path]) -> None:
    for name in ("gxc1", "gxc2"):
        del files[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"PxC2.npz: found no readable sparse matrix \(.+\), expected npz of scipy"),
        (page, r"GxC1.npz: found no readable sparse matrix"),
        (damage, r"GxC1.npz: found no readable sparse matrix"),
        (drop_gene, r"GxC1.npz: found 11 genes, expected 10 as in genes.txt"),
        (drop_cell, r"RxC3.npz: found 7 cells, expected 6 as in meta_c3.csv"),
        (double_barcode, r"meta_c3.csv: found barcode '[ACGT0-9]+-1' twice"),
        (drop_column, r"meta_c4.csv: csv key 'coarse_cluster' is missing, found cluster, expected"),
        (drop_label, r"meta_c4.csv: csv key 'coarse_cluster': found 2 missing values, expected none"),
        (name_region, r"regions.txt: names of peaks: found 1 that are no position \(such as 'MYC'\)"),
        (double_name, r"genes.txt: found 'GENE1' twice, expected unique names"),
        (empty_name, r"genes.txt: found 11 lines, an empty one among them"),
        (no_text, r"genes.txt: found no text, expected one name a line"),
        (empty_meta, r"meta_c1.csv: found no readable csv"),
        (fractions, r"PxC1.npz: X: found \d+ values that are no raw counts"),
        (wide_map, r"GxR.npz: found 12 regions, expected 13 as in regions.txt"),
        (weighted_map, r"GxR.npz: found the value 3, expected 0 and 1"),
        (lose, r"sources: key 'pxc1' is missing"),
    ],
)
def test_broken_input_gives_one_sentence(
    change: Callable[[dict[str, Path]], None], message: str, tmp_path: Path
) -> None:
    files = write_scmomat(tmp_path, ASAP)
    entry = declare(files)
    change(files)
    with pytest.raises(ValueError, match=message) as error:
        scmomat.load(files, entry)
    assert "\n" not in str(error.value)


def test_a_batch_needs_one_matrix(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path, {"1": "G", "2": "G"})
    entry = declare(files)
    del files["gxc2"]
    with pytest.raises(ValueError, match=r"meta_c2.csv: batch c2: found none of its matrices"):
        scmomat.load(files, entry)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    files = write_scmomat(tmp_path / "data", ASAP)
    mark = tmp_path / "unpickled"
    with np.load(files["gxc1"]) as parts:
        np.savez(files["gxc1"], **(dict(parts) | {"data": np.array([Bomb(mark)], dtype=object)}))
    with np.load(files["gxc1"], allow_pickle=True) as parts:
        assert parts["data"].shape == (1,) and mark.exists()  # the trap works
    mark.unlink()
    with pytest.raises(ValueError, match="GxC1.npz: found no readable sparse matrix .*allow_pickle=False"):
        scmomat.load(files, declare(files))
    assert not mark.exists()


def real(folder: Path) -> dict[str, Path]:
    return {path.stem.lower(): path for path in folder.iterdir()}


def test_the_real_asap_folder_has_proteins_and_labels(shared_data: Callable[[str], Path]) -> None:
    files = real(shared_data("asap_protein"))
    entry = declare(dict.fromkeys([*files, *MISSING]))
    data = scmomat.load({name: path for name, path in files.items() if name not in MISSING}, entry)
    assert_multimodal(data, {"protein": (17055, 216)}, ["label", "batch", "modality"])
    assert data.obs["batch"].value_counts().to_dict() == {"c1": 5023, "c2": 3666, "c3": 3517, "c4": 4849}
    assert data.obs["label"].value_counts().to_dict() == {
        "Tcell": 12764,
        "NK": 1698,
        "Bcell": 1441,
        "Myeloid": 1152,
    }
    assert data.uns["recipe"]["missing_modalities"] == "atac, rna"
    # the order of the cells is right: in every batch, B cells are those with the most CD19 protein
    cd19 = data["protein"][:, "CD19"].layers["counts"].toarray().ravel()
    means = pd.Series(np.log1p(cd19)).groupby([list(data.obs["batch"]), list(data.obs["label"])]).mean()
    assert set(means.unstack().idxmax(axis=1)) == {"Bcell"}


def test_the_real_mouse_cortex_has_rna_and_atac(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    files = real(shared_data("mop_multiome"))
    data = scmomat.load(files, declare(files, "cluster (remapped)", "Batch"))
    assert_multimodal(data, {"rna": (10309, 1677), "atac": (10309, 25734)}, ["label", "batch", "modality"])
    assert data.obs["label"].nunique() == 15 and data.obs["batch"].nunique() == 12
    assert set(data.obs["modality"]) == {"rna+atac"}
    sst = data["rna"][:, "Sst"].layers["counts"].toarray().ravel()
    assert pd.Series(sst).groupby(list(data.obs["label"])).mean().idxmax() == "Sst"
    # gene activity of ATAC rises with the RNA of the same gene
    atac = data["atac"]
    activity = np.asarray((atac.layers["counts"] @ atac.varm["gene_activity"]).sum(axis=0)).ravel()
    counts = np.asarray(data["rna"].layers["counts"].sum(axis=0)).ravel()
    assert np.corrcoef(np.log1p(activity), np.log1p(counts))[0, 1] > 0.5
