"""Where a run stands on disk: what is done, where the newest checkpoint is, what a dead launch left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.pipeline import Pipeline
from hpcrl.runner.branch import INITIAL
from hpcrl.store.checkpoint import Checkpoint, read_checkpoint
from hpcrl.store.machine import difference, machine_facts
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder


@dataclasses.dataclass(frozen=True)
class Position:
    """What rank 0 found when it looked; the same for all ranks."""

    checkpoint_iteration: int
    """Newest iteration whose update left a checkpoint; -1: none, start from the initial weights."""
    checkpoint_path: str | None
    done: frozenset[tuple[int, str]]
    """(iteration, stage) pairs that are published."""
    finished_blocks: Mapping[tuple[int, str], frozenset[int]]
    """Blocks that unfinished stages have published."""
    newest_iteration: int
    """Highest iteration with a folder; -1: none."""

    @property
    def first_iteration(self) -> int:
        """Where the loop begins: the checkpoint's own iteration, whose later stages may be unfinished."""
        return max(self.checkpoint_iteration, 0)


def find_position(run: RunFolder, pipeline: Pipeline, *, since: int | None = None) -> Position:
    """Look at the run folder.

    Args: since: look at iterations from this one on, also when a newer checkpoint is there.
    Raises: CorruptFileError for a damaged manifest.
    """
    iterations = run.iterations()
    trained = [stage.name for stage in pipeline.stages if stage.trains is not None]
    checkpoint_iteration, checkpoint_path = -1, None
    for iteration in reversed(iterations):
        found = [checkpoint_of(run.stage(iteration, name)) for name in trained]
        if found and found[-1] is not None:
            checkpoint_iteration, checkpoint_path = iteration, str(found[-1])
            break
    if checkpoint_path is None and (run.path / INITIAL).is_dir():
        checkpoint_path = str(run.path / INITIAL)
    done: set[tuple[int, str]] = set()
    finished: dict[tuple[int, str], frozenset[int]] = {}
    for iteration in iterations:
        if iteration < checkpoint_iteration and (since is None or iteration < since):
            continue
        for folder in run.stages(iteration):
            if folder.is_done():
                done.add((iteration, folder.stage))
            else:
                finished[iteration, folder.stage] = frozenset(folder.parts())
    return Position(checkpoint_iteration, checkpoint_path, frozenset(done), finished, max(iterations, default=-1))


def refuse_gap(run: RunFolder, pipeline: Pipeline, position: Position) -> None:
    """What the newest checkpoint was trained on is published, its files here or let go by retention.

    Raises: CorruptFileError; played again, it would be played with weights that came after it.
    """
    trained = [index for index, stage in enumerate(pipeline.stages) if stage.trains is not None]
    at = position.checkpoint_iteration
    for stage in pipeline.stages[: trained[0]] if trained and at >= 0 else ():
        if stage.due(at) and (at, stage.name) not in position.done:
            raise CorruptFileError(
                f"{run.stage(at, stage.name).path}: want it published, because the checkpoint of iteration {at} was "
                "trained on it, given a gap; restore the folder from a copy, or branch from that checkpoint"
            )


def refuse_growth_before_redone(run: RunFolder, pipeline: Pipeline, stored_iterations: int) -> None:
    """Schedules reach to the last iteration: updates that are redone must be redone with the one they had.

    Raises: InputError.
    """
    if pipeline.num_iterations == stored_iterations:
        return
    position = find_position(run, pipeline)
    trained = {stage.name for stage in pipeline.stages if stage.trains is not None}
    redone = [at for at, stage in position.done if stage in trained and at > position.checkpoint_iteration]
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


def load_checkpoint(run: RunFolder, position: Position, trained: str) -> Checkpoint:
    """The checkpoint that the position names, verified against its manifest."""
    assert position.checkpoint_path is not None
    folder = Path(position.checkpoint_path)
    if position.checkpoint_iteration < 0:
        return read_checkpoint(folder)
    manifest = run.stage(position.checkpoint_iteration, trained).manifest()
    assert manifest is not None
    return read_checkpoint(folder, [record for record in manifest.files if "/checkpoint/" in record.name])


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
