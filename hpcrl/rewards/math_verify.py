"""Answers compared by math-verify, in processes that are killed when they take too long.

math-verify's own time limits are alarms of the main thread, which a rank's workers do not have and which a long
computation inside C code outlasts; so each comparison runs in a process of its own kind with a limit from outside.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.rewards.interface import Columns, RewardError, Verifier, column_of

_START_S = 120.0
"""Importing SymPy from a cold network file system is slow."""


class _Worker:
    """One process with math-verify in it; started when first asked, and again after it was killed."""

    def __init__(self, memory_mb: int) -> None:
        self._memory_bytes = memory_mb * 2**20
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def ask(self, gold: str, response: str, time_s: float) -> str:
        """An outcome; "timed_out" or "crashed" when it came to none, and the process is gone."""
        process = self._process or self._start()
        assert process.stdin is not None  # it was asked for
        try:
            process.stdin.write(json.dumps({"gold": gold, "response": response}).encode() + b"\n")
            process.stdin.flush()
            outcome = self._answer(process, time_s)
        except BrokenPipeError:
            outcome = "crashed"
        if outcome in ("timed_out", "crashed"):
            self.end()
        return outcome

    def _start(self) -> subprocess.Popen[bytes]:
        self._rest = b""
        script = str(Path(__file__).with_name("math_verify_worker.py"))
        with tempfile.TemporaryFile() as complaints:
            # -P: this folder's modules must not stand in for those of packages.
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, str(self._memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
            outcome = self._answer(self._process, _START_S)
            if outcome != "ready":
                self.end()
                complaints.seek(0)
                said = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
                raise RewardError(f"reward MathVerify: its process does not start ({outcome}): {''.join(said)}")
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], time_s: float) -> str:
        assert process.stdout is not None  # it was asked for
        deadline, poll = time.monotonic() + time_s, select.poll()
        poll.register(process.stdout, select.POLLIN)
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return "timed_out"
            part = os.read(process.stdout.fileno(), 2**16)
            if not part:
                return "crashed"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return str(json.loads(line)["outcome"])

    def end(self) -> None:
        """Kills the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process = None


@functools.cache
def _workers(process: int, number: int, memory_mb: int) -> queue.SimpleQueue[_Worker]:
    """The idle workers of this process; a forked one has its own."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(number):
        idle.put(worker := _Worker(memory_mb))
        atexit.register(_end_in, process, worker)
    return idle


def _end_in(process: int, worker: _Worker) -> None:
    # A forked process inherits what is to be done at the exit, but not the worker.
    if os.getpid() == process:
        worker.end()


@dataclasses.dataclass(frozen=True)
class MathVerify(Verifier):
    """The answer of a response, compared with a column by math-verify (extra `math-verify`), which knows algebra.

    It reads an answer also where none is marked: a response that lists numbers may be right by the last of them;
    `BoxedAnswer` is stricter. Outcomes: right, wrong, no_answer, timed_out, too_large (memory), crashed.
    Raises: InputError for a knob out of range; from `verify`, when math-verify is not installed; RewardError for a
    missing column or a gold answer that it cannot read.
    """

    _: dataclasses.KW_ONLY
    column: str = "answer"
    time_s: float = 5.0
    """Seconds for one comparison; then its process is killed."""
    memory_mb: int = 4096
    """Address space of a process, MiB."""
    workers: int = 1
    """Processes. They live until this one ends, or until one is killed."""

    def __post_init__(self) -> None:
        for name, good in (
            ("time_s", self.time_s > 0),
            ("memory_mb", self.memory_mb > 0),
            ("workers", self.workers > 0),
        ):
            if not good:
                raise InputError(f"MathVerify: {name}: want a number > 0, given {getattr(self, name)!r}")

    def verify(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[str]:
        """An outcome for each response."""
        gold = column_of(columns, self.column, "MathVerify")
        for row, answer in enumerate(gold):
            if isinstance(answer, bool) or not isinstance(answer, str | int | float):
                raise RewardError(
                    f"reward MathVerify: want a gold answer, text or a number, given {answer!r} in row {row}"
                )
        if importlib.util.find_spec("math_verify") is None:
            raise InputError(
                "reward MathVerify: want the package math_verify, which is not installed; "
                "pip install 'hpcrl[math-verify]', or use BoxedAnswer or NumericAnswer"
            )
        idle = _workers(os.getpid(), self.workers, self.memory_mb)

        def one(row: int) -> str:
            worker = idle.get()
            try:
                return worker.ask(str(gold[row]), responses[row], self.time_s)
            finally:
                idle.put(worker)

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            outcomes = list(pool.map(one, range(len(responses))))
        if "bad_gold" in outcomes:
            row = outcomes.index("bad_gold")
            raise RewardError(
                f"reward MathVerify: want a gold answer that it can read, given {gold[row]!r} in row {row}"
            )
        return outcomes
