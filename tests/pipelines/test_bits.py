"""The same bits, whatever the number of ranks, the hand-off, a stop in between, or a replay."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hpcrl.store.run_folder import RunFolder
from tests.pipelines.runs import ROOT, TINY, environment, hpcrl, leftovers, published_bits, published_facts, start


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, uninterrupted, on one rank."""
    path = tmp_path_factory.mktemp("reference") / "run"
    done = hpcrl("run", TINY, "--on", "here", "--run", path)
    assert done.code == 0, done.output
    return path


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_rank_invariance(ranks: int, reference_run: Path, tmp_path: Path) -> None:
    done = hpcrl("run", TINY, "--on", "mpi", "--ranks", ranks, "--run", tmp_path / "run")
    assert done.code == 0, done.output
    assert published_bits(tmp_path / "run") == published_bits(reference_run)
    for stage in ("update", "evaluate"):
        assert published_facts(tmp_path / "run", stage) == published_facts(reference_run, stage)
    assert leftovers(tmp_path / "run") == []


def test_another_seed_gives_other_bits(reference_run: Path, tmp_path: Path) -> None:
    done = hpcrl("run", TINY, "--on", "here", "--run", tmp_path / "run", "--seed", 8, "--num-iterations", 1)
    assert done.code == 0, done.output
    bits, reference = published_bits(tmp_path / "run"), published_bits(reference_run)
    assert bits["0/rollout"].keys() == reference["0/rollout"].keys()
    assert bits["0/rollout"] != reference["0/rollout"]


def test_handoff_through_disk_gives_the_same_bits(reference_run: Path, tmp_path: Path) -> None:
    done = hpcrl("run", TINY, "--on", "mpi", "--ranks", 2, "--run", tmp_path / "run", "--handoff", "disk")
    assert done.code == 0, done.output
    assert published_bits(tmp_path / "run") == published_bits(reference_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_ends_cleanly_and_resumes_to_the_same_bits(number: int, tmp_path: Path) -> None:
    arguments = ("run", TINY, "--on", "mpi", "--ranks", 2, "--num-iterations", 60, "--num-epochs", 3)
    process = start(*arguments, "--run", tmp_path / "run")
    wait_for_iteration(tmp_path / "run", 3)
    process.send_signal(number)
    sent = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85, output
    assert time.monotonic() - sent < 15
    resume = shlex.split(output.split("go on with: ")[1].splitlines()[0])
    stopped_at = max(RunFolder.open(tmp_path / "run").iterations())
    assert stopped_at < 59, "the run was over before the signal came"
    pasted = subprocess.run(resume, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    whole = hpcrl(*arguments, "--run", tmp_path / "whole")
    assert whole.code == 0, whole.output
    assert published_bits(tmp_path / "run") == published_bits(tmp_path / "whole")
    assert leftovers(tmp_path / "run") == []


def wait_for_iteration(path: Path, iteration: int, timeout_seconds: float = 60) -> None:
    """Until an iteration's rollout has been published."""
    deadline = time.monotonic() + timeout_seconds
    while not RunFolder(path).stage(iteration, "rollout").is_done():
        assert time.monotonic() < deadline, f"iteration {iteration} was not reached in {timeout_seconds} s"
        time.sleep(0.01)


def test_more_iterations_are_added_to_a_finished_run(tmp_path: Path) -> None:
    # The learning rate falls over num_iterations, so a longer run differs from there; what was published stays.
    assert hpcrl("run", TINY, "--on", "here", "--run", tmp_path / "run", "--num-iterations", 2).code == 0
    before = published_bits(tmp_path / "run")
    done = hpcrl("run", TINY, "--on", "here", "--run", tmp_path / "run", "--num-iterations", 3)
    assert done.code == 0, done.output
    after = published_bits(tmp_path / "run")
    assert {key: after[key] for key in before} == before
    assert "2/update" in after


def test_branch_starts_from_a_published_checkpoint(reference_run: Path, tmp_path: Path) -> None:
    done = hpcrl(
        "run",
        TINY,
        "--on",
        "here",
        "--branch",
        tmp_path / "branch",
        "--from",
        f"{reference_run}@1",
        "--num-iterations",
        1,
    )
    assert done.code == 0, done.output
    first = published_bits(tmp_path / "branch")["0/rollout"]["shard-00000.h5"]
    fresh = published_bits(reference_run)["0/rollout"]["shard-00000.h5"]
    assert first["offsets"] is not None
    assert first["steps/log_probs"] != fresh["steps/log_probs"], "the branch played with the initial weights"


def test_replay_is_bit_identical_without_the_environment_package(reference_run: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "gymnasium.py").write_text("raise ImportError('gymnasium is not installed here')\n")
    done = hpcrl("replay", reference_run, PYTHONPATH=f"{blocked}:{TINY.parents[2]}")
    assert done.code == 0, done.output
    assert "8 stages replayed: 8 bit-identical, 0 differ" in done.output


def test_replay_says_where_a_result_first_differs(reference_run: Path, tmp_path: Path) -> None:
    # Another gamma in pipeline.json stands for a kernel that changed: the stored advantages no longer follow.
    shutil.copytree(reference_run, tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    document = run.pipeline()
    document["pipeline"]["stages"][1]["gamma"] = 0.96
    run.replace_pipeline(document)
    done = hpcrl("replay", tmp_path / "run", "--only", "advantage", "--iteration", 2)
    assert done.code == 1
    assert "first differs at advantages, block 0[" in done.output


@pytest.mark.parametrize("options", [["--recompute"], ["--checkpoint-every", 3, "--no-keep-all"]])
def test_resume_in_the_middle_of_an_update(options: list[object], tmp_path: Path) -> None:
    """Stopped between optimiser steps, the update goes on from its progress, to the same bits."""
    arguments = ("run", TINY, "--on", "here", "--num-epochs", 40, "--num-iterations", 4, *options)
    whole = hpcrl(*arguments, "--run", tmp_path / "whole", "--progress-every-minutes", 0.00001)
    assert whole.code == 0, whole.output
    stops = 0
    for passage in (25, 70):
        killed = hpcrl(*arguments, "--run", tmp_path / "run", HPCRL_KILL_AT=f"optimizer.after_step:{passage}")
        stops += killed.code == -signal.SIGKILL
        assert killed.code in (-signal.SIGKILL, 0), killed.output
    done = hpcrl(*arguments, "--run", tmp_path / "run")
    assert done.code == 0, done.output
    assert stops == 2
    bits, expected = published_bits(tmp_path / "run"), published_bits(tmp_path / "whole")
    last = f"{3}/update"
    assert bits[last] == expected[last]
    assert leftovers(tmp_path / "run") == []
