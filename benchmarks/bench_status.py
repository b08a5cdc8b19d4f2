"""`hpcrl status` of a large run: 1,000 iterations of 10 stages of 64 shards, the whole command from a cold start.

Limit: 1 s, for a run of one world and for one that plays as jobs (a ledger, launches, leases), with the shards of
retention's newest iterations and with all 640,000 files in place. Cold: a new process each time, Python's start and all
imports included; the kernel's caches are as the command before left them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import Bench, Result, add_arguments, interleave, spread

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 1.0
ITERATIONS, BLOCKS = 1000, 64


def make_run(path: Path, *arguments: str) -> None:
    """A run as tests/report/large_run.py makes it."""
    command = [sys.executable, "-m", "tests.report.large_run", str(path), "--iterations", str(ITERATIONS)]
    subprocess.run([*command, "--blocks", str(BLOCKS), *arguments], check=True, cwd=ROOT, timeout=600)


def seconds_of(*command: str) -> Callable[[], float]:
    """Seconds that a command takes from its start to its end; it must succeed."""

    def run() -> float:
        began = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT)},  # the run's stand-in stages are in tests/report
        )
        return time.perf_counter() - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs are made (default: the temporary folder)")
    add_arguments(parser, repeats=5)
    arguments = parser.parse_args()
    bench = Bench()
    parent = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="status-"))
    kinds = {
        "one world, newest shards": (),
        "jobs, newest shards": ("--jobs",),
        "jobs, all 640,000 files": ("--jobs", "--files", "all"),
    }
    try:
        candidates = {
            "python -c 'import hpcrl.report.status'": seconds_of(sys.executable, "-c", "import hpcrl.report.status")
        }
        for number, (name, options) in enumerate(kinds.items()):
            make_run(parent / str(number), *options)
            candidates[name] = seconds_of(sys.executable, "-m", "hpcrl.cli", "status", str(parent / str(number)))
        samples = interleave(candidates, repeats=arguments.repeats, warmups=1)
    finally:
        shutil.rmtree(parent)
    rows = [{"run": name, **{f"{key} s": value for key, value in spread(samples[name]).items()}} for name in candidates]
    worst = max(spread(samples[name])["median"] for name in kinds)
    bench.publish(
        Result(
            name="status",
            rows=rows,
            peer=f"the limit {LIMIT_SECONDS:g} s",
            ratio=worst / LIMIT_SECONDS,
            wanted="at most 1",
            met=worst <= LIMIT_SECONDS,
        ),
        arguments.json,
    )


if __name__ == "__main__":
    main()
