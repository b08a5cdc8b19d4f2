"""An open shard: verified, fields as views of the mapped file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcrl.errors import CorruptFileError
from hpcrl.store.checksums import array_checksum, as_bytes
from hpcrl.store.manifest import FileRecord, check_size
from hpcrl.store.seal import Seal, SealedField

Array = npt.NDArray[Any]


class ShardFile:
    """A shard opened for reading; a context manager. Views of the mapped file outlive it.

    Raises: CorruptFileError, naming the file, when it is missing, truncated, damaged, foreign or not the recorded one.
    """

    def __init__(self, path: Path, record: FileRecord | None, *, memory_map: bool) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path}: missing; restore it from a copy") from error
        try:
            size = os.fstat(self._descriptor).st_size
            if record is not None:
                check_size(path, size, record)
            self._seal = Seal.read(self._descriptor, path, size)
            if record is not None and not self._seal.is_recorded_as(record):
                raise CorruptFileError(f"{path}: not the file that was published; restore it from a copy")
            if memory_map:
                self._map = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def group(self, name: str) -> tuple[str, ...]:
        """Names of the fields in "steps", "per_trajectory" or "ragged", in the order in which they were written."""
        return tuple(dict.fromkeys(path.split("/")[1] for path in self._seal.fields if path.startswith(f"{name}/")))

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields."""
        return (*self.group("steps"), *self.group("per_trajectory"), *self.group("ragged"))

    def attributes(self) -> dict[str, Any]:
        """Attributes of the file's root as Python values."""
        with h5py.File(self.path, "r", locking=False) as file:
            return {
                name: value.decode() if isinstance(value, bytes) else value.item() for name, value in file.attrs.items()
            }

    def read(self, dataset_path: str, *, verify: bool) -> Array:
        """One data set. Raises: CorruptFileError when its bytes do not match its checksum."""
        field = self._seal.fields[dataset_path]
        if field.start is None:
            array = self._read_by_hdf5(dataset_path, field)
        else:
            array = self._read_contiguous(dataset_path, field, field.start)
        if verify and array_checksum(array) != field.checksum:
            raise CorruptFileError(f"{self.path}: {dataset_path} does not match its checksum; restore it from a copy")
        return array

    def _read_by_hdf5(self, name: str, field: SealedField) -> Array:
        if 0 in field.shape:
            return np.empty(field.shape, field.dtype)
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                array: Array = file[name][...]
        except OSError as error:
            raise CorruptFileError(
                f"{self.path}: {name}: HDF5 cannot read it ({error}); a filter may be missing"
            ) from error
        return array

    def _read_contiguous(self, name: str, field: SealedField, start: int) -> Array:
        if self._map is not None:
            dtype = np.dtype(field.dtype)
            count = (field.stop - start) // dtype.itemsize
            view: Array = np.frombuffer(self._map, dtype, count=count, offset=start).reshape(field.shape)
            return view
        array: Array = np.empty(field.shape, field.dtype)
        room = as_bytes(array)
        while room.nbytes:
            read = os.preadv(self._descriptor, [room], start)
            if not read:
                raise CorruptFileError(f"{self.path}: {name}: truncated while it was read; restore it from a copy")
            room, start = room[read:], start + read
        return array
