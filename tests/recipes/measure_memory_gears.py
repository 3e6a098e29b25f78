"""Measure time and memory of preparing a screen of Replogle's size (a script, not a test).

    python tests/recipes/measure_memory_gears.py --folder /some/large/disk

It writes a made-up file in the layout of GEARS with the real numbers of cells, genes and conditions,
prepares it in a process of its own, prints what that took, and deletes both files. The share of values above
zero is an assumption, as no source states it for Replogle. It is 8 % in Norman; the sizes of the files
suggest about 21 % in Adamson and up to 40 % in Replogle K562, whose cells were sequenced deepest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/recipes")]


def peak_gb() -> float:
    """Largest memory of this process so far (ru_maxrss would count the one that started it, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def prepare(path: Path, values: str) -> None:
    """What the step ``tidy`` does, with the peak after each part."""
    from workflow.recipes import gears
    from workflow.steps.tidy import write
    from workflow.tidy import check_tidy

    print(f"{'imports':8} {'':9} peak {peak_gb():.2f} GB", flush=True)
    start = time.perf_counter()
    adata = gears.load({"cells": path}, {"values": values})
    print(f"{'recipe':8} {time.perf_counter() - start:7.0f} s peak {peak_gb():.2f} GB", flush=True)
    start = time.perf_counter()
    check_tidy(adata, path.name, {"n_obs": adata.n_obs}, values=values)
    print(f"{'check':8} {time.perf_counter() - start:7.0f} s peak {peak_gb():.2f} GB", flush=True)
    start = time.perf_counter()
    write(adata, path.with_name("tidy.h5ad"))
    size = path.with_name("tidy.h5ad").stat().st_size / 1e9
    print(f"{'write':8} {time.perf_counter() - start:7.0f} s peak {peak_gb():.2f} GB, {size:.1f} GB on disk")
    print({key: value for key, value in adata.uns["recipe"].items() if key.startswith("de_")})


def blocks(n_cells: int, n_genes: int, density: float) -> Iterator[tuple[sp.csr_matrix, sp.csr_matrix]]:
    """Random log-normalised values and counts, 8,192 cells at a time."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, n_cells).astype(np.float32)
    for start in range(0, n_cells, 8192):
        rows = min(8192, n_cells - start)
        counts = sp.csr_matrix(rng.random((rows, n_genes), dtype=np.float32) < density, dtype=np.float32)
        counts.data = rng.geometric(0.5, counts.nnz).astype(np.float32)
        values = counts.copy()
        values.data = np.log1p(values.data * np.repeat(scale[start : start + rows], np.diff(values.indptr)))
        yield values, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, help="where to write about 10 GB for a while (default: temporary)"
    )
    parser.add_argument("--cells", type=int, default=162_751)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--conditions", type=int, default=1_092)
    parser.add_argument("--controls", type=int, default=10_691)
    parser.add_argument("--density", type=float, default=0.4, help="share of values above zero")
    parser.add_argument("--counts", choices=["none", "csr", "dense"], default="csr", help="layers['counts']")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    values = "lognorm" if args.counts == "none" else "counts"
    if args.prepare:
        return prepare(args.prepare, values)

    from gears_file import write_gears

    from workflow.recipes.gears import LISTS, RANKING, TOPS

    rng = np.random.default_rng(0)
    genes = pd.Index([f"ENSG{i:011d}" for i in range(args.genes)], name="gene_id")
    perturbed = np.arange(args.cells - args.controls) % args.conditions
    label = rng.permutation(["ctrl"] * args.controls + [f"GENE{i}+ctrl" for i in perturbed])
    obs = pd.DataFrame({"condition": label, "cell_type": "K562"})
    obs["dose_val"] = np.where(label == "ctrl", "1", "1+1")
    obs["control"] = (label == "ctrl").astype(int)
    obs["condition_name"] = "K562_" + obs["condition"] + "_" + obs["dose_val"]
    obs.index = pd.Index([f"CELL{i}" for i in range(args.cells)], name="cell_barcode")
    obs = obs.astype("category")
    var = pd.DataFrame({"gene_name": pd.Categorical([f"GENE{i}" for i in range(args.genes)])}, index=genes)
    text = genes.to_numpy(dtype=object)
    lists = {
        RANKING: text,
        **dict.fromkeys(TOPS, text[:20]),
        **{k: np.arange(args.genes) for k in TOPS.values()},
    }
    names = obs["condition_name"].cat.categories.drop("K562_ctrl_1")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "perturb_processed.h5ad"
        uns = {key: dict.fromkeys(names, lists[key]) for key in LISTS}
        made = blocks(args.cells, args.genes, args.density)
        write_gears(path, made, obs, var, uns, counts=args.counts)
        print(
            f"{args.cells:,} cells x {args.genes:,} genes, {args.conditions:,} conditions, density "
            f"{args.density:.0%}, counts {args.counts}: {path.stat().st_size / 1e9:.1f} GB",
            flush=True,
        )
        command = [sys.executable, __file__, "--prepare", str(path), "--counts", args.counts]
        sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
