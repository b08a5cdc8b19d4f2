"""Time to solve CartPole: hpcrl against a plain PPO loop and Stable-Baselines3, ten seeds, interleaved.

    python benchmarks/bench_cartpole.py --json
    python benchmarks/bench_cartpole.py --compare-threads      # which number of PyTorch threads suits each peer

Solved: mean greedy return of at least 475 over 20 episodes in three evaluations in a row, one evaluation every
2,560 environment steps (peers/target.py).  The time runs from the first environment step to the target; imports and
evaluations are left out for all, hpcrl's shards and checkpoints are in it.  Each tool has hyper-parameters of its
own, and they are in the repository before the seeds are drawn; the seeds 100 to 179, on which hpcrl's were chosen,
are never drawn.
"""

from __future__ import annotations

import argparse
import functools
import math
import secrets
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness import Bench, Result, add_arguments, interleave
from programs import run_peer

Record = Mapping[str, Any]

# PyTorch threads of each peer: matrices this small gain nothing from a second one; `--compare-threads` measures it.
PEER_THREADS = {"cartpole_loop": 1, "cartpole_sb3": 1}
CHOSEN_ON = frozenset(range(100, 180))
WANTED_RATIO = 0.5


def draw_seeds(count: int) -> list[int]:
    """Fresh seeds below 100,000, none of them one that hyper-parameters were chosen on."""
    seeds: list[int] = []
    while len(seeds) < count:
        seed = secrets.randbelow(100_000)
        if seed not in CHOSEN_ON and seed not in seeds:
            seeds.append(seed)
    return seeds


def run_hpcrl(seed: int) -> Record:
    """hpcrl's own record, in the form of the peers' and with `stages`: seconds by stage."""
    from hpcrl_runs import cartpole

    return cartpole(seed=seed, ranks=2)


def tools() -> dict[str, Callable[[int], Record]]:
    """Everything that is measured: name -> run of one seed."""
    peers: dict[str, Callable[[int], Record]] = {
        name: functools.partial(_run_peer, name, threads) for name, threads in PEER_THREADS.items()
    }
    return {"hpcrl": run_hpcrl, **peers}


def _run_peer(name: str, threads: int, seed: int) -> Record:
    return run_peer(name, threads=threads, seed=seed, torch_threads=threads)


def run_all(names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Record]]:
    """Seed by seed, all tools in turn, the order reversed every second seed."""
    remaining = {name: iter(seeds) for name in names}
    runs = tools()

    def run(name: str) -> Record:
        record = runs[name](next(remaining[name]))
        outcome = "solved" if record["reached"] else "NOT solved"
        print(
            f"{name} seed {record['seed']}: {outcome}, {record['train_seconds']:.2f} s, {record['steps']} steps",
            flush=True,
        )
        return record

    return interleave({name: functools.partial(run, name) for name in names}, repeats=len(seeds))


def summary_row(name: str, records: Sequence[Record]) -> dict[str, object]:
    """One tool's seeds in one line; a seed that was not solved counts as infinitely long."""
    seconds = [_seconds(record) for record in records]
    with_evaluations = [_seconds(record, "seconds_with_evaluations") for record in records]
    return {
        "tool": name,
        "solved": f"{sum(bool(record['reached']) for record in records)}/{len(records)}",
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "median_s_with_evaluations": statistics.median(with_evaluations),
        "median_steps": statistics.median(record["steps"] for record in records),
        "seconds": [round(value, 3) for value in seconds],
        "steps": [record["steps"] for record in records],
    }


def _seconds(record: Record, what: str = "train_seconds") -> float:
    return float(record[what]) if record["reached"] else math.inf


def stage_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """Where hpcrl's time goes: median seconds and share of each stage over the seeds."""
    total = statistics.median(record["train_seconds"] for record in records)
    names = list(dict.fromkeys(stage for record in records for stage in record["stages"]))
    medians = {name: statistics.median(record["stages"].get(name, 0.0) for record in records) for name in names}
    return [{"stage": name, "median_s": seconds, "share": seconds / total} for name, seconds in medians.items()]


def compare_tools(bench: Bench, arguments: argparse.Namespace) -> None:
    """The benchmark itself."""
    seeds = arguments.seeds or draw_seeds(arguments.count)
    print(f"seeds: {' '.join(map(str, seeds))}", flush=True)
    records = run_all(arguments.tools, seeds)
    rows = [summary_row(name, found) for name, found in records.items()]
    medians = {str(row["tool"]): float(str(row["median_s"])) for row in rows}
    peers = {name: median for name, median in medians.items() if name != "hpcrl"}
    if "hpcrl" not in medians or not peers:
        bench.publish(Result(name="cartpole_peers", rows=rows, peer="-", notes=_notes(seeds)), arguments.json)
        return
    better = min(peers, key=lambda name: peers[name])
    ratio = medians["hpcrl"] / peers[better]
    bench.publish(
        Result(name="cartpole_stages", rows=stage_rows(records["hpcrl"]), peer="hpcrl's own total"), arguments.json
    )
    result = Result(
        name="cartpole",
        rows=rows,
        peer=f"{better} (median seconds)",
        ratio=ratio,
        wanted=f"at most {WANTED_RATIO}",
        met=ratio <= WANTED_RATIO,
        notes=_notes(seeds),
    )
    bench.publish(result, arguments.json)


def _notes(seeds: Sequence[int]) -> list[str]:
    return [
        f"seeds {' '.join(map(str, seeds))}",
        f"PyTorch threads of the peers: {PEER_THREADS}; hpcrl: 2 ranks of 1 thread",
    ]


def compare_threads(bench: Bench, arguments: argparse.Namespace) -> None:
    """Each peer at 1 and 2 PyTorch threads on seeds that the benchmark never draws."""
    seeds = arguments.seeds or [100, 101, 102]
    rows: list[dict[str, object]] = []
    for name in PEER_THREADS:
        candidates = {threads: iter(seeds) for threads in (1, 2)}
        calls = {str(t): functools.partial(_next_seed, name, t, candidates[t]) for t in candidates}
        for threads, records in interleave(calls, repeats=len(seeds)).items():
            milliseconds = [1e3 * record["train_seconds"] / record["steps"] for record in records]
            rows.append(
                {**summary_row(name, records), "threads": threads, "ms_per_step": statistics.median(milliseconds)}
            )
    notes = ["steps per second decide: another thread count re-associates sums and so trains another network"]
    bench.publish(Result(name="cartpole_threads", rows=rows, peer="-", notes=notes), arguments.json)


def _next_seed(name: str, threads: int, seeds: Any) -> Record:
    return _run_peer(name, threads, next(seeds))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeats=None)
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds instead of freshly drawn ones")
    parser.add_argument("--count", type=int, default=10, help="how many seeds to draw")
    parser.add_argument("--tools", nargs="+", choices=("hpcrl", *PEER_THREADS), default=["hpcrl", *PEER_THREADS])
    parser.add_argument("--compare-threads", action="store_true")
    arguments = parser.parse_args()
    bench = Bench()
    (compare_threads if arguments.compare_threads else compare_tools)(bench, arguments)


if __name__ == "__main__":
    main()
