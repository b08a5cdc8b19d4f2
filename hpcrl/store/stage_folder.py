"""One stage of one iteration on disk: attempts, parts, progress, and at last the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcrl.store.attempt import Attempt, attempts_in_use, drop_progress, publish_manifest
from hpcrl.store.killpoints import reach
from hpcrl.store.layout import MANIFEST, REMOVED, attempt_name, iteration_name, numbered, part_name, progress_name
from hpcrl.store.manifest import FileRecord, Manifest, Part, Progress, read_if_there
from hpcrl.store.publish import fsync_folder, make_folder, temporaries


class StageFolder:
    """The folder iteration-NNNNNN/STAGE of a run. What is published is never rewritten; looking creates nothing."""

    def __init__(self, run_path: Path, iteration: int, stage: str) -> None:
        self.iteration, self.stage = iteration, stage
        self.path = Path(run_path) / iteration_name(iteration) / stage

    def __repr__(self) -> str:
        return f"StageFolder({str(self.path)!r})"

    def manifest(self) -> Manifest | None:
        """The published manifest; None when the stage is not done, or retention removed its files.

        Raises: CorruptFileError when it is damaged.
        """
        return read_if_there(Manifest.read, self.path / MANIFEST)

    def removed(self) -> Manifest | None:
        """What the manifest said before retention removed the files; None when it did not."""
        return read_if_there(Manifest.read, self.path / REMOVED)

    def is_done(self) -> bool:
        """Whether the stage was ever published, its files still here or not."""
        return (self.path / MANIFEST).exists() or (self.path / REMOVED).exists()

    def file(self, record: FileRecord) -> Path:
        """Where a recorded file lies."""
        return self.path / record.name

    def attempts(self) -> list[int]:
        """Numbers of the attempt folders here, oldest first."""
        return numbered(self.path, "attempt-*")

    def begin_attempt(self, number: int | None = None, *, compute_threads: int | None = None) -> Attempt:
        """Makes the folder of a new attempt.

        Args:
            number: an agreed number, for ranks that share one folder; None takes the next free one, exclusively.
            compute_threads: recorded in the machine facts of what is published; None: as the environment says.
        Raises: InputError when the disk is full or read-only.
        """
        make_folder(self.path)
        reach("attempt.before_mkdir")
        if number is None:
            number = _make_next_attempt(self.path)
        else:
            make_folder(self.path / attempt_name(number))
        reach("attempt.after_mkdir")
        return Attempt(self.path, self.iteration, self.stage, number, compute_threads)

    def parts(self) -> dict[int, Part]:
        """The published parts by index (block). Raises: CorruptFileError when one is damaged."""
        found = {}
        for index in numbered(self.path, "part-*.json"):
            part = read_if_there(Part.read, self.path / part_name(index))
            if part is not None:
                found[index] = part
        return found

    def publish_if_complete(
        self,
        num_parts: int,
        extra: Mapping[str, Any] | None = None,
        merge: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
    ) -> bool:
        """Publishes the manifest when parts 0 .. num_parts - 1 are all there; any number of processes may try at once.

        Args:
            extra: entries of the manifest's `extra`.
            merge: makes further entries from the parts' `extra`, given in order of the parts.
        Returns: whether the stage is published now, by whomever.
        """
        if self.is_done():
            return True
        parts = self.parts()
        chosen = [parts[index] for index in range(num_parts) if index in parts]
        if len(chosen) < num_parts:
            return self.is_done()  # another may have published and cleared the parts meanwhile
        merged = merge([part.extra for part in chosen]) if merge is not None else {}
        publish_manifest(self.path, self.iteration, self.stage, chosen, {**merged, **(extra or {})})
        return True

    def load_progress(self) -> Progress | None:
        """The newest published progress; None when there is none.

        Raises: CorruptFileError when it is damaged: an older one is not silently taken in its place.
        """
        for number in reversed(numbered(self.path, "progress-*.json")):
            progress = read_if_there(Progress.read, self.path / progress_name(number))
            if progress is not None:
                return progress
        return None

    def remove_leftovers(self, keep: Attempt | None = None) -> None:
        """Removes attempts, parts and progress that nothing published refers to.

        Call it when no other process works on this stage, right after begin_attempt (`keep` is that attempt: its number
        stays the highest, so that a dead attempt's number is never taken again), or once the manifest is published.
        """
        if not self.path.is_dir():
            return
        if self.is_done():
            self._remove_parts_and_progress()
        wanted = set(attempts_in_use(self.path)) | ({keep.path.name} if keep is not None else set())
        for number in self.attempts():
            if attempt_name(number) not in wanted:
                shutil.rmtree(self.path / attempt_name(number), ignore_errors=True)
                reach("leftovers.between_deletes")
        for temporary in temporaries(self.path):
            temporary.unlink(missing_ok=True)
        fsync_folder(self.path)
        reach("leftovers.after_delete")

    def _remove_parts_and_progress(self) -> None:
        """The manifest says all that the parts said, and progress has no more use."""
        newest = max(numbered(self.path, "progress-*.json"), default=0)
        drop_progress(self.path, before=newest + 1)
        for index in numbered(self.path, "part-*.json"):
            (self.path / part_name(index)).unlink(missing_ok=True)
            reach("leftovers.between_deletes")


def _make_next_attempt(folder: Path) -> int:
    number = max(numbered(folder, "attempt-*"), default=0) + 1
    while True:
        try:
            (folder / attempt_name(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            fsync_folder(folder)
            return number
