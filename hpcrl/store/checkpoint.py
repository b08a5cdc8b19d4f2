"""Checkpoints: every group of parameters as safetensors, everything else as sealed JSON beside them."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.checksums import array_checksum, checksum_ranges
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.documents import seal, unseal
from hpcrl.store.killpoints import reach
from hpcrl.store.manifest import FileRecord, check_size, record_file
from hpcrl.store.publish import fsync_folder, make_folder, write_and_sync

Array = npt.NDArray[Any]

_STATE = "state.json"
_SUFFIX = ".safetensors"
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}  # safetensors' names; bfloat16 has no NumPy dtype


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: groups of arrays ("actor", "actor.optimizer", ...) and plain state (the cursor)."""

    roles: Mapping[str, Mapping[str, Array]]
    state: Mapping[str, Any]


def write_checkpoint(
    folder: Path, roles: Mapping[str, Mapping[str, Array]], state: Mapping[str, Any]
) -> list[FileRecord]:
    """Writes GROUP.safetensors for each group and state.json, and fsyncs them and the folder.

    Args:
        folder: made if it is not there; the files' names must be free.
        roles: group name -> parameter name -> array; C-contiguous little-endian numbers or bools.
        state: JSON values.
    Returns: the records of all files, state.json last; named as in the folder.
    Raises: InputError for a dtype or state that cannot be stored, and for a full or read-only disk.
    """
    make_folder(folder)
    records = []
    for group, given in roles.items():
        arrays = {name: np.asarray(array) for name, array in given.items()}  # NumPy scalars become 0-d arrays
        path = folder / f"{group}{_SUFFIX}"
        _check_arrays(group, arrays)
        reach("checkpoint.before_write")
        with explain_write_errors(path):
            # transformers demands this entry; nothing else may vary between two writings of the same arrays
            save_file(arrays, path, metadata={"format": "pt"})
            reach("checkpoint.after_write")
            records.append(_record_and_sync(path, arrays))
    body = {"state": dict(state), "files": {record.name: _plain(record) for record in records}}
    with explain_write_errors(folder / _STATE):
        write_and_sync(folder / _STATE, seal("checkpoint", body), point="checkpoint")
        fsync_folder(folder)
    return [*records, record_file(folder / _STATE)]


def read_checkpoint(
    folder: Path,
    records: Sequence[FileRecord] | None = None,
    *,
    groups: Sequence[str] | None = None,
    verify: bool = True,
) -> Checkpoint:
    """Reads a checkpoint, or some of its groups; arrays are read-only views of the mapped files.

    Args:
        records: the published records (folders in front of the names are ignored); None: those in state.json.
        groups: group names to read; all by default.
        verify: compare every byte that is read to its checksum. Headers are verified always.
    Raises: CorruptFileError, naming the file, when one is missing, truncated, damaged or not the recorded one;
        InputError when a group is not there.
    """
    state_path = folder / _STATE
    if not state_path.exists():
        raise CorruptFileError(f"{state_path}: missing; want a folder that holds a checkpoint")
    text = state_path.read_bytes()
    body = unseal(text, "checkpoint", state_path)
    files = {name: FileRecord(name=name, **record) for name, record in body["files"].items()}
    if records is not None:
        published = {Path(record.name).name: record for record in records}
        _check_published(state_path, published, files)
        if record_file(state_path).metadata != published[_STATE].metadata:
            raise CorruptFileError(f"{state_path}: not the file that was published; restore it from a copy")
    names = [name.removesuffix(_SUFFIX) for name in files]
    missing = [group for group in groups or () if group not in names]
    if missing:
        raise InputError(f"{folder}: want groups {', '.join(missing)}, given {', '.join(names) or 'none'}")
    wanted = names if groups is None else list(groups)
    return Checkpoint(
        {name: _read_group(folder / f"{name}{_SUFFIX}", files[f"{name}{_SUFFIX}"], verify) for name in wanted},
        body["state"],
    )


def _check_arrays(group: str, arrays: Mapping[str, Array]) -> None:
    if not group or "/" in group or group.startswith("."):
        raise InputError(f"checkpoint group: want a file name without '/', given {group!r}")
    for name, array in arrays.items():
        known = any(array.dtype == dtype for dtype in _DTYPES.values())
        if not known or not array.flags.c_contiguous:
            form = "C-contiguous" if array.flags.c_contiguous else "not C-contiguous"
            wanted = ", ".join(np.dtype(dtype).name for dtype in _DTYPES.values())
            raise InputError(f"{group}: {name}: want a C-contiguous array of {wanted}, given {array.dtype}, {form}")


def _record_and_sync(path: Path, arrays: Mapping[str, Array]) -> FileRecord:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        header = checksum_ranges(descriptor, [(0, _header_end(descriptor, path, size))])
        reach("checkpoint.before_fsync")
        os.fsync(descriptor)
        reach("checkpoint.after_fsync")
    finally:
        os.close(descriptor)
    return FileRecord(path.name, size, header, checksums={name: array_checksum(a) for name, a in arrays.items()})


def _plain(record: FileRecord) -> dict[str, Any]:
    return {"bytes": record.bytes, "metadata": record.metadata, "checksums": dict(record.checksums)}


def _check_published(path: Path, published: Mapping[str, FileRecord], files: Mapping[str, FileRecord]) -> None:
    """The checkpoint's own list against the manifest's."""
    for name in (_STATE, *files):
        if name not in published:
            raise CorruptFileError(f"{path}: {name} is not among the published files; restore the folder from a copy")
    for name, record in files.items():
        if _plain(record) != _plain(published[name]):
            raise CorruptFileError(f"{path}: {name} is recorded differently in the manifest; restore it from a copy")


def _header_end(descriptor: int, path: Path, size: int) -> int:
    """Where the tensors begin: eight bytes of length, then that much JSON (the safetensors format)."""
    end = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or end > size:
        raise CorruptFileError(f"{path}: header cut or damaged; restore the file from a copy")
    return end


def _read_group(path: Path, record: FileRecord, verify: bool) -> dict[str, Array]:
    check_size(path, path.stat().st_size if path.exists() else None, record)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = _header_end(descriptor, path, record.bytes)
        if checksum_ranges(descriptor, [(0, end)]) != record.metadata:
            raise CorruptFileError(f"{path}: header does not match its checksum; restore the file from a copy")
        header = json.loads(os.pread(descriptor, end - 8, 8))
        mapped = mmap.mmap(descriptor, record.bytes, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        flat: Array = np.frombuffer(mapped, dtype, count=(stop - start) // dtype.itemsize, offset=end + start)
        if verify and array_checksum(flat) != record.checksums[name]:
            raise CorruptFileError(f"{path}: {name} does not match its checksum; damaged: restore it from a copy")
        arrays[name] = flat.reshape(entry["shape"])
    return {name: arrays[name] for name in record.checksums}  # safetensors sorts; give back the order of writing
