"""Where a run stands on disk: what is done, where the newest checkpoint is, what a dead launch left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.pipeline import Pipeline
from hpcrl.segments import Need, newest_training, trainers_of
from hpcrl.store.checkpoint import Checkpoint, read_checkpoint
from hpcrl.store.machine import difference, machine_facts
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder

INITIAL = "initial"
"""Folder of the checkpoint that a branch starts from."""


@dataclasses.dataclass(frozen=True)
class RoleCheckpoint:
    """The newest published checkpoint of a role."""

    iteration: int
    stage: str
    path: str

    @property
    def need(self) -> Need:
        """The training that left it."""
        return Need(self.iteration, self.stage)


@dataclasses.dataclass(frozen=True)
class Position:
    """What rank 0 found when it looked; the same for all ranks."""

    checkpoints: Mapping[str, RoleCheckpoint]
    """Role -> where its weights stand; a role that is not here has its initial ones."""
    trained: frozenset[tuple[int, str]]
    """(iteration, stage) pairs whose training those checkpoints hold, from `first_iteration` on."""
    first_iteration: int
    """Where the loop begins: one before the first training that is not in a checkpoint, since the stages behind the
    last one may be unfinished."""
    done: frozenset[tuple[int, str]]
    """(iteration, stage) pairs that are published."""
    finished_blocks: Mapping[tuple[int, str], frozenset[int]]
    """Blocks that unfinished stages have published."""
    newest_iteration: int
    """Highest iteration with a folder; -1: none."""


def find_position(run: RunFolder, pipeline: Pipeline, *, since: int | None = None) -> Position:
    """Look at the run folder.

    Args: since: look at iterations from this one on, also when a newer checkpoint is there.
    Raises: CorruptFileError for a damaged manifest.
    """
    iterations = run.iterations()
    checkpoints = {}
    for role in trained_roles(pipeline):
        found = newest_checkpoint(run, pipeline, role, max(iterations, default=-1))
        if found is not None:
            checkpoints[role] = found
    open_iterations = [_first_untrained(pipeline, role, checkpoints.get(role)) for role in trained_roles(pipeline)]
    first_iteration = max(min(open_iterations, default=0) - 1, 0)
    trained = {
        (iteration, stage.name)
        for role, checkpoint in checkpoints.items()
        for iteration in range(first_iteration, checkpoint.iteration + 1)
        for stage in trainers_of(pipeline, role)
        if stage.due(iteration) and _is_held(pipeline, iteration, stage.name, checkpoint)
    }
    done: set[tuple[int, str]] = set()
    finished: dict[tuple[int, str], frozenset[int]] = {}
    for iteration in iterations:
        if iteration < first_iteration and (since is None or iteration < since):
            continue
        for folder in run.stages(iteration):
            if folder.is_done():
                done.add((iteration, folder.stage))
            else:
                finished[iteration, folder.stage] = frozenset(folder.parts())
    return Position(
        checkpoints=checkpoints,
        trained=frozenset(trained),
        first_iteration=first_iteration,
        done=frozenset(done),
        finished_blocks=finished,
        newest_iteration=max(iterations, default=-1),
    )


def trained_roles(pipeline: Pipeline) -> tuple[str, ...]:
    """The roles that some stage trains, in the order in which they are first trained."""
    return tuple(dict.fromkeys(stage.trains for stage in pipeline.stages if stage.trains is not None))


def newest_checkpoint(run: RunFolder, pipeline: Pipeline, role: str, iteration: int) -> RoleCheckpoint | None:
    """The newest published checkpoint of a role up to and with an iteration; None: there is none."""
    need = newest_training(pipeline, role, iteration)
    while need is not None:
        for stage in reversed(trainers_of(pipeline, role)):
            path = checkpoint_of(run.stage(need.iteration, stage.name)) if stage.due(need.iteration) else None
            if path is not None:
                return RoleCheckpoint(need.iteration, stage.name, str(path))
        need = newest_training(pipeline, role, need.iteration - 1)
    return None


def _first_untrained(pipeline: Pipeline, role: str, checkpoint: RoleCheckpoint | None) -> int:
    """The first iteration in which a role is trained beyond its checkpoint; one past the last where it is not."""
    for iteration in range(0 if checkpoint is None else checkpoint.iteration, pipeline.num_iterations):
        for stage in trainers_of(pipeline, role):
            held = checkpoint is not None and _is_held(pipeline, iteration, stage.name, checkpoint)
            if stage.due(iteration) and not held:
                return iteration
    return pipeline.num_iterations


def _is_held(pipeline: Pipeline, iteration: int, stage: str, checkpoint: RoleCheckpoint) -> bool:
    """Whether a checkpoint of a role comes from this training of it or a later one."""
    names = [other.name for other in pipeline.stages]
    return (iteration, names.index(stage)) <= (checkpoint.iteration, names.index(checkpoint.stage))


def refuse_gap(run: RunFolder, pipeline: Pipeline, position: Position) -> None:
    """What the newest checkpoints were trained on is published, its files here or let go by retention.

    Raises: CorruptFileError; played again, it would be played with weights that came after it.
    """
    names = [stage.name for stage in pipeline.stages]
    for checkpoint in position.checkpoints.values():
        at = checkpoint.iteration
        before = pipeline.stages[: names.index(checkpoint.stage)] if at >= position.first_iteration else ()
        for stage in before:
            if stage.trains is None and stage.due(at) and (at, stage.name) not in position.done:
                raise CorruptFileError(
                    f"{run.stage(at, stage.name).path}: want it published, because the checkpoint of iteration {at} "
                    "was trained on it, given a gap; restore the folder from a copy, or branch from that checkpoint"
                )


def refuse_growth_before_redone(run: RunFolder, pipeline: Pipeline, stored_iterations: int) -> None:
    """Schedules reach to the last iteration: updates that are redone must be redone with the one they had.

    Raises: InputError.
    """
    if pipeline.num_iterations == stored_iterations:
        return
    position = find_position(run, pipeline)
    trained = {stage.name for stage in pipeline.stages if stage.trains is not None}
    redone = [at for at, stage in position.done if stage in trained and (at, stage) not in position.trained]
    if redone:
        raise InputError(
            f"num_iterations: want {stored_iterations} until the updates since the newest checkpoint are redone "
            f"(iterations {min(redone)} to {max(redone)}), given "
            f"{pipeline.num_iterations}; run once as it was, then with more"
        )


def checkpoint_of(folder: StageFolder) -> Path | None:
    """The folder of a published checkpoint, or None."""
    manifest = folder.manifest()
    if manifest is None or not manifest.holds_checkpoint:
        return None
    record = next(record for record in manifest.files if record.name.endswith(".safetensors"))
    return (folder.path / record.name).parent


def load_checkpoints(run: RunFolder, checkpoints: Iterable[RoleCheckpoint]) -> Iterator[Checkpoint]:
    """The checkpoint that a branch starts from, where there is one, then these; verified against their manifests."""
    if (run.path / INITIAL).is_dir():
        yield read_checkpoint(run.path / INITIAL)
    for checkpoint in checkpoints:
        yield read_published(run, checkpoint.need)


def read_published(run: RunFolder, need: Need) -> Checkpoint:
    """The checkpoint that a training left, verified against its manifest.

    Raises: CorruptFileError when it is damaged or gone.
    """
    folder = run.stage(need.iteration, need.stage)
    manifest, path = folder.manifest(), checkpoint_of(folder)
    if manifest is None or path is None:
        raise CorruptFileError(
            f"{folder.path}: want the checkpoint that later stages read, found none; its files were removed: "
            "restore them from a copy, or branch from a checkpoint that is kept"
        )
    return read_checkpoint(path, [record for record in manifest.files if "/checkpoint/" in record.name])


def clear_leftovers(run: RunFolder, position: Position, stages: Collection[str], iteration: int | None = None) -> None:
    """Remove what dead launches of these stages wrote and nothing published refers to.

    Older iterations too: a launch tidies up every few seconds, so one that was killed leaves parts of many behind.
    Args: iteration: only this one.
    """
    for number in run.iterations() if iteration is None else [iteration]:
        for folder in run.stages(number):
            if folder.stage in stages and (number >= position.first_iteration - 1 or has_leftovers(folder)):
                folder.remove_leftovers()


def has_leftovers(folder: StageFolder) -> bool:
    """Whether a stage folder holds more than its manifest and one attempt: a look at its names only."""
    return sum(1 for _ in folder.path.iterdir()) > 2


def machine_notes(run: RunFolder, position: Position, compute_threads: int) -> list[str]:
    """What differs between this machine and the one that published the newest stage: bits may differ from here on."""
    newest = max(position.done, default=None)
    manifest = run.stage(*newest).manifest() if newest is not None else None
    if manifest is None:
        return []
    changed = difference(manifest.machine, machine_facts(compute_threads))
    return [
        f"{run.path}: note: {name} was {then}, is {now}; from here on bits may differ from those of an unbroken run"
        for name, (then, now) in changed.items()
    ]


def previous_scores(run: RunFolder) -> dict[int, float]:
    """Iteration -> mean return of its evaluation, of every evaluation published; for the retention of the best."""
    evaluated = [run.stage(iteration, "evaluate").manifest() for iteration in run.iterations()]
    return {manifest.iteration: manifest.extra["return_mean"] for manifest in evaluated if manifest is not None}


def previous_facts(run: RunFolder, stage: str, before: int) -> list[Mapping[str, Any]]:
    """Facts that a stage published in iterations below `before`, newest first."""
    found: list[Mapping[str, Any]] = []
    for iteration in reversed(run.iterations()):
        if iteration < before:
            folder = run.stage(iteration, stage)
            manifest = folder.manifest() or folder.removed()
            if manifest is not None:
                found.append(manifest.extra)
    return found
