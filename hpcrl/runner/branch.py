"""Branches: a new run that starts from a published checkpoint of another."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline
from hpcrl.runner.position import INITIAL, RoleCheckpoint, newest_checkpoint, read_published, trained_roles
from hpcrl.runner.stored import stored_pipeline
from hpcrl.segments import newest_training
from hpcrl.store.checkpoint import write_checkpoint
from hpcrl.store.run_folder import RunFolder


def branch_source(branch_from: str) -> tuple[str, int, list[RoleCheckpoint]]:
    """Run, iteration and the roles' checkpoints that RUN@ITERATION names."""
    source, _, number = branch_from.rpartition("@")
    if not source or not number.isdecimal():
        raise InputError(
            f"--from: want RUN@ITERATION, for example runs/ppo-cartpole@17, given {branch_from!r}; name both"
        )
    run = RunFolder.open(Path(source))
    pipeline = stored_pipeline(run.pipeline())
    checkpoints = _checkpoints_at(run, pipeline, int(number))
    if not checkpoints:
        kept = [str(iteration) for iteration in run.iterations() if _checkpoints_at(run, pipeline, iteration)]
        raise InputError(
            f"--from {branch_from}: want an iteration whose checkpoint is kept, given one without; kept: "
            f"{', '.join(kept) or 'none'}"
        )
    return source, int(number), checkpoints


def _checkpoints_at(run: RunFolder, pipeline: Pipeline, iteration: int) -> list[RoleCheckpoint]:
    """The checkpoints of all roles as they stood after an iteration; [] where one of them is not there."""
    found = []
    for role in trained_roles(pipeline) if iteration in run.iterations() else ():
        training = newest_training(pipeline, role, iteration)
        checkpoint = newest_checkpoint(run, pipeline, role, iteration)
        if training is None:
            continue
        if checkpoint is None or checkpoint.need != training:
            return []
        found.append(checkpoint)
    return found


def refuse_another_branch(path: Path, stored: Mapping[str, Any], branch_from: str) -> None:
    """The same command resumes a branch; a run with another origin is not that branch."""
    origin = stored.get("branched_from")
    given = f"{origin['run']}@{origin['iteration']}" if origin is not None else "a run of its own"
    if given != branch_from:
        raise InputError(
            f"--branch {path}: want a missing folder, or the branch from {branch_from}, given {given}; choose another "
            "folder, or resume it with --run"
        )


def make_branch(path: Path, document: dict[str, Any], branch_from: str) -> RunFolder:
    """A new run whose initial checkpoint is a published one of another run."""
    source, iteration, found = branch_source(branch_from)
    checkpoints = [read_published(RunFolder.open(Path(source)), checkpoint.need) for checkpoint in found]
    roles = {name: group for checkpoint in checkpoints for name, group in checkpoint.roles.items()}
    state = {key: value for checkpoint in checkpoints for key, value in checkpoint.state.items()}
    versions = {role: 0 for checkpoint in checkpoints for role in checkpoint.state["versions"]}
    if (path / INITIAL).exists():
        shutil.rmtree(path / INITIAL)  # of a start that was killed before it published pipeline.json
    write_checkpoint(path / INITIAL, roles, {**state, "versions": versions})
    return RunFolder.create(path, {**document, "branched_from": {"run": source, "iteration": iteration}})
