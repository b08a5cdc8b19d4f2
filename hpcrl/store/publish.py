"""Publishing: a small file appears under its final name once, whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.killpoints import reach

_TEMPORARY_SUFFIX = ".tmp"
_TRIES = 5


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder and its missing parents, each name made durable. Fine when it is already there.

    Raises: InputError when there can be none, or the disk is full or read-only.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with explain_write_errors(folder):
            _make_one(folder)
            fsync_folder(folder.parent)


def _make_one(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{folder}: want a folder, given something else of that name; choose another name") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder}: want a folder in a folder, given one in a file; choose another") from error
    except FileNotFoundError as error:
        if not folder.parent.is_dir():
            raise  # somebody has removed it meanwhile
        # /proc and its like
        raise InputError(f"{folder}: want a file system that takes new folders; choose another folder") from error


def write_all(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Writes every byte at `position`; write(2) may take fewer than it is given."""
    rest = memoryview(data)
    while rest.nbytes:
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written


def write_and_sync(path: Path, payload: bytes, *, point: str) -> None:
    """Writes a new file and fsyncs it. `point` is the first half of the kill points' names.

    Raises: OSError; FileExistsError when the name is taken. Callers explain it by the name a user knows.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        reach(f"{point}.before_write")
        write_all(descriptor, payload, 0)
        reach(f"{point}.after_write")
        reach(f"{point}.before_fsync")
        os.fsync(descriptor)
        reach(f"{point}.after_fsync")
    finally:
        os.close(descriptor)


def publish(path: Path, payload: bytes) -> bool:
    """Publishes one file; False when someone else had published that name first (theirs stays).

    Written and fsynced beside its final name, then named by link(2), which fails if the name is there; so a reader
    sees nothing or all of it, and the first publisher wins even across hosts.
    Raises: InputError when the disk is full, the folder read-only, or the file system has no hard links.
    """
    return publish_all(path.parent, {path.name: payload})[path.name]


def publish_all(folder: Path, payloads: Mapping[str, bytes]) -> dict[str, bool]:
    """Publishes several files of one folder, with one fsync of the folder at the end."""
    published = {}
    for name, payload in payloads.items():
        with explain_write_errors(folder / name):
            published[name] = _publish_name(folder / name, payload)
    point = _point_of(next(iter(payloads), "part"))
    reach(f"{point}.before_fsync_folder")
    # Also after losing: the winner may have died between its link and its fsync, and we go on from its file.
    fsync_folder(folder)
    reach(f"{point}.after_fsync_folder")
    return published


def _publish_name(path: Path, payload: bytes) -> bool:
    for _ in range(_TRIES):
        if path.exists():
            return False
        temporary = temporary_beside(path)
        try:
            write_and_sync(temporary, payload, point=_point_of(path.name))
            return _link(temporary, path)
        except FileNotFoundError:
            # A clean-up took our temporary file for a leftover; unless the folder is gone, write it again.
            if not path.parent.is_dir():
                raise
        finally:
            temporary.unlink(missing_ok=True)
    raise InputError(f"{path}: could not be published in {_TRIES} tries; something keeps removing {temporary.name}")


def _link(temporary: Path, path: Path) -> bool:
    reach(f"{_point_of(path.name)}.before_link")
    try:
        os.link(temporary, path)
    except FileExistsError:
        # NFS may repeat a link whose first answer was lost, and then reports our own success as a collision.
        if not os.path.samefile(temporary, path):
            return False
    reach(f"{_point_of(path.name)}.after_link")
    return True


def replace(path: Path, payload: bytes) -> None:
    """Writes a file that may change over a run's life: the old content or the new, never a mixture."""
    temporary = temporary_beside(path)
    point = _point_of(path.name)
    with explain_write_errors(path):
        try:
            write_and_sync(temporary, payload, point=point)
            reach(f"{point}.before_link")
            os.replace(temporary, path)
            reach(f"{point}.after_link")
        finally:
            temporary.unlink(missing_ok=True)
        reach(f"{point}.before_fsync_folder")
        fsync_folder(path.parent)
        reach(f"{point}.after_fsync_folder")


def temporary_beside(path: Path) -> Path:
    """A name no one else uses, in the same folder: link(2) and rename(2) do not cross file systems."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}{_TEMPORARY_SUFFIX}")


def temporaries(folder: Path) -> list[Path]:
    """Unpublished temporary files that dead processes left in a folder."""
    return sorted(folder.glob(f".*{_TEMPORARY_SUFFIX}"))


def _point_of(name: str) -> str:
    """The document's kind, from its file name: part-00003.json -> part."""
    return name.split(".")[0].split("-")[0]
