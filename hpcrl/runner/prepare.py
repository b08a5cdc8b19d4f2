"""Before a run: every check of the input, then the run folder as it must be to start or to resume."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import hpcrl
from hpcrl.data.configuration import differences, from_plain, to_plain
from hpcrl.envs import EnvDescription, Space
from hpcrl.errors import CorruptFileError, InputError
from hpcrl.pipeline import Pipeline, refuse_changes
from hpcrl.store.checkpoint import read_checkpoint, write_checkpoint
from hpcrl.store.machine import machine_facts
from hpcrl.store.manifest import FileRecord
from hpcrl.store.publish import make_folder, publish
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder


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


def check_resumable(pipeline: Pipeline, launch: Launch) -> None:
    """Everything that `open_run` refuses, found out without writing anything.

    Raises: InputError.
    """
    check_pipeline(pipeline)
    path = launch.run
    if RunFolder.exists(path) and not launch.fresh:
        changed = differences(RunFolder.open(path).pipeline()["pipeline"], pipeline.plain())
        refuse_changes(changed, str(path))
    elif not RunFolder.exists(path):
        _refuse_foreign_folder(path)
        if launch.branch_from is not None:
            _branch_source(launch.branch_from)


def _refuse_foreign_folder(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: want an empty or missing folder, given one that holds no run; use --run DIR")


def open_run(pipeline: Pipeline, launch: Launch) -> Prepared:
    """Create the run folder, or check that the one there is this pipeline's and open it.

    Raises: InputError for another configuration; then nothing is written.
    """
    description = check_pipeline(pipeline)
    document = {
        "pipeline": pipeline.plain(),
        "spaces": describe(description),
        "versions": machine_facts(pipeline.compute_threads)["versions"],
        "hpcrl": hpcrl.__version__,
    }
    path = launch.run
    if RunFolder.exists(path) and launch.fresh:
        RunFolder(path).set_aside()
    if RunFolder.exists(path):
        run = RunFolder.open(path)
        _resume(run, document)
        return Prepared(pipeline, description, run)
    _refuse_foreign_folder(path)
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
    if not source or not number.isdigit():
        raise InputError(f"--from: want RUN@ITERATION, given {branch_from!r}")
    folder = RunFolder.open(Path(source)).stage(int(number), "update")
    manifest = folder.manifest()
    if manifest is None or not manifest.holds_checkpoint:
        raise InputError(f"--from {branch_from}: want an iteration whose checkpoint is kept, given one without")
    return source, int(number), folder, [record for record in manifest.files if "/checkpoint/" in record.name]


def _branch(path: Path, document: dict[str, Any], branch_from: str) -> RunFolder:
    """A new run whose initial checkpoint is a published one of another run."""
    source, iteration, folder, records = _branch_source(branch_from)
    checkpoint = read_checkpoint((folder.path / records[0].name).parent, records)
    versions = dict.fromkeys(checkpoint.state["versions"], 0)
    write_checkpoint(path / "initial", checkpoint.roles, {**checkpoint.state, "versions": versions})
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
    number = 1 + len(list(folder.glob("launch-*.json")))
    while not publish(folder / f"launch-{number:04d}.json", payload):
        number += 1
    return number
