"""What a run takes on disk: by stage, kept and removed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

from hpcrl.report.record import RunRecord


@dataclasses.dataclass(frozen=True)
class StageBytes:
    """One stage over all iterations read, in bytes of published files."""

    stage: str
    published: int
    kept: int
    files: int
    """Files kept."""

    @property
    def removed(self) -> int:
        return self.published - self.kept


def bytes_by_stage(record: RunRecord) -> list[StageBytes]:
    """In the pipeline's order."""
    found = []
    for stage in record.pipeline.stages:
        records = record.of_stage(stage.name)
        kept = [entry.manifest for entry in records if not entry.is_removed]
        found.append(
            StageBytes(
                stage=stage.name,
                published=sum(entry.manifest.bytes for entry in records),
                kept=sum(manifest.bytes for manifest in kept),
                files=sum(len(manifest.files) for manifest in kept),
            )
        )
    return found


@dataclasses.dataclass(frozen=True)
class DiskUse:
    """Sizes of files, as far as there was time to look."""

    bytes: int
    is_whole: bool
    """Whether every file was counted."""
    iterations: int
    """Iterations counted, newest first."""


def bytes_on_disk(path: Path) -> int:
    """Sizes of all files below a folder, whatever they are; files that vanish meanwhile do not count."""
    return disk_use(path, seconds=float("inf")).bytes


def disk_use(path: Path, *, seconds: float) -> DiskUse:
    """As bytes_on_disk, the newest iterations first, but looks no longer than so many seconds.

    A run may have a million files, and a parallel file system may take a millisecond for each.
    """
    deadline = time.monotonic() + seconds
    counted = iterations = 0
    for entry in _newest_first(path):
        for size in _sizes(entry):
            counted += size
            if time.monotonic() > deadline:
                return DiskUse(counted, False, iterations)
        iterations += _is_iteration(entry)
    return DiskUse(counted, True, iterations)


def _newest_first(path: Path) -> list[os.DirEntry[str]]:
    """What lies in the run's folder: files, then iterations from the newest on, then other folders."""
    entries = sorted(_entries(path), key=lambda entry: entry.name, reverse=True)
    return sorted(entries, key=lambda entry: (entry.is_dir(follow_symlinks=False), not _is_iteration(entry)))


def _is_iteration(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("iteration-")


def _sizes(entry: os.DirEntry[str]) -> Iterator[int]:
    """Size of a file, or of all files below a folder; what vanishes meanwhile is left out."""
    if entry.is_dir(follow_symlinks=False):
        for below in _entries(entry.path):
            yield from _sizes(below)
    else:
        with contextlib.suppress(FileNotFoundError):
            yield entry.stat(follow_symlinks=False).st_size


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return list(found)
    except FileNotFoundError:
        return []
