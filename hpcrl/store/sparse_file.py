"""A file in memory that keeps only what was written to it: where HDF5 lays out a shard before any byte is on disk."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

_PAGE = 4096


class SparseFile(io.RawIOBase):
    """Holds written pages; holes take no memory and read as zeros.

    HDF5 crashes the process when a full disk makes its own writes fail. So it writes here, and `pieces` are then
    written by pwrite, whose errors can be told to the user. Room for contiguous fields stays a hole.

    Example:
        >>> file = SparseFile()
        >>> _ = file.seek(10_000), file.write(b"abc"), file.truncate(2**40)
        >>> [(start, len(piece)) for start, piece in file.pieces()], file.size == 2**40
        ([(8192, 4096)], True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """(position, bytes) of every page that was written, cut at the file's end."""
        for page in sorted(self._pages):
            start = page * _PAGE
            if start < self.size:
                yield start, memoryview(self._pages[page])[: self.size - start]

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self.size - self._position))
        for page, start, done, length in _split(self._position, count):
            found = self._pages.get(page)
            target[done : done + length] = found[start : start + length] if found else bytes(length)
        self._position += count
        return count

    def write(self, data: Any) -> int:
        source = memoryview(data).cast("B")
        for page, start, done, length in _split(self._position, len(source)):
            self._pages.setdefault(page, bytearray(_PAGE))[start : start + length] = source[done : done + length]
        self._position += len(source)
        self.size = max(self.size, self._position)
        return len(source)


def _split(position: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """(page, start within the page, bytes done before, bytes) of each page that a range touches."""
    done = 0
    while done < count:
        page, start = divmod(position + done, _PAGE)
        length = min(_PAGE - start, count - done)
        yield page, start, done, length
        done += length
