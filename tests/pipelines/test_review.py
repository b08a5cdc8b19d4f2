"""Faults that a review found: each would have hung, or gone on with other bits, without a word."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.pipelines.runs import ROOT, TINY, hpcrl

QUITTING = """
import sys
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Quitting(CartPoleEnv):
    def step(self, action):
        sys.exit(0)

"""


def test_an_environment_that_calls_exit_is_a_failure_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "quitting.py").write_text(QUITTING)
    path = f"{tmp_path}:{ROOT}"
    for ranks, on in ((1, "here"), (2, "mpi")):
        run = tmp_path / f"run-{ranks}"
        arguments = ("run", TINY, "--env", "quitting:Quitting", "--on", on, "--ranks", ranks, "--run", run)
        done = hpcrl(*arguments, timeout=60, PYTHONPATH=path)
        assert done.code == 1, done.output
        assert "something called sys.exit(0) while the run played" in done.output


def test_a_rollout_missing_behind_its_checkpoint_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("run", TINY, "--on", "here", "--num-iterations", 3, "--run", run)
    assert hpcrl(*arguments).code == 0
    shutil.rmtree(run / "iteration-000002" / "rollout")
    done = hpcrl(*arguments)
    assert done.code == 2
    assert "want it published, because the checkpoint of iteration 2 was trained on it, given a gap" in done.output
    assert not (run / "iteration-000002" / "rollout").exists()


def test_a_run_does_not_grow_before_its_updates_are_redone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("run", TINY, "--on", "here", "--checkpoint-every", 4, "--run", run)
    third_update = "optimizer.before_step:14"
    assert hpcrl(*arguments, "--num-iterations", 4, HPCRL_KILL_AT=third_update).code == -9
    done = hpcrl(*arguments, "--num-iterations", 8)
    assert done.code == 2
    assert "num_iterations: want 4 until the updates since the newest checkpoint are redone" in done.output
    assert hpcrl(*arguments, "--num-iterations", 4).code == 0
    assert hpcrl(*arguments, "--num-iterations", 8).code == 0
    replayed = hpcrl("replay", run)
    assert replayed.code == 0, replayed.output  # with the horizon that each update had


def test_a_full_disk_on_one_mesh_ends_the_other(tmp_path: Path) -> None:
    """The rollout's writing thread fails while its loop waits for the update, which waits for the rollout."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, errno\n"
        "import hpcrl.runner.output as output\n"
        "def full(*arguments, **named):\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "output.write_shard = full\n"
    )
    arguments = ("run", "tests/pipelines/meshes.py", "--on", "mpi", "--run", tmp_path / "run")
    done = hpcrl(*arguments, timeout=60, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.code == 2, done.output
    assert "disk full" in done.output
