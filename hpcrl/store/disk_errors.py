"""Turns what the operating system says about a failed write into one line that says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcrl.errors import InputError

_REASONS = {
    errno.ENOSPC: ("disk full", "free space on that file system, then run the same command again"),
    errno.EDQUOT: ("disk quota exceeded", "free space within your quota, then run the same command again"),
    errno.EFBIG: ("file size limit reached", "raise it (ulimit -f), then run the same command again"),
    errno.EROFS: ("read-only file system", "choose a folder on a writable file system"),
    errno.EACCES: ("no permission", "make the folder writable for you, or choose another"),
    errno.EPERM: ("operation not permitted", "choose a folder on a file system that allows it (hard links are needed)"),
    errno.EOPNOTSUPP: ("operation not supported", "choose a folder on a file system with hard links"),
    errno.EIO: ("input/output error", "the disk or file server failed: see its logs, then run again"),
    errno.ENAMETOOLONG: ("name too long", "choose a shorter one"),
    errno.ESTALE: ("stale file handle", "the file server lost this folder; check that it is there, then run again"),
}


@contextmanager
def explain_write_errors(path: Path | str) -> Iterator[None]:
    """Raises InputError, naming `path`, for the failures a user can mend; every other error passes unchanged."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number not in _REASONS:
            raise
        reason, action = _REASONS[number]
        raise InputError(f"{reason} while writing {path}; what is already published is safe: {action}") from error


def _errno_of(error: Exception) -> int | None:
    """The errno of an OSError; HDF5 and safetensors sometimes tell it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = re.search(r"errno = (\d+)|os error (\d+)", str(error))
    return int(told.group(1) or told.group(2)) if told else None
