"""Runs a measured program in a process of its own and takes the JSON record that it prints as its last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent


def run_peer(name: str, *, threads: int, **options: object) -> dict[str, Any]:
    """Record of `benchmarks/peers/<name>.py --option value ...`; `threads` bounds PyTorch's and OpenMP's threads.

    Options that are None are left out.
    """
    command = [sys.executable, str(BENCHMARKS / "peers" / f"{name}.py"), *as_flags(options)]
    return last_record(command, {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})


def as_flags(options: Mapping[str, object]) -> list[str]:
    """`num_envs=8` -> ["--num-envs", "8"]."""
    given = {name: value for name, value in options.items() if value is not None}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def last_record(command: list[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Runs a command and reads its last line of output; raises with the program's own words if it fails."""
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])}: exit code {finished.returncode}\n{finished.stderr[-3000:]}")
    record: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return record
