"""Processes of this host, told apart even after their number was given to another."""

from __future__ import annotations

import functools
import os
import platform
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcrl.errors import InputError

LAUNCHER: Final = "HPCRL_LAUNCHER"
"""Environment variable: "host:pid" of the process that started this launch's ranks."""

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """A process as it was when it was recorded: number and start time together are never given twice on one boot."""

    host: str
    boot: str
    """Boot of the host and namespace of its process numbers: in another one, /proc says nothing about this process."""
    pid: int
    start_time: int
    """Clock ticks since boot, from /proc/PID/stat."""
    command: str

    @classmethod
    def this(cls) -> Process:
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """A living process of this host. Raises: InputError when there is none with that number."""
        state = _state(pid)
        if state is None:
            raise InputError(f"pid: want a living process of this host, given {pid}")
        return cls(platform.node(), _boot(), pid, state[1], _command(pid))

    def is_local(self) -> bool:
        """Whether it was recorded on this host since its last boot, so that /proc can tell whether it lives."""
        return self.host == platform.node() and self.boot == _boot()

    def is_alive(self) -> bool:
        """Whether it runs still; a zombie does not. Only meaningful where is_local()."""
        state = _state(self.pid)
        return state is not None and state[0] not in "ZX" and state[1] == self.start_time

    def is_the_recorded_one(self) -> bool:
        """Whether it is alive and still runs the recorded command, so that it may be ended."""
        return self.is_local() and self.is_alive() and _command(self.pid) == self.command

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def local_launcher() -> Process | None:
    """The process that started this launch's ranks; None when there is none, or it runs or ran on another host."""
    host, _, pid = os.environ.get(LAUNCHER, "").rpartition(":")
    if host != platform.node() or not pid.isdecimal() or _state(int(pid)) is None:
        return None
    return Process.of(int(pid))


def end_processes(
    processes: Sequence[Process], *, grace_seconds: float = 5.0, kill_seconds: float = 10.0
) -> list[Process]:
    """Ends those that are the recorded ones: SIGTERM, after `grace_seconds` SIGKILL; waits until they are gone.

    Returns: the processes that were ended.
    Raises: InputError when one cannot be signalled or does not go.
    """
    found = [process for process in processes if process.pid != os.getpid() and process.is_the_recorded_one()]
    rest = _signal_and_wait(found, signal.SIGTERM, grace_seconds)
    rest = _signal_and_wait(rest, signal.SIGKILL, kill_seconds)
    if rest:
        raise InputError(f"{rest[0]} is left from a dead launch and cannot be ended; end it by hand, then run again")
    return found


def _signal_and_wait(processes: Sequence[Process], number: signal.Signals, seconds: float) -> list[Process]:
    for process in processes:
        if process.is_the_recorded_one():
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise InputError(
                    f"{process} works on this run and belongs to someone else; ask them to end it"
                ) from error
    deadline = time.monotonic() + seconds
    rest = [process for process in processes if process.is_alive()]
    while rest and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        rest = [process for process in rest if process.is_alive()]
    return rest


def _state(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks), or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the command before it may hold spaces and parentheses
    return fields[0], int(fields[19])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@functools.cache
def _boot() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
