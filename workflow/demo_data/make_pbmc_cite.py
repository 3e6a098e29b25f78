"""Make ``pbmc_cite.h5ad`` from the scvi-tools 1.4.2 source distribution.

First fetch the source distribution with pip (nothing is installed, nothing is run but its build
metadata)::

    pip download --no-deps --no-binary :all: scvi-tools==1.4.2
    python make_pbmc_cite.py --sdist scvi_tools-1.4.2.tar.gz --out pbmc_cite.h5ad

Two test files of the distribution are read: 200 cells of 10x Genomics' 5k PBMC and 200 of its 10k
PBMC CITE-seq data. Their sha256 are checked. Genes and proteins that both have are kept, in the
order of the 5k file (genes) and of the 10k file (proteins); counts are stored unchanged, as
unsigned 16-bit integers by column, which packs best. No clock, path or host name goes into the
file: with the same versions of anndata and h5py two runs give the same bytes. Across versions
compare the content digest that is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_h5ad, write_elem

FOLDER = "scvi_tools-1.4.2/tests/test_data"
MEMBERS = {  # batch: file, sha256
    "pbmc_5k": (
        "pbmc_5k_protein_v3.h5ad",
        "83f2c7d175600acf458d839920ce52448beeab66557a76d8b0312c91102a3326",
    ),
    "pbmc_10k": (
        "pbmc_10k_protein_v3.h5ad",
        "512fe360bd1cc79821f67959cc47e19b92bb7edbbb9351da5d1e9d70b35102a2",
    ),
}
PROTEIN_SUFFIX = "_TotalSeqB"
STORED = np.uint16
COMPRESSION = {"compression": "gzip", "compression_opts": 9, "shuffle": True}


def read_members(sdist: Path) -> dict[str, ad.AnnData]:
    """Read the two test files out of the source distribution.

    Parameters
    ----------
    sdist
        ``scvi_tools-1.4.2.tar.gz``.

    Returns
    -------
    One AnnData per batch.

    Raises
    ------
    ValueError
        If the archive or a member is not what is expected.
    """
    found: dict[str, ad.AnnData] = {}
    try:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist, "r:gz") as archive:
            for batch, (name, expected) in MEMBERS.items():
                member = f"{FOLDER}/{name}"
                try:
                    archive.extract(member, folder, filter="data")
                except KeyError:
                    raise ValueError(f"{sdist}: found no member {member}, expected it") from None
                path = Path(folder) / member
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if digest != expected:
                    raise ValueError(f"{sdist}: member {member}: found sha256 {digest}, expected {expected}")
                found[batch] = read_h5ad(path)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{sdist}: found no usable tar.gz ({error}), expected one") from error
    return found


def as_stored(values: np.ndarray, what: str) -> np.ndarray:
    """Return counts as unsigned 16-bit integers, refusing any value that this would change.

    Parameters
    ----------
    values
        Counts.
    what
        What they are, for the error.

    Returns
    -------
    The same numbers.
    """
    stored = values.astype(STORED)
    if not np.array_equal(stored, values):
        raise ValueError(f"{what}: found values that are no 16-bit counts, expected raw counts")
    return stored


def protein_table(adata: ad.AnnData) -> pd.DataFrame:
    """Return the protein counts with plain names (``CD3_TotalSeqB`` becomes ``CD3``).

    Parameters
    ----------
    adata
        One batch as it is in the source distribution.

    Returns
    -------
    Cells x proteins.
    """
    names = [str(name).removesuffix(PROTEIN_SUFFIX) for name in adata.uns["protein_names"]]
    counts = as_stored(np.asarray(adata.obsm["protein_expression"]), "proteins")
    return pd.DataFrame(counts, index=adata.obs_names, columns=names)


def merge(batches: dict[str, ad.AnnData]) -> ad.AnnData:
    """Stack the batches on the genes and proteins that all of them have.

    Parameters
    ----------
    batches
        The two AnnData of :func:`read_members`.

    Returns
    -------
    Raw counts, ``obs["batch"]`` and ``obsm["protein"]``.
    """
    first, last = batches["pbmc_5k"], batches["pbmc_10k"]
    genes = [gene for gene in first.var_names if gene in last.var_names]
    tables = {batch: protein_table(adata) for batch, adata in batches.items()}
    proteins = [name for name in tables["pbmc_10k"] if name in tables["pbmc_5k"]]
    counts = np.vstack([np.asarray(adata[:, genes].X) for adata in batches.values()])
    names = [f"{batch}_{cell}" for batch, adata in batches.items() for cell in adata.obs_names]
    batch = [batch for batch, adata in batches.items() for _ in range(adata.n_obs)]
    table = pd.concat([tables[key][proteins] for key in batches])
    table.index = pd.Index(names)
    return ad.AnnData(
        X=sp.csc_matrix(as_stored(counts, "genes")),
        obs=pd.DataFrame({"batch": pd.Categorical(batch)}, index=pd.Index(names)),
        var=pd.DataFrame(index=pd.Index(genes)),
        obsm={"protein": table},
    )


def content_digest(adata: ad.AnnData) -> str:
    """Return a sha256 of what is in the file, whatever the way it is stored.

    Parameters
    ----------
    adata
        The merged data.

    Returns
    -------
    Hexadecimal digest of names, batches, gene counts and protein counts.
    """
    matrix = sp.csr_matrix(adata.X)
    matrix.sort_indices()
    protein = adata.obsm["protein"]
    digest = hashlib.sha256()
    for words in (adata.obs_names, adata.var_names, adata.obs["batch"], protein.columns):
        digest.update("\n".join(map(str, words)).encode() + b"\0")
    for numbers in (matrix.indptr, matrix.indices, matrix.data, protein.to_numpy()):
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes() + b"\0")
    return digest.hexdigest()


def write(adata: ad.AnnData, path: Path) -> None:
    """Write a compressed h5ad file.

    Parameters
    ----------
    adata
        The merged data.
    path
        Where to.
    """
    with h5py.File(path, "w") as file:
        write_elem(file, "/", adata, dataset_kwargs=COMPRESSION)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; those of the process if left out.
    """
    parser = argparse.ArgumentParser(description="Make pbmc_cite.h5ad.")
    parser.add_argument("--sdist", type=Path, required=True, help="scvi_tools-1.4.2.tar.gz")
    parser.add_argument("--out", type=Path, required=True, help="h5ad file to write")
    options = parser.parse_args(argv)
    adata = merge(read_members(options.sdist))
    write(adata, options.out)
    print(
        f"{options.out}: {adata.n_obs} cells x {adata.n_vars} genes, "
        f"{adata.obsm['protein'].shape[1]} proteins, {options.out.stat().st_size} bytes"
    )
    print(f"sha256 {hashlib.sha256(options.out.read_bytes()).hexdigest()}")
    print(f"content digest {content_digest(adata)}")


if __name__ == "__main__":
    main()
