"""The seal of a shard: a document in the file's first bytes that says where fields lie and covers all other bytes.

Fields carry a checksum each, so that some can be read without the others; one more checksum covers every byte outside
of them (HDF5's own structures, attributes, compressed chunks, gaps). So no byte of the file is uncovered. As the seal
also holds each field's dtype and shape, a verified file is read by mapping it, without the HDF5 library parsing it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.checksums import checksum_ranges
from hpcrl.store.documents import seal, unseal
from hpcrl.store.manifest import FileRecord

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SMALLEST = 4096
_LARGEST = 1 << 20
_HEAD_BYTES, _FIELD_BYTES, _AXIS_BYTES = 512, 192, 32  # upper bounds of the document's parts, names left out


@dataclass(frozen=True)
class SealedField:
    """One HDF5 data set: what it holds, and where."""

    dtype: str
    """NumPy's short form: '<f4'."""
    shape: Sequence[int]
    start: int | None
    """First byte in the file of a contiguous field; None for one that is empty or compressed: HDF5 reads those."""
    checksum: str
    """XXH3-128 of the uncompressed bytes."""

    @property
    def stop(self) -> int:
        """First byte after a contiguous field."""
        size = np.dtype(self.dtype).itemsize
        for extent in self.shape:
            size *= extent
        return (self.start or 0) + size


Fields = Mapping[str, SealedField]


@dataclass(frozen=True)
class Seal:
    """Every field of the file, by HDF5 path in the order of writing, and what covers the bytes outside of them."""

    user_block: int
    bytes: int
    metadata: str
    fields: Fields

    @classmethod
    def over(cls, descriptor: int, user_block: int, size: int, fields: Fields) -> Seal:
        """The seal of an open, finished file."""
        return cls(user_block, size, checksum_ranges(descriptor, ranges_outside(fields, user_block, size)), fields)

    def to_bytes(self) -> bytearray:
        """The user block: the document, then zeros."""
        text = seal("shard", {**vars(self), "fields": {name: vars(field) for name, field in self.fields.items()}})
        if len(text) > self.user_block:
            raise RuntimeError(
                f"seal: want at most {self.user_block} bytes, given {len(text)}: user_block_bytes is wrong"
            )
        return bytearray(text.ljust(self.user_block, b"\0"))

    @classmethod
    def read(cls, descriptor: int, path: Path, size: int) -> Seal:
        """The verified seal of an open file.

        Raises: CorruptFileError when the seal, or any byte outside the fields, is damaged, cut or foreign.
        """
        start = _read_user_block(descriptor, path)
        body = unseal(start.rstrip(b"\0"), "shard", path)
        fields = {name: SealedField(**field) for name, field in body.pop("fields").items()}
        found = cls(**body, fields=fields)
        if found.user_block != len(start) or found.bytes != size:
            raise CorruptFileError(
                f"{path}: want {found.bytes} bytes (as sealed), given {size}; restore it from a copy"
            )
        if checksum_ranges(descriptor, ranges_outside(fields, len(start), size)) != found.metadata:
            raise CorruptFileError(f"{path}: its header does not match its checksum; damaged: restore it from a copy")
        return found

    def is_recorded_as(self, record: FileRecord) -> bool:
        """Whether this is the file of a published record, by all of its checksums."""
        return record.metadata == self.metadata and record.checksums == {
            name: field.checksum for name, field in self.fields.items()
        }


def user_block_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Room for the seal of data sets of these names and shapes: a power of two, as HDF5 demands.

    Raises: InputError for more than one seal can hold, about 5000.
    """
    wanted = _HEAD_BYTES + sum(
        _FIELD_BYTES + len(json.dumps(name)) + _AXIS_BYTES * len(shape) for name, shape in shapes.items()
    )
    size = _SMALLEST
    while size < wanted:
        size *= 2
    if size > _LARGEST:
        raise InputError(f"fields: want at most about 5000 in one shard, given {len(shapes)}")
    return size


def ranges_outside(fields: Fields, start: int, stop: int) -> list[tuple[int, int]]:
    """What [start, stop) leaves when the contiguous fields are taken out.

    Example:
        >>> field = SealedField("|u1", [10], start=10, checksum="")
        >>> ranges_outside({"a": field}, 0, 40)
        [(0, 10), (20, 40)]
    """
    ranges = []
    for begin, end in sorted((field.start, field.stop) for field in fields.values() if field.start is not None):
        if begin > start:
            ranges.append((start, begin))
        start = end
    if stop > start:
        ranges.append((start, stop))
    return ranges


def _read_user_block(descriptor: int, path: Path) -> bytes:
    """Everything before the HDF5 signature, which stands at 4096 or a doubling of it."""
    size = _SMALLEST
    while size <= _LARGEST:
        start = os.pread(descriptor, size + len(_SIGNATURE), 0)
        if start[size:] == _SIGNATURE:
            return start[:size]
        if len(start) < size + len(_SIGNATURE):
            break
        size *= 2
    raise CorruptFileError(f"{path}: not a shard that hpcrl wrote, or its header is damaged; restore it from a copy")
