"""GAE on a GPU, packed trajectories: beside a device copy of as many bytes; and what a small call costs from Python.

The limit is PyTorch's device-to-device copy in the same run, interleaved, timed by events over back-to-back calls on
several sets of buffers in turn, so that neither finds its inputs in a cache. Bytes counted: two float32 in and two out
for each step (16), offset and bootstrap value for each trajectory (12).

    python benchmarks/bench_recurrence_cuda.py --json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Bench, Result, add_arguments, default_results_path, interleave

from hpcrl import _kernels
from hpcrl.ops.recurrence import gae

GAMMA, GAE_LAMBDA = 0.99, 0.95
BYTES_PER_STEP, BYTES_PER_TRAJECTORY = 16, 12
SIZES = (16 << 20, 64 << 20)
LENGTHS = {"short, 64": 64, "medium, 512": 512, "long, 2M": 2 << 20}
NUM_SETS = 3  # of buffers, in turn: 768 MB at 16M steps
LEAST_SHARE_OF_COPY, MOST_SECONDS_PER_CALL = 0.85, 10e-6


@dataclass(frozen=True)
class Batch:
    """Packed inputs and outputs on the GPU."""

    inputs: tuple[torch.Tensor, ...]
    out: torch.Tensor
    returns_out: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return BYTES_PER_STEP * len(self.out) + BYTES_PER_TRAJECTORY * len(self.inputs[2])

    def run(self) -> None:
        gae(*self.inputs, gamma=GAMMA, gae_lambda=GAE_LAMBDA, out=self.out, returns_out=self.returns_out)


def packed(num_steps: int, length: int) -> Batch:
    rewards, values, out, returns_out = (torch.randn(num_steps, device="cuda") for _ in range(4))
    num_trajectories = num_steps // length
    offsets = torch.arange(num_trajectories + 1, device="cuda", dtype=torch.int64) * length
    bootstrap_values = torch.randn(num_trajectories, device="cuda")
    return Batch((rewards, values, bootstrap_values, offsets), out, returns_out)


def seconds_a_call(calls: Sequence[Callable[[], object]], rounds: int) -> float:
    """GPU seconds of one call, from events around `rounds` passes over `calls` after one that is not counted."""
    for call in calls:
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(rounds):
        for call in calls:
            call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / (rounds * len(calls))


def beside_the_copy(num_steps: int, repeats: int, rounds: int) -> Result:
    sources = [torch.randn(2 * num_steps, device="cuda") for _ in range(NUM_SETS)]
    copies = [partial(torch.empty_like(source).copy_, source) for source in sources]
    batches = {name: [packed(num_steps, length) for _ in range(NUM_SETS)] for name, length in LENGTHS.items()}
    candidates = {"device copy": partial(seconds_a_call, copies, rounds)}
    for name, sets in batches.items():
        candidates[name] = partial(seconds_a_call, [batch.run for batch in sets], rounds)
    seconds = {name: statistics.median(times) for name, times in interleave(candidates, repeats=repeats).items()}
    num_bytes = {"device copy": BYTES_PER_STEP * num_steps} | {n: sets[0].num_bytes for n, sets in batches.items()}
    rate = {name: num_bytes[name] / seconds[name] for name in seconds}
    worst = min(rate[name] for name in LENGTHS) / rate["device copy"]
    return Result(
        name=f"recurrence_cuda_{num_steps >> 20}M",
        rows=[
            {
                "candidate": name,
                "us": 1e6 * seconds[name],
                "GB/s": rate[name] / 1e9,
                "of the copy": rate[name] / rate["device copy"],
            }
            for name in seconds
        ],
        peer="a device copy of as many bytes",
        ratio=worst,
        wanted=f"at least {LEAST_SHARE_OF_COPY}",
        met=worst >= LEAST_SHARE_OF_COPY,
        notes=[gpu_facts(), f"medians of {repeats} repeats of {rounds * NUM_SETS} calls"],
    )


def small_call(repeats: int) -> Result:
    """0.5M steps: how long the caller waits for the call, and how long calls take one after the other."""
    batch, calls, samples = packed(1 << 19, 512), 500, []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            batch.run()
        issued = time.perf_counter() - began
        torch.cuda.synchronize()
        samples.append((issued / calls, (time.perf_counter() - began) / calls))
    issued_seconds, total_seconds = (statistics.median(column) for column in zip(*samples, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch.run()
    replay_seconds = seconds_a_call([graph.replay], calls)
    return Result(
        name="recurrence_cuda_call",
        rows=[
            {"candidate": "call returns", "us": 1e6 * issued_seconds},
            {"candidate": "call and kernel, back to back", "us": 1e6 * total_seconds},
            {"candidate": "replay of a CUDA graph", "us": 1e6 * replay_seconds},
        ],
        peer="ten microseconds for 0.5M steps from Python with out=",
        ratio=total_seconds / MOST_SECONDS_PER_CALL,
        wanted="at most 1",
        met=total_seconds <= MOST_SECONDS_PER_CALL,
        notes=[gpu_facts()],
    )


def gpu_facts() -> str:
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}"


def gpu_results_path() -> Path:
    name = torch.cuda.get_device_properties(0).name.lower().replace(" ", "-")
    return RESULTS / f"{name}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeats=7)
    parser.add_argument("--rounds", type=int, default=5, help="passes over all buffer sets in one repeat")
    arguments = parser.parse_args()
    if not (_kernels.WITH_CUDA and torch.cuda.is_available()):
        print("bench_recurrence_cuda: want a GPU and an hpcrl built with CUDA; run `make gpu` on a machine with a GPU")
        return 2
    if arguments.json == default_results_path():  # that is named for the CPU
        arguments.json = gpu_results_path()
    bench = Bench()
    results = [beside_the_copy(size, arguments.repeats, arguments.rounds) for size in SIZES]
    for result in [*results, small_call(arguments.repeats)]:
        bench.publish(result, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
