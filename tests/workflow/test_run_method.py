"""The wrapper: every end of a method becomes a record with a readable reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

from workflow.files import atomic, read_json, write_json
from workflow.steps.run_method import EnergyMeter, judge_end, package_energy_uj, reason_from, watch


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def wrapper(tmp_path, cells):
    """Start the wrapper on a method whose script is the given text, in a copy of what it needs."""
    from workflow import tasks
    from workflow.tidy import log_normalize

    cells.obs["label"] = cells.obs["cell_type"]
    log_normalize(cells)
    given, solution, _ = tasks.get("integration").make_io(cells, {})
    data = tmp_path / "data"
    data.mkdir()
    given.write_h5ad(data / "input.h5ad")
    solution.write_h5ad(data / "solution.h5ad")
    write_json(data / "prepared.json", {"status": "ok", "reason": "", "input": {"sha256": "0"}})
    for name in ("workflow", "baselines"):
        (tmp_path / name).mkdir()
        for path in (ROOT / name).rglob("*.py"):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    # the wrapper takes its own place for the repository's root, so it must be a file of the copy
    target = tmp_path / "workflow/steps/run_method.py"
    target.unlink()
    target.write_text((ROOT / "workflow/steps/run_method.py").read_text())

    def start(text: str, *more: str) -> subprocess.Popen:
        (tmp_path / "baselines/trial.py").write_text(text)
        command = [sys.executable, "-m", "workflow.steps.run_method", "--task", "integration"]
        command += ["--dataset", "cells", "--method", "trial", "--script", "trial", "--seed", "0"]
        command += ["--kind", "trivial", "--mode", "repaired"]
        command += [
            "--prepared",
            str(data / "prepared.json"),
            "--record",
            str(tmp_path / "run.json"),
        ]
        command += ["--log", str(tmp_path / "log.txt"), "--on-failure", "record", *more]
        env = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)

    def run(text: str, *more: str) -> tuple[int, dict]:
        process = start(text, *more)
        process.communicate(timeout=60)
        path = tmp_path / "run.json"
        return process.returncode, read_json(path) if path.exists() else {}

    run.start = start
    run.folder = tmp_path
    return run


GOOD = """
import numpy as np
from baselines import _io
def integration(given):
    given.info["scale"] = "two dimensions"
    return np.random.default_rng(given.seed).normal(size=(given.adata.n_obs, 2))
_io.main(integration=integration)
"""


def test_a_good_run(wrapper):
    code, record = wrapper(GOOD, "--packages", "numpy,anndata")
    assert code == 0
    assert record["status"] == "ok"
    assert record["info"] == {"scale": "two dimensions", "dimensions": 2}
    assert record["exit_code"] == 0
    assert record["seconds"] > 0
    assert record["peak_memory_mb"] > 30
    assert record["versions"]["numpy"]
    assert len(record["output_sha256"]) == 64
    assert record["hardware"]["cores"] >= 1
    assert not (wrapper.folder / "scratch").exists()


@pytest.mark.parametrize(
    ("text", "status", "why", "reason"),
    [
        (
            "raise ValueError('the gene A1BG is odd')",
            "failed",
            "error",
            "ValueError: the gene A1BG",
        ),
        (
            "import sys; print('cannot do this', file=sys.stderr); sys.exit(99)",
            "not_applicable",
            "",
            "cannot do this",
        ),
        ("import sys; sys.exit(99)", "not_applicable", "", "it ended with exit code 99 and did not say why"),
        ("import sys; sys.exit(7)", "failed", "error", "it ended with exit code 7 and did not say why"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "killed", "killed by SIGKILL; its log is empty"),
        ("import sys; sys.exit(0)", "failed", "bad_output", "wrote no output"),
        (
            "raise MemoryError('8 GB')",
            "failed",
            "out_of_memory",
            "out of memory: MemoryError: 8 GB",
        ),
        (
            "import sys; sys.exit('Error: cannot allocate vector of size 8.0 Gb')",  # as R says it
            "failed",
            "out_of_memory",
            "out of memory: Error: cannot allocate vector",
        ),
        ("print('last words'); import os; os._exit(3)", "failed", "error", "last words"),
        (
            GOOD.replace("2))", "2)) * np.nan"),
            "failed",
            "bad_output",
            "NaN or inf in 60 of 60 cells",
        ),
        (
            GOOD.replace("size=(given.adata.n_obs, 2)", "size=(2, given.adata.n_obs)"),
            "failed",
            "error",
            "returned 2 rows, expected 60",
        ),
    ],
)
def test_bad_ends(wrapper, text, status, why, reason):
    code, record = wrapper(text)
    assert code == 0  # the record is the product
    assert (record["status"], record["why"]) == (status, why)
    assert reason in record["reason"]
    assert "\n" not in record["reason"]
    assert record["reason"] in (wrapper.folder / "log.txt").read_text()


def test_a_run_out_of_time_is_stopped_with_its_children(wrapper):
    text = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(f"child {child.pid}", flush=True)
time.sleep(60)
"""
    code, record = wrapper(text, "--limit", "5")
    assert code == 0
    assert (record["status"], record["why"]) == ("failed", "timeout")
    assert record["reason"] == "stopped after the time limit of 5 s"
    assert not alive(int((wrapper.folder / "log.txt").read_text().split()[1]))


def test_under_stop_a_failure_ends_the_job_and_leaves_no_record(wrapper):
    code, record = wrapper("raise ValueError('no')", "--on-failure", "stop")
    assert code == 1
    assert record == {}
    assert "ValueError: no" in (wrapper.folder / "log.txt").read_text()


def test_under_stop_not_applicable_is_no_failure(wrapper):
    code, record = wrapper("import sys; sys.exit(99)", "--on-failure", "stop")
    assert code == 0
    assert record["status"] == "not_applicable"


def test_a_missing_package_is_said_before_anything_starts(wrapper):
    code, record = wrapper(GOOD, "--packages", "numpy,no-such-distribution")
    assert code == 0
    assert record["status"] == "not_installed"
    assert record["reason"].startswith("no-such-distribution not installed")
    assert record["command"] == []


def test_a_missing_dataset_is_said_before_anything_starts(wrapper):
    path = wrapper.folder / "data/prepared.json"
    write_json(path, {"status": "no_data", "reason": "the link is dead"})
    _, record = wrapper(GOOD)
    assert (record["status"], record["reason"]) == ("no_data", "the link is dead")
    write_json(path, {"status": "ok", "reason": "", "input": {"sha256": "0"}})
    (wrapper.folder / "data/input.h5ad").unlink()
    _, record = wrapper(GOOD)
    assert record["status"] == "no_data"
    assert "input.h5ad is missing" in record["reason"]


def test_only_an_oracle_is_given_the_solution(wrapper):
    text = "import sys; print(' '.join(sys.argv)); sys.exit(99)"
    _, record = wrapper(text)
    assert "--solution" not in record["command"]
    _, record = wrapper(text, "--kind", "oracle")
    assert "--solution" in record["command"]


def test_memory_of_the_whole_process_tree_is_measured(wrapper):
    """Parent and child hold 150 MB each at the same time; neither alone has 300."""
    hold = "import time; x = bytearray(150 * 2**20); time.sleep(1.5)"
    text = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {hold!r}])
{hold}
child.wait()
sys.exit(99)
"""
    _, record = wrapper(text)
    assert 300 < record["peak_memory_mb"] < 700


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_killing_the_wrapper_ends_the_method_and_leaves_no_record(wrapper, number):
    process = wrapper.start("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    log = wrapper.folder / "log.txt"
    end = time.monotonic() + 60
    while not (log.exists() and log.read_text().strip()):
        assert time.monotonic() < end, "the method did not start"
        time.sleep(0.05)
    child = int(log.read_text())
    process.send_signal(number)
    process.wait(timeout=60)
    while alive(child):
        assert time.monotonic() < end, "the method outlived its wrapper"
        time.sleep(0.05)
    assert not (wrapper.folder / "run.json").exists()


def test_without_a_gpu_a_method_that_asks_for_one_runs_on_the_cpu(wrapper, monkeypatch):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    text = "import sys; print(sys.argv[sys.argv.index('--gpu') + 1]); sys.exit(99)"
    _, record = wrapper(text, "--gpu", "1")
    assert (record["gpu"], record["reason"], record["peak_gpu_memory_mb"]) == (0, "0", None)
    assert "no GPU; running on the CPU" in (wrapper.folder / "log.txt").read_text()


def test_gpu_memory_is_measured_above_what_was_in_use_before(wrapper, monkeypatch):
    """An nvidia-smi that reports 100 MB at first and 700 MB while the method runs."""
    tool = wrapper.folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/sh\ncase $1 in *name*) echo 'Test GPU';;\n"
        f"*) if [ -e {wrapper.folder}/running ]; then echo 700; else echo 100; fi;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    text = f"import sys, time; open('{wrapper.folder}/running', 'w'); time.sleep(2.5); sys.exit(99)"
    _, record = wrapper(text, "--gpu", "1")
    assert record["peak_gpu_memory_mb"] == 600
    assert record["hardware"]["gpus"] == ["Test GPU"]
    assert record["gpu"] == 1


def test_the_reason_is_the_last_error_line(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("start\nKeyError: 'a'\n\nDuring handling...\n  File x\ntorch.cuda.Broken: b\n")
    assert reason_from(log) == "KeyError: 'a'"
    log.write_text("one\ntwo\n\n")
    assert reason_from(log) == "two"
    log.write_text("one\n[run_method] this machine has no GPU; running on the CPU\n")
    assert reason_from(log) == "one"
    log.write_text("")
    assert reason_from(log) == ""


def test_a_kernel_kill_for_memory_is_told_from_another(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("working\n")
    end = {"exit_code": -9, "timed_out": False, "out_of_memory": True}
    assert judge_end(end, log, 1)[:2] == ("failed", "out_of_memory")
    assert judge_end(end | {"out_of_memory": False}, log, 1)[:2] == ("failed", "killed")


def test_cpu_time_is_counted(tmp_path):
    log = tmp_path / "log.txt"
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    try:
        end = watch([sys.executable, "-c", busy], log, 30, dict(os.environ), tmp_path, 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert end["cpu_seconds"] >= 0.5


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(RuntimeError), atomic(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


COUNTS_STARTS = """
import os, signal, sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1]).parent / "resume"
starts = folder / "starts"
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
if len(starts.read_text()) < {needed}:
    os.kill(os.getpid(), signal.SIGKILL)
import anndata as ad, numpy as np
given = ad.read_h5ad(sys.argv[sys.argv.index("--input") + 1])
out = ad.AnnData(np.zeros((given.n_obs, 0), dtype=np.float32), obs=given.obs[[]])
out.obsm["X_emb"] = np.random.default_rng(0).normal(size=(given.n_obs, 2))
out.write_h5ad(sys.argv[sys.argv.index("--output") + 1])
"""


def test_a_killed_run_leaves_its_folder_to_the_next_of_its_kind(wrapper):
    """Started again it finds what it wrote; with other parameters it does not; afterwards it is gone."""
    text = COUNTS_STARTS.format(needed=3)
    for status, resumed in [("failed", False), ("failed", True), ("ok", True)]:
        _, record = wrapper(text)
        assert (record["status"], record["resumed"]) == (status, resumed)
    assert not (wrapper.folder / "resume").exists()
    wrapper(text)
    assert not wrapper(text, "--params", '{"a": 1}')[1]["resumed"]


def fake_package(folder: Path, name: str, kind: str, energy: int, wrap: int = 1_000_000) -> Path:
    """A zone of a made-up /sys/class/powercap."""
    zone = folder / name
    zone.mkdir(parents=True, exist_ok=True)
    for key, value in (("name", kind), ("energy_uj", energy), ("max_energy_range_uj", wrap)):
        (zone / key).write_text(f"{value}\n")
    return zone


def test_package_energy_counts_packages_once_and_survives_a_wrap(tmp_path, monkeypatch):
    first = fake_package(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = fake_package(tmp_path, "intel-rapl:1", "package-1", 100)
    inside = fake_package(tmp_path, "intel-rapl:0:0", "core", 5)
    platform = fake_package(tmp_path, "intel-rapl:2", "psys", 5)
    busy = iter([50.0, 60.0])
    monkeypatch.setattr("workflow.steps.run_method.busy_cpu_seconds", lambda: next(busy))
    meter = EnergyMeter(0, tmp_path)
    meter.sample(0.0, [])
    (first / "energy_uj").write_text("100000\n")  # it has started again: 100,000 and 100,000 more
    (second / "energy_uj").write_text("400100\n")
    for zone in (inside, platform):
        (zone / "energy_uj").write_text("999999\n")
    meter.sample(1.0, [])
    assert meter.package_uj == 600_000
    # the machine's cores worked for ten seconds, the run for five of them
    assert meter.cpu_wh(5.0) == pytest.approx(0.6 / 2 / 3600)
    assert meter.gpu_wh() is None


def test_a_counter_that_cannot_be_read_gives_no_energy(tmp_path):
    assert package_energy_uj(tmp_path / "absent") == {}
    assert EnergyMeter(0, tmp_path).cpu_wh(1.0) is None
    zone = fake_package(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(0, tmp_path)
    (zone / "energy_uj").unlink()  # where only root may read it, opening fails as well
    meter.sample(1.0, [])
    assert meter.cpu_wh(1.0) is None


def test_gpu_energy_is_the_integral_of_power():
    meter = EnergyMeter(2, Path("/absent"))
    for now, watts in ((0.0, [100.0, 100.0]), (1.0, [300.0, 100.0]), (2.0, []), (4.0, [300.0, 100.0])):
        meter.sample(now, watts)
    assert meter.gpu_wh() == pytest.approx((300 * 1 + 400 * 3) / 3600)
    strangers = EnergyMeter(1, Path("/absent"))  # one card of two is ours, and nobody knows which
    for now in (0.0, 1.0):
        strangers.sample(now, [100.0, 100.0])
    assert strangers.gpu_wh() is None


def test_power_is_read_from_nvidia_smi(wrapper, monkeypatch):
    """An nvidia-smi whose card always draws 360 W, then one whose card does not tell."""
    tool = wrapper.folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\ncase $1 in *name*) echo 'Test GPU';; *) echo '100, 360.00';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    start = time.monotonic()
    _, record = wrapper("import sys; sys.exit(99)", "--gpu", "1")
    assert record["gpu_seconds"] == record["seconds"]
    # there is a sample at the start and one at the end; 360 W are 0.1 Wh in a second
    assert 0 < record["gpu_energy_wh"] <= 0.1 * (time.monotonic() - start)
    tool.write_text("#!/bin/sh\ncase $1 in *name*) echo 'Test GPU';; *) echo '100, [N/A]';; esac\n")
    _, record = wrapper("import sys; sys.exit(99)", "--gpu", "1")
    assert (record["gpu_energy_wh"], record["peak_gpu_memory_mb"]) == (None, 0)


def test_without_a_gpu_there_is_no_gpu_energy(wrapper):
    _, record = wrapper("import sys; sys.exit(99)")
    assert (record["gpu_seconds"], record["gpu_energy_wh"]) == (None, None)


def test_a_method_is_handed_the_files_that_it_starts_from(wrapper):
    weights = wrapper.folder / "model.pt"
    weights.write_bytes(b"1234")
    found = {"path": str(weights), "sha256": "abc", "bytes": 4}
    fetched = wrapper.folder / "fetch.json"
    files = {"weights": found, "genes": {"status": "optional"}}
    write_json(fetched, {"dataset": "checkpoint", "status": "ok", "reason": "", "files": files})
    _, record = wrapper(GOOD, "--fetched", str(fetched))
    assert record["status"] == "ok", record["reason"]
    handed = record["command"][record["command"].index("--files") + 1]
    assert json.loads(handed) == {"checkpoint": {"weights": str(weights)}}
    assert record["files"] == {"checkpoint": {"weights": "abc"}}

    weights.write_bytes(b"12345")
    _, record = wrapper(GOOD, "--fetched", str(fetched))
    assert (record["status"], record["command"]) == ("no_data", [])
    assert "model.pt is gone or changed" in record["reason"]

    write_json(fetched, {"dataset": "checkpoint", "status": "failed", "reason": "404", "files": {}})
    _, record = wrapper(GOOD, "--fetched", str(fetched))
    assert (record["status"], record["reason"]) == ("no_data", "checkpoint: 404")
    assert "--files" not in wrapper(GOOD)[1]["command"]


def test_a_method_in_r_says_what_is_missing(wrapper, monkeypatch):
    (wrapper.folder / "baselines/trial.R").write_text("quit(status = 3)")
    monkeypatch.setenv("PATH", str(wrapper.folder))
    _, record = wrapper("", "--packages", "Seurat")
    assert (record["status"], record["versions"]["R"]) == ("not_installed", None)
    assert "Rscript is not on the PATH" in record["reason"]


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="there is no R on this machine")
def test_a_method_in_r_runs_by_the_same_command_line(wrapper):
    script = wrapper.folder / "baselines/trial.R"
    script.write_text("cat(commandArgs(TRUE), sep = '\\n'); stop('no such gene')")
    _, record = wrapper("", "--packages", "stats", "--params", '{"dims": 30}')
    assert (record["status"], record["why"]) == ("failed", "error")
    assert "no such gene" in record["reason"]
    assert record["command"][:3] == ["Rscript", "--vanilla", str(script)]
    assert '{"dims": 30}' in (wrapper.folder / "log.txt").read_text()
    assert record["versions"]["stats"] == record["versions"]["R"] != ""
    _, record = wrapper("", "--packages", "stats,noSuchPackage")
    assert record["reason"] == "noSuchPackage not installed in this environment"
