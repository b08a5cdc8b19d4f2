"""SLURM jobs on an idle dev cluster: submission, job to job, and what a policy lag of one update overlaps.

    python benchmarks/bench_slurm.py --json

Brings up slurm/dev-cluster for itself (slurm/install-packages first). Submission: `hpcrl run --on sbatch` of a run of
1,000 iterations, the whole command. Job to job: from the end of a stage's work to the first useful work of the next
stage, in another job: writing and publishing, the scheduler, starting Python, importing PyTorch and repairing are in
it. Overlap: stand-in stages of 20 s (benchmarks/timed/slow_stages.py), the whole run from its first stage to its last
publication, with policy_lag 1 against 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Bench, Result, add_arguments
from hpcrl_runs import seconds_from_first_step
from programs import BENCHMARKS

from hpcrl.store.metrics import read_metrics
from hpcrl.store.run_folder import RunFolder

PIPELINE = BENCHMARKS / "timed" / "slow_stages.py"
WANTED_SUBMISSION_SECONDS, WANTED_GAP_SECONDS, WANTED_OVERLAP = 2.0, 5.0, 0.6


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of commands that talk to a cluster of their own."""
    dev_cluster = BENCHMARKS.parent / "slurm" / "dev-cluster"
    subprocess.run([dev_cluster, "up", "--folder", folder, "--nodes", "4"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield {**os.environ, "SLURM_CONF": str(folder / "etc" / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    finally:
        subprocess.run([dev_cluster, "down", "--folder", folder], check=True, stdout=subprocess.DEVNULL)


def hpcrl(environment: dict[str, str], *arguments: object) -> float:
    """Seconds of one command."""
    words = [sys.executable, "-m", "hpcrl.cli", *map(str, arguments)]
    began = time.perf_counter()
    subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def play(environment: dict[str, str], path: Path, *options: object, timeout_seconds: float) -> RunFolder:
    """A whole run through sbatch; returns when its last update is published."""
    hpcrl(environment, "run", PIPELINE, "--on", "sbatch", "--run", path, *options)
    run = RunFolder.open(path)
    last = int(run.pipeline()["pipeline"]["num_iterations"]) - 1
    deadline = time.monotonic() + timeout_seconds
    while not run.stage(last, "update").is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path}: not finished after {timeout_seconds} s")
        time.sleep(0.2)
    return run


def gaps(run: RunFolder) -> list[float]:
    """Seconds from the end of a rollout to the advantage behind it, and from an update to the next rollout."""
    rows = {(row["iteration"], row["stage"]): row for row in read_metrics(run)}
    found = []
    for iteration in run.iterations():
        found.append(rows[iteration, "advantage"]["began"] - rows[iteration, "rollout"]["ended"])
        if (iteration + 1, "rollout") in rows:
            found.append(rows[iteration + 1, "rollout"]["began"] - rows[iteration, "update"]["ended"])
    return found


def measure_submission(bench: Bench, environment: dict[str, str], folder: Path, repeats: int, json: object) -> None:
    seconds = []
    for repeat in range(repeats):
        run = folder / f"submitted-{repeat}"
        seconds.append(hpcrl(environment, "run", PIPELINE, "--on", "sbatch", "--num-iterations", 1000, "--run", run))
        hpcrl(environment, "cancel", run)
    median = statistics.median(seconds)
    rows: list[dict[str, object]] = [{"what": "hpcrl run --on sbatch", "median_s": median, "max_s": max(seconds)}]
    bench.publish(
        Result(
            name="slurm_submission", rows=rows, peer=f"the limit {WANTED_SUBMISSION_SECONDS} s",
            ratio=median / WANTED_SUBMISSION_SECONDS, wanted="at most 1", met=median <= WANTED_SUBMISSION_SECONDS,
            notes=["a run of 1,000 iterations; its first window is submitted, jobs submit the rest"],
        ),
        json,
    )  # fmt: skip


def measure_gaps(bench: Bench, environment: dict[str, str], folder: Path, json: object) -> None:
    run = play(environment, folder / "gaps", "--num-iterations", 6, "--seconds", 0, timeout_seconds=300)
    seconds = gaps(run)
    median = statistics.median(seconds)
    rows: list[dict[str, object]] = [
        {"jobs": len(seconds) + 1, "median_s": median, "min_s": min(seconds), "max_s": max(seconds)}
    ]
    bench.publish(
        Result(
            name="slurm_job_to_job", rows=rows, peer=f"the limit {WANTED_GAP_SECONDS} s",
            ratio=median / WANTED_GAP_SECONDS, wanted="at most 1", met=median <= WANTED_GAP_SECONDS,
        ),
        json,
    )  # fmt: skip


def measure_overlap(bench: Bench, environment: dict[str, str], folder: Path, iterations: int, json: object) -> None:
    seconds = {}
    for lag in (0, 1):
        run = play(
            environment, folder / f"lag-{lag}", "--policy-lag", lag, "--num-iterations", iterations,
            timeout_seconds=iterations * 120,
        )  # fmt: skip
        seconds[lag] = seconds_from_first_step(run)
    ratio = seconds[1] / seconds[0]
    rows: list[dict[str, object]] = [{"policy_lag": lag, "seconds": value} for lag, value in seconds.items()]
    bench.publish(
        Result(
            name="slurm_overlap", rows=rows, peer="policy_lag 0", ratio=ratio, wanted=f"at most {WANTED_OVERLAP}",
            met=ratio <= WANTED_OVERLAP, notes=[f"{iterations} iterations; rollouts and updates of 20 s, each a job"],
        ),
        json,
    )  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeats=5)
    parser.add_argument("--iterations", type=int, default=8, help="of the overlap")
    parser.add_argument("--only", choices=("submission", "gaps", "overlap"))
    arguments = parser.parse_args()
    bench = Bench()
    # Short: a socket's path below it must fit into 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="hpcrl-slurm-"))
    folder.chmod(0o755)
    try:
        with cluster(folder / "cluster") as environment:
            if arguments.only in (None, "submission"):
                measure_submission(bench, environment, folder, arguments.repeats, arguments.json)
            if arguments.only in (None, "gaps"):
                measure_gaps(bench, environment, folder, arguments.json)
            if arguments.only in (None, "overlap"):
                measure_overlap(bench, environment, folder, arguments.iterations, arguments.json)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
