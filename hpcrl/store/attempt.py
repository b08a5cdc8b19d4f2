"""One try at a stage: a folder of its own, from which parts, progress or a whole manifest are published."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcrl.store.killpoints import reach
from hpcrl.store.layout import MANIFEST, METRICS, REMOVED, attempt_name, numbered, part_name, progress_name
from hpcrl.store.machine import machine_facts
from hpcrl.store.manifest import FileRecord, Manifest, Part, Progress, attempts_of, read_if_there
from hpcrl.store.publish import fsync_folder, make_folder, publish, publish_all

Extra = Mapping[str, Any]


class Attempt:
    """An attempt folder to write into. Made by StageFolder.begin_attempt.

    Write files below `path` with write_shard or write_checkpoint (they fsync), then publish their records: names in
    records are below `path`; publishing turns them into names below the stage folder.
    """

    def __init__(self, stage_path: Path, iteration: int, stage: str, number: int, compute_threads: int | None) -> None:
        self.stage_path, self.iteration, self.stage, self.number = stage_path, iteration, stage, number
        self.path = stage_path / attempt_name(number)
        self.metrics = self.path / METRICS
        self._started = time.monotonic()
        self._machine = machine_facts(compute_threads)

    def __repr__(self) -> str:
        return f"Attempt({str(self.path)!r})"

    def publish_part(self, index: int, files: Sequence[FileRecord], extra: Extra | None = None) -> bool:
        """Publishes one block's files; False when another attempt had done so first: then these files are dropped.

        Raises: InputError when the disk is full or read-only.
        """
        return self.publish_parts({index: (files, extra or {})})[index]

    def publish_parts(self, parts: Mapping[int, tuple[Sequence[FileRecord], Extra]]) -> dict[int, bool]:
        """Publishes several parts with one fsync of the folders; index -> whether this attempt was the first."""
        made = {index: self._part(index, files, extra) for index, (files, extra) in parts.items()}
        if self._is_done():
            published = dict.fromkeys(parts, False)
        else:
            self._sync_folders(file for part in made.values() for file in part.files)
            names = publish_all(self.stage_path, {part_name(index): part.to_bytes() for index, part in made.items()})
            published = {index: names[part_name(index)] for index in parts}
        for index, is_first in published.items():
            if not is_first:
                self._drop_unless_published(made[index].files)
        return published

    def publish(self, files: Sequence[FileRecord], extra: Extra | None = None) -> bool:
        """Publishes the manifest of a stage that one process wrote whole; False (and dropped) when it was done already.

        Raises: InputError when the disk is full or read-only.
        """
        part = self._part(0, files, {})
        published = False
        if not self._is_done():
            self._sync_folders(part.files)
            published = publish_manifest(self.stage_path, self.iteration, self.stage, [part], extra or {})
        if not published:
            self._drop_unless_published(part.files)
        return published

    def save_progress(self, write: Callable[[Path], Sequence[FileRecord]], extra: Extra | None = None) -> int:
        """Publishes where the stage can go on; older progress is then removed.

        Args:
            write: writes and fsyncs files into the new folder it is given and returns their records (write_checkpoint).
            extra: the cursor.
        Returns: the progress's number.
        """
        number = self._next_progress()
        folder = self.path / progress_name(number).removesuffix(".json")
        make_folder(folder)
        records = [record.under(f"{self.path.name}/{folder.name}") for record in write(folder)]
        self._sync_folders(records)
        progress = Progress(number, self.number, f"{self.path.name}/{folder.name}", records, dict(extra or {}))
        publish(self.stage_path / progress_name(number), progress.to_bytes())
        reach("progress.before_drop_older")
        drop_progress(self.stage_path, before=number)
        reach("progress.after_drop_older")
        return number

    def drop(self) -> None:
        """Removes what this attempt wrote and nothing published refers to."""
        if self.path.name not in attempts_in_use(self.stage_path):
            shutil.rmtree(self.path, ignore_errors=True)

    def _part(self, index: int, files: Sequence[FileRecord], extra: Extra) -> Part:
        placed = [record.under(self.path.name) for record in files]
        return Part(index, self.number, placed, dict(extra), self._machine, time.monotonic() - self._started)

    def _is_done(self) -> bool:
        return any((self.stage_path / name).exists() for name in (MANIFEST, REMOVED))

    def _sync_folders(self, files: Iterable[FileRecord]) -> None:
        """Makes the names of files durable before anything refers to them."""
        reach("attempt.before_fsync")
        folders = {(self.stage_path / file.name).parent for file in files} | {self.path}
        for folder in sorted(folders):
            fsync_folder(folder)
        reach("attempt.after_fsync")

    def _drop_unless_published(self, files: Sequence[FileRecord]) -> None:
        """A loser drops its files; unless the published ones are the same, because it published them itself before."""
        in_use = {record.name for record in published_files(self.stage_path)}
        for file in files:
            if file.name not in in_use:
                (self.stage_path / file.name).unlink(missing_ok=True)

    def _next_progress(self) -> int:
        numbers = numbered(self.stage_path, "progress-*.json")
        for attempt in self.stage_path.glob("attempt-*"):
            numbers += numbered(attempt, "progress-*")
        return max(numbers, default=0) + 1


def publish_manifest(stage_path: Path, iteration: int, stage: str, parts: Sequence[Part], extra: Extra) -> bool:
    """Publishes the manifest that the parts add up to; False when another was first."""
    machine = parts[0].machine
    others: list[Mapping[str, Any]] = []
    for part in parts:
        if part.machine != machine and part.machine not in others:
            others.append(part.machine)
    manifest = Manifest(
        stage=stage,
        iteration=iteration,
        attempt=max(part.attempt for part in parts),
        files=tuple(file for part in parts for file in part.files),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=max(part.seconds for part in parts),
        machine=machine,
        other_machines=others,
        extra=dict(extra),
    )
    return publish(stage_path / MANIFEST, manifest.to_bytes())


def drop_progress(stage_path: Path, before: int) -> None:
    """Unpublishes progress with numbers below `before`, then removes its files."""
    for number in numbered(stage_path, "progress-*.json"):
        if number < before:
            path = stage_path / progress_name(number)
            progress = read_if_there(Progress.read, path)
            path.unlink(missing_ok=True)
            if progress is not None:
                shutil.rmtree(stage_path / progress.folder, ignore_errors=True)


def published_files(stage_path: Path) -> list[FileRecord]:
    """Records of everything that the manifest, the parts and the progress of a stage refer to."""
    manifest = read_if_there(Manifest.read, stage_path / MANIFEST)
    if manifest is not None:
        return list(manifest.files)
    files: list[FileRecord] = []
    for index in numbered(stage_path, "part-*.json"):
        part = read_if_there(Part.read, stage_path / part_name(index))
        files += part.files if part is not None else ()
    for number in numbered(stage_path, "progress-*.json"):
        progress = read_if_there(Progress.read, stage_path / progress_name(number))
        files += progress.files if progress is not None else ()
    return files


def attempts_in_use(stage_path: Path) -> frozenset[str]:
    """Names of the attempt folders that something published refers to."""
    manifest = read_if_there(Manifest.read, stage_path / MANIFEST)
    return attempts_of(published_files(stage_path)) | (manifest.attempts if manifest is not None else frozenset())
