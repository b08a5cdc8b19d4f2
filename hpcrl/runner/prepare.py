"""Before a run: every check of the input, then the run folder as it must be to start or to resume."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import hpcrl
from hpcrl.data.configuration import differences, from_plain, to_plain
from hpcrl.envs import EnvDescription, Space
from hpcrl.errors import CorruptFileError, InputError
from hpcrl.pipeline import Pipeline, refuse_changes
from hpcrl.residents import Residents
from hpcrl.store.checkpoint import read_checkpoint, write_checkpoint
from hpcrl.store.lease import Lease
from hpcrl.store.layout import numbered
from hpcrl.store.machine import machine_facts
from hpcrl.store.manifest import FileRecord
from hpcrl.store.publish import make_folder, publish
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder

INITIAL = "initial"
"""Folder of the checkpoint that a branch starts from."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is started this time; none of it changes bits."""

    run: Path
    fresh: bool = False
    branch_from: str | None = None
    handoff: Literal["memory", "disk"] = "memory"
    quiet: bool = False
    command: str = ""
    """What a user types to go on."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked pipeline and the folder it runs in."""

    pipeline: Pipeline
    description: EnvDescription
    run: RunFolder


def check_pipeline(pipeline: Pipeline) -> EnvDescription:
    """What only the outside can tell: the environment exists, the model fits its spaces, the inputs are there.

    Raises: InputError; nothing is written.
    """
    if pipeline.rollout is not None:
        return pipeline.rollout.describe()
    if pipeline.inputs is None:
        raise InputError("Pipeline: want a Rollout stage or inputs=RUN, given neither; add one of them")
    return stored_description(RunFolder.open(Path(pipeline.inputs)).pipeline())


def check_resumable(pipeline: Pipeline, launch: Launch) -> EnvDescription:
    """Everything about the input that can be refused, found out without writing anything.

    Raises: InputError.
    """
    description = check_pipeline(pipeline)
    path = launch.run
    if RunFolder.exists(path) and not launch.fresh:
        stored = RunFolder.open(path).pipeline()
        refuse_changes(differences(stored["pipeline"], pipeline.plain()), str(path))
        if launch.branch_from is not None:
            _refuse_another_branch(path, stored, launch.branch_from)
        return description
    if not RunFolder.exists(path):
        _refuse_foreign_folder(path)
    if launch.branch_from is not None:
        _branch_source(launch.branch_from)
    return description


def check_models(pipeline: Pipeline, description: EnvDescription) -> None:
    """Whether every model fits the environment's spaces; builds them, so this is for a rank, which has PyTorch loaded.

    Raises: InputError; nothing is written.
    """
    residents = Residents(
        pipeline.models, description.observation_space, description.action_space, pipeline.seed
    )
    for role in pipeline.models:
        residents.get(role)


def _refuse_foreign_folder(path: Path) -> None:
    """Only what a start leaves that was killed before it published pipeline.json may be there."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise InputError(f"{path}: want a folder for the run, given a path through the file {above}; use --run DIR")
    if path.is_dir() and not all(_is_of_a_killed_start(entry) for entry in path.iterdir()):
        raise InputError(
            f"{path}: want an empty or missing folder, or one that holds a run, given one that holds other files; "
            "use --run DIR"
        )


def _is_of_a_killed_start(entry: Path) -> bool:
    if entry.name == INITIAL:
        return all(file.name == "state.json" or file.suffix == ".safetensors" for file in entry.glob("[!.]*"))
    return entry.name.startswith("lease") or (entry.name.startswith(".") and entry.name.endswith(".tmp"))


def set_aside(path: Path) -> None:
    """Renames a run nobody works on, for --fresh; what a dead launch of it left running is ended first.

    Raises: InputError when somebody works on it.
    """
    Lease.acquire(path).release()
    RunFolder(path).set_aside()


def open_run(pipeline: Pipeline, launch: Launch, description: EnvDescription) -> Prepared:
    """Create the run, or open the one there, which check_resumable has let pass; the lease's holder calls it.

    Raises: InputError for another configuration, and when the disk is full or read-only.
    """
    document = {
        "pipeline": pipeline.plain(),
        "spaces": describe(description),
        "versions": machine_facts(pipeline.compute_threads)["versions"],
        "hpcrl": hpcrl.__version__,
    }
    path = launch.run
    if RunFolder.exists(path):
        run = RunFolder.open(path)
        _resume(run, document)
        return Prepared(pipeline, description, run)
    if launch.branch_from is not None:
        return Prepared(pipeline, description, _branch(path, document, launch.branch_from))
    return Prepared(pipeline, description, RunFolder.create(path, document))


def _resume(run: RunFolder, document: Mapping[str, Any]) -> None:
    stored = run.pipeline()
    changed = differences(stored["pipeline"], document["pipeline"])
    refuse_changes(changed, str(run.path))
    if changed:
        run.replace_pipeline({**stored, "pipeline": document["pipeline"]})


def _branch_source(branch_from: str) -> tuple[str, int, StageFolder, list[FileRecord]]:
    """Run, iteration, stage folder and file records of the checkpoint that RUN@ITERATION names."""
    source, _, number = branch_from.rpartition("@")
    if not source or not number.isdecimal():
        raise InputError(
            f"--from: want RUN@ITERATION, for example runs/ppo-cartpole@17, given {branch_from!r}; name both"
        )
    run = RunFolder.open(Path(source))
    folder = run.stage(int(number), "update")
    manifest = folder.manifest()
    if manifest is None or not manifest.holds_checkpoint:
        kept = [str(iteration) for iteration in run.iterations() if _holds_checkpoint(run.stage(iteration, "update"))]
        raise InputError(
            f"--from {branch_from}: want an iteration whose checkpoint is kept, given one without; kept: "
            f"{', '.join(kept) or 'none'}"
        )
    return source, int(number), folder, [record for record in manifest.files if "/checkpoint/" in record.name]


def _holds_checkpoint(folder: StageFolder) -> bool:
    manifest = folder.manifest()
    return manifest is not None and manifest.holds_checkpoint


def _refuse_another_branch(path: Path, stored: Mapping[str, Any], branch_from: str) -> None:
    """The same command resumes a branch; a run with another origin is not that branch."""
    origin = stored.get("branched_from")
    given = f"{origin['run']}@{origin['iteration']}" if origin is not None else "a run of its own"
    if given != branch_from:
        raise InputError(
            f"--branch {path}: want a missing folder, or the branch from {branch_from}, given {given}; choose another "
            "folder, or resume it with --run"
        )


def _branch(path: Path, document: dict[str, Any], branch_from: str) -> RunFolder:
    """A new run whose initial checkpoint is a published one of another run."""
    source, iteration, folder, records = _branch_source(branch_from)
    checkpoint = read_checkpoint((folder.path / records[0].name).parent, records)
    versions = dict.fromkeys(checkpoint.state["versions"], 0)
    if (path / INITIAL).exists():
        shutil.rmtree(path / INITIAL)  # of a start that was killed before it published pipeline.json
    write_checkpoint(path / INITIAL, checkpoint.roles, {**checkpoint.state, "versions": versions})
    return RunFolder.create(path, {**document, "branched_from": {"run": source, "iteration": iteration}})


def describe(description: EnvDescription) -> dict[str, Any]:
    """Spaces as JSON values, so that replay and offline training need no environment package."""
    plain: dict[str, Any] = {}
    for name in ("observation_space", "action_space"):
        space: Space = getattr(description, name)
        plain[name] = {
            field.name: value.tolist() if hasattr(value := getattr(space, field.name), "tolist") else to_plain(value)
            for field in dataclasses.fields(space)
        }
    return plain | {
        "frame_stack": description.frame_stack,
        "restart": description.restart,
        "max_episode_steps": description.max_episode_steps,
    }


def stored_description(document: Mapping[str, Any]) -> EnvDescription:
    """The description that `describe` stored."""
    import numpy as np

    stored: dict[str, Any] = dict(document["spaces"])
    for name in ("observation_space", "action_space"):
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored[name].items()
        }
        for bound in ("low", "high"):
            if fields[bound] is not None:
                fields[bound] = np.asarray(stored[name][bound], np.float64)
        stored[name] = Space(**fields)
    return EnvDescription(**stored)


def stored_pipeline(document: Mapping[str, Any]) -> Pipeline:
    """The pipeline that pipeline.json holds.

    Raises: CorruptFileError when it does not describe one.
    """
    pipeline = from_plain(document["pipeline"])
    if not isinstance(pipeline, Pipeline):
        raise CorruptFileError("pipeline.json: want a pipeline, given something else")
    return pipeline


def register_launch(run: RunFolder, launch: Launch, ranks: int) -> int:
    """The number of this launch, which names its attempt folders; exclusive, even against a launch on another host."""
    folder = run.path / "launches"
    make_folder(folder)
    facts = {
        "command": launch.command,
        "ranks": ranks,
        "host": platform.node(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }
    payload = (json.dumps(facts, indent=1) + "\n").encode()
    number = 1 + max(numbered(folder, "launch-*.json"), default=0)
    while not publish(folder / f"launch-{number:04d}.json", payload):
        number += 1
    return number
