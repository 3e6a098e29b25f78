"""What tests import: a copy of the repository to run workflows in, declarations and tiny data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT.parent / "shared/data/pbmc10k_mini/pbmc10k_mini_2batch.h5ad"


def make_cells(n: int = 60, genes: int = 40, types: int = 3, batches: int = 2, seed: int = 0) -> ad.AnnData:
    """Synthetic counts: each type has its own high genes, each batch its own depth. For tests only."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % types
    batch = rng.integers(0, batches, n)
    rate = rng.gamma(1.0, 1.0, (types, genes)) + 6 * (np.arange(genes) % types == np.arange(types)[:, None])
    counts = sp.csr_matrix(rng.poisson(rate[label] * (1 + batch[:, None])), dtype=np.float32)
    obs = pd.DataFrame(
        {"batch": [f"b{b}" for b in batch], "cell_type": [f"type {c}" for c in label]},
        index=[f"cell{i}" for i in range(n)],
    ).astype("category")
    var = pd.DataFrame(index=[f"GENE{g}" for g in range(genes)])
    return ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy()})


def entry(path: str, task: str = "integration", **changed) -> dict:
    """A declaration of a dataset, but for its title: one h5ad with the columns of make_cells."""
    settings = {
        "integration": {"n_top_genes": 30},
        "annotation": {"split": {"kind": "stratified", "query_fraction": 0.5, "seed": 0}},
    }
    return {
        "in_paper": "no",
        "sources": {"cells": {"urls": [path]}},
        "obs": {"label": "cell_type", "batch": "batch"},
        "labels": "published",
        "expect": {"n_obs": 60, "n_vars": 40, "labels": 3, "batches": 2},
        "tasks": {task: settings[task]},
        "licence": "none",
        "citation": "none",
    } | changed


def method_entry(title: str, task: str = "integration", **changed) -> dict:
    """A declaration of a method without parameters."""
    return {
        "title": title,
        "kind": "trivial",
        "tasks": {task: {}},
        "env": "bench",
        "packages": [],
        "threads": 1,
        "gpu": 0,
        "mem_mb": 500,
        "runtime": 1,
    } | changed


def git_repository(folder: Path) -> tuple[Path, str]:
    """Make a repository with performer_pytorch, a folder that is no package, and return its commit."""
    (folder / "performer_pytorch").mkdir(parents=True)
    (folder / "performer_pytorch/__init__.py").write_text("")
    (folder / "finetune.py").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    commands = ["init --quiet", "add .", "commit --quiet -m first", "rev-parse HEAD"]
    said = [subprocess.check_output([*git, *words.split()], text=True) for words in commands]
    return folder, said[-1].strip()


class Bench:
    """A copy of the repository, in which a test may add datasets and methods and run the workflow."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("workflow", "baselines", "scmamba2", "envs"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.h5ad")
            )
        shutil.copy(ROOT / "Snakefile", folder)

    def declare(self, table: str, **entries: dict) -> None:
        """Add entries to datasets.yaml or methods.yaml; a dataset without a title is called by its name."""
        entries = {name: {"title": f"Test cells {name}"} | entry for name, entry in entries.items()}
        path = self.folder / f"workflow/{table}.yaml"
        path.write_text(path.read_text() + "\n" + yaml.safe_dump(entries, sort_keys=False))

    def script(self, name: str, text: str) -> None:
        """Write a method's script."""
        (self.folder / f"baselines/{name}.py").write_text(text)

    def config(self, datasets: list, methods: dict, seeds: list, **more) -> None:
        """Write test.yaml, the selection."""
        select = {"datasets": datasets, "methods": methods, "seeds": seeds}
        config = {"pathvars": {"results": "out"}, "select": select, "on_failure": "record"}
        config |= {"efficiency": None} | more  # a test that measures says so
        (self.folder / "test.yaml").write_text(yaml.safe_dump(config))

    def command(self, *arguments: str) -> list[str]:
        options = ["--configfile", "test.yaml", "--cores", "2", "--rerun-incomplete", "--nolock"]
        return [sys.executable, "-m", "snakemake", *options, *arguments]

    @property
    def environment(self) -> dict:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "PYTHONPATH": ""}

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Snakemake in the copy."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
