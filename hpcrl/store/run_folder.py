"""A run's folder: its pipeline and its iterations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcrl.errors import InputError
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.documents import read_document, seal
from hpcrl.store.layout import iteration_name, numbered
from hpcrl.store.manifest import Manifest
from hpcrl.store.publish import fsync_folder, make_folder, publish, replace, temporaries
from hpcrl.store.stage_folder import StageFolder

_PIPELINE = "pipeline.json"


class RunFolder:
    """A run on disk. Made by RunFolder.create or RunFolder.open; reading it writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether a run rests at `path`."""
        return (Path(path) / _PIPELINE).exists()

    @classmethod
    def create(cls, path: Path, pipeline: Mapping[str, Any]) -> RunFolder:
        """Begins a run: publishes pipeline.json, last.

        Raises: InputError when a run is there already, or the disk is full or read-only.
        """
        make_folder(Path(path))
        if not publish(Path(path) / _PIPELINE, seal("pipeline", {"pipeline": dict(pipeline)})):
            raise InputError(f"{path}: want a folder without a run, given one that holds a run; use --fresh")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that is there. Raises: InputError when there is none."""
        if not cls.exists(path):
            raise InputError(f"{path}: want a run folder, given one without {_PIPELINE}; start it with `hpcrl run`")
        return cls(path)

    def set_aside(self) -> Path:
        """Renames the folder to NAME.old-N, the first free N, deleting nothing. Returns: the new path."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        with explain_write_errors(self.path):
            os.rename(self.path, aside)
            fsync_folder(aside.parent)
        return aside

    def pipeline(self) -> dict[str, Any]:
        """The resolved pipeline that was given to create. Raises: CorruptFileError when it is damaged."""
        pipeline: dict[str, Any] = read_document(self.path / _PIPELINE, "pipeline")["pipeline"]
        return pipeline

    def replace_pipeline(self, pipeline: Mapping[str, Any]) -> None:
        """Puts a changed pipeline in its place, atomically; the caller has checked that the change is allowed."""
        replace(self.path / _PIPELINE, seal("pipeline", {"pipeline": dict(pipeline)}))

    def stage(self, iteration: int, name: str) -> StageFolder:
        """The folder of one stage of one iteration, made by its first attempt."""
        return StageFolder(self.path, iteration, name)

    def iterations(self) -> list[int]:
        """Iterations that have a folder, ascending."""
        return numbered(self.path, "iteration-*")

    def stages(self, iteration: int) -> list[StageFolder]:
        """Stage folders of an iteration, by name."""
        folder = self.path / iteration_name(iteration)
        names = sorted(path.name for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
        return [self.stage(iteration, name) for name in names]

    def removed(self) -> list[Manifest]:
        """What retention removed: the manifests of stages whose files are gone, oldest first."""
        found = (stage.removed() for iteration in self.iterations() for stage in self.stages(iteration))
        return [manifest for manifest in found if manifest is not None]

    def remove_leftovers(self) -> None:
        """Removes temporary files that dead launches left beside the run's documents; for the lease's holder."""
        for folder in (self.path, self.path / "launches", self.path / "ledger"):
            for temporary in temporaries(folder):
                temporary.unlink(missing_ok=True)
