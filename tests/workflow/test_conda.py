"""The literal command of the paper, with a stand-in for conda that builds the pip section."""

from __future__ import annotations

import os
import subprocess
import sysconfig

import pytest
import yaml
from support import ROOT, Bench, entry, method_entry

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


@pytest.mark.slow
def test_the_papers_command_runs_every_step_in_its_environment(tiny):
    ended = run(tiny)
    assert ended.returncode == 0, ended.stderr
    assert "1 of 1 runs ok" in ended.stderr
    assert "Running post-deploy script" in ended.stderr  # envs/bench.post-deploy.sh
    record = read_json(tiny.folder / "out/runs/integration/cells/pca/0/run.json")
    assert ".snakemake/conda/" in record["command"][0]
    pins = yaml.safe_load((ROOT / "envs/bench.yaml").read_text())["dependencies"][2]["pip"]
    assert f"scikit-learn=={record['versions']['scikit-learn']}" in pins


def test_the_stand_in_refuses_what_it_cannot_build(tiny):
    other = {"dependencies": ["python=3.11", "r-base=4.2", "pip", {"pip": ["pooch==1.9.0"]}]}
    (tiny.folder / "envs/other.yaml").write_text(yaml.safe_dump(other))
    tiny.declare("methods", alien=method_entry("Alien", env="other"))
    tiny.script("alien", "")
    config = yaml.safe_load((tiny.folder / "workflow/config.yaml").read_text())
    config["select"]["methods"] = {"integration": ["alien"]}
    (tiny.folder / "workflow/config.yaml").write_text(yaml.safe_dump(config))
    (tiny.folder / "envs/bench.yaml").write_text(yaml.safe_dump(other))
    ended = run(tiny)
    assert ended.returncode != 0
    assert "cannot install r-base=4.2" in ended.stdout + ended.stderr
