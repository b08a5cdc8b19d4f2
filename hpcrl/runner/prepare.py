"""Before a run plays: its folder as it must be to start or to resume, and this launch's number in it."""

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
from hpcrl.data.configuration import differences
from hpcrl.envs import EnvDescription
from hpcrl.pipeline import Pipeline, refuse_changes
from hpcrl.runner.branch import make_branch
from hpcrl.runner.stored import describe
from hpcrl.store.layout import numbered
from hpcrl.store.lease import Lease
from hpcrl.store.machine import machine_facts
from hpcrl.store.publish import make_folder, publish
from hpcrl.store.run_folder import RunFolder


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
        return Prepared(pipeline, description, make_branch(path, document, launch.branch_from))
    return Prepared(pipeline, description, RunFolder.create(path, document))


def _resume(run: RunFolder, document: Mapping[str, Any]) -> None:
    stored = run.pipeline()
    changed = differences(stored["pipeline"], document["pipeline"])
    refuse_changes(changed, str(run.path))
    if changed:
        run.replace_pipeline({**stored, "pipeline": document["pipeline"]})


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
