"""The HDF5 side of a shard: groups, attributes and room for fields, laid out in memory.

HDF5 only lays out; the fields' bytes are then written by pwrite, at the speed of a plain file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError
from hpcrl.store.documents import FORMAT_VERSION
from hpcrl.store.sparse_file import SparseFile

Array = npt.NDArray[Any]

_ALIGNMENT = 64  # a cache line, and what AVX-512 loads without splitting
_METADATA_BYTES = 1 << 14  # keeps HDF5's structures together rather than between the fields
_CHUNK_BYTES = 1 << 20  # 256 KiB to 4 MiB measured alike


def lay_out(
    user_block: int,
    arrays: Mapping[str, Array],
    attributes: Mapping[str, Any],
    compression: Mapping[str, dict[str, Any]],
) -> tuple[SparseFile, dict[str, int]]:
    """The HDF5 file with holes for contiguous fields, and where those start.

    Args:
        user_block: bytes left free at the file's beginning.
        arrays: data set path -> array; only shapes and dtypes of contiguous ones are used.
        attributes: numbers and text for the root.
        compression: data set path -> h5py's keyword arguments; these data sets are stored here and now.
    Raises: InputError for an attribute that is neither number nor text.
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
        for name, value in {"format": "hpcrl-shard", "format_version": FORMAT_VERSION, **attributes}.items():
            _set_attribute(file, name, value)
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


def _set_attribute(file: h5py.File, name: str, value: object) -> None:
    """A number, or text of fixed length; h5py's own way would add a heap to the file and cost five times the time."""
    if isinstance(value, str):
        data = np.array(value.encode())
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(max(1, data.itemsize))
        kind.set_cset(h5py.h5t.CSET_UTF8)
    elif isinstance(value, (bool, int, float, np.generic)):
        data = np.asarray(value)
        kind = h5py.h5t.py_create(data.dtype, logical=True)
    else:
        raise InputError(f"attribute {name}: want a number or text, given {type(value).__name__}")
    attribute = h5py.h5a.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(data, mtype=kind)


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
