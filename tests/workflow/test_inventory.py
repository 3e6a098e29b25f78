"""What the inventory says of files that are here, half here, changed and missing; the catalogue."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from support import ROOT

from workflow.declarations import WORKFLOW, load_yaml
from workflow.fetching import lockfile, verification
from workflow.fetching.lockfile import Seen
from workflow.steps.inventory import STATES, document, take_stock

CONTENT = b"0123456789"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def stock(tmp_path):
    """A function that takes stock of one dataset with the given sources."""

    def run(files: dict[str, bytes], sources: dict, verify: bool = False):
        for name, content in files.items():
            path = tmp_path / "downloads" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        entries = {"set": {"sources": sources}}
        found, needed, unknown = take_stock(entries, tmp_path / "downloads", tmp_path / "lock", verify)
        return found["set"], needed, unknown

    return run


def source(name: str = "a.bin", **more) -> dict:
    return {"urls": [f"https://nowhere/{name}"], **more}


def test_missing(stock):
    one, needed, unknown = stock(
        {}, {"a": source(bytes=10), "b": source("b.bin", about_mb=2), "c": source("c")}
    )
    assert (one.state, one.bytes, needed, unknown) == ("missing", 0, 2_000_010, 1)


def test_half_a_file(stock):
    one, needed, _ = stock({"set/a.bin.part": b"0123"}, {"a": source(bytes=10)})
    assert (one.state, one.bytes, needed) == ("partial", 4, 6)


def test_some_of_the_files(stock):
    one, needed, _ = stock({"set/a.bin": CONTENT}, {"a": source(), "b": source("b.bin", bytes=7)})
    assert (one.state, one.bytes, needed) == ("partial", 10, 7)


@pytest.mark.parametrize("verify", [False, True])
def test_present_recorded_unverified(stock, tmp_path, verify):
    here = {"set/a.bin": CONTENT}
    assert stock(here, {"a": source()}, verify)[0].state == "unverified"
    known = {"urls": [{"url": "https://nowhere/a.bin", "hash": f"sha256:{SHA}"}, "https://elsewhere/a.bin"]}
    for declared in (source(hash=f"sha256:{SHA}"), known):
        assert stock(here, {"a": declared}, verify)[0].state == "present"
    lockfile.record("set/a.bin", Seen(SHA, 10, "2025-01-31", "u"), tmp_path / "guard", tmp_path / "lock")
    assert stock(here, {"a": source()}, verify)[0].state == "recorded"


def test_changed(stock, tmp_path):
    """A size is seen at once, the rest when every byte is read."""
    declared = {"a": source(hash=f"sha256:{SHA}", bytes=10)}
    one, *_ = stock({"set/a.bin": b"012"}, declared)
    assert one.state == "changed" and "it has 3 bytes, expected 10" in one.problems[0]
    assert stock({"set/a.bin": b"9876543210"}, declared)[0].state == "present"
    one, *_ = stock({}, declared, verify=True)
    assert one.state == "changed" and f"expected {SHA} (declared)" in one.problems[0]
    lockfile.record("set/a.bin", Seen(SHA, 10, "2025-01-31", "u"), tmp_path / "guard", tmp_path / "lock")
    one, *_ = stock({}, {"a": source()}, verify=True)
    assert one.state == "changed" and "recorded on 2025-01-31" in one.problems[0]


def test_files_are_read_only_on_demand(stock, monkeypatch):
    def read(*_):
        raise AssertionError("a file of many GB would be read")

    monkeypatch.setattr(verification, "digests", read)
    declared = {"a": source(hash=f"sha256:{SHA}")}
    assert stock({"set/a.bin": CONTENT}, declared)[0].state == "present"
    with pytest.raises(AssertionError):
        stock({}, declared, verify=True)


def test_an_archive_counts_once(stock):
    def member(name, **more):
        return {"urls": [{"url": "https://nowhere/all.zip", "member": name, "bytes": 1000}], **more}

    sources = {"a": member("a", bytes=10), "b": member("b", bytes=20)}
    assert stock({}, sources)[1:] == (1030, 0)
    assert stock({"archives/all.zip.part": b"0" * 400}, sources)[1:] == (630, 0)
    assert stock({"archives/all.zip": b"PK"}, sources)[1:] == (30, 0)
    assert stock({"set/a": CONTENT, "set/b": CONTENT * 2}, sources)[1:] == (0, 0)


def test_files_that_come_with_the_project(stock):
    here = {"urls": ["file:workflow/demo_data/pbmc_cite.h5ad"]}
    assert stock({}, {"a": here})[0].state == "unverified"
    one, needed, _ = stock({}, {"a": {"urls": ["package:nowhere/x"]}})
    assert one.state == "missing" and "the package 'nowhere' is not installed" in one.problems[0]


def run(*arguments: str, folder) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "workflow.steps.inventory", *arguments, "--downloads", str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_table_is_plain_when_piped(tmp_path):
    ended = run("pbmc68k", "pbmc10k", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii() and "\x1b" not in ended.stdout
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert rows[0] == ["dataset", "state", "on", "disk", "to", "fetch"]
    assert rows[1][:2] == ["pbmc68k", "present"] and rows[2][:2] == ["pbmc10k", "missing"]
    assert "free: " in ended.stdout and str(tmp_path) in ended.stdout
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_an_unknown_name(tmp_path):
    ended = run("pbmc10q", folder=tmp_path)
    assert ended.returncode == 2 and "did you mean 'pbmc10k'?" in ended.stderr


def test_the_catalogue_names_every_file_once_and_its_place():
    entries = load_yaml(WORKFLOW / "datasets.yaml", "datasets")
    text = "\n".join(document(entries))
    for name, entry in entries.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for words in (entry["title"], entry["citation"], entry["licence"], entry.get("note", "")):
            assert " ".join(words.split()) in section
        for each in entry["sources"].values():
            for url in each["urls"]:
                assert (url if isinstance(url, str) else url["url"]) in section
    assert "`<downloads>/pbmc10k/pbmc8k_filtered_gene_bc_matrices.tar.gz`" in text
    assert str(ROOT) not in text and text == "\n".join(document(entries))


def test_the_catalogue_of_what_is_hard():
    packed = {"url": "gdrive:1abc", "member": "in.zip!a|b.h5ad", "bytes": 5_000_000, "file": "all.zip"}
    urls = [packed | {"hash": "md5:" + "0" * 32}, "https://nowhere/copy"]
    hard = {
        "title": "A | B", "in_paper": "no", "tasks": {}, "licence": "not stated", "citation": "X",
        "sources": {"a": {"urls": urls, "optional": True, "about_mb": 7}},
    }  # fmt: skip
    text = "\n".join(document({"hard": hard}))
    assert "| `<downloads>/hard/a|b.h5ad` (optional) | about 7.0 MB | recorded on first download |" in text
    assert (
        "`gdrive:1abc` (`<downloads>/archives/all.zip`, 5.0 MB, `md5:00000000000000000000000000000000`): "
        "`in.zip!a\\|b.h5ad`; else <https://nowhere/copy>" in text
    )
    assert "| A \\| B | no | - | not stated |" in text


def test_every_state_is_explained():
    assert json.loads(json.dumps(STATES)) == STATES and list(STATES)[-1] == "changed"
