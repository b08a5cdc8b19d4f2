"""Replay: recompute advantages, losses and updates from stored shards, and say whether the bits are the same.

Needs no environment package: spaces rest in pipeline.json, everything else in shards and checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.comm import SingleProcess, TreeSum
from hpcrl.data import Trajectories
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline
from hpcrl.residents import Residents
from hpcrl.runner.handoff import Handoff, Source, offline_sources, read_block
from hpcrl.runner.position import INITIAL, checkpoint_of, read_published
from hpcrl.runner.stored import stored_description, stored_pipeline
from hpcrl.segments import Need, training_before
from hpcrl.stages import Advantage, Environments, Stage, StageContext, Update
from hpcrl.store.checkpoint import Checkpoint, read_checkpoint
from hpcrl.store.layout import shard_name
from hpcrl.store.machine import difference, machine_facts
from hpcrl.store.run_folder import RunFolder

Array = npt.NDArray[Any]
Only = Literal["advantage", "update"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One recomputed result beside the stored one."""

    iteration: int
    stage: str
    compared: int
    """Numbers compared."""
    first_difference: str | None
    """Where the first one differs, with both values; None: bit-identical."""


def replay_command(path: Path, *, iteration: int | None = None, only: Only | None = None) -> int:
    """Print a line per recomputed stage; exit code 0 when all are bit-identical, 1 when one differs."""
    run = RunFolder.open(path)
    comparisons = list(replay(run, iteration=iteration, only=only))
    for comparison in comparisons:
        verdict = "bit-identical" if comparison.first_difference is None else comparison.first_difference
        print(
            f"iteration {comparison.iteration}  {comparison.stage:<10} {comparison.compared} numbers  {verdict}",
            flush=True,
        )
    different = [comparison for comparison in comparisons if comparison.first_difference is not None]
    if different:
        for line in machine_notes(run, {comparison.iteration for comparison in different}):
            print(line)
    same = len(comparisons) - len(different)
    print(f"{len(comparisons)} stages replayed: {same} bit-identical, {len(different)} differ")
    return 1 if different else 0


def replay(run: RunFolder, *, iteration: int | None = None, only: Only | None = None) -> Iterator[Comparison]:
    """Recompute every stage whose inputs and result are kept, oldest first.

    Args: iteration: just this one. only: just this stage.
    Raises: InputError when nothing of what is asked for is kept; CorruptFileError for a damaged file.
    """
    pipeline = stored_pipeline(run.pipeline())
    found = 0
    for number in run.iterations() if iteration is None else [iteration]:
        for index, stage in enumerate(pipeline.stages):
            if not isinstance(stage, (Advantage, Update)) or only not in (None, stage.name):
                continue
            if _can_replay(run, pipeline, number, index):
                found += 1
                yield _replay_stage(run, pipeline, number, index)
    if not found:
        what = "any iteration" if iteration is None else f"iteration {iteration}"
        raise InputError(
            f"{run.path}: want {what} with kept shards and checkpoints before and after it, found none; "
            "keep more with Keep(rollouts=..., checkpoints=...)"
        )


def machine_notes(run: RunFolder, iterations: set[int]) -> list[str]:
    """What differs between this machine and the one that computed the stored results: bits may depend on it."""
    notes = []
    for iteration in sorted(iterations):
        manifests = [folder.manifest() for folder in run.stages(iteration)]
        for manifest in manifests:
            if manifest is None:
                continue
            here = machine_facts(int(manifest.machine["compute_threads"]))
            for name, (then, now) in difference(manifest.machine, here).items():
                notes.append(f"note: {name} was {then}, is {now}")
            break
    return sorted(set(notes))


def _can_replay(run: RunFolder, pipeline: Pipeline, iteration: int, index: int) -> bool:
    """Whether the stage's inputs, its result and, for an update, the checkpoint before it are kept."""
    stage = pipeline.stages[index]
    if any(source.folder().manifest() is None for source in _sources(run, pipeline, iteration, index)):
        return False
    if isinstance(stage, Advantage):
        return run.stage(iteration, stage.name).manifest() is not None
    if checkpoint_of(run.stage(iteration, stage.name)) is None:
        return False
    before = training_before(pipeline, stage, iteration)
    return before is None or checkpoint_of(run.stage(before.iteration, before.stage)) is not None


def _sources(run: RunFolder, pipeline: Pipeline, iteration: int, index: int) -> list[Source]:
    writing = [stage for stage in pipeline.stages[:index] if stage.writes and stage.due(iteration)]
    sources = [Source(run, iteration, stage.name) for stage in writing]
    if pipeline.inputs is not None:
        read = offline_sources(Path(pipeline.inputs), run.pipeline()["input_iterations"], iteration)
        sources = [*read, *sources]
    return sources


def _replay_stage(run: RunFolder, pipeline: Pipeline, iteration: int, index: int) -> Comparison:
    import torch

    torch.set_num_threads(pipeline.compute_threads)
    stage = pipeline.stages[index]
    output = _Captured()
    context = _context(run, pipeline, iteration, index, output)
    if isinstance(stage, Update):
        _load_before(run, pipeline, stage, iteration, context.residents)
    stage.run(context)
    if isinstance(stage, Update):
        stored = read_published(run, Need(iteration, stage.name))
        return _compare_update(run, stage, iteration, context.residents, stored, output)
    return _compare_blocks(run, stage, iteration, output)


def _load_before(run: RunFolder, pipeline: Pipeline, stage: Stage, iteration: int, residents: Residents) -> None:
    before = training_before(pipeline, stage, iteration)
    if before is not None:
        checkpoint = read_published(run, before)
    elif (run.path / INITIAL).is_dir():
        checkpoint = read_checkpoint(run.path / INITIAL)
    else:
        return  # the initial weights follow from the seed
    residents.load(checkpoint.roles, checkpoint.state)


def _context(run: RunFolder, pipeline: Pipeline, iteration: int, index: int, output: _Captured) -> StageContext:
    description = stored_description(run.pipeline())
    comm = SingleProcess()
    handoff = Handoff("memory")
    sources = _sources(run, pipeline, iteration, index)
    return StageContext(
        iteration=iteration,
        num_iterations=_horizon(run, pipeline, iteration, index),
        seed=pipeline.seed,
        num_blocks=pipeline.num_blocks,
        comm=comm,
        tree=TreeSum(comm, pipeline.num_blocks),
        residents=Residents(pipeline.models, description, pipeline.seed),
        environments=Environments(),
        output=output,
        inputs=lambda block: handoff.fields(sources, block),
        previous_lanes=lambda block: None,
        earlier_facts=lambda name: iter(()),
        description=description,
        rollout=None,
        stop_requested=lambda: False,
        progress_due=lambda: False,
        tick=lambda what, done, total: None,
    )


def _horizon(run: RunFolder, pipeline: Pipeline, iteration: int, index: int) -> int:
    """How many iterations the run was to have when a stage played: schedules reach to its end."""
    folder = run.stage(iteration, pipeline.stages[index].name)
    manifest = folder.manifest()
    return int(manifest.extra.get("num_iterations", pipeline.num_iterations)) if manifest else pipeline.num_iterations


class _Captured:
    """An output that keeps results in memory instead of publishing them."""

    def __init__(self) -> None:
        self.blocks: dict[int, Trajectories] = {}
        self.facts: Mapping[str, object] = {}

    def finished_blocks(self) -> frozenset[int]:
        return frozenset()

    def emit(
        self,
        block: int,
        trajectories: Trajectories | None,
        *,
        lanes: Trajectories | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        if trajectories is not None:
            self.blocks[block] = trajectories

    def emit_checkpoint(self, facts: Mapping[str, object]) -> None:
        self.facts = facts

    def emit_facts(self, facts: Mapping[str, object]) -> None:
        self.facts = facts

    def save_progress(self, tensors: Mapping[str, Mapping[str, Array]], state: Mapping[str, object]) -> None:
        pass  # progress_due is never true here

    def load_progress(self) -> None:
        return None

    def log(self, row: Mapping[str, object]) -> None:
        pass


def _compare_blocks(run: RunFolder, stage: Stage, iteration: int, output: _Captured) -> Comparison:
    compared, first = 0, None
    for block, recomputed in sorted(output.blocks.items()):
        stored = read_block(Source(run, iteration, stage.name), shard_name(block))
        for name in stage.writes:
            compared += stored[name].size
            first = first or first_difference(f"{name}, block {block}", stored[name], recomputed[name])
    return Comparison(iteration, stage.name, compared, first)


def _compare_update(
    run: RunFolder, stage: Stage, iteration: int, residents: Residents, stored: Checkpoint, output: _Captured
) -> Comparison:
    compared, first = 0, None
    assert stage.trains is not None  # an update
    recomputed = residents.get(stage.trains).tensors()
    for group, arrays in stored.roles.items():
        for name, array in arrays.items():
            compared += array.size
            first = first or first_difference(f"{group}, {name}", array, recomputed[group][name])
    manifest = run.stage(iteration, stage.name).manifest()
    losses: Mapping[str, object] = manifest.extra if manifest is not None else {}
    for name, value in output.facts.items():
        if name in ("seconds", "num_iterations") or not isinstance(value, (int, float)):
            continue
        compared += 1
        if first is None and losses.get(name) != value:
            first = f"first differs at {name}: stored {losses.get(name)!r}, recomputed {value!r}"
    return Comparison(iteration, stage.name, compared, first)


def first_difference(name: str, stored: Array, recomputed: Array) -> str | None:
    """Where two arrays first differ in their bits, in words; None when they are the same (NaN equals the same NaN).

    Example:
        >>> first_difference("values", np.array([1.0, 2.0]), np.array([1.0, 2.5]))
        'first differs at values[1]: stored 2.0, recomputed 2.5'
    """
    if stored.dtype != recomputed.dtype or stored.shape != recomputed.shape:
        return (
            f"first differs at {name}: stored {stored.dtype}{list(stored.shape)}, "
            f"recomputed {recomputed.dtype}{list(recomputed.shape)}"
        )
    one, other = np.ascontiguousarray(stored).reshape(-1), np.ascontiguousarray(recomputed).reshape(-1)
    differs = (one.view(np.uint8).reshape(len(one), -1) != other.view(np.uint8).reshape(len(one), -1)).any(axis=1)
    if not differs.any():
        return None
    where = int(np.argmax(differs))
    index = _subscript(np.unravel_index(where, stored.shape)) if stored.ndim else ""
    return f"first differs at {name}{index}: stored {one[where]}, recomputed {other[where]}"


def _subscript(indices: Sequence[np.intp]) -> str:
    return "[" + ", ".join(str(int(index)) for index in indices) + "]"
