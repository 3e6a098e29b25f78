"""The literal command of the paper, with a stand-in for conda that builds the pip section."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from support import ROOT, Bench, entry, git_repository, method_entry

from workflow.files import read_json

STAND_IN = ROOT / "tests/conda_stand_in/bin"


@pytest.fixture
def tiny(bench, cells) -> Bench:
    """A copy of the repository whose own configuration selects one tiny run."""
    cells.write_h5ad(bench.folder / "cells.h5ad")
    bench.declare("datasets", cells=entry("file:cells.h5ad"))
    bench.config(["cells"], {"integration": ["pca"]}, [0])
    own = yaml.safe_load((bench.folder / "workflow/config.yaml").read_text())
    selection = yaml.safe_load((bench.folder / "test.yaml").read_text())
    (bench.folder / "workflow/config.yaml").write_text(yaml.safe_dump({"cost": own["cost"]} | selection))
    return bench


def run(bench: Bench) -> subprocess.CompletedProcess:
    env = bench.environment
    env["PATH"] = f"{STAND_IN}{os.pathsep}{env['PATH']}"
    env["CONDA_STAND_IN_LENDS"] = sysconfig.get_paths()["purelib"]
    command = ["snakemake", "--cores", "all", "--use-conda"]
    return subprocess.run(command, cwd=bench.folder, env=env, capture_output=True, text=True, timeout=500)


def select(bench: Bench, *methods: str) -> None:
    path = bench.folder / "workflow/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["select"]["methods"] = {"integration": list(methods)}
    path.write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_the_papers_command_runs_every_step_in_its_environment(tiny, tmp_path):
    """Two environment files; the script that comes after the pins of one takes a local repository."""
    if shutil.which("git") is None:
        pytest.skip("git is not on this machine")
    repository, commit = git_repository(tmp_path / "repository")
    script = tiny.folder / "envs/bench.post-deploy.sh"
    text = re.sub(r"https://github[^}]+", str(repository), script.read_text())
    script.write_text(re.sub(r"\b[0-9a-f]{40}\b", commit, text))
    small = {"channels": ["conda-forge"], "dependencies": ["python=3.11", "pip", {"pip": ["h5py", "numpy"]}]}
    (tiny.folder / "envs/small.yaml").write_text(yaml.safe_dump(small))
    tasks = {"integration": {"n_dimensions": 8}}
    tiny.declare("methods", other=method_entry("Other", env="small", packages=["numpy"], tasks=tasks))
    tiny.script("other", (ROOT / "baselines/_template.py").read_text())
    select(tiny, "pca", "other")
    ended = run(tiny)
    assert ended.returncode == 0, ended.stderr
    assert "2 of 2 runs ok" in ended.stderr
    records = {
        name: read_json(tiny.folder / f"out/runs/integration/cells/{name}/0/run.json")
        for name in ("pca", "other")
    }
    python = {name: record["command"][0] for name, record in records.items()}
    assert all(".snakemake/conda/" in path for path in python.values()) and python["pca"] != python["other"]
    pins = yaml.safe_load((ROOT / "envs/bench.yaml").read_text())["dependencies"][2]["pip"]
    assert f"scikit-learn=={records['pca']['versions']['scikit-learn']}" in pins
    made = list(tiny.folder.glob(".snakemake/conda/*/lib/python*/site-packages/scbert_performer-*"))
    assert [path.name for path in made] == [f"scbert_performer-0+g{commit}.dist-info"]
    assert made[0].is_relative_to(Path(python["pca"]).parents[1])


def test_the_stand_in_refuses_what_it_cannot_build(tiny):
    other = {"dependencies": ["python=3.11", "r-base=4.2", "pip", {"pip": ["pooch==1.9.0"]}]}
    (tiny.folder / "envs/other.yaml").write_text(yaml.safe_dump(other))
    tiny.declare("methods", alien=method_entry("Alien", env="other"))
    tiny.script("alien", "")
    select(tiny, "alien")
    (tiny.folder / "envs/bench.yaml").write_text(yaml.safe_dump(other))
    ended = run(tiny)
    assert ended.returncode != 0
    assert "cannot install r-base=4.2" in ended.stdout + ended.stderr
