"""Written behind, in order, bounded; the first error stops the run and is never lost."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time

import pytest

from hpcrl.errors import InputError
from hpcrl.store.writer import WriteBehind


def test_jobs_run_in_order() -> None:
    done: list[int] = []
    with WriteBehind() as writer:
        for number in range(50):
            writer.submit(lambda number=number: done.append(number), num_bytes=1, iteration=number // 10, what="x")
        writer.flush()
        assert done == list(range(50))
        assert writer.pending == (0, 0)


class Gate:
    """A job that waits until it is let through."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.open.wait(10)


def blocks(writer: WriteBehind, *, num_bytes: int, iteration: int, gate: Gate) -> bool:
    """Whether a submission waits until the gate is opened."""
    through = threading.Event()

    def submit() -> None:
        writer.submit(lambda: None, num_bytes=num_bytes, iteration=iteration, what="second")
        through.set()

    thread = threading.Thread(target=submit)
    thread.start()
    waited = not through.wait(0.1)
    gate.open.set()
    thread.join(10)
    assert through.is_set()
    return waited


@pytest.mark.parametrize(
    ("num_bytes", "iteration", "waits"), [(1, 0, False), (90, 0, False), (91, 0, True), (1, 1, True), (500, 0, True)]
)
def test_at_most_one_iteration_and_so_many_bytes_are_queued(num_bytes: int, iteration: int, waits: bool) -> None:
    gate = Gate()
    with WriteBehind(max_bytes=100) as writer:
        writer.submit(gate, num_bytes=10, iteration=0, what="first")
        assert gate.begun.wait(10)
        assert blocks(writer, num_bytes=num_bytes, iteration=iteration, gate=gate) == waits


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_first_error_stops_everything() -> None:
    done: list[int] = []
    writer = WriteBehind()
    gate = Gate()
    writer.submit(gate, num_bytes=0, iteration=0, what="gate")
    writer.submit(fail, num_bytes=0, iteration=0, what="shard 3 of rollout, iteration 17")
    writer.submit(lambda: done.append(1), num_bytes=0, iteration=0, what="manifest")
    gate.open.set()
    for _ in range(2):
        with pytest.raises(InputError, match="disk full while writing shard 3 of rollout, iteration 17"):
            writer.flush()
    with pytest.raises(InputError, match="disk full"):
        writer.submit(lambda: done.append(2), num_bytes=0, iteration=5, what="later")
    writer.close()  # it was raised already
    assert done == []


def test_close_raises_an_error_nobody_has_seen() -> None:
    with pytest.raises(ZeroDivisionError) as caught, WriteBehind() as writer:
        writer.submit(lambda: 1 / 0, num_bytes=0, iteration=0, what="x")
    assert caught.value.__notes__ == ["while writing x behind the computation"]


def test_an_error_of_the_computation_is_kept_and_finished_work_written() -> None:
    done: list[int] = []

    def compute() -> None:
        with WriteBehind() as writer:
            writer.submit(lambda: (time.sleep(0.05), done.append(1)), num_bytes=0, iteration=0, what="x")
            writer.submit(fail, num_bytes=0, iteration=0, what="y")
            raise KeyError("computation")

    with pytest.raises(KeyError, match="computation") as caught:
        compute()
    assert done == [1]
    assert "disk full while writing y" in caught.value.__notes__[0]


def test_a_waiting_submit_hears_of_the_error() -> None:
    gate = Gate()

    def wait_and_fail() -> None:
        gate()
        fail()

    with WriteBehind() as writer:
        writer.submit(wait_and_fail, num_bytes=0, iteration=0, what="x")
        threading.Timer(0.05, gate.open.set).start()
        with pytest.raises(InputError, match="disk full"):
            writer.submit(lambda: None, num_bytes=0, iteration=1, what="later")


def test_misuse_is_refused() -> None:
    writer = WriteBehind()
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.submit(lambda: None, num_bytes=0, iteration=0, what="x")
    with pytest.raises(InputError, match="max_bytes: want >= 1"):
        WriteBehind(max_bytes=0)


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise ValueError"])
def test_a_process_that_forgets_to_close_still_ends(ending: str) -> None:
    code = (
        "import sys, time; from hpcrl.store.writer import WriteBehind; writer = WriteBehind();"
        "writer.submit(lambda: time.sleep(60), num_bytes=0, iteration=0, what='x'); " + ending
    )
    finished = subprocess.run([sys.executable, "-c", code], timeout=20, check=False, capture_output=True)
    assert finished.returncode == {"pass": 0, "sys.exit(3)": 3, "raise ValueError": 1}[ending]
