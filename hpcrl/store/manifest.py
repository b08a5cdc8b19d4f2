"""What a published stage says about itself: its files, their sizes and checksums, and where it was made."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hpcrl.errors import CorruptFileError
from hpcrl.store.checksums import file_checksum
from hpcrl.store.documents import FORMAT_VERSION, seal, unseal
from hpcrl.store.layout import attempt_name

Document = TypeVar("Document")


@dataclass(frozen=True)
class FileRecord:
    """One file as it was when it was published."""

    name: str
    """Path below the folder of whoever holds the record (a stage folder, an attempt, a checkpoint)."""
    bytes: int
    """Size of the file."""
    metadata: str
    """XXH3-128 of every byte that no field covers: all of the file where `checksums` is empty."""
    rows: int = 0
    """Steps, for a shard; 0 otherwise."""
    trajectories: int = 0
    """Trajectories, for a shard; 0 otherwise."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Field or tensor name -> XXH3-128 of its uncompressed bytes."""

    def under(self, folder: str) -> FileRecord:
        """The same file seen from the folder above `folder`."""
        return dataclasses.replace(self, name=f"{folder}/{self.name}")


def record_file(path: Path) -> FileRecord:
    """The record of a file without fields (metrics, text), named as in its own folder."""
    return FileRecord(name=path.name, bytes=path.stat().st_size, metadata=file_checksum(path))


def check_file(path: Path, record: FileRecord) -> None:
    """Compares a file without fields to its record. Raises: CorruptFileError naming the file."""
    check_size(path, path.stat().st_size if path.exists() else None, record)
    if file_checksum(path) != record.metadata:
        raise CorruptFileError(f"{path}: content differs from the published checksum; restore the file from a copy")


def check_size(path: Path, size: int | None, record: FileRecord) -> None:
    """Raises: CorruptFileError when a recorded file is missing or has another size."""
    if size is None:
        raise CorruptFileError(f"{path}: missing, though the manifest beside it lists it; restore it from a copy")
    if size != record.bytes:
        raise CorruptFileError(f"{path}: want {record.bytes} bytes as published, given {size}; restore it from a copy")


@dataclass(frozen=True)
class Part:
    """One block's finished share of a stage, published as part-NNNNN.json."""

    index: int
    attempt: int
    files: Sequence[FileRecord]
    extra: Mapping[str, Any]
    machine: Mapping[str, Any]
    seconds: float

    def to_bytes(self) -> builtins.bytes:
        """The sealed document."""
        return seal("part", _plain(self))

    @classmethod
    def read(cls, path: Path) -> Part:
        """Raises: FileNotFoundError, CorruptFileError."""
        return cls(**_with_records(unseal(path.read_bytes(), "part", path)))


@dataclass(frozen=True)
class Manifest:
    """A finished stage, published last as manifest.json: it is there, so the stage is done."""

    stage: str
    iteration: int
    attempt: int
    """The newest attempt that contributed; `files` names the attempt of each file."""
    files: Sequence[FileRecord]
    created: str
    """UTC, ISO 8601."""
    seconds: float
    """Wall time of the longest contributing attempt."""
    machine: Mapping[str, Any]
    """machine_facts() where the first part was made: CPU, instruction set, threads, library versions."""
    other_machines: Sequence[Mapping[str, Any]] = ()
    """Facts of contributing processes that differ from `machine`: bit identity does not span them."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the stage adds: counters, stopping decisions."""
    format_version: int = FORMAT_VERSION

    @property
    def rows(self) -> int:
        """Steps in all shards."""
        return sum(file.rows for file in self.files)

    @property
    def trajectories(self) -> int:
        """Trajectories in all shards."""
        return sum(file.trajectories for file in self.files)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def versions(self) -> Mapping[str, str]:
        """Library versions the stage was made with."""
        versions: Mapping[str, str] = self.machine.get("versions", {})
        return versions

    @property
    def attempts(self) -> frozenset[str]:
        """Attempt folders that this manifest's files lie in, and the attempt that published it."""
        return attempts_of(self.files) | {attempt_name(self.attempt)}

    @property
    def holds_checkpoint(self) -> bool:
        """Whether models rest here (.safetensors): retention counts these as checkpoints."""
        return any(file.name.endswith(".safetensors") for file in self.files)

    @property
    def holds_trajectories(self) -> bool:
        """Whether steps rest here (.h5): retention counts these as rollouts."""
        return not self.holds_checkpoint and any(file.name.endswith(".h5") for file in self.files)

    def find(self, file_name: str) -> FileRecord:
        """The record of the file with this name in whichever attempt. Raises: KeyError with the names there are."""
        for record in self.files:
            if Path(record.name).name == file_name:
                return record
        names = ", ".join(Path(record.name).name for record in self.files) or "none"
        raise KeyError(f"{file_name}: want a file of stage {self.stage!r}, iteration {self.iteration}; given: {names}")

    def to_bytes(self) -> builtins.bytes:
        """The sealed document; totals are written too, for people and other tools."""
        body = _plain(self)
        del body["format_version"]
        return seal("manifest", {**body, "rows": self.rows, "trajectories": self.trajectories, "bytes": self.bytes})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises: FileNotFoundError, CorruptFileError."""
        body = unseal(path.read_bytes(), "manifest", path)
        for derived in ("rows", "trajectories", "bytes"):
            del body[derived]
        return cls(**_with_records(body))


@dataclass(frozen=True)
class Progress:
    """Where an unfinished stage can go on: files of its state, published as progress-NNNNNN.json."""

    number: int
    attempt: int
    folder: str
    """Path of the files' folder below the stage folder."""
    files: Sequence[FileRecord]
    extra: Mapping[str, Any]

    def to_bytes(self) -> builtins.bytes:
        """The sealed document."""
        return seal("progress", _plain(self))

    @classmethod
    def read(cls, path: Path) -> Progress:
        """Raises: FileNotFoundError, CorruptFileError."""
        return cls(**_with_records(unseal(path.read_bytes(), "progress", path)))


def attempts_of(files: Sequence[FileRecord]) -> frozenset[str]:
    """Attempt folders named by records below a stage folder."""
    return frozenset(record.name.split("/")[0] for record in files if record.name.startswith("attempt-"))


def read_if_there(read: Callable[[Path], Document], path: Path) -> Document | None:
    """A document, or None when it is not there. Raises: CorruptFileError when it is damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        return None


def _plain(document: Part | Manifest | Progress) -> dict[str, Any]:
    """Its fields as JSON values, not copied: a small iteration publishes some twenty documents."""
    return {**vars(document), "files": [vars(record) for record in document.files]}


def _with_records(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "files": tuple(FileRecord(**record) for record in body["files"])}
