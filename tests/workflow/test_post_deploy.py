"""What is installed after the pins: scBERT's network out of a repository, here a local one."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from support import ROOT

SCRIPT = ROOT / "envs/bench.post-deploy.sh"
FROM_PYPI = {"scgpt": "0.2.4", "omicverse": "2.3.2"}


def git(folder: Path, *arguments: str) -> str:
    options = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    answer = subprocess.run(["git", "-C", str(folder), *options, *arguments], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that borrows this one's packages and counts those of PyPI as installed."""
    venv.create(tmp_path / "env")
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    for name, version in FROM_PYPI.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return site


@pytest.fixture
def repository(tmp_path):
    """A repository with a folder performer_pytorch, and its last commit but one."""
    folder = tmp_path / "repository"
    module = folder / "performer_pytorch/__init__.py"
    module.parent.mkdir(parents=True)
    git(folder, "init", "--quiet")
    for text in ("WHICH = 'first'\n", "WHICH = 'second'\n"):
        module.write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", text)
    return folder, git(folder, "rev-parse", "HEAD~1")


def deploy(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the script in the environment, without an index to download from."""
    env = os.environ | {"PATH": f"{site.parents[2] / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    env |= {"PIP_NO_INDEX": "1", "GIT_ALLOW_PROTOCOL": "file"}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


def ask(site: Path, code: str) -> str:
    python = str(site.parents[2] / "bin/python")
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


VERSION = "from importlib.metadata import version; print(version('scbert-performer'))"


def test_scberts_network_is_installed_at_the_commit_that_is_asked_for(environment, repository):
    folder, commit = repository
    ended = deploy(environment, f"file://{folder}", commit)
    assert ended.returncode == 0, ended.stderr
    assert ask(environment, VERSION) == f"0+g{commit}"
    assert ask(environment, "import performer_pytorch; print(performer_pytorch.WHICH)") == "first"


def test_a_repository_out_of_reach_is_a_line_and_no_failure(environment):
    ended = deploy(environment)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "scBERT not installed: https://github.com/TencentAILabHealthcare/scBERT could not"
    )
    if "scbert_performer" not in str(list(Path(sysconfig.get_paths()["purelib"]).iterdir())):
        assert ask(environment, VERSION) == ""


def test_a_package_of_pypi_that_cannot_be_had_is_a_failure(environment):
    """A python whose pip does not find it, which a borrowed package would hide."""
    python = environment.parents[2] / "bin/python"
    python.unlink()
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    assert deploy(environment).returncode == 7


def test_the_versions_of_the_script_are_those_that_are_tested():
    assert all(f"{name}=={version}" in SCRIPT.read_text() for name, version in FROM_PYPI.items())
