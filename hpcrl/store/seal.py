"""The seal of a shard: a sealed document in the file's first bytes that covers all of the file's other bytes.

Fields carry a checksum each, so that some can be read without the others; the seal says where each field's bytes lie
and carries one checksum over every byte outside of them (HDF5's own structures, attributes, compressed chunks, gaps).
So no byte of the file is uncovered, and the structure is verified before the HDF5 library parses it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcrl.errors import CorruptFileError
from hpcrl.store.checksums import checksum_ranges
from hpcrl.store.documents import seal, unseal

Extents = Mapping[str, tuple[int, int]]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SMALLEST = 4096
_LARGEST = 1 << 20


def user_block_bytes(num_fields: int) -> int:
    """Room for the seal of so many fields: a power of two, as HDF5 demands; 4096 up to about 30 fields."""
    size = _SMALLEST
    while size < 512 + 120 * num_fields:
        size *= 2
    return size


@dataclass(frozen=True)
class Seal:
    """Where the fields lie and what covers the rest.

    Shapes: extents: dataset path -> (start, stop), byte positions in the file; none overlap.
    """

    user_block: int
    bytes: int
    metadata: str
    extents: Extents

    @classmethod
    def over(cls, descriptor: int, user_block: int, size: int, extents: Extents) -> Seal:
        """The seal of an open, finished file."""
        return cls(user_block, size, checksum_ranges(descriptor, ranges_outside(extents, user_block, size)), extents)

    def to_bytes(self) -> bytearray:
        """The user block."""
        text = seal(
            "shard",
            {"user_block": self.user_block, "bytes": self.bytes, "metadata": self.metadata, "extents": self.extents},
        )
        return bytearray(text.ljust(self.user_block, b"\0"))

    @classmethod
    def read(cls, descriptor: int, path: Path, size: int) -> Seal:
        """The seal of an open file. Raises: CorruptFileError when it is damaged, cut or foreign."""
        start = _read_user_block(descriptor, path)
        body = unseal(start.rstrip(b"\0"), "shard", path)
        extents = {name: (begin, end) for name, (begin, end) in body.pop("extents").items()}
        found = cls(**body, extents=extents)
        if found.user_block != len(start) or found.bytes != size:
            raise CorruptFileError(
                f"{path}: want {found.bytes} bytes (as sealed), given {size}; restore it from a copy"
            )
        return found

    def check_metadata(self, descriptor: int, path: Path) -> None:
        """Raises: CorruptFileError when a byte outside the fields differs from what was written."""
        outside = ranges_outside(self.extents, self.user_block, self.bytes)
        if checksum_ranges(descriptor, outside) != self.metadata:
            raise CorruptFileError(f"{path}: its header does not match its checksum; damaged: restore it from a copy")


def ranges_outside(extents: Extents, start: int, stop: int) -> list[tuple[int, int]]:
    """What [start, stop) leaves when the extents are taken out.

    Example:
        >>> ranges_outside({"a": (10, 20), "b": (20, 30)}, 0, 40)
        [(0, 10), (30, 40)]
    """
    ranges = []
    for begin, end in sorted(extents.values()):
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
