"""Pong: hpcrl end to end against a plain PPO loop, and hpcrl's collection against what collecting costs at least.

    python benchmarks/bench_pong.py end-to-end --json
    python benchmarks/bench_pong.py collection --json

End to end: same network, batch, epochs and minibatches; hpcrl on 2 ranks of 1 thread, shards and checkpoints
written, against the loop (peers/pong_loop.py) on 1 thread and on 2.  bfloat16 has rows of its own.  Collection: a
policy that costs nothing (uniform random) against the bare engine stepping as many environments on as many cores,
and the network's policy against 1 / (engine time + forward time); shard writing, bookkeeping and bootstrap values
are in hpcrl's rates. One agent step is four frames of the game. One iteration warms up; then 2 (end to end, of four
seconds each) or 8 (collection, of a third of a second each) are timed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness import Bench, Result, add_arguments, interleave
from programs import run_peer

Record = Mapping[str, Any]

NUM_BLOCKS = 4
WANTED_AGAINST = {"loop, 1 thread": 1.7, "loop, 2 threads": 1.05}
WANTED_COLLECTION = 0.9
TIMED_ITERATIONS = {"end-to-end": 2, "collection": 8}
"""A rollout alone takes a third of a second, and a process grows its heap in its first two (packing then takes 12 ms
instead of 1): eight of them are a time, two were not. No episode of Pong ends within nine times 64 steps."""


def run_loop(arguments: argparse.Namespace, threads: int, autocast: str | None, memory_format: str) -> Record:
    """The plain loop with the numbers that hpcrl gets."""
    return run_peer(
        "pong_loop",
        threads=threads,
        torch_threads=threads,
        autocast=autocast,
        memory_format=memory_format,
        num_envs=arguments.num_envs,
        num_steps=arguments.num_steps,
        num_epochs=arguments.num_epochs,
        num_minibatches=arguments.num_minibatches,
        iterations=arguments.iterations,
    )


def run_hpcrl(arguments: argparse.Namespace, autocast: str | None) -> Record:
    """hpcrl's training at the same numbers: `steps_per_second` and `<stage>_share`."""
    from hpcrl_runs import pong

    return pong(
        ranks=2,
        autocast=autocast,
        num_envs=arguments.num_envs,
        num_steps=arguments.num_steps,
        num_epochs=arguments.num_epochs,
        num_minibatches=arguments.num_minibatches,
        iterations=arguments.iterations,
    )


def end_to_end_candidates(arguments: argparse.Namespace) -> dict[str, Callable[[], Record]]:
    """Row name -> run."""
    loop, hpcrl = functools.partial(run_loop, arguments), functools.partial(run_hpcrl, arguments)
    candidates: dict[str, Callable[[], Record]] = {
        "hpcrl, 2 ranks": functools.partial(hpcrl, None),
        "loop, 1 thread": functools.partial(loop, 1, None, "contiguous"),
        "loop, 2 threads": functools.partial(loop, 2, None, "contiguous"),
        "loop, 2 threads, channels last": functools.partial(loop, 2, None, "channels_last"),
    }
    if not arguments.skip_bf16:
        candidates["hpcrl, 2 ranks, bf16"] = functools.partial(hpcrl, "bf16")
        candidates["loop, 2 threads, bf16"] = functools.partial(loop, 2, "bf16", "contiguous")
    if arguments.peers_only:
        candidates = {name: run for name, run in candidates.items() if not name.startswith("hpcrl")}
    return candidates


def end_to_end(bench: Bench, arguments: argparse.Namespace) -> None:
    """Agent steps per second of whole iterations."""
    rates, rows = measure(end_to_end_candidates(arguments), arguments.repeats)
    notes = [
        f"{arguments.num_envs} environments x {arguments.num_steps} steps, {arguments.num_epochs} epochs of "
        f"{arguments.num_minibatches} minibatches, Nature CNN; {arguments.iterations} timed iterations",
        "such loops leave the memory format and bf16 alone; their rows show what the formats give by themselves",
    ]
    if arguments.peers_only:
        bench.publish(Result(name="pong_peers", rows=rows, peer="-", notes=notes), arguments.json)
        return
    for peer, wanted in WANTED_AGAINST.items():
        ratio = rates["hpcrl, 2 ranks"] / rates[peer]
        result = Result(
            name=f"pong_end_to_end_against_{'1_thread' if '1' in peer else '2_threads'}",
            rows=rows,
            peer=peer,
            ratio=ratio,
            wanted=f"at least {wanted}",
            met=ratio >= wanted,
            notes=notes,
        )
        bench.publish(result, arguments.json)


def run_collection(arguments: argparse.Namespace, policy: str) -> Record:
    """hpcrl's Rollout stage alone, shards written."""
    from hpcrl_runs import pong_collection

    return pong_collection(
        policy=policy,
        ranks=2,
        num_envs=arguments.num_envs,
        num_steps=arguments.num_steps,
        iterations=arguments.iterations,
    )


def run_limits(arguments: argparse.Namespace, what: str) -> Record:
    """The bare engine, or engine and forward, with hpcrl's blocks on as many processes."""
    record = run_peer(
        "pong_limits",
        threads=1,
        processes=2,
        blocks=NUM_BLOCKS // 2,
        lanes=arguments.num_envs // NUM_BLOCKS,
        steps=arguments.num_steps * arguments.iterations,
    )
    return {"steps_per_second": record[f"{what}_steps_per_second"]}


def collection(bench: Bench, arguments: argparse.Namespace) -> None:
    """Agent steps per second of collecting alone."""
    limits = functools.partial(run_limits, arguments)
    candidates: dict[str, Callable[[], Record]] = {
        "bare engine, random": functools.partial(limits, "engine"),
        "engine and forward": functools.partial(limits, "engine_and_forward"),
    }
    if not arguments.peers_only:
        candidates["hpcrl, random"] = functools.partial(run_collection, arguments, "random")
        candidates["hpcrl, network"] = functools.partial(run_collection, arguments, "model")
    rates, rows = measure(candidates, arguments.repeats)
    notes = [
        f"{NUM_BLOCKS} blocks of {arguments.num_envs // NUM_BLOCKS} environments on 2 processes of 1 thread, "
        f"{arguments.num_steps} steps; {arguments.iterations} timed iterations"
    ]
    if arguments.peers_only:
        bench.publish(Result(name="pong_collection_limits", rows=rows, peer="-", notes=notes), arguments.json)
        return
    for name, ours, limit in (
        ("pong_collection_random", "hpcrl, random", "bare engine, random"),
        ("pong_collection_network", "hpcrl, network", "engine and forward"),
    ):
        ratio = rates[ours] / rates[limit]
        result = Result(
            name=name,
            rows=rows,
            peer=limit,
            ratio=ratio,
            wanted=f"at least {WANTED_COLLECTION}",
            met=ratio >= WANTED_COLLECTION,
            notes=notes,
        )
        bench.publish(result, arguments.json)


def measure(
    candidates: Mapping[str, Callable[[], Record]], repeats: int
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Median rates, and a row for each candidate with its spread and its median shares."""
    records = interleave(candidates, repeats=repeats)
    rows = [_row(name, found) for name, found in records.items()]
    return {str(row["candidate"]): float(str(row["steps_per_second"])) for row in rows}, rows


def _row(name: str, records: Sequence[Record]) -> dict[str, object]:
    rates = [float(record["steps_per_second"]) for record in records]
    shares = [key for key in records[0] if key.endswith("_share")]
    return {
        "candidate": name,
        "steps_per_second": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        **{share: statistics.median(float(record[share]) for record in records) for share in shares},
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("end-to-end", "collection"))
    add_arguments(parser, repeats=3)
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--num-steps", type=int, default=64)
    parser.add_argument("--num-epochs", type=int, default=4)
    parser.add_argument("--num-minibatches", type=int, default=8)
    parser.add_argument("--iterations", type=int, help="timed iterations, after one that warms up (2; collection: 8)")
    parser.add_argument("--skip-bf16", action="store_true")
    parser.add_argument("--peers-only", action="store_true", help="leave hpcrl out")
    arguments = parser.parse_args()
    if arguments.iterations is None:
        arguments.iterations = TIMED_ITERATIONS[arguments.what]
    if arguments.num_envs % NUM_BLOCKS:
        parser.error(f"--num-envs: want a multiple of {NUM_BLOCKS} (the blocks), given {arguments.num_envs}")
    (end_to_end if arguments.what == "end-to-end" else collection)(Bench(), arguments)


if __name__ == "__main__":
    main()
