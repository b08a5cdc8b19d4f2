"""Killing runs: who dies, when or at which point, what that cost; the same command then goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcrl.errors import CorruptFileError
from hpcrl.store.documents import read_document
from hpcrl.store.killpoints import ALL_POINTS
from hpcrl.store.layout import METRICS
from hpcrl.store.metrics import read_rows
from hpcrl.store.processes import Process
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import ROOT, command, environment

Victim = Literal["one rank", "all ranks", "launcher"]
VICTIMS: tuple[Victim, ...] = ("one rank", "all ranks", "launcher")

POINTS = tuple(point for point in ALL_POINTS if point.split(".")[0] not in ("claim", "job", "end", "halted"))
"""What `hpcrl run` passes here: it keeps no ledger, for it submits nothing."""

_ONCE = ("pipeline.", "launch.", "lease.")
_ONLY_RANK_ZERO = (*_ONCE, "checkpoint.", "progress.", "metrics.", "leftovers.", "retention.")
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Shot:
    """One kill to come: `point` ("part.before_link:2"), or `seconds` after the first stage began."""

    victim: Victim
    rank: int
    point: str | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        who = f"rank {self.rank}" if self.victim == "one rank" else self.victim
        return f"{who} at {self.point}" if self.point is not None else f"{who} after {self.seconds:.2f} s"


@dataclass(frozen=True)
class Wound:
    """What a shot did."""

    code: int
    """Exit code of the command; negative: the signal that ended the launcher."""
    hit: bool
    """False: the run had ended before."""
    lost_seconds: float
    """Computed and not published when it died: what the next launch does again, at most."""
    ended_seconds: float
    """Until every process of the launch was gone."""


def draw_shots(
    seed: int, *, at_times: int, at_points: int, points: Sequence[str], horizon_seconds: float, ranks: int
) -> list[Shot]:
    """The kills of a campaign, shuffled: the same ones for the same seed (times scale with the horizon)."""
    numbers = random.Random(seed)
    shots = []
    for index in range(at_times + at_points):
        victim, rank = numbers.choice(VICTIMS), numbers.randrange(ranks)
        if index < at_times:
            shots.append(Shot(victim, rank, seconds=numbers.uniform(0.0, horizon_seconds)))
        else:
            point = numbers.choice(points)
            passage = 1 if point.startswith(_ONCE) else numbers.choice((1, 2, 3, 5, 8, 13))
            shots.append(Shot(victim, 0 if point.startswith(_ONLY_RANK_ZERO) else rank, point=f"{point}:{passage}"))
    numbers.shuffle(shots)
    return shots


def shoot(arguments: Sequence[object], run: Path, shot: Shot, *, timeout_seconds: float = 120) -> Wound:
    """Start the command, kill as the shot says, wait until all of its processes are gone."""
    variables = {}
    if shot.point is not None:
        variables["HPCRL_KILL_AT"] = shot.point
        if shot.victim != "all ranks":
            variables["HPCRL_KILL_RANK"] = str(shot.rank)
        if shot.victim == "launcher":
            variables["HPCRL_KILL_VICTIM"] = "launcher"
    output = run.with_name(f"{run.name}.output")
    with open(output, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command(*arguments), env=environment(**variables), cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT
        )
    deadline = time.time() + timeout_seconds
    began: float | None = None
    ranks: list[Process] = []
    while process.poll() is None and all(rank.is_alive() for rank in ranks):
        ranks = ranks or rank_processes(run)
        if began is None and "  iteration " in output.read_text():
            began = time.time()  # the first stage's first sign of life
        if began is not None and shot.seconds is not None and ranks and time.time() >= began + shot.seconds:
            _kill(process, ranks, shot)
            break
        if time.time() > deadline:
            process.kill()
            raise TimeoutError(f"{shot}: neither dead nor done after {timeout_seconds} s")
        time.sleep(_POLL_SECONDS)
    died = time.time()
    code = process.wait(timeout_seconds)
    ended = _wait_until_gone(ranks)
    assert code in (0, 1, -signal.SIGKILL), f"{shot}: exit code {code}:\n{output.read_text()}"
    if code == 0:
        return Wound(code, False, 0.0, ended)
    lost = died - max(began, kept_until(run)) if began is not None else 0.0
    return Wound(code, True, max(0.0, lost), ended)


def rank_processes(run: Path) -> list[Process]:
    """The ranks of the launch that holds the run, as its lease's notes name them."""
    for note in run.glob("lease.*.*.json"):
        with contextlib.suppress(FileNotFoundError, CorruptFileError):
            ranks = [Process(**process) for process in read_document(note, "processes")["processes"]]
            if any(rank.is_the_recorded_one() for rank in ranks):
                return ranks
    return []


def kept_until(path: Path) -> float:
    """When the newest stage whose manifest is there had been computed, or progress saved; in seconds since 1970.

    All that was computed later is computed again, whatever the write-behind was at.
    """
    times = [0.0]
    run = RunFolder(path)
    for stage in [stage for iteration in run.iterations()[-3:] for stage in run.stages(iteration)]:
        times += [progress.stat().st_mtime for progress in stage.path.glob("progress-*.json")]
        manifest = stage.manifest() or stage.removed()
        for attempt in manifest.attempts if manifest is not None else ():
            times += [row["ended"] for row in read_rows(stage.path / attempt / METRICS)]
    return max(times)


def _kill(process: subprocess.Popen[str], ranks: Sequence[Process], shot: Shot) -> None:
    chosen = {"one rank": [ranks[shot.rank].pid], "all ranks": [rank.pid for rank in ranks], "launcher": [process.pid]}
    for pid in chosen[shot.victim]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait_until_gone(ranks: Sequence[Process], timeout_seconds: float = 10.0) -> float:
    """Seconds until no rank is left; those that stay are the next launch's to end."""
    began = time.monotonic()
    while any(rank.is_alive() for rank in ranks) and time.monotonic() - began < timeout_seconds:
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - began
