"""Step 4: run one method once, watch it, and leave a record whatever happens.

Standard library only, because it runs in the method's own environment. The record's ``status`` is one of

``ok``
    The method ended well and its output keeps the contract.
``failed``
    It did not; ``why`` is error, out_of_memory, timeout, killed or bad_output.
``not_applicable``
    The method says that it cannot do this dataset (exit code 99).
``not_installed``, ``no_data``
    It was not started, because a package or the dataset is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from workflow.files import ON_FAILURE, checksum, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
NOT_APPLICABLE = 99
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
SAMPLE_SECONDS = 1.0
POWERCAP = Path("/sys/class/powercap")
ALWAYS_VERSIONS = ("numpy", "scipy", "anndata", "torch")
OUT_OF_MEMORY = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|CUDA out of memory|std::bad_alloc|Cannot allocate memory"
    r"|cannot allocate vector of size"  # R
)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies (prctl PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def session_memory_mb(session: int) -> float:
    """Return the resident memory of all processes of a session, in MB (Linux; 0 elsewhere)."""
    pages = 0
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[3]) == session:
                pages += int(fields[21])
    return pages * resource.getpagesize() / 2**20


def gpu_state() -> tuple[float | None, list[float]]:
    """Return the memory in use on the visible GPUs in MB (None: unknown) and the watts that each draws.

    No watts where nvidia-smi is missing or a card does not tell its own ("[N/A]").
    """
    if shutil.which("nvidia-smi") is None:
        return None, []
    query = ["nvidia-smi", "--query-gpu=memory.used,power.draw", "--format=csv,noheader,nounits"]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices:
        query += ["-i", devices]
    answer = subprocess.run(query, capture_output=True, text=True)
    cards = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
    number = re.compile(r"\s*\d+(\.\d+)?\s*")
    memory = [float(card[0]) for card in cards if number.fullmatch(card[0])]
    watts = [float(card[1]) for card in cards if len(card) > 1 and number.fullmatch(card[1])]
    return sum(memory) if memory else None, watts if len(watts) == len(cards) else []


def package_energy_uj(powercap: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Return the energy counter of each processor package and where it wraps, in microjoules.

    Linux's running average power limit (RAPL). Other zones (cores, memory, the whole platform) lie inside or
    around a package and would count twice. Empty where there is none, or where only root may read it.
    """
    counters = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):
                values = [(zone / f"{key}_uj").read_text() for key in ("energy", "max_energy_range")]
                counters[zone.name] = (int(values[0]), int(values[1]))
        except (OSError, ValueError):
            continue
    return counters


def busy_cpu_seconds() -> float | None:
    """Return for how many seconds the cores of this machine have worked since it started (Linux)."""
    try:
        user, nice, system = Path("/proc/stat").read_text().split(None, 4)[1:4]
    except (OSError, ValueError):
        return None
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


class EnergyMeter:
    """Energy of a run, from samples taken about once a second.

    GPU: the integral of the power that the cards draw (trapezoids between samples), idle power included.
    CPU: the counters of the processor packages, of which the run has the share that it has of all work done
    by the machine's cores meanwhile, because a package counts its other jobs as well.

    Parameters
    ----------
    gpu
        Cards of the run, 0 for none. Where another number is visible, nobody knows which are the run's.
    powercap
        Folder of Linux's energy counters.
    """

    def __init__(self, gpu: int, powercap: Path = POWERCAP):
        self.gpu, self.powercap = gpu, powercap
        self.power: list[tuple[float, float]] = []  # seconds, watts
        self.last = package_energy_uj(powercap)
        self.package_uj = 0
        self.busy_before = busy_cpu_seconds()

    def sample(self, now: float, watts: list[float]) -> None:
        """Take the power of the cards at a time in seconds, and read the packages."""
        if self.gpu and len(watts) == self.gpu:
            self.power.append((now, sum(watts)))
        if self.last:
            found = package_energy_uj(self.powercap)
            if found.keys() != self.last.keys():
                self.last = {}  # a counter went away: what is known is no longer the whole
                return
            for zone, (value, wrap) in found.items():  # a counter starts again at 0 within minutes to hours
                before = self.last[zone][0]
                self.package_uj += value - before if value >= before else value + wrap - before
            self.last = found

    def gpu_wh(self) -> float | None:
        """Energy of the run's cards in Wh; None without two samples."""
        if len(self.power) < 2:
            return None
        steps = zip(self.power, self.power[1:], strict=False)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in steps) / 3600

    def cpu_wh(self, cpu_seconds: float) -> float | None:
        """Energy of the processor packages in Wh, the share of a run that used so much CPU time."""
        busy = busy_cpu_seconds()
        if not self.last or busy is None or self.busy_before is None:
            return None
        share = min(1.0, cpu_seconds / max(busy - self.busy_before, cpu_seconds, 1e-9))
        return self.package_uj * share / 3.6e9


def oom_kills() -> int:
    """Return how often the kernel has killed a process of this control group for memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            found = re.search(r"^oom_kill (\d+)", Path(path).read_text(), re.M)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def reason_from(log: Path) -> str:
    """Return the line of a log that says best why a program ended: its last error, else its last.

    What this wrapper wrote there is no word of the program; empty if the program left none.
    """
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("[run_method]")]
    for line in reversed(lines[-200:]):
        if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b.*", line):
            return line[:400]
    return lines[-1][:400] if lines else ""


def watch(
    command: list[str],
    log: Path,
    limit: float,
    env: dict,
    cwd: Path,
    gpu: int,
    powercap: Path = POWERCAP,
) -> dict:
    """Run a command in a session of its own under a time limit.

    Returns
    -------
    dict
        ``exit_code`` (negative: the signal), ``timed_out``, ``seconds``, ``cpu_seconds``,
        ``peak_memory_mb`` of the whole process tree, ``peak_gpu_memory_mb``, ``gpu_seconds`` (time x cards),
        ``gpu_energy_wh`` and ``cpu_energy_wh`` (see :class:`EnergyMeter`), ``out_of_memory``. What could not
        be measured is None.
    """
    kills = oom_kills()
    gpu_before = gpu_state()[0] if gpu else None
    peak, peak_gpu, timed_out, last_sample = 0.0, gpu_before, False, -SAMPLE_SECONDS
    meter = EnergyMeter(gpu, powercap)
    start = time.monotonic()
    with open(log, "ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

        def stop(number: int) -> None:
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                pass

        def interrupted(number: int, _frame: object) -> None:
            stop(signal.SIGKILL)
            sys.exit(128 + number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupted)
        while child.poll() is None:
            now = time.monotonic()
            peak = max(peak, session_memory_mb(child.pid))
            if now - last_sample >= SAMPLE_SECONDS:
                last_sample = now
                used, watts = gpu_state() if gpu else (None, [])
                peak_gpu = max(filter(None, (peak_gpu, used)), default=None)
                meter.sample(time.monotonic(), watts)
            if not timed_out and now - start > limit:
                timed_out = True
                stop(signal.SIGTERM)
            if timed_out and now - start > limit + GRACE_SECONDS:
                stop(signal.SIGKILL)
            try:
                child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        seconds = time.monotonic() - start
        stop(signal.SIGKILL)  # whatever it left behind
        meter.sample(time.monotonic(), gpu_state()[1] if gpu else [])
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    gpu_wh, cpu_wh = meter.gpu_wh(), meter.cpu_wh(cpu_seconds)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "exit_code": child.returncode,
        "timed_out": timed_out,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_memory_mb": round(max(peak, usage.ru_maxrss / unit), 1),
        "peak_gpu_memory_mb": None if peak_gpu is None else round(peak_gpu - (gpu_before or 0), 1),
        "gpu_seconds": round(seconds * gpu, 2) if gpu else None,
        "gpu_energy_wh": None if gpu_wh is None else round(gpu_wh, 6),
        "cpu_energy_wh": None if cpu_wh is None else round(cpu_wh, 6),
        "out_of_memory": oom_kills() > kills
        or bool(OUT_OF_MEMORY.search(log.read_text(errors="replace")[-20000:])),
    }


def judge_end(end: dict, log: Path, limit: float) -> tuple[str, str, str]:
    """Return (status, why, reason) of a run that has ended."""
    code, said = end["exit_code"], reason_from(log)
    if end["timed_out"]:
        return "failed", "timeout", f"stopped after the time limit of {limit:.0f} s"
    if code == 0:
        return "ok", "", ""
    if code == NOT_APPLICABLE:
        return "not_applicable", "", said or f"it ended with exit code {code} and did not say why"
    if end["out_of_memory"]:
        return "failed", "out_of_memory", f"out of memory: {said}" if said else "out of memory"
    if code < 0:
        last = f"last line of the log: {said}" if said else "its log is empty"
        return "failed", "killed", f"killed by {signal.Signals(-code).name}; {last}"
    return "failed", "error", said or f"it ended with exit code {code} and did not say why"


def commit() -> str:
    """Return the commit of this checkout, with ``+changes`` where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def hardware() -> dict:
    """Return the processor, the number of usable cores and the GPUs of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = found[1] if found else cpu
    except OSError:
        pass
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "gpus": gpus}


def versions(packages: list[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def r_versions(packages: list[str]) -> dict[str, str | None]:
    """Return the version of R and of each R package, None where it is missing; R itself is called R.

    All of them are None without ``Rscript``.
    """
    found: dict[str, str | None] = dict.fromkeys(["R", *packages])
    if shutil.which("Rscript") is None:
        return found
    ask = 'cat("R", as.character(getRversion()), "\\n"); for (p in commandArgs(TRUE)) cat(p, tryCatch('
    ask += 'as.character(packageVersion(p)), error = function(e) "-"), "\\n")'
    answer = subprocess.run(["Rscript", "--vanilla", "-e", ask, *packages], capture_output=True, text=True)
    for line in answer.stdout.splitlines():
        name, _, version = line.strip().partition(" ")
        if name in found and version != "-":
            found[name] = version
    return found


def fetched_files(records: list[Path]) -> tuple[dict[str, dict], str]:
    """Return the files that a method starts from, and why they are not all here (empty: they are).

    Returns
    -------
    files
        Dataset -> source -> ``path`` and ``sha256``. A source that is optional may be missing.
    problem
        One sentence.
    """
    files: dict[str, dict] = {}
    for path in records:
        record = read_json(path)
        name = record["dataset"]
        if record["status"] != "ok":
            return {}, f"{name}: {record['reason']}"
        files[name] = {source: found for source, found in record["files"].items() if "path" in found}
        for found in files[name].values():
            if not os.path.isfile(found["path"]) or os.path.getsize(found["path"]) != found["bytes"]:
                return {}, f"{name}: {found['path']} is gone or changed; delete {path} and run again"
    return files, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("task", "dataset", "method", "script", "kind", "mode"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--prepared", type=Path, required=True, help="record of the prepare step")
    parser.add_argument("--record", type=Path, required=True, help="run.json to write")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--params", default="{}", help="JSON")
    parser.add_argument("--changed", default="{}", help="JSON: declared values of changed parameters")
    parser.add_argument(
        "--fetched", type=Path, nargs="*", default=[], help="fetch.json of what it starts from"
    )
    parser.add_argument("--tuned", type=Path, nargs="?", help="record of the tune step; its choice wins")
    parser.add_argument("--packages", default="", help="distributions that the method needs, by comma")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--limit", type=float, default=3600, help="seconds")
    parser.add_argument("--on-failure", choices=["record", "stop"], default=ON_FAILURE)
    args = parser.parse_args()

    folder = args.record.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    args.log.write_text("")
    output, scratch, resume = (folder / name for name in ("output.h5ad", "scratch", "resume"))
    output.unlink(missing_ok=True)
    (folder / "probes.h5ad").unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    prepared = read_json(args.prepared)
    machine = hardware()
    if args.gpu and not machine["gpus"]:
        args.log.write_text("[run_method] this machine has no GPU; running on the CPU\n")
        args.gpu = 0
    params, changed = json.loads(args.params), json.loads(args.changed)
    tuned = read_json(args.tuned) if args.tuned else {}
    chosen = {key: value for key, value in tuned.get("chosen", {}).items() if value != params[key]}
    changed = {key: params[key] for key in chosen} | changed
    params |= chosen
    packages = [name for name in args.packages.split(",") if name]
    script = ROOT / "baselines" / f"{args.script}.R"
    in_r = script.exists()
    found = r_versions(packages) if in_r else versions(packages)
    record: dict = {
        "run_id": f"{args.task}/{args.dataset}/{args.method}/{args.seed}",
        "task": args.task,
        "dataset": args.dataset,
        "method": args.method,
        "kind": args.kind,
        "mode": args.mode,
        "seed": args.seed,
        "status": "ok",
        "why": "",
        "reason": "",
        "params": params,
        "changed_params": changed,
        "tuned_params": list(chosen),  # of the changed ones
        "tuning_trials": len(tuned.get("trials", [])),
        "command": [],
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions([n for n in ALWAYS_VERSIONS if n not in packages]) | found,
        "hardware": machine,
        "threads": args.threads,
        "gpu": args.gpu,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    missing = [name for name, version in found.items() if version is None]
    files, no_files = fetched_files(args.fetched)
    source = args.prepared.parent.resolve()
    if prepared["status"] != "ok":
        record |= {"status": "no_data", "reason": prepared["reason"]}
    elif not (source / "input.h5ad").exists():
        record |= {
            "status": "no_data",
            "reason": f"{source / 'input.h5ad'} is missing; delete {args.prepared} and run again",
        }
    elif no_files:
        record |= {"status": "no_data", "reason": no_files}
    elif "R" in missing:
        record |= {"status": "not_installed", "reason": "Rscript is not on the PATH; envs/seurat.yaml has it"}
    elif missing:
        record |= {
            "status": "not_installed",
            "reason": f"{', '.join(missing)} not installed in this environment",
        }
    else:
        program = [sys.executable, "-m", f"baselines.{args.script}"]
        command = ["Rscript", "--vanilla", str(script)] if in_r else program
        command += ["--task", args.task]
        command += ["--input", str(source / "input.h5ad"), "--output", str(output)]
        command += [
            "--seed",
            str(args.seed),
            "--threads",
            str(args.threads),
            "--gpu",
            str(args.gpu),
        ]
        command += ["--params", json.dumps(params)]
        if files:
            paths = {name: {k: v["path"] for k, v in of.items()} for name, of in files.items()}
            command += ["--files", json.dumps(paths)]
        if args.kind == "oracle":  # the only kind that may see the answers
            command += ["--solution", str(source / "solution.h5ad")]
        record["command"] = command
        threads = str(args.threads)
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
        env |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MPLBACKEND": "Agg"}
        env |= {"MKL_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        if not args.gpu:
            env["CUDA_VISIBLE_DEVICES"] = ""
        # What a killed run left for its successor: only for one with the same input, parameters and code.
        record["files"] = {name: {k: v["sha256"] for k, v in of.items()} for name, of in files.items()}
        key = [command, prepared["input"]["sha256"], record["commit"], record["files"]]
        if not (resume / "key.json").exists() or read_json(resume / "key.json") != key:
            shutil.rmtree(resume, ignore_errors=True)
            resume.mkdir()
            write_json(resume / "key.json", key)
        record["resumed"] = len(list(resume.iterdir())) > 1
        scratch.mkdir()
        end = watch(command, args.log, args.limit, env, scratch, args.gpu)
        shutil.rmtree(scratch, ignore_errors=True)
        status, why, reason = judge_end(end, args.log, args.limit)
        info: dict = {}
        if status == "ok":
            check = [sys.executable, "-m", "workflow.contract", args.task]
            check += [str(source / "input.h5ad"), str(output)]
            answer = subprocess.run(check, capture_output=True, text=True, env=env)
            if answer.returncode == 0:
                info = json.loads(answer.stdout)
            else:
                status, why = "failed", "bad_output"
                reason = (answer.stderr.strip() or "the output could not be checked").splitlines()[-1]
        if status == "ok":
            shutil.rmtree(resume, ignore_errors=True)
        record |= {"status": status, "why": why, "reason": reason, "info": info}
        record |= {key: value for key, value in end.items() if key != "timed_out"}
        record["input_sha256"] = prepared["input"]["sha256"]
        record["output_sha256"] = checksum(output) if status == "ok" else None
        probes = folder / "probes.h5ad"
        record["probes_sha256"] = checksum(probes) if status == "ok" and probes.exists() else None
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")

    if record["status"] != "ok":
        what = f"{record['status']} {record['why']}".strip()
        line = f"[run_method] {record['run_id']}: {what}: {record['reason']}"
        print(line, file=sys.stderr)
        with open(args.log, "a") as log:
            log.write(line + "\n")
    # Under "stop" a method that cannot do a dataset is still no failure: it said so itself.
    if args.on_failure == "stop" and record["status"] not in ("ok", "not_applicable"):
        return 1
    write_json(args.record, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
