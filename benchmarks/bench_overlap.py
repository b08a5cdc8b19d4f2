"""What a policy lag of one update gives on CartPole: rollouts and updates at once, one core each, in one MPI job.

    OMP_NUM_THREADS=1 python benchmarks/bench_overlap.py --json

Wall time from the first rollout to the last publication of 100 iterations of pipelines/ppo_cartpole.py without
evaluations: two meshes of one rank with policy_lag 1 against the same with policy_lag 0 (where they take turns).
Beside them one mesh of two ranks, which has no turns to take and may win.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable

from harness import Bench, Result, add_arguments, interleave
from hpcrl_runs import finished_run, seconds_from_first_step, stage_seconds
from programs import BENCHMARKS

Record = dict[str, float]
WANTED_RATIO = 0.7
CANDIDATES = {
    "two meshes, policy_lag 0": {"apart": True, "policy_lag": 0},
    "two meshes, policy_lag 1": {"apart": True, "policy_lag": 1},
    "one mesh of two ranks": {"apart": False, "policy_lag": 0},
}


def run(options: dict[str, object], iterations: int) -> Record:
    """Seconds of one run, and of its stages on rank 0 of their mesh."""
    pipeline = BENCHMARKS / "timed" / "cartpole_meshes.py"
    with finished_run(pipeline, ranks=2, num_iterations=iterations, **options) as folder:
        stages = stage_seconds(folder)
        return {"seconds": seconds_from_first_step(folder), **{f"{name}_s": value for name, value in stages.items()}}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeats=5)
    parser.add_argument("--iterations", type=int, default=100)
    arguments = parser.parse_args()
    bench = Bench()
    candidates: dict[str, Callable[[], Record]] = {
        name: functools.partial(run, dict(options), arguments.iterations) for name, options in CANDIDATES.items()
    }
    records = interleave(candidates, repeats=arguments.repeats)
    rows: list[dict[str, object]] = [
        {
            "candidate": name,
            **{key: statistics.median(record[key] for record in found) for key in found[0]},
            "min": min(record["seconds"] for record in found),
            "max": max(record["seconds"] for record in found),
        }
        for name, found in records.items()
    ]
    seconds = {str(row["candidate"]): float(str(row["seconds"])) for row in rows}
    ratio = seconds["two meshes, policy_lag 1"] / seconds["two meshes, policy_lag 0"]
    bench.publish(
        Result(
            name="overlap_cartpole",
            rows=rows,
            peer="policy_lag 0 on the same meshes",
            ratio=ratio,
            wanted=f"at most {WANTED_RATIO}",
            met=ratio <= WANTED_RATIO,
            notes=[f"{arguments.iterations} iterations, one thread a rank"],
        ),
        arguments.json,
    )


if __name__ == "__main__":
    main()
