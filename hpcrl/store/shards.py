"""Shards: one block's trajectories in one HDF5 file: contiguous, checksummed to the last byte, memory-mapped.

The file's first 4 KiB are an HDF5 user block that holds the seal (seal.py); the rest is plain HDF5 that any tool opens.
The format is docs/formats.md.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy.typing as npt

from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import InputError
from hpcrl.store.checksums import array_checksum, as_bytes
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.documents import FORMAT_VERSION
from hpcrl.store.killpoints import reach
from hpcrl.store.manifest import FileRecord
from hpcrl.store.publish import write_all
from hpcrl.store.seal import Seal, SealedField, user_block_bytes
from hpcrl.store.shard_file import ShardFile
from hpcrl.store.sparse_file import SparseFile

Array = npt.NDArray[Any]

_ALIGNMENT = 64  # a cache line, and what AVX-512 loads without splitting
_COMPRESSIONS = ("gzip", "lzf")
_METADATA_BYTES = 1 << 14  # keeps HDF5's structures together rather than between the fields
_CHUNK_BYTES = 1 << 20  # 256 KiB to 4 MiB measured alike


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
    checksums = {name: array_checksum(array) for name, array in arrays.items()}
    with explain_write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            metadata = _write(descriptor, arrays, checksums, attributes, chosen)
            size = os.fstat(descriptor).st_size
        except BaseException:
            path.unlink(missing_ok=True)  # gives a full disk its space back
            raise
        finally:
            os.close(descriptor)
    return FileRecord(path.name, size, metadata, trajectories.num_steps, trajectories.num_trajectories, checksums)


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
    checksums: Mapping[str, str],
    attributes: Mapping[str, Any],
    compression: Mapping[str, dict[str, Any]],
) -> str:
    """Writes and fsyncs the whole file; returns the checksum of its metadata."""
    reach("shard.before_write")
    user_block = user_block_bytes(len(arrays))
    layout, starts = _lay_out(user_block, arrays, checksums, attributes, compression)
    for start, piece in layout.pieces():
        write_all(descriptor, piece, start)
    for name, start in starts.items():
        write_all(descriptor, as_bytes(arrays[name]), start)
        reach("shard.between_fields")
    os.ftruncate(descriptor, layout.size)
    fields = {
        name: SealedField(array.dtype.str, array.shape, starts.get(name), checksums[name])
        for name, array in arrays.items()
    }
    seal = Seal.over(descriptor, user_block, layout.size, fields)
    write_all(descriptor, memoryview(seal.to_bytes()), 0)
    reach("shard.after_write")
    reach("shard.before_fsync")
    os.fsync(descriptor)
    reach("shard.after_fsync")
    return seal.metadata


def _lay_out(
    user_block: int,
    arrays: Mapping[str, Array],
    checksums: Mapping[str, str],
    attributes: Mapping[str, Any],
    compression: Mapping[str, dict[str, Any]],
) -> tuple[SparseFile, dict[str, int]]:
    """The HDF5 file with holes for contiguous fields, and where those start.

    HDF5 only lays out; the fields' bytes are then written by pwrite, at the speed of a plain file.
    """
    layout = SparseFile()
    starts = {}
    with h5py.File(
        layout,
        "w",
        libver="v110",
        userblock_size=user_block,
        meta_block_size=_METADATA_BYTES,
        alignment_threshold=0,  # the smallest field too, so that a view of the mapped file is an aligned array
        alignment_interval=_ALIGNMENT,
    ) as file:
        file.attrs["format"] = "hpcrl-shard"
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["xxh3_128"] = json.dumps(dict(checksums))
        for name, value in attributes.items():
            file.attrs[name] = value
        folders = (name.rpartition("/")[0] for name in arrays)
        for name in dict.fromkeys(("steps", "per_trajectory", "ragged", *filter(None, folders))):
            _create_group(file, name)
        for name, array in arrays.items():
            if name in compression and array.size:
                rows = max(1, min(len(array), _CHUNK_BYTES // max(1, array.nbytes // len(array))))
                file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), **compression[name])
                continue
            start = _create_contiguous(file, name, array)
            if array.nbytes:
                starts[name] = start
    return layout, starts


def _create_group(file: h5py.File, name: str) -> None:
    """A group that lists its fields in the order of writing; without times, so that equal content gives equal bytes."""
    creation = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    creation.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    creation.set_obj_track_times(False)
    h5py.h5g.create(file.id, name.encode(), gcpl=creation)


def _create_contiguous(file: h5py.File, name: str, array: Array) -> int:
    """Gives a field its place without writing it; returns the place's position in the file."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    space = h5py.h5s.create_simple(array.shape)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, creation)
    return int(dataset.get_offset() or 0)  # None for an empty field
