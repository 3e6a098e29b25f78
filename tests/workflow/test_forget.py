"""What is forgotten is what another try can mend."""

from __future__ import annotations

import sys

import pytest
from support import entry

from workflow.files import read_json, write_json
from workflow.steps import forget, prepare, tidy
from workflow.steps.fetch import Fetcher, fetch


@pytest.fixture
def run(tmp_path, monkeypatch, cells):
    """Fetch, make tidy and prepare one dataset, as the workflow does; give the last record."""
    source = tmp_path / "cells.h5ad"
    cells.write_h5ad(source)
    declared = entry(f"file:{source}")
    results, downloads = tmp_path / "results", tmp_path / "downloads"
    records = [results / "data/cells" / name for name in ("fetch.json", "tidy.json")]
    records.append(results / "data/cells/integration/prepared.json")
    for step in (tidy, prepare):
        monkeypatch.setattr(step, "load_yaml", lambda *_: {"cells": declared})

    def step(module, *words):
        monkeypatch.setattr(sys, "argv", ["step", "--dataset", "cells", "--on-failure", "record", *words])
        assert module.main() == 0

    def run() -> dict:
        fetched, made, prepared = records
        if not fetched.exists():
            write_json(fetched, fetch("cells", declared, Fetcher(downloads, tmp_path / "lock")))
        if not made.exists():
            step(tidy, "--fetched", str(fetched), "--record", str(made))
        step(prepare, "--task", "integration", "--tidy", str(made), "--record", str(prepared))
        return read_json(prepared)

    run.declared, run.results, run.source, run.records = declared, results, source, records
    run.downloads = downloads
    return run


def names(run) -> set[str]:
    return {path.name for path in forget.failures(run.results)}


def test_a_success_stays(run):
    assert run()["status"] == "ok" and names(run) == set()


def test_a_file_that_was_replaced_is_fetched_again(run, cells, monkeypatch):
    run()
    cells[::-1].copy().write_h5ad(run.source)
    run.records[1].unlink()  # as an edited recipe would do
    assert "changed after it was fetched" in run()["reason"]
    monkeypatch.setattr(sys, "argv", ["forget", str(run.results)])
    forget.main()
    assert not any(path.exists() for path in run.records)
    assert run()["status"] == "ok"


def test_a_tidy_file_that_is_gone_is_made_again(run, monkeypatch):
    run()
    run.records[1].with_name("tidy.h5ad").unlink()
    assert "is gone or changed" in run()["reason"]
    assert names(run) == {"tidy.json", "prepared.json"}


def test_an_optional_file_is_asked_for_again(run):
    run.declared["sources"]["more"] = {"urls": ["file:not/here"], "optional": True}
    run.declared["recipe"] = "columns"
    assert run()["status"] == "ok"
    assert names(run) == {"fetch.json"}
    (reason,) = forget.failures(run.results).values()
    assert reason.startswith("without more: source 'more': file:not/here: no such file")


def test_an_error_that_nobody_foresaw_costs_one_dataset(run, monkeypatch, capsys):
    def load(*_):
        raise ZeroDivisionError("by a\ngene")

    monkeypatch.setattr("workflow.recipes.columns.load", load)
    assert run()["reason"] == "cells: ZeroDivisionError: by a gene"
    assert "Traceback" in capsys.readouterr().err
    assert names(run) == {"fetch.json", "prepared.json", "tidy.json"}


def test_a_tuning_is_forgotten_with_its_failed_trials(tmp_path):
    def tuned(method: str, status: str, *trials: str):
        lines = [{"status": trial, "reason": "slow"} for trial in trials]
        path = tmp_path / f"tuning/annotation/x/{method}/tuned.json"
        write_json(path, {"status": status, "reason": "all slow", "trials": lines})

    tuned("good", "ok", "ok", "not_applicable")
    tuned("part", "ok", "ok", "failed")
    tuned("none", "failed", "failed", "failed")
    found = {path.parent.name: reason for path, reason in forget.failures(tmp_path).items()}
    assert found == {"part": "trial 1 failed: slow", "none": "failed: all slow"}
