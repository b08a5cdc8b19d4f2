"""Names of what lies in a run folder, in one place; docs/formats.md shows the tree."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
REMOVED = "removed.json"
METRICS = "metrics.jsonl"
JOBS = "jobs"
"""Folder of a run that holds the scripts and papers of its jobs."""
PAPERS = f"{JOBS}/jobs.json"
"""How the jobs of a submitted run are started."""


def iteration_name(iteration: int) -> str:
    """iteration_name(17) -> 'iteration-000017'."""
    return f"iteration-{iteration:06d}"


def attempt_name(number: int) -> str:
    """attempt_name(1) -> 'attempt-0001'."""
    return f"attempt-{number:04d}"


def part_name(index: int) -> str:
    """part_name(3) -> 'part-00003.json'."""
    return f"part-{index:05d}.json"


def progress_name(number: int) -> str:
    """progress_name(7) -> 'progress-000007.json'."""
    return f"progress-{number:06d}.json"


def shard_name(block: int) -> str:
    """shard_name(0) -> 'shard-00000.h5': a block's trajectories."""
    return f"shard-{block:05d}.h5"


def lanes_name(block: int) -> str:
    """lanes_name(0) -> 'lanes-00000.h5': where a block's episodes stand."""
    return f"lanes-{block:05d}.h5"


def numbered(folder: Path, pattern: str) -> list[int]:
    """The numbers in names like attempt-0003 or part-00001.json that match, ascending.

    Example:
        >>> numbered(Path("/nowhere"), "part-*.json")
        []
    """
    found = []
    for path in folder.glob(pattern):
        match = re.fullmatch(r"[a-z]+-(\d+)(\.json)?", path.name)
        if match:
            found.append(int(match.group(1)))
    return sorted(found)
