"""Collectives: what a set of ranks can do together, and the set that is one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Array = npt.NDArray[Any]
Message = tuple[int, Array]
"""(peer rank, array)."""


class Collectives(Protocol):
    """A world, or a subset of its ranks. A world of size 1 is a world: no caller asks whether it is distributed.

    Every method but `exchange` and `abort` is collective: all ranks of the set call it, in the same order, from one
    thread. A second thread needs a set of its own (`split`). Values must be picklable; a wait sleeps and polls.
    """

    @property
    def rank(self) -> int:
        """This process's place, 0 <= rank < size."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks in the set."""
        ...

    def barrier(self) -> None:
        """Returns once every rank has come."""
        ...

    def broadcast(self, value: T, root: int = 0) -> T:
        """The root's value on every rank; what the others pass is ignored."""
        ...

    def gather(self, value: T, root: int = 0) -> list[T] | None:
        """Every rank's value in rank order on the root, None elsewhere."""
        ...

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        ...

    def all(self, flag: bool) -> bool:
        """Whether the flag is up on all ranks."""
        ...

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Sends arrays to peers and fills arrays from peers, all at once; returns when both are done.

        Messages between two ranks arrive in the order of their lists. Arrays are C-contiguous and of a size that both
        sides know; an empty one costs no message, one above 1 GiB goes in pieces.
        """
        ...

    def split(self, color: int | None, key: int) -> Collectives | None:
        """The ranks that pass the same color, ordered by key; None for a rank that passes None."""
        ...

    def abort(self, code: int) -> NoReturn:
        """Ends every process of the whole world now, with this exit code; for errors that only one rank has seen."""
        ...

    def finalize(self) -> None:
        """A last barrier, then this set is closed; no rank leaves before all have come."""
        ...


class SingleProcess:
    """The world of this process alone; needs no MPI.

    Example:
        >>> world = SingleProcess()
        >>> world.size, world.all_gather("here"), world.any(False)
        (1, ['here'], False)
    """

    rank = 0
    size = 1

    def barrier(self) -> None:
        pass

    def broadcast(self, value: T, root: int = 0) -> T:
        check_rank("root", root, self.size)
        return value

    def gather(self, value: T, root: int = 0) -> list[T] | None:
        check_rank("root", root, self.size)
        return [value]

    def all_gather(self, value: T) -> list[T]:
        return [value]

    def any(self, flag: bool) -> bool:
        return bool(flag)

    def all(self, flag: bool) -> bool:
        return bool(flag)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        for peer, _ in (*sends, *receives):
            check_rank("peer", peer, self.size)
        for (_, source), (_, target) in zip(sends, receives, strict=True):
            np.copyto(target, source, casting="no")

    def split(self, color: int | None, key: int) -> Collectives | None:
        return None if color is None else SingleProcess()

    def abort(self, code: int) -> NoReturn:
        flush_streams()
        os._exit(code)  # like MPI_Abort: from any thread, past every handler

    def finalize(self) -> None:
        pass


def check_rank(name: str, rank: int, size: int) -> None:
    """Raises IndexError unless 0 <= rank < size."""
    if not 0 <= rank < size:
        raise IndexError(f"{name}: want 0 <= {name} < {size} (the ranks here), given {rank}")


def flush_streams() -> None:
    """Writes out what was printed, before an end that would lose it."""
    sys.stdout.flush()
    sys.stderr.flush()
