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
from hpcrl.runner.handoff import kept_rollouts
from hpcrl.runner.part import Part
from hpcrl.runner.stored import describe, stored_pipeline
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
    unit: str = ""
    """Name of the unit of work of the ledger that this launch plays; "" outside a scheduler."""
    scratch: Path | None = None
    """A folder on this node's own disk, through which shards go; None: they are written where they stay."""
    lease: Path | None = None
    """Folder of the lease, where several launches share a run; None: the run's own."""
    lease_patience_seconds: float = 0.0
    """How long to wait for a lease whose holder lives."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked pipeline and the folder it runs in."""

    pipeline: Pipeline
    description: EnvDescription | None
    run: RunFolder
    input_iterations: tuple[int, ...] = ()
    """Iterations of the run that `inputs` names, as kept when this run was made: they are read in turn."""


def set_aside(path: Path) -> None:
    """Renames a run nobody works on, for --fresh; what a dead launch of it left running is ended first.

    Raises: InputError when somebody works on it.
    """
    Lease.acquire(path).release()
    RunFolder(path).set_aside()


def open_run(pipeline: Pipeline, launch: Launch, description: EnvDescription | None) -> Prepared:
    """Create the run, or open the one there, which check_resumable has let pass; the lease's holder calls it.

    Raises: InputError for another configuration, and when the disk is full or read-only.
    """
    document: dict[str, Any] = {
        "pipeline": pipeline.plain(),
        "spaces": describe(description),
        "versions": machine_facts(pipeline.compute_threads)["versions"],
        "hpcrl": hpcrl.__version__,
    }
    if pipeline.inputs is not None:
        document["input_iterations"] = kept_rollouts(RunFolder.open(Path(pipeline.inputs)))
    path = launch.run
    if RunFolder.exists(path):
        run = RunFolder.open(path)
        document = _resume(run, document)
    elif launch.branch_from is not None:
        run = make_branch(path, document, launch.branch_from)
    else:
        run = RunFolder.create(path, document)
    return Prepared(pipeline, description, run, tuple(document.get("input_iterations", ())))


def _resume(run: RunFolder, document: Mapping[str, Any]) -> dict[str, Any]:
    """Stores what may change of the configuration; all else stays as it was. Returns: what is stored now."""
    stored = run.pipeline()
    changed = differences(stored_pipeline(stored).plain(), document["pipeline"])
    refuse_changes(changed, str(run.path))
    stored["pipeline"] = document["pipeline"]
    if changed:
        run.replace_pipeline(stored)
    return stored


def register_launch(run: RunFolder, launch: Launch, ranks: int, part: Part | None = None) -> int:
    """The number of this launch, which names its attempt folders; exclusive, even against a launch on another host."""
    folder = run.path / "launches"
    make_folder(folder)
    facts = {
        "command": launch.command,
        "ranks": ranks,
        "host": platform.node(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "unit": launch.unit,
        "element": None if part is None or part.num_elements == 1 else part.element,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }
    payload = (json.dumps(facts, indent=1) + "\n").encode()
    number = 1 + max(numbered(folder, "launch-*.json"), default=0)
    while not publish(folder / f"launch-{number:04d}.json", payload):
        number += 1
    return number
