"""GAE over packed trajectories: beside the memory's limit at 16M steps, beside step loops at 2M steps.

The limit is a stream of the same shape, two arrays in and two out, 16 bytes a step, with almost no arithmetic: the
fastest of ordinary and non-temporal stores, upwards and downwards. Trajectories have 1 to 1023 steps, 512 on average.
Every time is the least of the interleaved repeats: a stream has no luck, only disturbance.

    OMP_NUM_THREADS=1 python benchmarks/bench_recurrence.py --json
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from harness import Bench, Result, add_arguments, interleave
from peers import gae_loops

from hpcrl import _kernels
from hpcrl.ops.recurrence import gae

GAMMA, GAE_LAMBDA = 0.99, 0.95
BYTES_PER_STEP = 16
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Packed inputs and outputs, each aligned to a cache line."""

    rewards: Float32
    values: Float32
    advantages: Float32
    returns: Float32
    bootstrap_values: Float32
    offsets: npt.NDArray[np.int64]

    def run(self, num_threads: int = 1) -> None:
        gae(
            self.rewards, self.values, self.bootstrap_values, self.offsets, gamma=GAMMA, gae_lambda=GAE_LAMBDA,
            out=self.advantages, returns_out=self.returns, num_threads=num_threads,
        )  # fmt: skip

    def stream(self, nontemporal: bool, descending: bool, num_threads: int = 1) -> None:
        _kernels.stream(
            self.rewards, self.values, self.advantages, self.returns, nontemporal, descending, num_threads
        )  # fmt: skip


def aligned(length: int) -> Float32:
    room = np.zeros(4 * length + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * length].view(np.float32)


def packed(num_steps: int) -> Batch:
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(1, 1024, size=num_steps // 256))
    offsets = np.concatenate([[0], ends[ends < num_steps], [num_steps]]).astype(np.int64)
    arrays = [aligned(num_steps) for _ in range(4)]
    for array in arrays[:2]:
        array[:] = rng.standard_normal(num_steps, dtype=np.float32)
    # Terminated everywhere: the step loops of others know no bootstrap value.
    return Batch(*arrays, np.zeros(len(offsets) - 1, np.float32), offsets)


def seconds_of(call: Callable[[], object], rounds: int = 1) -> float:
    """Least seconds of one call; a first one, not counted, brings caches into the state that the call leaves."""
    call()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def least_seconds(candidates: Mapping[str, Callable[[], object]], repeats: int, rounds: int = 1) -> dict[str, float]:
    timed = {name: partial(seconds_of, call, rounds) for name, call in candidates.items()}
    return {name: min(samples) for name, samples in interleave(timed, repeats=repeats).items()}


def beside_the_stream(num_steps: int, num_threads: int, repeats: int) -> Result:
    batch = packed(num_steps)
    forms = list(itertools.product((False, True), repeat=2))
    names = {f"stream, {'non-temporal' if n else 'stored'}, {'down' if d else 'up'}": (n, d) for n, d in forms}
    candidates: dict[str, Callable[[], object]] = {
        name: partial(batch.stream, *form, num_threads) for name, form in names.items()
    }
    candidates["gae"] = partial(batch.run, num_threads)
    seconds = least_seconds(candidates, repeats)
    limit = min(seconds[name] for name in names)
    ratio = limit / seconds["gae"]
    return Result(
        name=f"recurrence_stream_{num_steps >> 20}M_{num_threads}_threads",
        rows=[
            {"candidate": name, "ms": 1e3 * s, "GB/s": BYTES_PER_STEP * num_steps / s / 1e9, "of limit": limit / s}
            for name, s in seconds.items()
        ],
        peer="the fastest stream of the same shape",
        ratio=ratio,
        wanted="at least 0.75",
        met=ratio >= 0.75,
        notes=[f"{len(batch.offsets) - 1} trajectories; instruction set {_kernels.isa()}; least of {repeats} repeats"],
    )


def beside_the_loops(num_steps: int, repeats: int) -> list[Result]:
    batch = packed(num_steps)
    rewards, values = (gae_loops.pad(field, batch.offsets) for field in (batch.rewards, batch.values))
    mask = gae_loops.pad(np.ones(num_steps, np.float32), batch.offsets)
    outputs = np.empty((2, num_steps), np.float32)
    numba_arguments = (batch.bootstrap_values, batch.offsets, np.float32(GAMMA), np.float32(GAE_LAMBDA))
    loops: dict[str, Callable[[], object]] = {
        "PyTorch loop (TRL)": partial(gae_loops.trl_loop, rewards, values, GAMMA, GAE_LAMBDA),
        "PyTorch loop (verl)": partial(gae_loops.verl_loop, rewards, values, mask, GAMMA, GAE_LAMBDA),
        "numba loop, float32": partial(gae_loops.numba_loop, batch.rewards, batch.values, *numba_arguments, *outputs),
    }
    check(batch, loops, mask.numpy() > 0, outputs[0])
    seconds = least_seconds({"gae": batch.run}, repeats, rounds=20)
    slow = least_seconds({**loops, "gae": batch.run}, repeats)
    seconds = {**slow, "gae": min(seconds["gae"], slow["gae"])}
    rows = [{"candidate": name, "ms": 1e3 * s, "times gae": s / seconds["gae"]} for name, s in seconds.items()]
    torch_ratio = min(seconds["PyTorch loop (TRL)"], seconds["PyTorch loop (verl)"]) / seconds["gae"]
    numba_ratio = seconds["numba loop, float32"] / seconds["gae"]
    size = f"{num_steps >> 20}M"
    notes = [
        f"{rewards.shape[0]} trajectories, padded to {rewards.shape[1]} steps for the PyTorch loops; 1 thread each"
    ]
    return [
        Result(
            name=f"recurrence_torch_{size}",
            rows=rows,
            peer="the faster PyTorch step loop",
            ratio=torch_ratio,
            wanted="at least 50",
            met=torch_ratio >= 50,
            notes=notes,
        ),
        Result(
            name=f"recurrence_numba_{size}",
            rows=rows,
            peer="a numba loop in float32",
            ratio=numba_ratio,
            wanted="at least 3",
            met=numba_ratio >= 3,
            notes=notes,
        ),
    ]


def check(batch: Batch, loops: Mapping[str, Callable[[], object]], mask: npt.NDArray[np.bool_], out: Float32) -> None:
    """All candidates compute the same advantages."""
    batch.run()
    for name, loop in loops.items():
        result = loop()
        given = out if result is None else np.asarray(result[0])[mask]  # type: ignore[index]
        if not gae_loops.same_as(batch.advantages, given):
            raise SystemExit(f"{name}: its advantages differ from those of hpcrl.ops.recurrence.gae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeats=12)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    bench = Bench()
    for num_threads in (1, 2):
        bench.publish(beside_the_stream(1 << 24, num_threads, arguments.repeats), arguments.json)
    for result in beside_the_loops(1 << 21, arguments.repeats):
        bench.publish(result, arguments.json)


if __name__ == "__main__":
    main()
