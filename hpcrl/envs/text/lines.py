"""The lines of a file by number: a plain file is left on disk, a compressed one is read whole."""

from __future__ import annotations

import array
import gzip
import io
import os
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

from hpcrl.errors import CorruptFileError, InputError


class LineFile:
    """Lines of a text file by their place, from 0; of a plain file only 8 bytes for each line are held.

    The whole file is read once as it is opened.
    Args:
        path: `.gz` at its end: compressed, held in memory.
    Raises:
        InputError: no such file, or it cannot be read. CorruptFileError: gzip finds it damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines: list[bytes] | None = None
        self._starts = array.array("q", [0])
        try:
            if path.endswith(".gz"):
                self._lines = io.BytesIO(gzip.decompress(Path(path).read_bytes())).readlines()
                return
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            with open(self._descriptor, "rb", closefd=False) as file:
                for line in file:
                    self._starts.append(self._starts[-1] + len(line))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CorruptFileError(f"{path}: want a gzip file, which this is not, or it is damaged ({error})") from None
        except OSError as error:
            raise InputError(f"{path}: want a file that can be read: {error.strerror}") from None
        self._seen = self._state()

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._lines is None else len(self._lines)

    def __getitem__(self, place: int) -> bytes:
        """One line with its end, as bytes.

        Raises: InputError when the file has been written to since it was opened.
        """
        if self._lines is not None:
            return self._lines[place]
        if self._state() != self._seen:
            raise InputError(
                f"{self.path}: want the file as it was when the run began, it was changed since; start anew"
            )
        start, stop = self._starts[place], self._starts[place + 1]
        return os.pread(self._descriptor, stop - start, start)

    def __iter__(self) -> Iterator[bytes]:
        return (self[place] for place in range(len(self)))
