"""For developers: the model's layers against two passes through a plain Mamba-2, in one process.

    OMP_NUM_THREADS=1 python tests/speed/ops.py --lengths 1200 6000 --d-model 512

Processor time of one thread, variants in turn, the least of the rounds: the ratios stand up to other work on
the machine. Peak memory is that of a process of its own. No test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workflow.efficiency.models import BUILDERS
from workflow.efficiency.worker import make_call, serve, timed

MODELS = ("scmamba2", "two_pass")
CONTEXT = multiprocessing.get_context("forkserver")


def peak_memory(model: str, args: argparse.Namespace, length: int, passes: str, half: bool) -> float:
    """Return the peak memory of one call beyond weights and input, in MB."""
    pipe, theirs = CONTEXT.Pipe()
    task = {"model": model, "pass": passes, "length": length, "half": half, "batch": args.batch}
    task |= {"d_model": args.d_model, "n_layers": args.layers, "threads": 1, "gpu": 0, "limit_mb": 1e6}
    process = CONTEXT.Process(target=serve, args=(theirs, task))
    process.start()
    theirs.close()
    pipe.recv()
    pipe.send(1)
    peak = pipe.recv()["peak_memory_mb"]
    pipe.close()
    process.join()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1200, 3000])
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", nargs="+", default=["forward", "forward_backward"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()

    torch.set_num_threads(1)
    CONTEXT.set_forkserver_preload(["workflow.efficiency.worker"])
    columns = [f"{name} {unit}" for unit in ("s", "MB") for name in MODELS]
    print(f"{'length':>7} {'pass':<17}{'dtype':<9}", *(f"{c:>12}" for c in columns), "  faster")
    for length, passes, dtype in product(args.lengths, args.passes, args.dtypes):
        train, half = passes == "forward_backward", dtype == "bfloat16"
        x = torch.randn(args.batch, length, args.d_model, requires_grad=train)
        models = {name: BUILDERS[name](args.d_model, args.layers) for name in MODELS}
        calls = {name: make_call(model, x, passes, half) for name, model in models.items()}
        best = dict.fromkeys(MODELS, float("inf"))
        try:
            for turn in range(args.rounds + 1):
                for name, call in calls.items():
                    seconds = timed(call, 1, "cpu")[1]
                    best[name] = min(best[name], seconds) if turn else best[name]  # the first warms up
            peaks = [peak_memory(name, args, length, passes, half) for name in MODELS]
        except RuntimeError as error:
            print(f"{length:>7} {passes:<17}{dtype:<9} {error}", flush=True)
            continue
        ours, theirs = best.values()
        shown = [f"{t:>12.4f}" for t in (ours, theirs)] + [f"{p:>12.0f}" for p in peaks]
        print(f"{length:>7} {passes:<17}{dtype:<9}", *shown, f"{theirs / ours:>7.2f}x", flush=True)


if __name__ == "__main__":
    main()
