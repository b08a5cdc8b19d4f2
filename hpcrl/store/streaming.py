"""Large arrays to disk at the disk's speed: checksummed piece by piece while earlier pieces are on their way."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import xxhash

from hpcrl.store.publish import write_all

_PIECE = 1 << 20  # stays in the second-level cache between checksum and copy
_FLUSH = 4 << 20  # of 2, 4 and 8 MiB the fastest: 64 MiB with fsync in 0.7 of the time of write, then fsync
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: begin writing dirty pages, do not wait


def write_checksummed(descriptor: int, data: memoryview, position: int) -> str:
    """Writes all bytes at `position` and returns their XXH3-128; the caller fsyncs."""
    state = xxhash.xxh3_128()
    begun = 0
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        state.update(piece)
        write_all(descriptor, piece, position + start)
        if start + _PIECE - begun >= _FLUSH:
            _begin_writing(descriptor, position + begun, start + _PIECE - begun)
            begun = start + _PIECE
    return str(state.hexdigest())


def _begin_writing(descriptor: int, start: int, length: int) -> None:
    """A hint to the kernel; the fsync that follows is what counts, so an error here means nothing."""
    call = _sync_file_range()
    if call is not None:
        call(descriptor, start, length, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The C library's call; None where there is none (it is Linux's own)."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        call.restype = ctypes.c_int
    return call
