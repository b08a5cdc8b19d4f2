"""Killed at any moment and started again by the same command, a run ends with the bits of an unbroken one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.launch.ranks import find_mpiexec
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.processes import Process
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard
from tests.pipelines.forked import forked
from tests.pipelines.killing import POINTS, Shot, rank_processes, shoot
from tests.pipelines.runs import ROOT, TINY, environment, hpcrl, leftovers, published_bits, published_facts

CARTPOLE = ROOT / "pipelines" / "ppo_cartpole.py"
SHORT = ("run", CARTPOLE, "--ranks", 2, "--on", "mpi", "--num-iterations", 6, "--num-envs", 16)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a kill keeps the page cache, so the disk would add nothing but time."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


def assert_same(run: Path, unbroken: Path) -> None:
    """All that was ever published is equal, every file that is there matches its checksums, nothing is left over."""
    assert published_bits(run) == published_bits(unbroken)
    for stage in ("rollout", "advantage", "update", "evaluate"):
        assert published_facts(run, stage) == published_facts(unbroken, stage)
    assert kept(run) == kept(unbroken)
    verify(run)
    assert leftovers(run) == []


def kept(path: Path) -> set[str]:
    """The stages whose files are still there."""
    run = RunFolder.open(path)
    stages = [stage for iteration in run.iterations() for stage in run.stages(iteration)]
    return {f"{stage.iteration}/{stage.stage}" for stage in stages if stage.manifest() is not None}


def verify(path: Path) -> None:
    """Every published file that is there against its checksums."""
    run = RunFolder.open(path)
    for stage in [stage for iteration in run.iterations() for stage in run.stages(iteration)]:
        manifest = stage.manifest()
        for record in manifest.files if manifest is not None else ():
            if record.name.endswith(".h5"):
                read_shard(stage.file(record), record=record)
            elif record.name.endswith("state.json"):
                read_checkpoint(
                    stage.file(record).parent, [one for one in manifest.files if "/checkpoint/" in one.name]
                )


PROGRESS = ("--progress-every-minutes", 1e-7)  # after every optimiser step
CHAINS = {
    "at the start": ((), ("pipeline.", "launch.", "lease.")),
    "in stages, with progress": (PROGRESS, ("part.", "manifest.", "progress.", "shard.", "attempt.", "leftovers.")),
    "retention, advantages in the update": (("--no-keep-all", "--recompute", *PROGRESS), ("progress.", "retention.")),
    "a checkpoint every third update": (
        ("--no-keep-all", "--checkpoint-every", 3),
        ("checkpoint.", "optimizer.", "metrics.", "manifest.", "retention."),
    ),
}
"""Options, and beginnings of the points' names."""
SHORT_STEPS = (
    "after_write",
    "before_link",
    "after_link",
    "between",
    "unpublish",
    "drop",
    "delete",
    "step",
    "after_mkdir",
)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_kills_at_named_points(chain: str, memory: Path) -> None:
    """Each launch dies at the next point; the last one lives. The steps at which most can go wrong: all are in soak."""
    points = [point for point in chain_points(chain) if any(step in point for step in SHORT_STEPS)]
    follow(chain, points, 10, memory)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("passage", [1, 2, 5])
@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain != "at the start"])
def test_a_chain_of_kills_at_every_point(chain: str, passage: int, memory: Path) -> None:
    follow(chain, [f"{point}:{passage}" for point in chain_points(chain)], 30 * passage, memory)


@pytest.mark.soak
@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith(CHAINS["at the start"][1])])
def test_a_kill_at_every_point_of_the_start(point: str, memory: Path) -> None:
    follow("at the start", [point], 1, memory)


@pytest.mark.parametrize("point", ["pipeline.before_link", "pipeline.after_link"])
def test_a_kill_while_a_run_is_given_more_iterations(point: str, memory: Path) -> None:
    arguments = ("run", TINY, "--on", "here", "--num-iterations")
    for name in ("unbroken", "run"):
        assert forked(*arguments, 1, "--run", memory / name, folder=memory).code == 0
    assert forked(*arguments, 2, "--run", memory / "run", folder=memory, kill_at=point).code == -signal.SIGKILL
    for name in ("unbroken", "run"):
        assert forked(*arguments, 2, "--run", memory / name, folder=memory).code == 0
    assert_same(memory / "run", memory / "unbroken")


TIDY_ALWAYS = "import hpcrl.runner.loop; hpcrl.runner.loop._TIDY_SECONDS = 0.0"
"""After every iteration, so that retention and the removal of leftovers are passed early and often."""


def chain_points(chain: str) -> list[str]:
    """In the chain's order: what a tidy-up passes at the end comes last."""
    return [point for beginning in CHAINS[chain][1] for point in POINTS if point.startswith(beginning)]


def follow(chain: str, points: list[str], num_iterations: int, memory: Path) -> None:
    options = CHAINS[chain][0]
    arguments = ("run", TINY, "--on", "here", "--num-iterations", num_iterations, "--num-epochs", 1, *options)
    unbroken = forked(*arguments, "--run", memory / "unbroken", folder=memory)
    assert unbroken.code == 0, unbroken.output
    for point in points:
        killed = forked(*arguments, "--run", memory / "run", folder=memory, kill_at=point, setup=TIDY_ALWAYS)
        assert killed.code == -signal.SIGKILL, (point, killed)
    done = forked(*arguments, "--run", memory / "run", folder=memory)
    assert done.code == 0, done.output
    assert_same(memory / "run", memory / "unbroken")


def test_six_kills_of_two_ranks(tmp_path: Path) -> None:
    """The short form of the soak: see test_soak.py."""
    unbroken = hpcrl(*SHORT, "--run", tmp_path / "unbroken")
    assert unbroken.code == 0, unbroken.output
    shots = [
        Shot("one rank", 1, point="shard.between_fields:3"),
        Shot("launcher", 0, point="optimizer.after_step:7"),
        Shot("all ranks", 0, point="part.after_link:3"),
        Shot("one rank", 0, point="manifest.before_link:4"),
        Shot("launcher", 0, seconds=0.1),
    ]
    for shot in shots:
        assert shoot([*SHORT, "--run", tmp_path / "run"], tmp_path / "run", shot).hit, shot
    orphan = leave_an_orphan(tmp_path / "run")
    done = hpcrl(*SHORT, "--run", tmp_path / "run")
    assert done.code == 0, done.output
    assert not orphan.is_alive()
    assert_same(tmp_path / "run", tmp_path / "unbroken")


def leave_an_orphan(run: Path) -> Process:
    """The sixth kill. Under another mpiexec nothing ends rank 1 when rank 0 and all above it die: the lease must.

    Returns: rank 1, waiting for ever.
    """
    command = [find_mpiexec(), "-n", 2, sys.executable, "-m", "mpi4py", "-m", "hpcrl.cli", *SHORT, "--run", run]
    foreign = subprocess.Popen([str(word) for word in command], env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL)
    ranks: list[Process] = []
    deadline = time.monotonic() + 60
    while len(ranks) < 2:
        assert time.monotonic() < deadline
        assert foreign.poll() is None
        ranks = rank_processes(run)
        time.sleep(0.001)
    # The proxy first: it kills the ranks when it sees mpiexec go, and it alone can.
    for pid in (parent_of(ranks[0].pid), foreign.pid, ranks[0].pid):
        os.kill(pid, signal.SIGKILL)
    foreign.wait()
    time.sleep(0.3)
    assert ranks[1].is_alive(), "no orphan: nothing is tested"
    return ranks[1]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
