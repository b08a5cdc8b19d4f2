"""Phases and several roles: each training leaves its own role's checkpoint; ranks, kills and stops change no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrl.runner.position import find_position, newest_checkpoint
from hpcrl.runner.stored import stored_pipeline
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard
from tests.pipelines.killing import Shot, shoot
from tests.pipelines.runs import ROOT, hpcrl, leftovers, published_bits

PIPELINE = ROOT / "tests" / "pipelines" / "text_phases.py"
RUN = ("run", PIPELINE, "--on", "mpi", "--ranks", 2)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one rank."""
    path = tmp_path_factory.mktemp("phases") / "run"
    done = hpcrl("run", PIPELINE, "--on", "here", "--run", path)
    assert done.code == 0, done.output
    return path


def test_each_iteration_plays_the_stages_of_its_phase(unbroken: Path) -> None:
    run = RunFolder.open(unbroken)
    played = [[stage.stage for stage in run.stages(iteration)] for iteration in run.iterations()]
    assert [sorted(stages) for stages in played] == [
        ["demonstrate", "imitate"],
        ["copy_weights", "demonstrate", "imitate"],
        *[["demonstrate", "go_on", "log_probs"]] * 3,
    ]


def test_a_training_publishes_its_own_role(unbroken: Path) -> None:
    run, pipeline = RunFolder.open(unbroken), stored_pipeline(RunFolder.open(unbroken).pipeline())
    actor = newest_checkpoint(run, pipeline, "actor", 4)
    reference = newest_checkpoint(run, pipeline, "reference", 4)
    assert actor is not None
    assert reference is not None
    assert (actor.need.iteration, actor.need.stage) == (4, "go_on")
    # Kept though it is old: nothing has moved the reference since.
    assert (reference.need.iteration, reference.need.stage) == (1, "copy_weights")
    assert list(read_checkpoint(Path(actor.path)).roles) == ["actor", "actor.optimizer"]
    assert list(read_checkpoint(Path(reference.path)).roles) == ["reference"]
    trained = read_checkpoint(Path(actor.path))
    assert trained.state["versions"] == {"actor": 5}
    # The second stage that trains the role began with moments of its own: 3 iterations of 2 epochs of 2 steps.
    assert trained.roles["actor.optimizer"]["num_steps"].item() == 12
    position = find_position(run, pipeline)
    assert position.first_iteration == 4
    assert (4, "go_on") in position.trained


def test_the_reference_is_the_policy_as_it_was_copied(unbroken: Path, tmp_path: Path) -> None:
    """Its log-probabilities in the first iteration after the copy are those of a policy trained for two iterations."""
    done = hpcrl("run", PIPELINE, "--on", "here", "--run", tmp_path / "run", "--num-iterations", 2)
    assert done.code == 0, done.output
    short = RunFolder.open(tmp_path / "run")
    pipeline = stored_pipeline(short.pipeline())
    roles = [newest_checkpoint(short, pipeline, role, 1) for role in ("actor", "reference")]
    actor, reference = (read_checkpoint(Path(str(role and role.path))).roles for role in roles)
    for name, array in actor["actor"].items():
        np.testing.assert_array_equal(array, reference["reference"][name])
    folder = RunFolder.open(unbroken).stage(4, "log_probs")
    manifest = folder.manifest()
    assert manifest is not None
    shard = read_shard(folder.file(manifest.files[0]))
    assert np.isfinite(shard["reference_log_probs"]).all()
    assert (shard["reference_log_probs"] < 0).all()


@pytest.mark.parametrize("ranks", [4])
def test_ranks_change_no_bit(unbroken: Path, tmp_path: Path, ranks: int) -> None:
    done = hpcrl("run", PIPELINE, "--on", "mpi", "--ranks", ranks, "--run", tmp_path / "run")
    assert done.code == 0, done.output
    assert published_bits(tmp_path / "run") == published_bits(unbroken)


@pytest.mark.parametrize(
    "point",
    [
        "checkpoint.before_write:2",  # the policy's of iteration 1, its copy not begun
        pytest.param("checkpoint.after_write:3", marks=pytest.mark.soak),  # the copy's
        *(pytest.param(f"optimizer.after_step:{step}", marks=pytest.mark.soak) for step in (3, 12)),
    ],
)
def test_a_kill_changes_no_bit(unbroken: Path, tmp_path: Path, point: str) -> None:
    run = tmp_path / "run"
    wound = shoot([*RUN, "--run", run], run, Shot("all ranks", 0, point=point))
    assert wound.hit
    done = hpcrl(*RUN, "--run", run)
    assert done.code == 0, done.output
    assert published_bits(run) == published_bits(unbroken)
    assert leftovers(run) == []


def test_updates_without_a_checkpoint_are_redone(unbroken: Path, tmp_path: Path) -> None:
    """With a checkpoint every third iteration; where a phase ends there is one all the same."""
    run = tmp_path / "run"
    sparse = [*RUN, "--checkpoint-every", 3, "--run", run]
    assert shoot(sparse, run, Shot("all ranks", 0, point="optimizer.after_step:14")).hit
    done = hpcrl(*sparse)
    assert done.code == 0, done.output
    folder = RunFolder.open(run)
    held = [
        (iteration, stage.stage)
        for iteration in folder.iterations()
        for stage in folder.stages(iteration)
        if (manifest := stage.manifest() or stage.removed()) is not None and manifest.holds_checkpoint
    ]
    assert held == [(1, "copy_weights"), (1, "imitate"), (2, "go_on"), (4, "go_on")]
    ours, theirs = published_bits(run), published_bits(unbroken)
    assert all(ours[name] == theirs[name] for name in ("4/go_on", "4/log_probs", "1/copy_weights"))


def test_a_branch_takes_every_role_as_it_stood(unbroken: Path, tmp_path: Path) -> None:
    done = hpcrl("run", PIPELINE, "--on", "here", "--branch", tmp_path / "branch", "--from", f"{unbroken}@4")
    assert done.code == 0, done.output
    initial = read_checkpoint(tmp_path / "branch" / "initial")
    assert sorted(initial.roles) == ["actor", "actor.optimizer", "reference"]
    assert initial.state["versions"] == {"actor": 0, "reference": 0}


def test_replay_recomputes_every_update(unbroken: Path) -> None:
    done = hpcrl("replay", unbroken)
    assert done.code == 0, done.output
    assert "go_on" in done.output
