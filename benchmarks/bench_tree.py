"""The fixed tree of sums over blocks against MPI_Allreduce, whose order of additions is its own.

    python benchmarks/bench_tree.py --json

Two ranks, four blocks, float32 vectors of a small MLP's gradient (20 kB) and of the Nature CNN's (6.8 MB). Peer: each
rank adds its two blocks in NumPy, then MPI_Allreduce. `whole` and `segments` are the tree's two ways to exchange;
`tree` chooses between them by length, and its other rows show whether the choice is right. A barrier of each kind
shows what sleep-polling costs where the peer is microseconds away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Bench, Result, Row, add_arguments, interleave

from hpcrl.comm import Collectives, TreeSum, leave, open_world
from hpcrl.launch.ranks import is_rank, launch
from hpcrl.signals import DONE

NUM_BLOCKS = 4
RANKS = 2
VECTORS = {"mlp_64x64": 5_000, "between": 50_000, "nature_cnn": 1_690_000}
ADDITIONS_PER_SAMPLE = 40_000_000
PEER = "adds + MPI_Allreduce"

Samples = dict[str, list[float]]


def main() -> None:
    """Starts the ranks, reads what rank 0 measured and publishes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, repeats=7)
    parser.add_argument("--samples", type=Path, help=argparse.SUPPRESS)  # set for the ranks: where rank 0 writes
    arguments = parser.parse_args()
    if is_rank():
        measure_on_this_rank(arguments.repeats, arguments.samples)
    bench = Bench()
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.json"
        code = launch(
            ["--repeats", str(arguments.repeats), "--samples", str(samples)],
            on="mpi",
            ranks=RANKS,
            compute_threads=1,
            environment={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"},
            module="bench_tree",
        )
        if code != DONE:
            raise SystemExit(code)
        measured: dict[str, Samples] = json.loads(samples.read_text())
    rows = [row for vector, of_vector in measured.items() for row in table_rows(vector, of_vector)]
    largest = measured["nature_cnn"]
    ratio = statistics.median(largest["tree"]) / statistics.median(largest[PEER])
    notes = [
        f"{RANKS} ranks, {NUM_BLOCKS} blocks, shared memory; microseconds of one call, barriers included in neither"
    ]
    bench.publish(
        Result(name="tree_sum", rows=rows, peer=f"{PEER}, nature_cnn", ratio=ratio, notes=notes), arguments.json
    )


def table_rows(vector: str, samples: Samples) -> list[Row]:
    """One row per candidate: microseconds, and the ratio to the peer where there is one."""
    peer = statistics.median(samples[PEER]) if PEER in samples else None
    return [
        {
            "vector": vector,
            "bytes": 4 * VECTORS[vector] if vector in VECTORS else 0,
            "candidate": name,
            "median_us": round(1e6 * statistics.median(of_name), 1),
            "min_us": round(1e6 * min(of_name), 1),
            "max_us": round(1e6 * max(of_name), 1),
            "to_peer": None if peer is None else round(statistics.median(of_name) / peer, 2),
        }
        for name, of_name in samples.items()
    ]


def measure_on_this_rank(repeats: int, path: Path) -> None:
    """What each rank does: all candidates in turn; rank 0 writes the samples, seconds per call."""
    world = open_world()
    measured = {vector: measure_vector(world, size, repeats) for vector, size in VECTORS.items()}
    measured["barrier"] = measure_barriers(world, repeats)
    if world.rank == 0:
        path.write_text(json.dumps(measured))
    leave(world, DONE)


def measure_vector(world: Collectives, size: int, repeats: int) -> Samples:
    """Seconds of one sum of vectors of this size, by candidate."""
    from mpi4py import MPI

    trees = {
        "tree": TreeSum(world, NUM_BLOCKS),
        "whole": TreeSum(world, NUM_BLOCKS, segment_bytes=1 << 60),
        "segments": TreeSum(world, NUM_BLOCKS, segment_bytes=0),
    }
    leaves = [np.zeros(size, np.float32) for _ in trees["tree"].owned]  # zeros: they stay what they are
    out = np.empty(size, np.float32)
    partial = np.empty(size, np.float32)

    def add_and_allreduce() -> None:
        np.add(leaves[0], leaves[1], out=partial)
        MPI.COMM_WORLD.Allreduce(partial, out)

    candidates: dict[str, Callable[[], object]] = {
        name: lambda tree=tree: tree.sum(leaves, out=out) for name, tree in trees.items()
    }
    candidates[PEER] = add_and_allreduce
    calls = max(10, min(1000, ADDITIONS_PER_SAMPLE // (4 * size)))
    return measure(world, candidates, repeats, calls)


def measure_barriers(world: Collectives, repeats: int) -> Samples:
    """Seconds of one barrier of two ranks that come together."""
    from mpi4py import MPI

    return measure(world, {"sleep-polling": world.barrier, "MPI_Barrier": MPI.COMM_WORLD.Barrier}, repeats, 1000)


def measure(world: Collectives, candidates: dict[str, Callable[[], object]], repeats: int, calls: int) -> Samples:
    """Interleaved; each sample is the mean of `calls` calls after a common start."""

    def timed(call: Callable[[], object]) -> float:
        world.barrier()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls

    return interleave(
        {name: lambda call=call: timed(call) for name, call in candidates.items()}, repeats=repeats, warmups=1
    )


if __name__ == "__main__":
    main()
