"""Small synthetic files with the structure of the published ones: columns, kinds, categories, layout.

What is known of the real files is here; their numbers are not: every value is drawn.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.io import mmwrite

MS_LABEL = "Factor Value[inferred cell type - authors labels]"
MS_BATCH = "Sample Characteristic[individual]"
PANCREAS_QUERY_ONLY = "MHC class II"


def draw(n: int, genes: int, types: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n, genes) without empty cells, and a type for each cell; every type occurs."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % len(types)
    rate = rng.gamma(0.5, 1.0, (len(types), genes)) + 4 * (
        np.arange(genes) % len(types) == np.arange(len(types))[:, None]
    )
    return rng.poisson(rate[label]), np.array(types, dtype=object)[label]


def log_normalise(counts: np.ndarray, shown: int) -> np.ndarray:
    """log1p of counts scaled to 10,000 per cell; of the first genes only, as after a selection."""
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)[:, :shown].astype(np.float32)


def ensembl(n: int) -> list[str]:
    return [f"ENSG{i:011}" for i in range(n)]


def symbols(n: int) -> list[str]:
    return [f"GENE{i}" for i in range(n)]


def write_ms(folder: Path) -> dict[str, Path]:
    """c_data.h5ad and filtered_ms_adata.h5ad: scGPT's selection of E-HCAD-35, columns of its design.

    Symbols are a categorical column; the names of var are symbols in the reference, as scGPT's tutorial takes
    them, and Ensembl ids in the query.
    """
    types = ["oligodendrocyte A", "mixed glial cell?", "PVALB-expressing interneuron", "stromal cell"]
    files = {}
    for side, name, n, disease in (
        ("reference", "c_data", 24, "normal"),
        ("query", "filtered_ms_adata", 32, "multiple sclerosis"),
    ):
        counts, label = draw(n, 50, types, seed=n)
        individual = np.array([f"{disease[0].upper()}{i % 3}" for i in range(n)])
        obs = pd.DataFrame(
            {
                "Sample Characteristic[organism]": "Homo sapiens",
                "Sample Characteristic Ontology Term[organism]": "http://purl.obolibrary.org/obo/NCBITaxon_9606",
                MS_BATCH: individual,
                "Sample Characteristic[age]": 44.0,
                "Factor Value[disease]": disease,
                "Factor Value[sampling site]": "cerebral cortex",
                MS_LABEL: label,
                "celltype": label,
                "str_batch": "0" if side == "reference" else "1",
            },
            index=[f"SAMEA{n}-{i:016}" for i in range(n)],
        )
        obs = obs.astype({c: "category" for c in obs if obs[c].dtype == object})
        genes = pd.Categorical(symbols(30))
        var = pd.DataFrame(
            {"gene_name": genes, "highly_variable": True, "means": 0.1, "dispersions_norm": 0.5},
            index=symbols(30) if side == "reference" else ensembl(30),
        )
        adata = ad.AnnData(sp.csr_matrix(log_normalise(counts, 30)), obs=obs, var=var)
        adata.uns["log1p"] = {"base": None}
        files[side] = folder / f"{name}.h5ad"
        adata.write_h5ad(files[side])
    return files


def write_myeloid(folder: Path) -> dict[str, Path]:
    """reference_adata.h5ad and query_adata.h5ad: dense, symbols alike in both, batches are numbers."""
    sides = {
        "reference": (["Macro_C1QC", "Mono_CD14", "cDC2_CD1C", "Mast_KIT"], ["UCEC", "PAAD", "kidney"]),
        "query": (["Macro_C1QC", "Mono_CD14", "cDC3_LAMP3"], ["MYE", "OV-FTC", "ESCA"]),
    }
    files = {}
    for seed, (side, (types, cancers)) in enumerate(sides.items()):
        counts, label = draw(24, 50, types, seed=seed)
        cancer = np.array(cancers, dtype=object)[np.arange(24) % 3]
        obs = pd.DataFrame(
            {"cell_type": label, "cancer_type": cancer, "batch": np.arange(24) % 3 + 3 * seed},
            index=[f"{side}{i}-1" for i in range(24)],
        ).astype({"cell_type": "category", "cancer_type": "category"})
        files[side] = folder / f"{side}_adata.h5ad"
        ad.AnnData(log_normalise(counts, 30), obs=obs, var=pd.DataFrame(index=symbols(30))).write_h5ad(
            files[side]
        )
    return files


def write_hpancreas(folder: Path) -> dict[str, Path]:
    """demo_train.h5ad and demo_test.h5ad of TOSICA: dense, one column, a type that only the query has."""
    types = {"reference": ["alpha", "beta", "schwann"], "query": ["alpha", "beta", PANCREAS_QUERY_ONLY]}
    files = {}
    for seed, (side, name) in enumerate((("reference", "demo_train"), ("query", "demo_test"))):
        counts, label = draw(21, 50, types[side], seed=seed)
        obs = pd.DataFrame({"Celltype": label}, index=[str(i) for i in range(21)]).astype("category")
        var = pd.DataFrame(index=symbols(30))
        files[side] = folder / f"{name}.h5ad"
        ad.AnnData(log_normalise(counts, 30).astype(np.float64), obs=obs, var=var).write_h5ad(files[side])
    return files


def _covid(n: int, seed: int) -> ad.AnnData:
    counts, label = draw(n, 50, ["CD14 Mono", "NK", "AT2"], seed=seed)
    batch = np.array([f"batch {i % 18}" for i in range(n)], dtype=object)
    obs = pd.DataFrame(
        {"celltype": label, "batch": batch, "str_batch": batch, "study": "one", "n_counts": counts.sum(1)},
        index=[f"{seed}-{i}-0-1" for i in range(n)],
    ).astype(dict.fromkeys(("celltype", "batch", "str_batch", "study"), "category"))
    var = pd.DataFrame({"gene_name": symbols(30)}, index=symbols(30))
    return ad.AnnData(sp.csr_matrix(log_normalise(counts, 30)), obs=obs, var=var)


def write_covid(folder: Path) -> Path:
    """covid_subsampled.h5ad: log-normalised, 18 batches."""
    path = folder / "covid_subsampled.h5ad"
    _covid(72, 0).write_h5ad(path)
    return path


def write_covid_split(folder: Path) -> dict[str, Path]:
    """batch_covid_subsampled_train.h5ad and ..._test.h5ad."""
    files = {}
    for side, name, n, seed in (("reference", "train", 72, 1), ("query", "test", 36, 2)):
        files[side] = folder / f"batch_covid_subsampled_{name}.h5ad"
        _covid(n, seed).write_h5ad(files[side])
    return files


def _lung_kim(n: int, seed: int, unlabelled: int) -> ad.AnnData:
    counts, label = draw(n, 40, ["Malignant", "T_cell", "Macrophage"], seed=seed)
    label[:unlabelled] = None
    obs = pd.DataFrame(
        {
            "sample": [f"P{i % 14:04}" for i in range(n)],
            "source": ["tLung" if i % 2 else "tL/B" for i in range(n)],
            "cell_type": label,
            "subclone": np.nan,
            "complexity": (counts > 0).sum(1),
        },
        index=[f"AAAC{i}_LUNG_T{seed}" for i in range(n)],
    ).astype(dict.fromkeys(("sample", "source", "cell_type"), "category"))
    var = pd.DataFrame({"gene_name": symbols(40)}, index=symbols(40))
    return ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)


def write_lung_kim(folder: Path) -> Path:
    """Kim2020_Lung.h5ad: counts, 14 samples, some cells without a type."""
    path = folder / "Kim2020_Lung.h5ad"
    _lung_kim(56, 0, unlabelled=4).write_h5ad(path)
    return path


def write_lung_kim_split(folder: Path) -> dict[str, Path]:
    """sample_proc_lung_train.h5ad and ..._test.h5ad: no cell without a type."""
    files = {}
    for side, name, n, seed in (("reference", "train", 56, 1), ("query", "test", 28, 2)):
        files[side] = folder / f"sample_proc_lung_{name}.h5ad"
        _lung_kim(n, seed, unlabelled=0).write_h5ad(files[side])
    return files


def write_perirhinal(folder: Path) -> Path:
    """The processed perirhinal cortex: counts, Ensembl names, symbols in Gene, columns of CELLxGENE."""
    counts, label = draw(
        40, 60, ["oligodendrocyte", "neuron", "vascular associated smooth muscle cell"], seed=5
    )
    obs = pd.DataFrame(
        {
            "sample_id": ["10X222_1" if i < 19 else "10X222_2" for i in range(40)],
            "donor_id": "H18.30.002",
            "cell_type": label,
            "cell_type_ontology_term_id": "CL:0000128",
            "suspension_type": "nucleus",
            "is_primary_data": True,
            "total_UMIs": counts.sum(1).astype(np.float64),
        },
        index=[f"10X222_{1 if i < 19 else 2}:{i:016}" for i in range(40)],
    ).astype(dict.fromkeys(("sample_id", "donor_id", "cell_type", "suspension_type"), "category"))
    names = symbols(60)
    names[7] = names[8]  # two ids of one symbol
    var = pd.DataFrame(
        {"Biotype": "protein_coding", "Gene": names, "feature_is_filtered": False, "feature_name": names},
        index=ensembl(60),
    ).astype({"Biotype": "category"})
    adata = ad.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)
    adata.obsm["X_UMAP"] = np.zeros((40, 2))
    adata.uns = {"schema_version": "3.0.0", "title": "Dissection: Perirhinal gyrus"}
    path = folder / "perirhinal.h5ad"
    adata.write_h5ad(path)
    return path


def write_immune_human(folder: Path) -> Path:
    """Immune_ALL_human.h5ad: dense counts without encoding metadata, fractions in the batch Villani."""
    counts, label = draw(60, 40, ["CD4+ T cells", "CD14+ Monocytes", "Plasma cells"], seed=6)
    study = np.array(["10X", "Sun_sample1_CS", "Villani"], dtype=object)[np.arange(60) // 20]
    obs = pd.DataFrame(
        {
            "batch": study,
            "chemistry": "v3_10X",
            "data_type": "UMI",
            "dpt_pseudotime": np.nan,
            "final_annotation": label,
            "mt_frac": 0.05,
            "n_counts": counts.sum(1),
            "sample_ID": "1",
            "size_factors": 1.0,
            "species": "Human",
            "study": study,
            "tissue": "PBMCs",
        },
        index=[f"AAACC{i}-1-{s}" for i, s in enumerate(study)],
    )
    obs = obs.astype({c: "category" for c in obs if obs[c].dtype == object})
    layer = counts.astype(np.float32)
    layer[40:] *= 1.37
    adata = ad.AnnData(
        sp.csr_matrix(log_normalise(counts, 40)),
        obs=obs,
        var=pd.DataFrame(index=symbols(40)),
        layers={"counts": layer},
    )
    path = folder / "Immune_ALL_human.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:  # as anndata wrote arrays in 2020
        for name in list(file["layers/counts"].attrs):
            del file["layers/counts"].attrs[name]
    return path


def write_mtx(path: Path, counts: np.ndarray, field: str = "integer") -> Path:
    """MatrixMarket, genes x cells."""
    with open(path, "wb") as file:
        mmwrite(file, sp.coo_matrix(counts.T), field=field)
    return path


def write_threeca(folder: Path) -> dict[str, Path]:
    """Exp_data_UMIcounts.mtx, Genes.txt and Cells.csv of 3CA: genes x cells, some cells without a type."""
    counts, label = draw(30, 20, ["Malignant", "T_cell", ""], seed=0)
    genes = [*symbols(18), "NA", "GENE3"]
    (folder / "Genes.txt").write_text("".join(f'"{gene}"\n' for gene in genes))
    table = pd.DataFrame(
        {
            "cell_name": [f"AAAC{i}_LUNG_T06" for i in range(30)],
            "sample": [f"P00{i % 4}" for i in range(30)],
            "source": "tLung",
            "cell_type": label,
            "subclone": "",
            "complexity": (counts > 0).sum(1),
        }
    )
    table.to_csv(folder / "Cells.csv", index=False)
    files = {"genes": folder / "Genes.txt", "cells": folder / "Cells.csv"}
    return files | {"matrix": write_mtx(folder / "Exp_data_UMIcounts.mtx", counts)}


def write_gxa(folder: Path) -> dict[str, Path]:
    """Raw counts and design of the Single Cell Expression Atlas, and HGNC's symbols.

    Three types that scGPT leaves out, and cells without a type, follow three that stay; three counts are
    fractions.
    """
    types = ["phagocyte", "SST-expressing interneuron", "astrocyte"]
    types += ["B cell", "T cell", "oligodendrocyte B", "none"]
    counts, label = draw(42, 20, types, seed=1)
    label[label == "none"] = None
    counts = counts.astype(float)
    counts[1, 2], counts[8, 5], counts[7, 9] = 1.4, 2.6, 0.4
    cells = np.array([f"SAMEA100-{i:016}" for i in range(42)])
    design = pd.DataFrame(
        {
            "Assay": cells,
            "Sample Characteristic[organism]": "Homo sapiens",
            MS_BATCH: [f"C{i % 4}" for i in range(42)],
            "Factor Value[disease]": np.where(np.arange(42) % 4 < 2, "normal", "multiple sclerosis"),
            MS_LABEL: label,
        }
    )
    more = design.iloc[:1].assign(Assay="SAMEA100-filtered")  # the design also has cells that were filtered
    pd.concat([more, design.iloc[::-1]]).to_csv(folder / "design.tsv", sep="\t", index=False)
    ids = ensembl(20)
    (folder / "rows").write_text("".join(f"{i}\t{i}\n" for i in ids))
    (folder / "cols").write_text("".join(f"{cell}\n" for cell in cells))
    (folder / "hgnc.txt").write_text(
        "hgnc_id\tsymbol\tensembl_gene_id\n"
        + "".join(f"HGNC:{i}\tGENE{i}\t{ids[i]}\n" for i in range(18))
        + "HGNC:98\tNOID\t\nHGNC:99\tAGAIN\tENSG00000000003\n"
    )
    files = {name: folder / name for name in ("rows", "cols")}
    files |= {"design": folder / "design.tsv", "symbols": folder / "hgnc.txt"}
    return files | {"matrix": write_mtx(folder / "counts.mtx", counts, field="real")}


CANCERS = ("ucec", "paad", "thca", "lym", "kidney", "mye", "ov_ftc", "esca")


def write_geo_myeloid(folder: Path, cancers: tuple[str, ...] = CANCERS) -> dict[str, Path]:
    """Expression and metadata of the cancers of GSE154763.

    Each has genes of its own and numbers its types in its own way.
    """
    files = {}
    for seed, name in enumerate(cancers):
        n = 9 + 3 * seed
        counts, label = draw(n, 20, ["Mono_CD14", "Macro_SPP1", "cDC2_CD1C"], seed=seed)
        cells = [f"AAAC{i}-1-{i % 2}" for i in range(n)]
        genes = [g for g in symbols(20) if g != f"GENE{seed + 4}"]
        shown = pd.DataFrame(log_normalise(counts, 20), columns=symbols(20))[genes]
        shown.index = pd.Index(cells, name="index")
        metadata = pd.DataFrame(
            {
                "percent_mito": 0.05,
                "n_counts": counts.sum(1),
                "batch": 1,
                "library_id": f"{name}-T",
                "cancer": name.upper(),
                "patient": [f"{name.upper()}.P{i % 2}" for i in range(n)],
                "tissue": ["T" if i % 3 else "N" for i in range(n)],
                "n_genes": (counts > 0).sum(1),
                "MajorCluster": [f"M{seed + 7:02}_{t}" for t in label],
                "source": "ZhangLab",
                "tech": "10X5",
                "UMAP1": 0.0,
                "UMAP2": 0.0,
            },
            index=pd.Index(cells, name="index"),
        )
        for kind, table in (("expression", shown), ("metadata", metadata.iloc[::-1])):
            files[f"{name}_{kind}"] = folder / f"{name}_{kind}"  # compressed whatever its name
            files[f"{name}_{kind}"].write_bytes(gzip.compress(table.to_csv().encode()))
    return files
