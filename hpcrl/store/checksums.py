"""XXH3-128 of arrays and files: integrity against accidents, not security against people."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

_PIECE = 1 << 24


def checksum(data: bytes | memoryview | mmap.mmap) -> str:
    """XXH3-128 of the bytes, as 32 hex digits.

    Example:
        >>> checksum(b"")
        '99aa06d3014798d86001c324468d497f'
    """
    return str(xxhash.xxh3_128(data).hexdigest())


def array_checksum(array: npt.NDArray[Any]) -> str:
    """XXH3-128 of a C-contiguous array's memory; shape and dtype are not part of it."""
    return checksum(as_bytes(array))


def as_bytes(array: npt.NDArray[Any]) -> memoryview:
    """A C-contiguous array's memory as flat bytes, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def checksum_ranges(descriptor: int, ranges: Iterable[tuple[int, int]]) -> str:
    """XXH3-128 over the byte ranges [start, stop) of an open file, in order."""
    state = xxhash.xxh3_128()
    for start, stop in ranges:
        while start < stop:
            piece = os.pread(descriptor, min(_PIECE, stop - start), start)
            if not piece:
                break  # shorter than announced: the digest will not match
            state.update(piece)
            start += len(piece)
    return str(state.hexdigest())


def file_checksum(path: Path) -> str:
    """XXH3-128 of a whole file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return checksum_ranges(descriptor, [(0, os.fstat(descriptor).st_size)])
    finally:
        os.close(descriptor)
