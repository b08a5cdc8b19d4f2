"""Named points at which a test can kill this process, to prove that nothing half-done is ever read as done."""

from __future__ import annotations

import os
import signal
from collections import Counter

from hpcrl.errors import InputError
from hpcrl.store.processes import local_launcher

_DOCUMENTS = ("part", "manifest", "progress", "pipeline", "launch", "lease", "claim", "job", "end", "halted")
_PUBLISH_STEPS = (
    "before_write",
    "after_write",
    "before_fsync",
    "after_fsync",
    "before_link",
    "after_link",
    "before_fsync_folder",
    "after_fsync_folder",
)
_FILE_STEPS = ("before_write", "after_write", "before_fsync", "after_fsync")

ALL_POINTS: tuple[str, ...] = (
    *(f"{document}.{step}" for document in _DOCUMENTS for step in _PUBLISH_STEPS),
    *(f"{file}.{step}" for file in ("shard", "checkpoint") for step in _FILE_STEPS),
    "shard.between_fields",
    "attempt.before_mkdir",
    "attempt.after_mkdir",
    "attempt.before_fsync",
    "attempt.after_fsync",
    "metrics.before_write",
    "metrics.after_write",
    "progress.before_drop_older",
    "progress.after_drop_older",
    "retention.before_unpublish",
    "retention.after_unpublish",
    "retention.between_deletes",
    "retention.after_delete",
    "leftovers.between_deletes",
    "leftovers.after_delete",
    "optimizer.before_step",
    "optimizer.after_step",
)
"""Every point that code passes; other names are refused, so that a misspelt test cannot pass by doing nothing."""

_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


class _Killer:
    """Kills at the n-th passage of one point."""

    def __init__(self, target: str, victim: int | None = None) -> None:
        self.point, _, passage = target.partition(":")
        if self.point not in ALL_POINTS:
            raise InputError(f"HPCRL_KILL_AT: want one of {', '.join(ALL_POINTS)}, given {self.point!r}")
        if passage and not (passage.isdecimal() and int(passage) >= 1):
            raise InputError(f"HPCRL_KILL_AT: want 'point' or 'point:n' with n >= 1, given {target!r}")
        self.passage = int(passage or 1)
        self.victim = os.getpid() if victim is None else victim
        self.passed: Counter[str] = Counter()

    def reach(self, point: str) -> None:
        if point not in ALL_POINTS:
            raise InputError(f"kill point {point!r} is not listed in ALL_POINTS; add it there")
        self.passed[point] += 1
        if point == self.point and self.passed[point] == self.passage:
            os.kill(self.victim, signal.SIGKILL)


def _killer_from_environment() -> _Killer | None:
    target = os.environ.get("HPCRL_KILL_AT")
    if not target:
        return None
    wanted_rank = os.environ.get("HPCRL_KILL_RANK")
    rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), "0")
    victim = os.environ.get("HPCRL_KILL_VICTIM") or "self"
    if victim not in ("self", "launcher"):
        raise InputError(f"HPCRL_KILL_VICTIM: want 'self' or 'launcher', given {victim!r}")
    launcher = local_launcher()
    if victim == "launcher" and launcher is None:
        return None  # the launcher itself, which passes no point
    killer = _Killer(target, launcher.pid if victim == "launcher" and launcher is not None else None)
    return killer if wanted_rank in (None, "", rank) else None


_killer = _killer_from_environment()


def reach(point: str) -> None:
    """Passes a named point; SIGKILLs this process when HPCRL_KILL_AT chooses it.

    HPCRL_KILL_AT is "point" or "point:n" (the n-th passage in this process), HPCRL_KILL_RANK narrows it to one rank,
    HPCRL_KILL_VICTIM=launcher kills the process that started the ranks instead of this one. All are read once, when
    this module is imported; without them a passage costs one comparison.
    """
    if _killer is not None:
        _killer.reach(point)
