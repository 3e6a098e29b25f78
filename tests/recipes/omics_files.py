"""Writers of small synthetic files with the structure of the multi-omic downloads, and what tidy ones have.

The numbers in these files are random and mean nothing; columns, kinds of columns, names and layout are those
of the real files, as far as they are known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp

GLUE_TYPES = (
    "CD14 Mono|CD16 Mono|CD4 Naive|CD4 TCM|CD4 TEM|CD8 Naive|CD8 TEM_1|CD8 TEM_2|HSPC|Intermediate B|MAIT|"
    "Memory B|NK|Naive B|Plasma|Treg|cDC|gdT|pDC"
).split("|")
BMMC_TYPES = ["CD14+ Mono", "CD4+ T naive", "Erythroblast", "G/M prog", "NK"]


def random_counts(rng: np.random.Generator, n_obs: int, n_vars: int, density: float = 0.4) -> sp.csr_matrix:
    """Random counts, no row without a value."""
    counts = rng.poisson(2, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < density)
    counts[:, 0] += 1
    return sp.csr_matrix(counts.astype(np.float32))


def as_anndata_07(path: Path) -> Path:
    """Rewrite obs and var of an h5ad file as anndata 0.7 did: categories apart, by reference."""
    with h5py.File(path, "r+") as file:
        for name in ("obs", "var"):
            table = file[name]
            for key in [key for key in table.attrs["column-order"] if isinstance(table[key], h5py.Group)]:
                codes, categories = table[key]["codes"][:], table[key]["categories"][:]
                del table[key]
                stored = table.create_dataset(f"__categories/{key}", data=categories)
                stored.attrs["ordered"] = False
                table.create_dataset(key, data=codes).attrs["categories"] = stored.ref
            for key in list(table):
                for attribute in ("encoding-type", "encoding-version"):
                    table[key].attrs.pop(attribute, None)
            table.attrs["encoding-version"] = "0.1.0"
    return path


def write_glue(folder: Path, n_obs: int = 60, seed: int = 0) -> dict[str, Path]:
    """Write the two files as scGLUE's notebook leaves them."""
    rng = np.random.default_rng(seed)
    cells = pd.Index([f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in range(n_obs)], name="cells")
    seurat = {
        "orig.ident": pd.Categorical(["SeuratProject"] * n_obs),
        "nCount_RNA": rng.integers(1000, 25000, n_obs).astype(float),
        "percent.mt": rng.random(n_obs) * 20,
        "nCount_ATAC": rng.integers(5000, 70000, n_obs).astype(float),
        "wsnn_res.0.8": rng.integers(0, 22, n_obs),
        "seurat_clusters": rng.integers(0, 22, n_obs),
        "sub.cluster": pd.Categorical(rng.integers(0, 22, n_obs).astype(str)),
        "cell_type": pd.Categorical(np.resize(GLUE_TYPES, n_obs)),
    }
    start = np.sort(rng.choice(10**6, 40, replace=False)) + 9790
    chrom = np.repeat(["chr1", "chrX"], 20)
    tables = {
        "rna": pd.DataFrame(
            {
                "gene_ids": [f"ENSG{i:011d}" for i in range(30)],
                "feature_types": pd.Categorical(["Gene Expression"] * 30),
                "genome": pd.Categorical(["GRCh38"] * 30),
                "chrom": pd.Categorical(["chr1"] * 30),
                "chromStart": np.arange(30) * 1000,
                "chromEnd": np.arange(30) * 1000 + 500,
                "gene_name": [f"GENE{i}" for i in range(30)],
                "n_counts": rng.random(30).astype(np.float32),
                "highly_variable": np.arange(30) < 10,
                "highly_variable_rank": np.where(np.arange(30) < 10, np.arange(30), np.nan),
            },
            index=pd.Index([f"GENE{i}" for i in range(30)], name="genes"),
        ),
        "atac": pd.DataFrame(
            {
                "feature_types": pd.Categorical(["Peaks"] * 40),
                "genome": pd.Categorical(["GRCh38"] * 40),
                "chrom": pd.Categorical(chrom),
                "chromStart": start,
                "chromEnd": start + 885,
                "n_counts": rng.random(40).astype(np.float32),
            },
            index=pd.Index([f"{c}:{s}-{s + 885}" for c, s in zip(chrom, start, strict=True)], name="peaks"),
        ),
    }
    paths = {}
    for name, var in tables.items():
        kind = name.upper()
        obs = {
            "domain": pd.Categorical([f"sc{kind}-seq"] * n_obs),
            "protocol": pd.Categorical(["10x Multiome"] * n_obs),
            "dataset": pd.Categorical([f"10x-Multiome-Pbmc10k-{kind}"] * n_obs),
        }
        adata = ad.AnnData(random_counts(rng, n_obs, len(var)), pd.DataFrame(obs | seurat, index=cells), var)
        if name == "rna":
            adata.uns["hvg"] = {"flavor": "seurat_v3"}
        paths[name] = folder / f"10x-Multiome-Pbmc10k-{kind}.h5ad"
        adata.write_h5ad(paths[name], compression="gzip")
    return paths


def write_bmmc(path: Path, second: str, n_obs: int = 50, seed: int = 0) -> Path:
    """Write a file of GSE194122 whose second modality is ADT (CITE) or ATAC (Multiome)."""
    rng = np.random.default_rng(seed)
    batch = np.resize(["s1d1", "s1d2", "s2d1", "s4d9"], n_obs)
    rna = "GEX_"
    obs = {
        f"{rna}pct_counts_mt": rng.random(n_obs),
        f"{rna}phase": pd.Categorical(np.resize(["G1", "S", "G2M"], n_obs)),
        "cell_type": pd.Categorical(rng.choice(BMMC_TYPES, n_obs)),
        "batch": pd.Categorical(batch),
        "Samplename": pd.Categorical(["site1_donor1"] * n_obs),
        "Site": pd.Categorical([f"site{b[1]}" for b in batch]),
        "DonorNumber": pd.Categorical([f"donor{b[3:]}" for b in batch]),
        "Modality": pd.Categorical(["cite" if second == "ADT" else "multiome"] * n_obs),
        "DonorID": np.resize([15078, 10886, 15078, 28045], n_obs),
        "DonorAge": rng.integers(20, 60, n_obs),
    }
    if second == "ADT":
        obs["ADT_total_counts"] = rng.random(n_obs)
        obs["is_train"] = pd.Categorical(np.resize(["train", "iid_holdout", "test"], n_obs))
        features = ["CD86-1", "CD274", "HLA-A-B-C", "IgG-Fc"]
    else:
        obs["ATAC_nCount_peaks"] = rng.random(n_obs)
        features = [f"chr{1 + i // 30}-{9776 + 2000 * i}-{10668 + 2000 * i}" for i in range(60)]
        features[-1] = "GL000194.1-101175-101986"
    genes = [f"GENE{i}" for i in range(24)] + ["CD86"]
    n_genes, n_second = len(genes), len(features)
    var = pd.DataFrame(
        {
            "feature_types": pd.Categorical(["GEX"] * n_genes + [second] * n_second),
            "gene_id": pd.Categorical([f"ENSG{i:011d}" for i in range(n_genes)] + features),
        },
        index=genes + features,
    )
    counts = random_counts(rng, n_obs, len(var))
    adata = ad.AnnData(counts.log1p(), pd.DataFrame(obs), var, layers={"counts": counts})
    adata.obs_names = [f"{''.join(rng.choice(list('ACGT'), 16))}-{i}-{b}" for i, b in enumerate(batch)]
    adata.obsm["GEX_X_pca"] = rng.random((n_obs, 5))
    if second == "ATAC":
        adata.obsm["ATAC_gene_activity"] = random_counts(rng, n_obs, 7)
        adata.uns["ATAC_gene_activity_var_names"] = np.array([f"GENE{i}" for i in range(7)])
    adata.write_h5ad(path)
    return path


def write_scmomat(
    folder: Path, batches: dict[str, str], cells: tuple[int, ...] = (9, 8, 7, 6), seed: int = 0
) -> dict[str, Path]:
    """Write batches in scMoMaT's layout; ``batches`` maps a batch to letters, ``"GP"`` is RNA and protein."""
    rng = np.random.default_rng(seed)
    names = {
        "G": [f"GENE{i}" for i in range(11)],
        "R": [f"chr1_{1000 * i}_{1000 * i + 400}" for i in range(13)],
        "P": ["CD4", "GENE1", "integrin_7"],  # a protein may have the name of a gene
    }
    folder.mkdir(exist_ok=True)
    for letter, file in (("G", "genes"), ("R", "regions"), ("P", "proteins")):
        (folder / f"{file}.txt").write_text("".join(f"{name}\n" for name in names[letter]))
    for (batch, letters), n_obs in zip(batches.items(), cells, strict=False):
        for letter in letters:
            counts = random_counts(rng, n_obs, len(names[letter])).astype(np.float64)
            sp.save_npz(folder / f"{letter}xC{batch}.npz", sp.csr_matrix(counts.T))
        barcodes = [f"{'ACGT'[i % 4] * 16}{i}-1" for i in range(n_obs)]  # the same in every batch
        meta = pd.DataFrame(
            {
                "cluster": rng.integers(0, 12, n_obs),
                "coarse_cluster": np.resize(["Tcell", "NK", "Bcell", "Myeloid"], n_obs),
            },
            index=barcodes,
        )
        meta.to_csv(folder / f"meta_c{batch}.csv")
    links = sp.csr_matrix((np.ones(13, int), (rng.integers(0, 11, 13), np.arange(13))), shape=(11, 13))
    sp.save_npz(folder / "GxR.npz", links)
    return {path.stem.lower(): path for path in folder.iterdir()}


def assert_multimodal(data: Any, modalities: dict[str, tuple[int, int]], obs: list[str]) -> None:
    """Assert what holds for every tidy MuData."""
    assert isinstance(data, mudata.MuData)
    assert {name: part.shape for name, part in data.mod.items()} == modalities
    for part in data.mod.values():
        counts = part.layers["counts"]
        assert isinstance(counts, sp.csr_matrix) and counts.dtype == np.float32
        assert counts.has_sorted_indices and (counts.data > 0).all()
        assert np.array_equal(counts.data, np.round(counts.data))
        assert list(part.layers) == ["counts"] and part.X is None and part.raw is None
        assert not len(part.obs.columns) and not len(part.obsm) and not len(part.obsp)
        assert part.obs_names.is_unique and part.var_names.is_unique
        assert part.obs_names.isin(data.obs_names).all()
    assert list(data.obs) == obs and data.obs_names.is_unique
    for name in ("label", "batch", "modality"):
        if name in data.obs:
            assert data.obs[name].dtype == "category" and not data.obs[name].isna().any()
            assert all(isinstance(value, str) for value in data.obs[name].cat.categories)
    assert list(data.uns) == ["recipe"]
    assert all(isinstance(value, (str, int, float)) for value in data.uns["recipe"].values())
