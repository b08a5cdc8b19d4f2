"""Stop signals and exit codes: how a run is asked to end, and what it says when it does."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self

DONE: Final = 0
"""The run has reached its end."""
FAILED: Final = 1
"""Something broke; the message says what."""
BAD_INPUT: Final = 2
"""What the user gave is wrong; nothing was written."""
REQUEUE: Final = 85
"""Stopped on request with everything published: the same command goes on."""

STOP_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""SLURM's warning before the time limit, preemption, and Ctrl-C."""


class Agreement(Protocol):
    """The one thing asked of a set of ranks: is any flag up?"""

    def any(self, flag: bool) -> bool: ...


class StopFlag:
    """One flag that SIGUSR1, SIGUSR2, SIGTERM and the first SIGINT raise; a second SIGINT ends the process at once.

    Use it as a context manager in the main thread of a command; it restores the handlers it found. Every long loop
    polls `requested` where it can stop alone, and `agreed(comm)` where all ranks must take the same turn.

    Raises: RuntimeError when entered outside the main thread, where Python cannot install handlers.
    Example:
        >>> with StopFlag() as stop:
        ...     os.kill(os.getpid(), signal.SIGUSR1)
        ...     stop.requested, stop.reason
        (True, 'SIGUSR1')
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._agreed = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("StopFlag: want the main thread (Python installs signal handlers only there)")
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was installed by C code and cannot be put back from Python.
            if handler is not None:
                signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGINT and self._received is signal.SIGINT:
            # The user insists. Die of the signal itself, so that the parent sees an interrupt and not an exit code.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            return
        # SIGINT takes over from an earlier request, so that the next one counts as the second.
        if self._received is None or received is signal.SIGINT:
            self._received = received

    @property
    def requested(self) -> bool:
        """Whether this rank has been asked to stop, or all ranks have agreed to."""
        return self._agreed or self._received is not None

    @property
    def reason(self) -> str:
        """Name of the signal that raised the flag, 'another rank' when only others saw one, '' when it is down."""
        if self._received is not None:
            return self._received.name
        return "another rank" if self._agreed else ""

    def agreed(self, comm: Agreement) -> bool:
        """Whether any rank of `comm` has been asked to stop; every rank gets the same answer. Collective."""
        self._agreed = comm.any(self.requested)
        return self._agreed
