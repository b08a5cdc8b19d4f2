"""Write-behind: one thread writes what the stages handed on, in order, while the next stage computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from hpcrl.errors import InputError
from hpcrl.store.disk_errors import explain_write_errors


@dataclass(frozen=True)
class _Job:
    run: Callable[[], object]
    bytes: int
    iteration: int
    what: str


class WriteBehind:
    """A thread that runs jobs one by one in the order of submission; a context manager.

    At most one iteration is queued: a job of a later one waits, in submit, until all of the earlier ones are written.
    The first error stops the writing: later jobs are dropped, for manifests are published in order or not at all, and
    every later submit or flush raises it. The thread does not keep a process alive: leaving without close is like a
    kill, and a kill is harmless. Leaving the `with` block by an exception still writes what was submitted: it is done.

    Args:
        max_bytes: bound on the bytes that wait, as announced by submit; one job that is larger waits until it is alone.
    """

    def __init__(self, *, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes: want >= 1, given {max_bytes}")
        self._max_bytes = max_bytes
        self._queue: deque[_Job] = deque()  # its first job is the one that runs
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._raised = False
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="hpcrl-write-behind", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], object], *, num_bytes: int, iteration: int, what: str) -> None:
        """Queues a job; waits while an earlier iteration's jobs are pending or too many bytes are.

        Args:
            job: writes and publishes; the arrays it holds must not be changed any more.
            num_bytes: memory the job holds until it has run.
            iteration: never falls from one submission to the next.
            what: named in an error, for example "shard 3 of rollout, iteration 17".
        Raises: the first error of an earlier job.
        """
        with self._changed:
            if self._closing:
                raise RuntimeError(f"{what}: submitted to a write-behind that is closed")
            self._changed.wait_for(lambda: self._error is not None or self._has_room(num_bytes, iteration))
            self._raise_first_error()
            self._queue.append(_Job(job, num_bytes, iteration, what))
            self._changed.notify_all()

    def flush(self) -> None:
        """Waits until everything submitted is written. Raises: the first error of a job."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue)
            self._raise_first_error()

    def check(self) -> None:
        """Raises: the first error of a job, for a thread that waits for something else meanwhile."""
        with self._changed:
            self._raise_first_error()

    def close(self) -> None:
        """Writes what is queued and ends the thread. Raises: the first error, unless it was raised before."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if not self._raised:
            self._raise_first_error()

    @property
    def pending(self) -> tuple[int, int]:
        """(jobs, bytes) submitted and not yet written."""
        with self._changed:
            return len(self._queue), sum(job.bytes for job in self._queue)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BaseException as write_error:
            if error is None:
                raise
            error.add_note(f"and writing failed: {write_error}")

    def _has_room(self, num_bytes: int, iteration: int) -> bool:
        if not self._queue:
            return True
        waiting = sum(job.bytes for job in self._queue)
        return self._queue[0].iteration >= iteration and waiting + num_bytes <= self._max_bytes

    def _raise_first_error(self) -> None:
        if self._error is not None:
            self._raised = True
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                job = self._queue[0]
            try:
                with explain_write_errors(job.what):
                    job.run()
            except BaseException as error:
                error.add_note(f"while writing {job.what} behind the computation")
                with self._changed:
                    self._error = error
                    self._queue.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()
