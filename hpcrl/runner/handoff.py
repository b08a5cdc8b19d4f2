"""What stages hand on inside a world: fields per block in memory, the same as reading them back would give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from hpcrl.data import Trajectories
from hpcrl.errors import CorruptFileError, InputError
from hpcrl.runner.stored import stored_pipeline
from hpcrl.stages import Score, ScoreByModel
from hpcrl.store.layout import lanes_name, shard_name
from hpcrl.store.manifest import FileRecord
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard
from hpcrl.store.stage_folder import StageFolder


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an iteration's earlier fields come from: a stage of this run, or of the run that `inputs` names."""

    run: RunFolder
    iteration: int
    stage: str

    def folder(self) -> StageFolder:
        return self.run.stage(self.iteration, self.stage)


class Handoff:
    """Blocks in memory by (iteration, stage); what is not here is read from its published shard, verified.

    `mode` "disk" keeps nothing in memory, so that every stage reads its input back. What other loops of the run at
    `run_path` have written is read once.
    """

    def __init__(self, mode: Literal["memory", "disk"], run_path: Path | None = None) -> None:
        self.mode, self._run_path = mode, run_path
        self._fields: dict[tuple[int, str, int], Trajectories] = {}
        self._lanes: dict[tuple[int, str, int], Trajectories] = {}

    def put(self, iteration: int, stage: str, block: int, fields: Trajectories, lanes: Trajectories | None) -> None:
        """Keep one block's output for the stages that follow."""
        if self.mode == "memory":
            self._fields[iteration, stage, block] = fields
            if lanes is not None:
                self._lanes[iteration, stage, block] = lanes

    def forget(self, before: int) -> None:
        """Drop fields and lanes of iterations before `before`."""
        for kept in (self._fields, self._lanes):
            for key in [key for key in kept if key[0] < before]:
                del kept[key]

    def fields(self, sources: Sequence[Source], block: int) -> Trajectories:
        """All fields of one block that the sources wrote, as one set of trajectories."""
        merged: Trajectories | None = None
        for source in sources:
            key = (source.iteration, source.stage, block)
            part = self._fields.get(key)
            if part is None:
                part = read_block(source, shard_name(block))
                if self.mode == "memory" and source.run.path == self._run_path:
                    self._fields[key] = part  # several stages read what another loop has written
            merged = part if merged is None else _join(merged, part, source)
        assert merged is not None  # the graph check: a stage that reads has a stage before it that writes
        return merged

    def lanes(self, source: Source, block: int) -> Trajectories:
        """One block's lanes after an iteration."""
        lanes = self._lanes.get((source.iteration, source.stage, block))
        return lanes if lanes is not None else read_block(source, lanes_name(block))


def read_block(source: Source, file_name: str) -> Trajectories:
    """A published (or, in an unfinished stage, part-published) file, verified against its record.

    Raises: CorruptFileError when it is missing or damaged.
    """
    folder = source.folder()
    for record in _published_files(folder):
        if record.name.endswith(f"/{file_name}"):
            return read_shard(folder.file(record), record=record)
    raise CorruptFileError(
        f"{folder.path}: want a published {file_name}, found none; the iteration is incomplete or its files were "
        "removed: resume the run, or choose an iteration whose rollouts are kept"
    )


def _published_files(folder: StageFolder) -> Iterator[FileRecord]:
    """Of the manifest, else of the parts, else of the manifest: it may be published, and they be cleared, meanwhile."""
    for _ in range(2):
        manifest = folder.manifest()
        if manifest is not None:
            yield from manifest.files
            return
        for part in folder.parts().values():
            yield from part.files


def _join(merged: Trajectories, part: Trajectories, source: Source) -> Trajectories:
    if part.num_steps != merged.num_steps or part.offsets.tolist() != merged.offsets.tolist():
        raise CorruptFileError(
            f"{source.folder().path}: want offsets equal to the rollout's ({merged.num_steps} steps), given "
            f"{part.num_steps} steps; the shards belong to different iterations"
        )
    return merged.with_fields(steps=part.steps, per_trajectory=part.per_trajectory, ragged=part.ragged)


def offline_sources(path: Path, kept: Sequence[int], iteration: int) -> list[Source]:
    """What an offline iteration reads: of the rollouts kept when the run was made, oldest first, in turn."""
    run = RunFolder.open(path)
    return [Source(run, kept[iteration % len(kept)], stage) for stage in _recording_stages(run)]


def _recording_stages(run: RunFolder) -> list[str]:
    """The stages of a run whose fields need its environment or its policy: what acted, and what graded."""
    pipeline = stored_pipeline(run.pipeline())
    return [stage.name for stage in pipeline.stages if stage.acts or isinstance(stage, Score | ScoreByModel)]


def kept_rollouts(run: RunFolder) -> list[int]:
    """Iterations whose rollout, or responses and their scores, are published and still here.

    Raises: InputError when there is none.
    """
    stages = _recording_stages(run)
    kept = [
        iteration
        for iteration in run.iterations()
        if stages and all(run.stage(iteration, stage).manifest() is not None for stage in stages)
    ]
    if not kept:
        raise InputError(f"{run.path}: want at least one kept rollout, found none; see Keep(rollouts=...)")
    return kept


def merge_facts(parts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Facts of all blocks in one: lists joined, numbers added; seconds are the longest block's."""
    merged: dict[str, object] = {}
    for part in parts:
        for name, value in part.items():
            before = merged.get(name)
            if isinstance(value, list):
                merged[name] = [*(before if isinstance(before, list) else []), *value]
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                earlier = before if isinstance(before, (int, float)) else 0
                merged[name] = max(earlier, value) if name == "seconds" else earlier + value
            else:
                merged[name] = value
    return merged
