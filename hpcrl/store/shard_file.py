"""An open shard: verified before HDF5 parses it, fields as views of the mapped file."""

from __future__ import annotations

import json
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
from hpcrl.store.seal import Seal

Array = npt.NDArray[Any]


class ShardFile:
    """A shard opened for reading; a context manager. Views of the mapped file outlive it.

    Raises: CorruptFileError, naming the file, when it is missing, truncated, damaged, foreign or not the recorded one.
    """

    def __init__(self, path: Path, record: FileRecord | None, *, memory_map: bool) -> None:
        self.path = path
        self._record = record
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise CorruptFileError(f"{path}: missing; restore it from a copy") from error
        try:
            size = os.fstat(self._descriptor).st_size
            if record is not None:
                check_size(path, size, record)
            self._seal = Seal.read(self._descriptor, path, size)
            self._seal.check_metadata(self._descriptor, path)
            if record is not None and record.metadata != self._seal.metadata:
                raise CorruptFileError(f"{path}: not the file that was published; restore it from a copy")
            self._map = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ) if memory_map else None
            self._file = h5py.File(path, "r", locking=False)
            self.groups = {name: tuple(self._file[name]) for name in ("steps", "per_trajectory", "ragged")}
            """Names of the fields of each kind, in the order in which they were written."""
            self._checksums: dict[str, str] = json.loads(self._file.attrs["xxh3_128"])
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        os.close(self._descriptor)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields."""
        return tuple(name for names in self.groups.values() for name in names)

    def attributes(self) -> dict[str, Any]:
        """Attributes of the file's root as Python values, less the checksums."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self._file.attrs.items()
            if name != "xxh3_128"
        }

    def read(self, dataset_path: str, *, verify: bool) -> Array:
        """One dataset. Raises: CorruptFileError when its bytes do not match its checksum."""
        dataset = self._file[dataset_path]
        array = self._read_contiguous(dataset_path, dataset) if dataset_path in self._seal.extents else dataset[...]
        if verify:
            self._verify(dataset_path, array)
        return array

    def _read_contiguous(self, name: str, dataset: h5py.Dataset) -> Array:
        start, stop = self._seal.extents[name]
        if dataset.id.get_offset() != start or stop - start != dataset.nbytes:
            raise CorruptFileError(f"{self.path}: {name}: its place differs from the seal; restore it from a copy")
        if self._map is not None:
            count = dataset.size
            view: Array = np.frombuffer(self._map, dtype=dataset.dtype.newbyteorder("="), count=count, offset=start)
            return view.reshape(dataset.shape)
        array: Array = np.empty(dataset.shape, dataset.dtype.newbyteorder("="))
        room = as_bytes(array)
        while room.nbytes:
            read = os.preadv(self._descriptor, [room], start)
            if not read:
                raise CorruptFileError(f"{self.path}: {name}: truncated while it was read; restore it from a copy")
            room, start = room[read:], start + read
        return array

    def _verify(self, name: str, array: Array) -> None:
        found = array_checksum(array)
        recorded = self._record.checksums.get(name) if self._record is not None else found
        if found != self._checksums[name] or found != recorded:
            raise CorruptFileError(f"{self.path}: {name} does not match its checksum; damaged: restore it from a copy")
