"""Collectives over MPI. The only module that imports mpi4py; importing it initialises MPI."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from hpcrl.comm.collectives import Array, Collectives, Message, check_rank, flush_streams
from hpcrl.comm.exit_code import record_exit_code
from hpcrl.comm.waiting import Waiting
from hpcrl.errors import InputError

T = TypeVar("T")
Bytes = npt.NDArray[np.uint8]

MESSAGE_BYTES = 1 << 30
"""Longest single message. Counts are 32-bit in MPI 3, so anything above 2 GiB must go in pieces."""


def open_mpi_world(waiting: Waiting) -> MpiRanks:
    """All ranks of this MPI launch, on a communicator of our own.

    Raises: InputError when MPI came up without THREAD_MULTIPLE (the writer thread needs it).
    """
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        library = MPI.Get_library_version().splitlines()[0].strip("\0 ")
        raise InputError(
            f"MPI threads: want THREAD_MULTIPLE, given level {MPI.Query_thread()} from {library}; leave "
            f"mpi4py.rc.thread_level alone, or use an MPI built with thread support"
        )
    world = MpiRanks(MPI.COMM_WORLD.Dup(), waiting, is_world=True)
    world.barrier()
    _unname_shared_memory()
    return world


def _unname_shared_memory() -> None:
    """Takes MPICH's shared segment its name once all ranks have mapped it: a SIGKILL then leaves no megabytes behind.

    The memory lives as long as a process maps it; MPICH removes the name itself only in MPI_Finalize.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return  # not Linux
    for name in set(re.findall(r"/dev/shm/mpich_shm_[0-9a-f]+_[0-9]+$", maps, re.MULTILINE)):
        Path(name).unlink(missing_ok=True)


class MpiRanks:
    """A set of MPI ranks; the methods are documented at `Collectives`."""

    def __init__(self, communicator: MPI.Intracomm, waiting: Waiting, *, is_world: bool = False) -> None:
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self._communicator = communicator
        self._waiting = waiting
        self._is_world = is_world

    def barrier(self) -> None:
        self._finish(self._communicator.Ibarrier())

    def broadcast(self, value: T, root: int = 0) -> T:
        check_rank("root", root, self.size)
        payload = _pickled(value) if self.rank == root else np.empty(0, np.uint8)
        length = np.array([payload.size], np.int64)
        self._finish(self._communicator.Ibcast(length, root))
        if self.rank != root:
            payload = np.empty(int(length[0]), np.uint8)
        for start in range(0, payload.size, MESSAGE_BYTES):
            self._finish(self._communicator.Ibcast(payload[start : start + MESSAGE_BYTES], root))
        return value if self.rank == root else _unpickled(payload)

    def gather(self, value: T, root: int = 0) -> list[T] | None:
        check_rank("root", root, self.size)
        payload = _pickled(value)
        lengths = self._lengths(payload.size)
        if self.rank != root:
            self.exchange([(root, payload)], [])
            return None
        received = {peer: np.empty(lengths[peer], np.uint8) for peer in range(self.size) if peer != root}
        self.exchange([], list(received.items()))
        return [value if peer == root else _unpickled(received[peer]) for peer in range(self.size)]

    def all_gather(self, value: T) -> list[T]:
        payload = _pickled(value)
        lengths = self._lengths(payload.size)
        if sum(lengths) > MESSAGE_BYTES:
            return [self.broadcast(value, root) for root in range(self.size)]
        packed = np.empty(sum(lengths), np.uint8)
        self._finish(self._communicator.Iallgatherv(payload, [packed, lengths]))
        parts = np.split(packed, np.cumsum(lengths)[:-1])
        return [value if peer == self.rank else _unpickled(part) for peer, part in enumerate(parts)]

    def any(self, flag: bool) -> bool:
        return self._reduce_flag(flag, MPI.MAX)

    def all(self, flag: bool) -> bool:
        return self._reduce_flag(flag, MPI.MIN)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        # Receives first: a message that finds its buffer posted is not copied twice.
        requests = [self._communicator.Irecv(piece, peer) for peer, array in receives for piece in _pieces(array)]
        requests += [self._communicator.Isend(piece, peer) for peer, array in sends for piece in _pieces(array)]
        self._waiting.until(lambda: MPI.Request.Testall(requests))

    def split(self, color: int | None, key: int) -> Collectives | None:
        self.barrier()  # MPI_Comm_split burns a core while it waits for the others
        subset = self._communicator.Split(MPI.UNDEFINED if color is None else color, key)
        return MpiRanks(subset, self._waiting) if isinstance(subset, MPI.Intracomm) and subset else None

    def abort(self, code: int) -> NoReturn:
        flush_streams()
        record_exit_code(code)
        MPI.COMM_WORLD.Abort(code)
        raise SystemExit(code)  # not reached: MPI_Abort does not return

    def finalize(self) -> None:
        if MPI.Is_finalized():
            return
        self.barrier()
        self._communicator.Free()
        if self._is_world:
            MPI.Finalize()

    def _finish(self, request: MPI.Request) -> None:
        self._waiting.until(request.Test)

    def _reduce_flag(self, flag: bool, operation: MPI.Op) -> bool:
        given = np.array([flag], np.uint8)
        result = np.empty(1, np.uint8)
        self._finish(self._communicator.Iallreduce(given, result, operation))
        return bool(result[0])

    def _lengths(self, length: int) -> list[int]:
        lengths = np.empty(self.size, np.int64)
        self._finish(self._communicator.Iallgather(np.array([length], np.int64), lengths))
        return [int(n) for n in lengths]


def _pieces(array: Array) -> list[Array]:
    """The array's memory as views of at most MESSAGE_BYTES; none when it is empty."""
    if array.nbytes <= MESSAGE_BYTES:
        return [array] if array.size else []
    flat = array.reshape(-1).view(np.uint8)
    return [flat[start : start + MESSAGE_BYTES] for start in range(0, flat.size, MESSAGE_BYTES)]


def _pickled(value: object) -> Bytes:
    return np.frombuffer(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL), np.uint8)


def _unpickled(payload: Bytes) -> Any:
    return pickle.loads(payload.data)
