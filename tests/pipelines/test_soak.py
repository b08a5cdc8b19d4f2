"""The soak: a hundred kills of CartPole's training on two ranks, and the bits of an unbroken run at the end.

HPCRL_SOAK_KILLS and HPCRL_SOAK_SEED make it shorter or another one; HPCRL_SOAK_LOG is where the log goes.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hpcrl.store.machine import machine_facts
from hpcrl.store.metrics import read_metrics
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.killing import POINTS, Shot, draw_shots, shoot
from tests.pipelines.runs import ROOT, hpcrl
from tests.pipelines.test_kill import CARTPOLE, assert_same

KILLS = int(os.environ.get("HPCRL_SOAK_KILLS", "100"))
SEED = int(os.environ.get("HPCRL_SOAK_SEED", "1"))
RANKS = 2
COMMAND = ("run", CARTPOLE, "--on", "mpi", "--ranks", RANKS, "--num-iterations", 60, "--learning-rate", 1e-4)
"""A lower learning rate than the pipeline's own: with that it is solved in seven iterations, with this in 24."""
# Progress is saved in long updates only: CartPole's take a fifth of a second. test_kill.py has chains for these points.
REACHED = tuple(point for point in POINTS if not point.startswith("progress."))

Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """Prints past pytest's capture, and into the log where one is kept: always for the full soak."""
    default = ROOT / "benchmarks" / "results" / "soak.log" if KILLS >= 100 else os.devnull
    path = Path(os.environ.get("HPCRL_SOAK_LOG", default))
    with open(path, "w", encoding="utf-8") as log:

        def print_line(line: str) -> None:
            print(line, file=log, flush=True)
            with capsys.disabled():
                print(line, flush=True)

        yield print_line


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_kills(say: Say, tmp_path: Path) -> None:
    unbroken = tmp_path / "unbroken"
    began = time.monotonic()
    done = hpcrl(*COMMAND, "--run", unbroken, timeout=1200)
    assert done.code == 0, done.output
    stages = stage_seconds(unbroken)
    horizon = sum(stages) / 4
    facts = machine_facts(1)
    command = " ".join(str(word).removeprefix(f"{ROOT}/") for word in COMMAND)
    say(f"# soak of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {KILLS} kills of 'hpcrl {command}'")
    say(f"# seed {SEED}, {facts['cpu']}, {os.cpu_count()} cores, hpcrl {facts['versions']['hpcrl']}")
    say(f"# unbroken: {time.monotonic() - began:.1f} s, {len(stages)} stages, the longest {max(stages):.2f} s")
    say("# number  iteration  exit code  lost s  gone after s  who and where")
    lost = []
    rounds = itertools.count(1)
    run = tmp_path / f"run-{next(rounds)}"
    targets = Targets(horizon)
    for shot in targets:
        wound = shoot([*COMMAND, "--run", run], run, shot)
        if not wound.hit:
            say(f"# done before: {shot}; compared with the unbroken run: the same bits")
            assert_same(run, unbroken)
            shutil.rmtree(run)
            run = tmp_path / f"run-{next(rounds)}"
            targets.missed(shot)
            continue
        lost.append(wound.lost_seconds)
        iteration = max(RunFolder(run).iterations(), default=0)
        say(
            f"{len(lost):8d}  {iteration:9d}  {wound.code:9d}  {wound.lost_seconds:6.2f}  {wound.ended_seconds:12.2f}  "
            f"{shot}"
        )
        if len(lost) == KILLS:
            break
    done = hpcrl(*COMMAND, "--run", run, timeout=1200)
    assert done.code == 0, done.output
    assert_same(run, unbroken)
    say(f"# the last run, {next(rounds) - 1} in all, ended by itself: the same bits, nothing left over")
    say(
        f"# time lost to a kill: median {statistics.median(lost):.2f} s, most {max(lost):.2f} s; longest stage "
        f"{max(stages):.2f} s; {time.monotonic() - began:.0f} s in all"
    )
    assert len(lost) == KILLS


class Targets:
    """Two shots in five at times, the rest at points, without end; a miss comes again, sooner or at a first passage."""

    def __init__(self, horizon_seconds: float) -> None:
        self._horizon = horizon_seconds
        self._seeds = itertools.count(SEED)
        self._shots: deque[Shot] = deque()

    def __iter__(self) -> Targets:
        return self

    def __next__(self) -> Shot:
        if not self._shots:
            at_times = (2 * KILLS) // 5
            self._shots.extend(
                draw_shots(
                    next(self._seeds),
                    at_times=at_times,
                    at_points=KILLS - at_times,
                    points=REACHED,
                    horizon_seconds=self._horizon,
                    ranks=RANKS,
                )
            )
        return self._shots.popleft()

    def missed(self, shot: Shot) -> None:
        """The run had ended before."""
        if shot.seconds is not None:
            self._shots.appendleft(dataclasses.replace(shot, seconds=shot.seconds / 2))
        elif shot.point is not None and not shot.point.endswith(":1"):
            self._shots.appendleft(dataclasses.replace(shot, point=shot.point.split(":")[0] + ":1"))


def stage_seconds(path: Path) -> list[float]:
    """How long each stage of a run took."""
    return [row["ended"] - row["began"] for row in read_metrics(RunFolder.open(path)) if "began" in row]
