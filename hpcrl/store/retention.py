"""Retention: which rollouts and checkpoints stay on disk, and how the others go without seeming to be there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.store.attempt import drop_progress
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.killpoints import reach
from hpcrl.store.layout import MANIFEST, METRICS, REMOVED, numbered, part_name
from hpcrl.store.publish import fsync_folder
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder

Needed = Collection[tuple[int, str]]


@dataclass(frozen=True)
class Keep:
    """What stays on disk of a run's published stages; None keeps all.

    Raises: InputError when a count is below 1.
    Example:
        >>> Keep(rollouts=4).checkpoints
        2
    """

    rollouts: int | None = 2
    """The newest so many iterations whose stages hold trajectories."""
    checkpoints: int | None = 2
    """The newest so many iterations whose stages hold models."""
    every: int | None = 50
    """Also every checkpoint whose iteration is a multiple of this; None: no such."""
    best: bool = True
    """Also the checkpoint with the highest score, as far as checkpoints were scored."""

    def __post_init__(self) -> None:
        for name in ("rollouts", "checkpoints", "every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"Keep.{name}: want a whole number >= 1, or None, given {value!r}")


def apply(
    run: RunFolder, keep: Keep, needed: Needed, scores: Mapping[int, float] | None = None
) -> list[tuple[int, str]]:
    """Removes once what `keep` does not keep; see Retention.apply."""
    return Retention(run, keep).apply(needed, scores)


class Retention:
    """Applies `keep` to a run again and again; remembers what is settled, so that a long run does not get slower."""

    def __init__(self, run: RunFolder, keep: Keep) -> None:
        self.run, self.keep = run, keep
        self._settled: set[Path] = set()  # stages whose files are gone
        self._kinds: dict[Path, str] = {}  # published manifests never change, so neither does what they hold

    def apply(self, needed: Needed, scores: Mapping[int, float] | None = None) -> list[tuple[int, str]]:
        """Removes the files of published stages that `keep` does not keep, and finishes removals a kill interrupted.

        A stage is unpublished first (its manifest is renamed to removed.json: sizes and checksums stay), then its files
        go; metrics.jsonl stays, for the report.
        Args:
            needed: (iteration, stage) pairs that must stay whatever `keep` says: inputs of unfinished stages, lanes of
                open episodes, branch points.
            scores: iteration -> score of its checkpoint, higher is better; for `best`.
        Returns: (iteration, stage) of what was removed.
        """
        stages = [
            stage
            for iteration in self.run.iterations()
            for stage in self.run.stages(iteration)
            if stage.path not in self._settled
        ]
        kinds = {stage.path: self._kind(stage) for stage in stages}
        kept = {
            "trajectories": self._newest(stages, kinds, "trajectories", self.keep.rollouts),
            "checkpoint": self._kept_checkpoints(stages, kinds, scores or {}),
        }
        removed = []
        for stage in stages:
            kind = kinds[stage.path]
            if kind == "removed":
                remove_stage(stage)
                self._settled.add(stage.path)
            elif kind in kept and stage.iteration not in kept[kind] and (stage.iteration, stage.stage) not in needed:
                remove_stage(stage)
                self._settled.add(stage.path)
                removed.append((stage.iteration, stage.stage))
        return removed

    def _kind(self, stage: StageFolder) -> str:
        """What a stage holds: "trajectories", "checkpoint", "facts"; "removed" or "unfinished"."""
        if stage.path in self._kinds:
            return self._kinds[stage.path]
        if (stage.path / REMOVED).exists():
            return "removed"
        manifest = stage.manifest()
        if manifest is None:
            return "unfinished"
        kind = "facts"
        if manifest.holds_checkpoint:
            kind = "checkpoint"
        elif manifest.holds_trajectories:
            kind = "trajectories"
        self._kinds[stage.path] = kind
        return kind

    def _newest(
        self, stages: list[StageFolder], kinds: Mapping[Path, str], kind: str, count: int | None
    ) -> Collection[int]:
        iterations = sorted({stage.iteration for stage in stages if kinds[stage.path] == kind})
        return iterations if count is None else iterations[-count:]

    def _kept_checkpoints(
        self, stages: list[StageFolder], kinds: Mapping[Path, str], scores: Mapping[int, float]
    ) -> Collection[int]:
        there = {stage.iteration for stage in stages if kinds[stage.path] == "checkpoint"}
        kept = set(self._newest(stages, kinds, "checkpoint", self.keep.checkpoints))
        if self.keep.every is not None:
            kept |= {iteration for iteration in there if iteration % self.keep.every == 0}
        scored = [(scores[iteration], iteration) for iteration in there if iteration in scores]
        if self.keep.best and scored:
            kept.add(max(scored)[1])
        return kept


def remove_stage(stage: StageFolder) -> None:
    """Unpublishes a stage, then removes its files but for the metrics; goes on where a kill interrupted it."""
    with explain_write_errors(stage.path):
        reach("retention.before_unpublish")
        if (stage.path / MANIFEST).exists():
            os.rename(stage.path / MANIFEST, stage.path / REMOVED)
            fsync_folder(stage.path)
        reach("retention.after_unpublish")
        for index in numbered(stage.path, "part-*.json"):
            (stage.path / part_name(index)).unlink(missing_ok=True)
        drop_progress(stage.path, before=max(numbered(stage.path, "progress-*.json"), default=0) + 1)
        for attempt in stage.path.glob("attempt-*"):
            for path in sorted(attempt.iterdir()):
                if path.name != METRICS:
                    _remove(path)
                    reach("retention.between_deletes")
        reach("retention.after_delete")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
