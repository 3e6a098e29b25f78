"""Measure the memory and time that preparing BMMC takes, on synthetic files of the real size.

``python tests/recipes/measure_memory_bmmc.py [folder]`` writes a file with the cells and features of the
CITE set, then one of the Multiome set, prepares each in a process of its own, prints what each step took
and deletes the files. It needs about 6 GB of disk and some minutes; ``folder`` says where.

The values are random. How many there are is assumed: a cell has counts in 10 % of the genes and 75 % of the
proteins (as the proteins of ASAP PBMC have), and in 5 % of the peaks. Only what the recipe reads is in the
files: obs, var and ``layers["counts"]``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# name: cells, then features and density of the RNA and of the second modality
SIZES = {
    "bmmc_cite": (90_261, ("GEX", 13_953, 0.10), ("ADT", 134, 0.75)),
    "bmmc_multiome": (69_249, ("GEX", 13_431, 0.10), ("ATAC", 116_490, 0.05)),
}
ROWS = 2000


def peak() -> int:
    """Return the most memory this process ever held, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def random_block(rng: np.random.Generator, rows: int, columns: int, density: float) -> sp.csr_matrix:
    """Draw counts with about this share of values; gaps between values are geometric."""
    size = rows * columns
    places = np.cumsum(rng.geometric(density, int(size * density * 1.1) + 1000)) - 1
    places = places[places < size]
    indptr = np.searchsorted(places, np.arange(rows + 1) * columns)
    values = rng.geometric(0.6, len(places)).astype(np.float32)
    return sp.csr_matrix((values, places % columns, indptr), shape=(rows, columns))


def write(name: str, path: Path) -> int:
    """Write the synthetic file of a set block by block; return its number of values."""
    n_obs, *kinds = SIZES[name]
    rng = np.random.default_rng(0)
    batch = np.resize([f"s{site}d{donor}" for site in range(1, 5) for donor in range(1, 4)], n_obs)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice([f"type {i}" for i in range(45)], n_obs)),
            "batch": pd.Categorical(batch),
            "Site": pd.Categorical([b[:2] for b in batch]),
            "DonorID": rng.integers(10_000, 10_010, n_obs),
            "DonorNumber": pd.Categorical([b[2:] for b in batch]),
        },
        index=[f"cell{i}-{b}" for i, b in enumerate(batch)],
    )
    types = [kind for kind, n, _ in kinds for _ in range(n)]
    names = [f"chr1-{i}-{i + 1}" if kind == "ATAC" else f"{kind}{i}" for i, kind in enumerate(types)]
    var = pd.DataFrame({"feature_types": pd.Categorical(types), "gene_id": names}, index=names)
    ad.AnnData(obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for start in range(0, n_obs, ROWS):
            rows = min(ROWS, n_obs - start)
            parts = [random_block(rng, rows, n, density) for _, n, density in kinds]
            block = sp.hstack(parts, format="csr")
            if start == 0:
                write_elem(file, "layers/counts", block)
            else:
                sparse_dataset(file["layers/counts"]).append(block)
        return int(file["layers/counts/data"].size)


def prepare(path: Path) -> None:
    """Prepare the file at ``path`` and print what each step took, as JSON."""
    from workflow.recipes import bmmc
    from workflow.steps import tidy

    took = {"imports": (peak(), 0.0)}
    start = time.monotonic()
    entry = {"recipe": "bmmc", "expect": {}}
    data = bmmc.load({"cells": path}, entry)
    took["recipe"] = (peak(), time.monotonic() - start)
    start = time.monotonic()
    tidy.check_tidy(data, path.stem, {})
    tidy.write(data, path.with_suffix(".h5mu"))
    took["check and write"] = (peak(), time.monotonic() - start)
    print(json.dumps(took))


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        for name, (n_obs, *kinds) in SIZES.items():
            path = Path(folder) / f"{name}.h5ad"
            values = write(name, path)
            gigabytes = path.stat().st_size / 1e9
            features = " + ".join(f"{n:,} {kind} ({density:.0%})" for kind, n, density in kinds)
            print(f"{name}: {n_obs:,} cells, {features}: {values / 1e6:.0f} M values, {gigabytes:.1f} GB")
            done = subprocess.run(
                [sys.executable, __file__, "prepare", str(path)], check=True, capture_output=True, text=True
            )
            for step, (memory, seconds) in json.loads(done.stdout.splitlines()[-1]).items():
                print(f"  after {step}: peak {memory / 1e9:.2f} GB, {seconds:.0f} s")
            for file in Path(folder).iterdir():
                file.unlink()


if __name__ == "__main__":
    main()
