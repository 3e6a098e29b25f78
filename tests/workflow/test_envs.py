"""Environments: pins are exact and whole, conda and pip can read them, and they hold what methods need."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support import ROOT, git_repository

from workflow.declarations import WORKFLOW, load_yaml, script_of

ENVS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "envs").glob("*.yaml"))}
METHODS = load_yaml(WORKFLOW / "methods.yaml", "methods")
DEV = (ROOT / "envs/dev.txt").read_text().split()
#: What PyTorch asks for where it can use a GPU; it names the versions itself.
CUDA = re.compile(r"nvidia-|cuda-|triton$")


def conda(name: str) -> list[str]:
    """What conda itself installs."""
    return [spec for spec in ENVS[name]["dependencies"] if isinstance(spec, str)]


def pip(name: str) -> list[str]:
    """What pip installs in the environment."""
    (section,) = (spec for spec in ENVS[name]["dependencies"] if isinstance(spec, dict))
    assert list(section) == ["pip"]
    return section["pip"]


def pins(lines: list[str]) -> dict[str, str]:
    """Distribution -> version, by the name under which pip knows it."""
    found: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"{line!r} is no exact pin"
        name, version = canonicalize_name(match[1]), match[2]
        assert name not in found, f"{name} is pinned twice"
        assert str(Version(version)) == version, f"{line} is not how the version is written"
        found[name] = version
    return found


def added_later(name: str) -> dict[str, str]:
    """What the script after the pins installs: by pip at one version, or made of a repository at a commit."""
    script = ROOT / f"envs/{name}.post-deploy.sh"
    text = script.read_text() if script.exists() else ""
    found = dict(re.findall(r"([\w-]+)==([\w.]+)", text))
    found |= dict(re.findall(r'^name = "([\w-]+)"\nversion = "(.*)"$', text, re.M))
    return {canonicalize_name(key): version for key, version in found.items()}


# Each file by itself.


@pytest.mark.parametrize("name", ENVS)
def test_pip_sections_are_exact_pins(name):
    assert pins(pip(name))
    assert ENVS[name]["channels"] == ["conda-forge"]
    assert set(ENVS[name]) == {"channels", "dependencies"}, "a name would be the same for every copy"


def test_what_tests_need_is_pinned_and_nothing_twice():
    assert pins(DEV + pip("bench"))


READ = """
import json, os, sys
from rattler import MatchSpec
read = {}
for text in json.load(sys.stdin):
    try:
        spec = MatchSpec(text, strict=True)
        read[text] = [str(spec).split()[0], str(spec.version or "")]
    except Exception as error:
        read[text] = str(error)
print(json.dumps(read), flush=True)
os._exit(0)  # this version may crash while Python ends, after all is done
"""


def test_conda_can_read_what_it_is_asked_for():
    """By the parser of conda's own family; a file that cannot be read ends the whole workflow."""
    if importlib.util.find_spec("rattler") is None:
        pytest.skip("py-rattler is not installed")
    wrong = ["r-seurat=", "r-seurat 4.3", "r-seurat==4.3.*"]
    texts = sorted({spec for name in ENVS for spec in conda(name)})
    asked = json.dumps([*texts, *wrong])
    said = subprocess.run([sys.executable, "-c", READ], input=asked, capture_output=True, text=True)
    read = json.loads(said.stdout)
    assert all(isinstance(read[text], str) for text in wrong)
    assert not {text: read[text] for text in texts if isinstance(read[text], str)}
    for name in ENVS:
        asked_for = dict(read[text] for text in conda(name))
        assert asked_for["python"] == "3.11.*" and "pip" in asked_for
        assert len(asked_for) == len(conda(name)), "a package stands twice"


def test_make_reads_the_pins_that_conda_reads():
    sed = re.search(r"sed -n '(.*)' envs/bench.yaml", (ROOT / "Makefile").read_text())
    read = subprocess.run(["sed", "-n", sed[1], ROOT / "envs/bench.yaml"], capture_output=True, text=True)
    assert read.stdout.split() == pip("bench")


# What each must hold.


def test_every_environment_exists_and_is_used():
    rules = "".join(path.read_text() for path in sorted((WORKFLOW / "rules").glob("*.smk")))
    named = {entry["env"] for entry in METHODS.values()} | set(re.findall(r"envs/(\w+)\.yaml", rules))
    assert named == set(ENVS)
    scripts = {path.name.removesuffix(".post-deploy.sh") for path in (ROOT / "envs").glob("*.sh")}
    assert scripts <= named, "a script that no environment would run"


@pytest.mark.parametrize("method", METHODS)
def test_the_environment_of_a_method_holds_its_packages(method):
    entry = METHODS[method]
    in_r = script_of(method, entry).suffix == ".R"
    if in_r:
        held = {re.split(r"[=<> ]", spec)[0] for spec in conda(entry["env"])}
        needed = {f"r-{package.lower()}" for package in entry["packages"]} | {"r-base"}
    else:
        held = set(pins(pip(entry["env"]))) | set(added_later(entry["env"]))
        needed = {canonicalize_name(package) for package in entry["packages"]}
    assert needed <= held


def third_party(*modules: str) -> set[str]:
    """Packages from elsewhere that modules of the workflow import, and those that these import."""
    seen: set[str] = set()
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        path = ROOT / (module.replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        if module in seen or not path.exists():
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                if top == "workflow":
                    todo.append(name)
                elif top not in sys.stdlib_module_names:
                    found.add(top)
    return found


def test_the_wrapper_of_a_run_finds_what_it_imports_in_every_environment():
    needed = third_party("workflow.steps.run_method", "workflow.contract")
    assert needed == {"h5py", "numpy"}
    for name in {entry["env"] for entry in METHODS.values()}:
        assert needed <= set(pins(pip(name)))


def test_methods_that_are_tuned_run_where_tuning_can():
    distributions = importlib.metadata.packages_distributions()
    # what it tunes by is imported by name
    modules = ("workflow.steps.tune", "workflow.tasks.annotation", "workflow.metrics.annotation")
    needed = third_party(*modules) - {"scanpy"}  # to choose genes, which tuning does not
    needed = {canonicalize_name(distributions[top][0]) for top in needed}
    assert {"anndata", "scikit-learn"} <= needed
    for entry in METHODS.values():
        if "tuning" in entry:
            assert needed <= set(pins(pip(entry["env"])))


# Whether the pins fit each other.


def is_here(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def unmet(pinned: dict[str, str]) -> list[str]:
    """Name what pinned distributions ask for that is not pinned, or at a version that they do not take.

    Asked of those that are installed here; what is not installed here says nothing.
    """
    todo = [(name, "") for name in pinned]
    problems, seen = [], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        lines = importlib.metadata.requires(name) if is_here(name) else None
        for requirement in map(Requirement, lines or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            found = pinned.get(needed)
            if name == "torch" and CUDA.match(needed):
                continue
            if not found or not requirement.specifier.contains(found, prereleases=True):
                problems.append(f"{name} {pinned[name]} asks for {requirement}, pinned is {found}")
            else:
                todo += [(needed, each) for each in requirement.extras]
    return problems


@pytest.mark.parametrize("name", ENVS)
def test_nothing_comes_with_the_pins_that_is_not_pinned(name):
    """Else an environment that is made later would be another."""
    assert unmet(pins(pip(name))) == []


def test_nothing_comes_with_the_tests_that_is_not_pinned():
    assert unmet(pins(DEV + pip("bench"))) == []


def test_a_gap_in_the_pins_would_be_seen():
    without = pins([pin for pin in pip("bench") if not pin.startswith("yte==")])
    assert any("asks for yte" in problem for problem in unmet(without))
    old = pins(pip("bench")) | {"numpy": "1.20.0"}
    assert any("pinned is 1.20.0" in problem for problem in unmet(old))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVS)
def test_pip_resolves_to_the_pins(name, tmp_path):
    """Only what is not installed here is asked of the package index: pins that were just changed."""
    wanted, report = pins(pip(name)), tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", report]
    command += ["--disable-pip-version-check", "--retries", "1", *pip(name)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=550)
    if "Retrying (" in ended.stderr and "(from versions: none)" in ended.stderr:
        pytest.skip("the package index cannot be reached")
    assert ended.returncode == 0, ended.stderr
    found = {each: importlib.metadata.version(each) for each in wanted if is_here(each)}
    for new in json.loads(report.read_text())["install"]:
        found[canonicalize_name(new["metadata"]["name"])] = new["metadata"]["version"]
    found = {each: Version(version).public for each, version in found.items() if not CUDA.match(each)}
    assert found == wanted


# What pip cannot install by a name.


@pytest.fixture
def after_the_pins(tmp_path):
    """Run the script after the pins of bench with a repository; python only notes what it was asked."""
    if shutil.which("git") is None:
        pytest.skip("git is not on this machine")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "python").write_text(
        '#!/usr/bin/env bash\necho "$@" >> "$NOTES/asked"\n'
        'if [ -d "${@: -1}" ]; then cp -r "${@: -1}" "$NOTES/package"; fi\n'
    )
    (bin_ / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "NOTES": str(tmp_path)}

    def run(repository: Path, commit: str) -> tuple[str, list[str]]:
        command = ["bash", ROOT / "envs/bench.post-deploy.sh", repository, commit]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr, (tmp_path / "asked").read_text().splitlines()

    return run


@pytest.fixture
def repository(tmp_path) -> tuple[Path, str]:
    return git_repository(tmp_path / "repository")


def test_the_script_after_the_pins_makes_a_package_of_the_commit(after_the_pins, repository, tmp_path):
    folder, commit = repository
    said, asked = after_the_pins(folder, commit)
    assert said == ""
    assert all("install --no-deps" in line for line in asked), "pip would take other versions than the pins"
    project = tomllib.loads((tmp_path / "package/pyproject.toml").read_text())
    assert project["project"] == {"name": "scbert-performer", "version": f"0+g{commit}"}
    assert project["tool"]["setuptools"]["packages"] == ["performer_pytorch"]
    assert (tmp_path / "package/performer_pytorch/__init__.py").exists()


@pytest.mark.parametrize("lost", ["repository", "commit"])
def test_without_the_repository_the_rest_is_installed(after_the_pins, repository, tmp_path, lost):
    folder, commit = repository
    said, asked = after_the_pins(
        *((tmp_path / "none", commit) if lost == "repository" else (folder, "0" * 40))
    )
    assert said.startswith("scBERT not installed: ") and said.count("\n") == 1
    assert len(asked) == 1 and "scgpt==" in asked[0]


def test_what_comes_after_the_pins_has_one_version():
    found = added_later("bench")
    assert set(found) == {"scgpt", "omicverse", "scbert-performer"}
    for each in found.keys() - {"scbert-performer"}:
        assert not is_here(each) or importlib.metadata.version(each) == found[each]
