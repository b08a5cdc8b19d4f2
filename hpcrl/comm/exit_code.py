"""The exit code of a whole launch: agreed by its ranks, told to the launcher by a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Final, NoReturn

from hpcrl.comm.collectives import Collectives, flush_streams
from hpcrl.signals import BAD_INPUT, DONE, FAILED, REQUEUE

EXIT_CODE_FILE: Final = "HPCRL_EXIT_CODE_FILE"
"""Environment variable: where the ranks write the code for the launcher that started them. MPI launchers report the
bitwise or of all codes (MPICH) or the first one (Open MPI), and a signal's number as if it were an exit code."""

_GRAVEST_FIRST = (FAILED, BAD_INPUT, REQUEUE, DONE)


def gravest(codes: Iterable[int]) -> int:
    """The one code that stands for all: failed, then bad input, then requeue, then done; an unknown one is failed.

    Example:
        >>> gravest([0, 85]), gravest([85, 2]), gravest([0, 77])
        (85, 2, 1)
    """
    known = [code if code in _GRAVEST_FIRST else FAILED for code in codes]
    return min(known, key=_GRAVEST_FIRST.index, default=DONE)


def leave(world: Collectives, code: int) -> NoReturn:
    """Ends the process together with all others: the gravest code wins and no rank leaves before all have come.

    Every rank calls it, as the last thing it does: after it an MPI launcher may end a rank because another has left
    with a non-zero code (Open MPI's does). A rank that cannot get here calls `world.abort(code)` instead.
    Raises: SystemExit with the agreed code.
    """
    sys.exit(close_world(world, code))


def close_world(world: Collectives, code: int) -> int:
    """Leaves MPI together with all others; returns the gravest code. For a process that is not ours to end."""
    agreed = gravest(world.all_gather(code))
    flush_streams()
    if world.rank == 0:
        record_exit_code(agreed)
    world.finalize()
    return agreed


def record_exit_code(code: int) -> None:
    """Writes the code where the launcher will look for it, if a launcher asked; the first rank to write wins."""
    path = os.environ.get(EXIT_CODE_FILE)
    if path is None:
        return
    # Missing folder: the launcher runs on another machine and reads mpiexec's own code instead.
    with contextlib.suppress(FileExistsError, FileNotFoundError), open(path, "x", encoding="ascii") as file:
        file.write(f"{code}\n")
