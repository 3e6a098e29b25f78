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
from workflow.efficiency.worker import make_call, peak_memory_mb, timed

MODELS = ("scmamba2", "two_pass")


def call_of(model: str, args: argparse.Namespace, length: int, passes: str, half: bool):
    """Build a model and its input; return one pass as a function."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(args.batch, length, args.d_model, requires_grad=passes == "forward_backward")
    return make_call(BUILDERS[model](args.d_model, args.layers), x, passes, half)


def memory(pipe, *what) -> None:
    """Send the peak memory of one call beyond weights and input, in MB."""
    call = call_of(*what)
    before = peak_memory_mb("cpu")
    call()
    pipe.send(peak_memory_mb("cpu") - before)


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

    context = multiprocessing.get_context("spawn")
    columns = [f"{name} {unit}" for unit in ("s", "MB") for name in MODELS]
    print(f"{'length':>7} {'pass':<17}{'dtype':<9}", *(f"{c:>12}" for c in columns), "  faster")
    for length, passes, dtype in product(args.lengths, args.passes, args.dtypes):
        setting = args, length, passes, dtype == "bfloat16"
        calls = {model: call_of(model, *setting) for model in MODELS}
        best = dict.fromkeys(MODELS, float("inf"))
        for call in calls.values():
            call()
        for _ in range(args.rounds):
            for model, call in calls.items():
                best[model] = min(best[model], timed(call, 1, "cpu")[1])
        peaks = []
        for model in MODELS:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=memory, args=(theirs, model, *setting))
            process.start()
            theirs.close()
            peaks.append(ours.recv())
            process.join()
        times = [best[model] for model in MODELS]
        shown = [f"{t:>12.4f}" for t in times] + [f"{p:>12.0f}" for p in peaks]
        print(f"{length:>7} {passes:<17}{dtype:<9}", *shown, f"{times[1] / times[0]:>7.2f}x", flush=True)


if __name__ == "__main__":
    main()
