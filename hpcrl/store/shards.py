"""Shards: one block's trajectories in one HDF5 file: contiguous, checksummed to the last byte, memory-mapped.

The file's first 4 KiB are an HDF5 user block that holds the seal (seal.py); the rest is plain HDF5 that any tool opens.
The format is docs/formats.md.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import InputError
from hpcrl.store.checksums import array_checksum, as_bytes
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.killpoints import reach
from hpcrl.store.manifest import FileRecord
from hpcrl.store.publish import write_all
from hpcrl.store.seal import Seal, SealedField, user_block_bytes
from hpcrl.store.shard_file import ShardFile
from hpcrl.store.shard_layout import lay_out
from hpcrl.store.streaming import write_checksummed

Array = npt.NDArray[Any]

_COMPRESSIONS = ("gzip", "lzf")
_COPY_BYTES = 8 << 20


def write_shard(
    path: Path,
    trajectories: Trajectories,
    *,
    attributes: Mapping[str, Any],
    compression: Mapping[str, str] | None = None,
) -> FileRecord:
    """Writes a new shard and fsyncs it; nothing refers to it until its record is published.

    Args:
        path: the file; its name must be free.
        trajectories: any fields of bool, integer, float, complex or fixed-length bytes dtypes.
        attributes: numbers and text kept on the file's root (stage, iteration, block, seed, ...).
        compression: field name -> "gzip", "lzf" (built in), "blosc2", "zstd" (these two need hdf5plugin).
            Fields that are not named stay contiguous and can be memory-mapped.
    Returns: the record that a manifest needs to check the file.
    Raises: InputError for a dtype, name or compression that cannot be stored, and for a full or read-only disk.
    """
    arrays = dict(_flatten(trajectories))
    chosen = _check_compression(trajectories, compression or {})
    _check_storable(arrays)
    with explain_write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            seal = _write(descriptor, arrays, attributes, chosen)
        except BaseException:
            path.unlink(missing_ok=True)  # gives a full disk its space back
            raise
        finally:
            os.close(descriptor)
    return FileRecord(
        name=path.name,
        bytes=seal.bytes,
        metadata=seal.metadata,
        rows=trajectories.num_steps,
        trajectories=trajectories.num_trajectories,
        checksums={name: field.checksum for name, field in seal.fields.items()},
    )


def write_shard_by_scratch(
    path: Path, trajectories: Trajectories, *, attributes: Mapping[str, Any], scratch: Path
) -> FileRecord:
    """Writes a new shard on a node's own disk first, then copies it whole: the shared file system sees one long write.

    Args: scratch: a folder on the node's disk; nothing stays there.
    Returns: as write_shard. Raises: InputError as write_shard does, also when the scratch folder is full or not there.
    """
    if not scratch.is_dir():
        raise InputError(
            f"{scratch}: want a folder on this node's disk, given none; correct launch.scratch in site.toml"
        )
    with explain_write_errors(scratch), tempfile.TemporaryDirectory(prefix="hpcrl-", dir=scratch) as folder:
        local = Path(folder) / path.name
        record = write_shard(local, trajectories, attributes=attributes)
        with explain_write_errors(path), open(local, "rb") as source, open(path, "xb") as target:
            try:
                shutil.copyfileobj(source, target, _COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
            except BaseException:
                path.unlink(missing_ok=True)  # gives a full disk its space back
                raise
    return record


def read_shard(
    path: Path,
    *,
    record: FileRecord | None = None,
    fields: Sequence[str] | None = None,
    memory_map: bool = True,
    verify: bool = True,
) -> Trajectories:
    """Reads a shard, or some of its fields.

    Args:
        record: the published record; without it the checksums inside the file are trusted.
        fields: names to read; all by default. `offsets` always come along.
        memory_map: contiguous fields become read-only views of the file; False copies them into memory.
        verify: compare every byte that is read to its checksum. The layout is verified always.
    Raises: CorruptFileError, naming the file, when it is missing, truncated, damaged, foreign or not the recorded one;
        InputError when a field is not there or a newer hpcrl wrote the file.
    """
    with ShardFile(path, record, memory_map=memory_map) as file:
        wanted = file.fields if fields is None else tuple(fields)
        missing = [name for name in wanted if name not in file.fields]
        if missing:
            raise InputError(f"{path}: want fields {', '.join(missing)}, given {', '.join(file.fields) or 'none'}")

        def read(name: str) -> Array:
            return file.read(name, verify=verify)

        return Trajectories(
            read("offsets"),
            {name: read(f"steps/{name}") for name in file.group("steps") if name in wanted},
            {name: read(f"per_trajectory/{name}") for name in file.group("per_trajectory") if name in wanted},
            {
                name: Ragged(read(f"ragged/{name}/values"), read(f"ragged/{name}/offsets"))
                for name in file.group("ragged")
                if name in wanted
            },
        )


def read_attributes(path: Path, *, record: FileRecord | None = None) -> dict[str, Any]:
    """The attributes given to write_shard, and format_version. Raises: as read_shard."""
    with ShardFile(path, record, memory_map=False) as file:
        return file.attributes()


def _flatten(trajectories: Trajectories) -> Iterator[tuple[str, Array]]:
    """Dataset path -> array, in the order in which they lie in the file."""
    yield "offsets", trajectories.offsets
    for group in ("steps", "per_trajectory"):
        for name, array in getattr(trajectories, group).items():
            yield f"{group}/{name}", array
    for name, ragged in trajectories.ragged.items():
        yield f"ragged/{name}/offsets", ragged.offsets
        yield f"ragged/{name}/values", ragged.values


def _check_storable(arrays: Mapping[str, Array]) -> None:
    for path, array in arrays.items():
        name = path.split("/", 1)[-1].removesuffix("/values").removesuffix("/offsets")
        if not name or "/" in name or name.startswith("."):
            raise InputError(f"field name: want no '/' and no leading '.', given {name!r}; rename it")
        if array.dtype.kind not in "biufcS":
            raise InputError(
                f"{name}: want bool, integer, float, complex or fixed-length bytes, given {array.dtype}; convert it"
            )


def _check_compression(trajectories: Trajectories, compression: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Dataset path -> h5py's keyword arguments."""
    chosen = {}
    for name, kind in compression.items():
        if name not in trajectories:
            raise InputError(f"compression: want a field of {', '.join(trajectories.fields())}, given {name!r}")
        if name in trajectories.ragged:
            path = f"ragged/{name}/values"
        else:
            path = f"steps/{name}" if name in trajectories.steps else f"per_trajectory/{name}"
        chosen[path] = _filter(kind)
    return chosen


def _filter(kind: str) -> dict[str, Any]:
    if kind in _COMPRESSIONS:
        return {"compression": kind, "shuffle": True}
    if kind not in ("blosc2", "zstd"):
        raise InputError(f"compression: want {', '.join(_COMPRESSIONS)}, blosc2 or zstd, given {kind!r}")
    try:
        plugins = importlib.import_module("hdf5plugin")
    except ImportError as error:
        raise InputError(f"compression {kind!r} needs a package: pip install hdf5plugin, or use gzip") from error
    return {"compression": plugins.Blosc2(cname="lz4") if kind == "blosc2" else plugins.Zstd(clevel=3)}


def _write(
    descriptor: int,
    arrays: Mapping[str, Array],
    attributes: Mapping[str, Any],
    compression: Mapping[str, dict[str, Any]],
) -> Seal:
    """Writes and fsyncs the whole file."""
    reach("shard.before_write")
    user_block = user_block_bytes({name: array.shape for name, array in arrays.items()})
    layout, starts = lay_out(user_block, arrays, attributes, compression)
    # First: cutting a file whose last pages are on their way to the disk waits for them.
    os.ftruncate(descriptor, layout.size)
    for start, piece in layout.pieces():
        write_all(descriptor, piece, start)
    fields = {}
    for name, array in arrays.items():
        if name in starts:
            checksum = write_checksummed(descriptor, as_bytes(array), starts[name])
        else:
            checksum = array_checksum(array)  # empty, or compressed: HDF5 has stored it in the layout
        fields[name] = SealedField(array.dtype.str, array.shape, starts.get(name), checksum)
        reach("shard.between_fields")
    seal = Seal.over(descriptor, user_block, layout.size, fields)
    write_all(descriptor, memoryview(seal.to_bytes()), 0)
    reach("shard.after_write")
    reach("shard.before_fsync")
    os.fsync(descriptor)
    reach("shard.after_fsync")
    return seal
