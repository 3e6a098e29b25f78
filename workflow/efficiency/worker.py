"""One measurement in a process of its own: a model, a pass and a length, called when the parent asks.

A process of its own makes the peak of memory that of this measurement, and a crash a result.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from workflow.efficiency.models import BUILDERS, parameters
from workflow.steps.run_method import OUT_OF_MEMORY, die_with_parent

#: Tokens of the first call, which only loads libraries and starts threads.
FIRST_TOKENS = 64


def make_call(model: nn.Module, x: torch.Tensor, passes: str, half: bool) -> Callable[[], None]:
    """Return one pass of a model as a function that has ended when it returns.

    Parameters
    ----------
    model, x
        On the same device.
    passes
        ``"forward"``, without a graph, as in inference, or ``"forward_backward"``: all gradients, those
        of ``x`` too, as a layer in a stack gives them.
    half
        Whether to run under autocast to bfloat16.
    """
    device = x.device.type
    train = passes == "forward_backward"

    def call() -> None:
        model.zero_grad(set_to_none=True)
        x.grad = None
        with torch.set_grad_enabled(train), torch.autocast(device, torch.bfloat16, enabled=half):
            out = model(x)
        if train:
            out.backward(torch.ones_like(out))

    return call


def peak_memory_mb(device: str) -> float:
    """Return the highest memory use so far: of tensors on a GPU, else of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def limit_memory(device: str, limit_mb: float) -> None:
    """Make an allocation beyond what is held now plus a limit fail."""
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / 2**20
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_mb / total))
    elif sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        held = int(status.split("VmData:")[1].split()[0]) * 2**10
        limit = held + int(limit_mb * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def timed(call: Callable[[], None], calls: int, device: str) -> tuple[float, float]:
    """Return the mean wall time and the mean processor time of some calls in a row, in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - wall) / calls, (time.process_time() - processor) / calls


def serve(pipe: Connection, task: dict) -> None:
    """Build what a task names, say so, and answer every number of calls with what they took.

    Parameters
    ----------
    pipe
        Gets ``{"status": "ok", ...}`` or ``{"status", "reason"}``, the last message after a failure.
    task
        ``model``, ``pass``, ``length``, ``batch``, ``d_model``, ``n_layers``, ``threads``, ``gpu``,
        ``limit_mb``; ``half``: whether to run under autocast to bfloat16, by default on a GPU.
    """
    die_with_parent()
    try:
        torch.manual_seed(0)
        torch.set_num_threads(task["threads"])
        device = "cuda" if task["gpu"] and torch.cuda.is_available() else "cpu"
        half = task.get("half", device == "cuda")
        model = BUILDERS[task["model"]](task["d_model"], task["n_layers"]).to(device)
        train = task["pass"] == "forward_backward"
        shape = task["batch"], task["length"], task["d_model"]
        x = torch.randn(shape, device=device, requires_grad=train)
        first = torch.randn(1, FIRST_TOKENS, task["d_model"], device=device, requires_grad=train)
        make_call(model, first, task["pass"], half)()
        model.zero_grad(set_to_none=True)
        del first
        limit_memory(device, task["limit_mb"])
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = peak_memory_mb(device)
        call = make_call(model, x, task["pass"], half)
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        precision = "bfloat16 autocast" if half else "float32"
        facts = {"parameters": parameters(model), "device": name, "precision": precision}
        pipe.send({"status": "ok"} | facts)
        while True:
            calls = pipe.recv()
            if device == "cuda":  # the turn before gave its memory back to the other models, see below
                call()
            seconds, cpu_seconds = timed(call, calls, device)
            peak = peak_memory_mb(device) - before
            if device == "cuda":
                torch.cuda.empty_cache()
            answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_memory_mb": peak}
            pipe.send({"status": "ok"} | answer)
    except EOFError:  # the parent has no more questions
        return
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0][:400]
        full = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}")
        status = "out_of_memory" if full or "can't allocate memory" in str(error) else "failed"
        pipe.send({"status": status, "reason": words})
