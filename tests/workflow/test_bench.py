"""The workflow itself, run in a copy of the repository: adding to it, breaking it, stopping it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from support import ROOT, Bench, entry, make_cells, method_entry

from workflow.files import read_json

TABLES = ("out/claims.csv", "out/tables/summary.txt")

IO = "import numpy as np\nfrom baselines import _io\n"
MAIN = "\nif __name__ == '__main__':\n    _io.main(integration=integration)\n"
METHODS = {
    "crashes": "raise ValueError('division by a gene')",
    "not_for_me": "_io.not_applicable('needs spatial coordinates')",
    "sleeps": "import time; time.sleep(120)",
    "is_killed": "import os; os.kill(os.getpid(), 9)",
    # the cause lies outside the code, as a full disk or a missing licence does
    "wants_a_file": "return np.loadtxt(_io.__file__.replace('_io.py', 'licence.txt'))",
    "gives_nan": "return np.full((given.adata.n_obs, 2), np.nan)",
    "gives_transposed": "return np.zeros((2, given.adata.n_obs))",
}
RAW = """
import sys
import anndata as ad, numpy as np, pandas as pd
given = ad.read_h5ad(sys.argv[sys.argv.index("--input") + 1])
names = given.obs_names{change}
out = ad.AnnData(obs=pd.DataFrame(index=names), obsm={{"X_emb": np.zeros((len(names), 2))}})
out.write_h5ad(sys.argv[sys.argv.index("--output") + 1])
"""
EXPECTED = {
    "crashes": ("failed", "error", "ValueError: division by a gene"),
    "not_for_me": ("not_applicable", "", "needs spatial coordinates"),
    "sleeps": ("failed", "timeout", "stopped after the time limit"),
    "is_killed": ("failed", "killed", "killed by SIGKILL"),
    "wants_a_file": ("failed", "error", "licence.txt not found"),
    "gives_nan": ("failed", "bad_output", "NaN or inf in 60 of 60 cells"),
    "gives_transposed": ("failed", "error", "returned 2 rows, expected 60"),
    "shuffles": ("failed", "bad_output", "in another order than the input"),
    "loses_cells": ("failed", "bad_output", "50 cells in the output, expected 60"),
    "is_absent": ("not_installed", "", "no-such-distribution not installed"),
    "pca": ("ok", "", ""),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[Bench, subprocess.CompletedProcess]:
    """One run with every kind of bad method on a good dataset, and a good method on bad datasets."""
    bench = Bench(tmp_path_factory.mktemp("broken") / "bench")
    for name, body in METHODS.items():
        bench.script(name, f"{IO}\ndef integration(given):\n    {body}\n{MAIN}")
        bench.declare("methods", **{name: method_entry(name)})
    bench.script("shuffles", RAW.format(change="[::-1]"))
    bench.script("loses_cells", RAW.format(change="[:50]"))
    bench.script("is_absent", "")
    bench.declare(
        "methods",
        shuffles=method_entry("shuffles"),
        loses_cells=method_entry("loses cells"),
        is_absent=method_entry("is absent", packages=["no-such-distribution"]),
    )
    good = make_cells()
    good.write_h5ad(bench.folder / "good.h5ad")
    other = good.copy()
    del other.obs["cell_type"]
    other.write_h5ad(bench.folder / "no_column.h5ad")
    other = good.copy()
    other.layers["counts"] = other.X / 2
    other.write_h5ad(bench.folder / "no_counts.h5ad")
    other = good.copy()
    other.obs_names = ["cell0", "cell0", *good.obs_names[2:]]
    other.write_h5ad(bench.folder / "twice.h5ad")
    whole = (bench.folder / "good.h5ad").read_bytes()
    (bench.folder / "truncated.h5ad").write_bytes(whole[: len(whole) // 3])
    names = ["good", "no_column", "no_counts", "twice", "truncated"]
    bench.declare("datasets", **{name: entry(f"file:{name}.h5ad") for name in names})
    bench.config(names[1:], {"integration": ["pca"]}, [0], pathvars={"results": "bad"})
    figure = "bad/figures/integration_twice_cells.png"
    assert bench.run("bad/claims.csv", "bad/tables/summary.txt", figure).returncode == 0
    brief = {"sleeps": {"runtime": 0.05}}
    bench.config(names[:1], {"integration": list(EXPECTED)}, [0], resources=brief)
    return bench, bench.run(*TABLES, "out/figures/integration_good_headline.png")


def test_a_run_full_of_failures_still_builds_its_tables(broken):
    bench, ended = broken
    assert ended.returncode == 0, ended.stderr
    summary = (bench.folder / "out/tables/summary.txt").read_text()
    assert "1 of 10 runs ok, 1 not applicable" in summary
    page = (bench.folder / "out/tables/integration_good.html").read_text()
    assert "failed" not in page.split("<table>")[0]
    assert "timeout: stopped after the time limit" in page
    assert (bench.folder / "out/figures/integration_good_headline.png").stat().st_size > 10_000
    # text stays text in SVG: the picture of what could not be drawn says why
    assert "timeout" in (bench.folder / "out/figures/integration_good_headline.svg").read_text()
    assert "duplicated" in (bench.folder / "bad/figures/integration_twice_cells.svg").read_text()


@pytest.mark.parametrize("method", list(EXPECTED))
def test_each_failure_is_recorded_with_its_reason(broken, method):
    bench, _ = broken
    status, why, reason = EXPECTED[method]
    record = read_json(bench.folder / f"out/runs/integration/good/{method}/0/run.json")
    assert (record["status"], record["why"]) == (status, why)
    assert reason in record["reason"]
    runs = pd.read_csv(bench.folder / "out/runs.csv", keep_default_na=False)
    row = runs[(runs["dataset"] == "good") & (runs["method"] == method)]
    assert list(row["status"]) == [status]
    markdown = (bench.folder / "out/tables/integration_good.md").read_text()
    line = next(
        li
        for li in markdown.splitlines()
        if method.replace("_", " ") in li or method in li or (method == "pca" and "PCA" in li)
    )
    assert reason in line
    assert ("–" in line) == (method != "pca")


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("no_column", "obs column 'cell_type' (for 'label') is missing"),
        ("no_counts", "non-integer values"),
        ("twice", "duplicated cell names"),
        ("truncated", "the file is cut"),
    ],
)
def test_bad_data_costs_its_own_rows_only(broken, dataset, reason):
    bench, _ = broken
    prepared = read_json(bench.folder / f"bad/data/{dataset}/integration/prepared.json")
    assert prepared["status"] == "no_data"
    assert reason in prepared["reason"]
    assert not (bench.folder / f"bad/data/{dataset}/integration/input.h5ad").exists()
    record = read_json(bench.folder / f"bad/runs/integration/{dataset}/pca/0/run.json")
    assert (record["status"], record["reason"]) == ("no_data", prepared["reason"])
    summary = (bench.folder / "bad/tables/summary.txt").read_text()
    assert "0 of 4 runs ok" in summary
    assert summary.count(prepared["reason"]) == 1


def test_nothing_is_left_to_do_and_forgetting_failures_runs_just_them_again(broken):
    """With the default target, which is what `make retry` calls, and not a line of code changed."""
    bench, _ = broken
    assert bench.run().returncode == 0
    for more in ([], ["--config", "on_failure=stop", "downloads=elsewhere"]):
        again = bench.run(*more)
        assert "Nothing to be done" in again.stdout + again.stderr
    before = completed(bench)
    cells = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(bench.folder / "baselines/licence.txt", cells)
    forget = [*bench.command()[:1], "-m", "workflow.steps.forget", "out"]
    said = subprocess.run(forget, cwd=bench.folder, capture_output=True, text=True, check=True)
    mended = "out/runs/integration/good/wants_a_file/0/run.json"
    assert f"forgot {mended}" in said.stdout
    kept = completed(bench)
    assert {path.split("/")[-3] for path in kept} == {"pca", "not_for_me"}
    ended = bench.run()
    assert ended.returncode == 0, ended.stderr
    after = completed(bench)
    assert set(after) == set(before)
    assert {path for path in before if after[path] == before[path]} == set(kept)
    assert read_json(bench.folder / mended)["status"] == "ok"
    assert "2 of 10 runs ok, 1 not applicable" in ended.stderr


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ("data/good/fetch.json", "fetch"),
        ("data/good/tidy.json", "tidy"),
        ("data/good/integration/prepared.json", "prepare_task"),
        ("runs/integration/good/pca/0/run.json", "run_pca"),
    ],
)
def test_a_record_that_was_deleted_is_made_again(broken, record, rule):
    """What messages advise ("delete it and run again") works with the default target."""
    bench, _ = broken
    path = bench.folder / "out" / record
    aside = path.with_suffix(".aside")
    path.rename(aside)
    planned = bench.run("-n", "--quiet", "rules")
    aside.rename(path)
    assert re.search(rf"^{rule} +1$", planned.stdout + planned.stderr, re.M)


def test_a_changed_source_is_fetched_again_and_a_changed_word_is_written_again(bench, cells):
    path = bench.folder / "cells.h5ad"
    cells.write_h5ad(path)
    bench.declare("datasets", cells=entry("file:cells.h5ad"))
    bench.config(["cells"], {"integration": ["pca"]}, [0])
    assert bench.run(*TABLES).returncode == 0

    def planned() -> str:
        ended = bench.run(*TABLES, "-n", "--quiet", "rules")
        return ended.stdout + ended.stderr

    methods = bench.folder / "workflow/methods.yaml"
    declared = methods.read_text()
    methods.write_text(declared.replace("title: Unintegrated PCA", "title: Plain PCA"))
    again = planned()
    assert re.search(r"^tables +1", again, re.M), again
    assert "run_pca" not in again
    methods.write_text(declared)

    table = bench.folder / "workflow/datasets.yaml"
    declared = table.read_text()
    table.write_text(declared.replace("citation: none", "citation: somebody"))
    assert "Nothing to be done" in planned()
    wrong = {"cells": {"urls": ["file:cells.h5ad"], "hash": "sha256:" + "0" * 64}}
    table.write_text(declared)
    bench.declare("datasets", more=entry("file:cells.h5ad", sources=wrong))
    bench.config(["cells", "more"], {"integration": ["pca"]}, [0])
    assert bench.run("out/data/more/integration/prepared.json").returncode == 0
    prepared = read_json(bench.folder / "out/data/more/integration/prepared.json")
    assert "expected 0000" in prepared["reason"]

    bench.config(["cells"], {"integration": ["pca"]}, [0])
    make_cells(seed=1).write_h5ad(path)
    assert re.search(r"^fetch +1", planned(), re.M)
    # without fetching again, the next step refuses a file that is not the one that was fetched
    data = bench.folder / "out/data/cells"
    reason = step_again(bench, "tidy", "--fetched", data / "fetch.json")["reason"]
    assert reason.startswith(f"{path} (source 'cells') changed after")
    tidy = bench.folder / "out/data/cells/tidy.h5ad"
    tidy.write_bytes(tidy.read_bytes() + b"more")
    reason = step_again(bench, "prepare", "--task", "integration", "--tidy", data / "tidy.json")["reason"]
    assert reason == (
        f"{tidy} is gone or changed; python -m workflow.steps.forget {bench.folder / 'out'}, "
        "then the same command again"
    )


def step_again(bench: Bench, step: str, *arguments) -> dict:
    record = bench.folder / f"again/{step}.json"
    command = [*bench.command()[:1], "-m", f"workflow.steps.{step}", "--dataset", "cells"]
    command += [*map(str, arguments), "--record", str(record)]
    subprocess.run([*command, "--on-failure", "record"], cwd=bench.folder, check=True, capture_output=True)
    return read_json(record)


@pytest.mark.parametrize("kind", ["method", "data"])
def test_under_stop_the_first_failure_is_an_error(bench, cells, kind):
    if kind == "data":
        del cells.obs["cell_type"]
    cells.write_h5ad(bench.folder / "cells.h5ad")
    bench.declare("datasets", cells=entry("file:cells.h5ad"))
    bench.declare("methods", crashes=method_entry("Crashes"))
    bench.script("crashes", "raise ValueError('division by a gene')")
    bench.config(["cells"], {"integration": ["crashes"]}, [0], on_failure="stop")
    ended = bench.run(*TABLES)
    assert ended.returncode != 0
    reason = "division by a gene" if kind == "method" else "obs column 'cell_type'"
    assert reason in ended.stderr
    assert not (bench.folder / "out/tables").exists()


def test_adding_a_method_takes_a_script_and_an_entry(bench, cells):
    """The template as it is, under a new name, in a run with the demonstration's profile."""
    shutil.copy(ROOT / "baselines/_template.py", bench.folder / "baselines/mine.py")
    mine = method_entry("Mine", kind="classical")
    mine["tasks"] = {"integration": {"n_dimensions": 8}, "annotation": {}}
    bench.declare("methods", mine=mine)
    for task in ("integration", "annotation"):
        bench.declare("datasets", **{f"{task}_cells": entry("file:cells.h5ad", task)})
    cells.write_h5ad(bench.folder / "cells.h5ad")
    (bench.folder / "workflow/demo.yaml").write_text(
        "pathvars: {results: out}\nefficiency: null\n"
        "select:\n  datasets: [integration_cells, annotation_cells]\n"
        "  methods: {integration: [mine, pca], annotation: [mine, majority]}\n  seeds: [0, 1]\n"
    )
    command = [*bench.command()[:3], "--profile", "workflow/profiles/demo"]
    ended = subprocess.run(
        command,
        cwd=bench.folder,
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 of 8 runs ok" in ended.stderr
    for task in ("integration", "annotation"):
        table = pd.read_csv(bench.folder / f"out/tables/{task}_{task}_cells.csv")
        row = table[table["method"] == "mine"].iloc[0]
        assert row["runs_ok"] == 2
        assert np.isfinite(row.filter(like="|").astype(float)).all()
        for figure in ("cells", "headline"):
            assert (bench.folder / f"out/figures/{task}_{task}_cells_{figure}.png").stat().st_size > 10_000
    assert "8 dimensions" in (bench.folder / "out/tables/integration_integration_cells.md").read_text()
    page = (bench.folder / "out/index.html").read_text()
    assert "Mine" in page and "runs: 8 of 8" in page and page.count("data:image/") >= 4
    commands = pd.read_csv(bench.folder / "out/claims.csv")["command"]
    assert commands.iloc[0] == "snakemake --cores all --configfile workflow/demo.yaml"

    report = subprocess.run(
        [*command, "--report", "out/report.zip"],
        cwd=bench.folder,
        env=bench.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert report.returncode == 0, report.stderr
    held = " ".join(zipfile.ZipFile(bench.folder / "out/report.zip").namelist())
    pages = ("index.html", "claims.html", "headline_annotation.html", "integration_integration_cells.html")
    for name in (*pages, "annotation_cells_headline.png"):
        assert name in held

    # a change of the script runs that method again, and only that one
    path = bench.folder / "baselines/mine.py"
    path.write_text(path.read_text() + "\n# changed\n")
    ended = subprocess.run(
        [*command, "-n"], cwd=bench.folder, env=bench.environment, capture_output=True, text=True
    )
    text = ended.stdout + ended.stderr
    assert re.search(r"run mine\s+4", text), text
    assert "run pca" not in text


def completed(bench: Bench) -> dict[str, str]:
    """Records of runs that are there, with the time when each run began (Snakemake touches the files)."""
    paths = bench.folder.glob("out/runs/**/run.json")
    return {str(path): read_json(path)["started"] for path in paths}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_was(bench, cells, number):
    """Stop it while some runs are done and others run; start it again; nothing is done twice or broken."""
    cells.write_h5ad(bench.folder / "cells.h5ad")
    bench.declare("datasets", cells=entry("file:cells.h5ad"))
    bench.declare("methods", slow=method_entry("Slow"))
    body = "import time; time.sleep(2); return given.adata.X[:, :3].toarray()"
    bench.script("slow", f"{IO}\ndef integration(given):\n    {body}\n{MAIN}")
    bench.config(["cells"], {"integration": ["pca", "slow"]}, [0, 1, 2])
    process = subprocess.Popen(
        bench.command(*TABLES),
        cwd=bench.folder,
        env=bench.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not (len(completed(bench)) >= 2 and list(bench.folder.glob("out/runs/**/scratch"))):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < end
        time.sleep(0.02)
    before = completed(bench)
    time.sleep(1)  # a run that ended at the very moment of a kill may be run again
    os.killpg(process.pid, number)  # what a terminal does with Ctrl-C, and what a machine does that dies
    process.wait(timeout=60)
    assert 2 <= len(completed(bench)) < 6
    ended = bench.run(*TABLES)
    assert ended.returncode == 0, ended.stderr
    after = completed(bench)
    assert len(after) == 6
    assert {path: after[path] for path in before} == before, "a completed run was run again"
    assert "6 of 6 runs ok" in (bench.folder / "out/tables/summary.txt").read_text()
    for path in bench.folder.glob("out/**/output.h5ad"):
        assert ad.read_h5ad(path).n_obs == 60
    assert not list(bench.folder.glob("out/**/.*part*")), "half a file was left"


@pytest.mark.slow
def test_the_spine_on_a_real_piece_of_the_papers_pbmc(bench, mini):
    """pbmc10k_mini, both tasks, every quick method: the numbers are sane."""
    shutil.copy(mini, bench.folder / "mini.h5ad")
    tasks = {
        "integration": {"n_top_genes": 1200},
        "annotation": {"split": {"kind": "batch", "query": ["0"]}, "n_top_genes": 1200},
    }
    expect = {"n_obs": 2433, "n_vars": 1767, "labels": 9, "batches": 2}
    declared = entry("file:mini.h5ad", tasks=tasks, recipe="pbmc10k_mini", expect=expect, in_paper="part")
    bench.declare("datasets", mini=declared)
    methods = {
        "integration": ["random_embedding", "label_onehot", "pca", "harmony"],
        "annotation": ["majority", "knn", "logistic_l2"],
    }
    bench.config(["mini"], methods, [0])
    ended = bench.run()
    assert ended.returncode == 0, ended.stderr
    assert "7 of 7 runs ok" in ended.stderr
    prepared = read_json(bench.folder / "out/data/mini/integration/prepared.json")
    assert prepared["facts"]["highly_variable"]["span"] > 0.3

    table = pd.read_csv(bench.folder / "out/tables/integration_mini.csv").set_index("method")
    bio = table["avg_bio|scib-1.1.7"]
    assert bio["label_onehot"] > 0.9 > bio["pca"] > 0.6 > 0.3 > bio["random_embedding"]
    assert table["ilisi|scib-metrics"]["harmony"] >= table["ilisi|scib-metrics"]["pca"] - 0.05
    table = pd.read_csv(bench.folder / "out/tables/annotation_mini.csv").set_index("method")
    accuracy = table["accuracy|sklearn"]
    assert accuracy["logistic_l2"] > 0.85
    assert accuracy["logistic_l2"] > accuracy["majority"]
    assert accuracy["knn"] > accuracy["majority"]


def test_a_file_put_in_the_place_of_a_refused_one_is_taken(bench, cells):
    """Nothing of a file that the recipe refused stays: no record and no line of datasets.lock."""
    url = "http://127.0.0.1:9/cells.h5ad"  # nobody listens there
    bench.declare("datasets", cells=entry(url), other=entry(url))
    bench.config(["cells"], {"integration": ["pca"]}, [0], downloads="downloads", data="cells")
    place = bench.folder / "downloads/cells/cells.h5ad"
    place.parent.mkdir(parents=True)
    cells[:50].copy().write_h5ad(place)
    ended = bench.run("prepare")
    assert "cells: no_data: cells: n_obs is 50, expected 60 (expect" in ended.stderr
    assert "0 of 1 datasets ok" in ended.stderr
    assert "other: " not in ended.stderr and not (bench.folder / "out/data/other").exists()
    assert "cells.h5ad" not in (bench.folder / "workflow/datasets.lock").read_text()

    cells.write_h5ad(place)
    forget = [sys.executable, "-m", "workflow.steps.forget", "out"]
    subprocess.run(forget, cwd=bench.folder, check=True, capture_output=True)
    ended = bench.run("prepare")
    assert "1 of 1 datasets ok" in ended.stderr, ended.stderr
    assert read_json(bench.folder / "out/data/cells/integration/prepared.json")["status"] == "ok"
    assert "cells/cells.h5ad\t" in (bench.folder / "workflow/datasets.lock").read_text()
