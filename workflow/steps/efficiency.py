"""Step 4b: time the encoders at growing lengths; every measurement is a record, whatever became of it.

``status`` of a measurement: ok, out_of_memory, timeout, failed, not_installed, or skipped, where the
lengths before it say that it would take more than the limits allow. Processes import this module again,
so it imports little.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from workflow.efficiency import NEEDS
from workflow.files import ON_FAILURE, write_json
from workflow.steps.run_method import commit, hardware, oom_kills, versions

#: Seconds for a process to import, to build its model and to say so.
START_SECONDS = 120
#: A turn repeats a short call until it lasts about so long.
TURN_SECONDS = 0.03
MOST_CALLS = 100


class Worker:
    """The process of one measurement, and the pipe to it."""

    def __init__(self, context: ForkServerContext, task: dict) -> None:
        from workflow.efficiency.worker import serve

        self.task, self.kills = task, oom_kills()
        self.record = {key: task[key] for key in ("model", "pass", "length", "batch")}
        self.record |= {"status": "ok", "reason": "", "seconds": [], "cpu_seconds": []}
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, task), daemon=True)
        self.process.start()
        theirs.close()
        self.calls, self.spent = 1, 0.0
        self.record |= self.answer(START_SECONDS)

    @property
    def ok(self) -> bool:
        return self.record["status"] == "ok"

    def answer(self, limit: float) -> dict[str, Any]:
        """Return the next message; no message in time, or no process any more, is one too."""
        if not self.pipe.poll(limit):
            self.close()
            return {"status": "timeout", "reason": f"no answer within {limit:g} s"}
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            status = "out_of_memory" if oom_kills() > self.kills else "failed"
            return {"status": status, "reason": f"the process ended by {name}"}

    def ask(self, limit: float) -> dict[str, Any]:
        """Let the process call the model ``self.calls`` times and return what it says."""
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it died since its last answer, which answer() says
            self.pipe.send(self.calls)
        said = self.answer(limit)
        self.spent += time.monotonic() - start
        if said["status"] != "ok":
            self.record |= said
        return said

    def warm_up(self, limit: float) -> None:
        """Call the model untimed, once or twice, to know its memory and how many calls fill a turn."""
        for _ in range(2):
            said = self.ask(limit)
            if not self.ok:
                return
            self.record["peak_memory_mb"] = round(said["peak_memory_mb"], 2)
            if said["seconds"] > TURN_SECONDS:
                break
        self.calls = max(1, min(MOST_CALLS, int(TURN_SECONDS / said["seconds"])))

    def turn(self, limit: float) -> None:
        """Time one turn."""
        said = self.ask(limit)
        if self.ok:
            for key in ("seconds", "cpu_seconds"):
                self.record[key].append(said[key])

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def summarised(record: dict) -> dict:
    """Return the record of a measurement with the middle and the least of its times."""
    for key in ("seconds", "cpu_seconds"):
        values = record[key]
        record[f"{key}_median"] = statistics.median(values) if values else None
        record[f"{key}_min"] = min(values) if values else None
    return record


def projected(history: list[tuple[int, float]], length: int) -> float:
    """Return a cost at a length from the costs at shorter ones: a power law through the last two.

    The exponent is kept between 1 and 2; it is 1 where there is one length only, and without any the
    cost is 0.
    """
    if not history:
        return 0.0
    (last, cost), power = history[-1], 1.0
    if len(history) > 1:
        before, earlier = history[-2]
        power = math.log(max(cost, 1e-9) / max(earlier, 1e-9)) / math.log(last / before)
    return cost * (length / last) ** min(max(power, 1.0), 2.0)


def reason_to_skip(earlier: list[dict], length: int, batch: int, limit_s: float, limit_mb: float) -> str:
    """Return why a measurement would be in vain, from those of the same model and pass; else nothing."""
    if earlier and earlier[-1]["status"] != "ok":
        last = earlier[-1]
        if last["status"] == "skipped":
            return last["reason"]
        return f"{last['status'].replace('_', ' ')} at {last['length']:,} tokens"
    for key, limit, unit in (("seconds_min", limit_s, "s"), ("peak_memory_mb", limit_mb, "MB")):
        cost = batch * projected([(r["length"], r[key] / r["batch"]) for r in earlier], length)
        if cost > limit:
            expected = f"about {cost:,.0f} {unit} expected at {length:,} tokens"
            return f"{expected}, the limit is {limit:,.0f} {unit}"
    return ""


def measure(settings: dict, threads: int, gpu: int) -> list[dict]:
    """Measure every model, pass and length: for each length all models in turn, round after round.

    Parameters
    ----------
    settings
        The block ``efficiency`` of the configuration.
    threads, gpu
        Threads of each process; whether to use a GPU where there is one.

    Returns
    -------
    list of dict
        One record per model, pass and length, in the order of the settings.
    """
    context = multiprocessing.get_context("forkserver")
    # The second is what PyTorch imports in the first backward pass of a process.
    context.set_forkserver_preload(["workflow.efficiency.worker", "torch.fx.experimental.symbolic_shapes"])
    limit_s, limit_mb = settings["limit_s"], settings["limit_mb"]
    if not gpu:
        limit_mb = min(limit_mb, 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20)
    records: dict[tuple[str, str], list[dict]] = {
        (model, what): [] for what in settings["passes"] for model in settings["models"]
    }
    for length in sorted(settings["lengths"]):
        batch = max(1, (settings["tokens"] or 0) // length)
        for what in settings["passes"]:
            workers = []
            for model in settings["models"]:
                earlier = records[model, what]
                need = NEEDS.get(model)
                task = {"model": model, "pass": what, "length": length, "batch": batch}
                if need and importlib.util.find_spec(need) is None:
                    given = {"status": "not_installed", "reason": f"{need} is not installed here"}
                elif why := reason_to_skip(earlier, length, batch, limit_s, limit_mb):
                    given = {"status": "skipped", "reason": why}
                else:
                    task |= {key: settings[key] for key in ("d_model", "n_layers")}
                    task |= {"threads": threads, "gpu": gpu, "limit_mb": limit_mb}
                    worker = Worker(context, task)
                    if worker.ok:
                        worker.warm_up(limit_s)
                    workers.append(worker)
                    earlier.append(worker.record)
                    continue
                earlier.append(task | given | {"seconds": [], "cpu_seconds": []})
            for turn in range(settings["repeats"]):
                for worker in workers:
                    if worker.ok and (turn == 0 or worker.spent < limit_s):
                        worker.turn(limit_s)
            for worker in workers:
                worker.close()
            for model in settings["models"]:
                record = summarised(records[model, what][-1])
                said = record["seconds_min"] or f"{record['status']}: {record['reason']}"
                print(f"{what} {length} {model}: {said}", flush=True)
    return [record for mine in records.values() for record in mine]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: the block efficiency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--record", type=Path, required=True, help="measurements.json to write")
    parser.add_argument("--on-failure", choices=["record", "stop"], default=ON_FAILURE)
    args = parser.parse_args()

    machine = hardware()
    gpu = int(bool(args.gpu and machine["gpus"]))
    threads = str(args.threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    started, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    measurements = measure(args.settings, args.threads, gpu)
    ran = next((m for m in measurements if "device" in m), {})
    record = {
        "settings": args.settings,
        "device": ran.get("device", "cpu"),
        "precision": ran.get("precision", ""),
        "threads": args.threads,
        "hardware": machine,
        "python": platform.python_version(),
        "versions": versions(["torch", "numpy", *NEEDS.values()]),
        "commit": commit(),
        "started": started,
        "took_seconds": round(time.monotonic() - start, 1),
        "measurements": measurements,
    }
    broken = [m for m in measurements if m["status"] == "failed"]
    for m in broken:
        print(f"[efficiency] {m['model']}, {m['pass']}, {m['length']} tokens: {m['reason']}", file=sys.stderr)
    if broken and args.on_failure == "stop":
        return 1
    write_json(args.record, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
