"""The process that runs the tests of generated code, which itself runs in another one.

A script of the standard library alone, started by code_execution.py as `python -I -S execution_tester.py`, with the
request as JSON on standard input. The program under test never shares a process with the tests: arguments go to it and
plain data comes back, so it can reach neither assertions nor the secret word that the verdict must carry.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import io
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SET_PARENT_DEATH_SIGNAL, _SET_DUMPABLE, _SET_CHILD_SUBREAPER = 1, 4, 36
_MAX_MESSAGE = 16 * 2**20
_PLAIN_CLASSES = {
    "builtins": ("bytearray", "complex", "frozenset", "range", "set", "slice"),
    "builtins as factories": ("bool", "dict", "float", "int", "list", "str", "tuple"),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
}


class VerdictError(BaseException):
    """The end of the tests; no test that catches Exception stands in its way."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome, self.detail = outcome, detail


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        factories = _PLAIN_CLASSES["builtins as factories"] if module == "builtins" else ()
        if name in _PLAIN_CLASSES.get(module, ()) or name in factories:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")


class Candidate:
    """The program under test, in a process of its own; called like the function that it defines.

    Raises: VerdictError when the process ends, the time is over, or an argument cannot be sent; the builtin exception
    that the function raised, else RuntimeError.
    """

    def __init__(self, request: dict[str, Any], deadline: float) -> None:
        self._deadline, self._buffer = deadline, b""
        calls, self._calls = os.pipe()
        self._results, results = os.pipe()
        script = str(Path(__file__).with_name("execution_candidate.py"))

        def limit() -> None:
            ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            limit_resources(request)

        try:
            self.process = subprocess.Popen(
                [*request["namespaces"], sys.executable, "-I", "-S", script, str(calls), str(results)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(calls, results),
                preexec_fn=limit,
                cwd=request["folder"],
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise VerdictError("unsupported", f"no process for the program could be started: {error}") from None
        os.close(calls)
        os.close(results)
        os.set_blocking(self._calls, False)
        try:
            self._send((request["protection"], request["program"], request["entry_point"]))
            self.protections: list[str] = self._receive()[1]
        except VerdictError as error:
            if error.outcome == "timed_out":
                raise
            # No line of the program has run yet.
            raise VerdictError("unsupported", f"Python does not start under these limits: {error.detail}") from None

    def start(self) -> None:
        """Waits until the program has been run from top to bottom."""
        kind, *rest = self._receive()
        if kind != "ready":
            raise VerdictError("wrong", f"the program raised {': '.join(map(str, rest))}")

    def __call__(self, *arguments: object, **named: object) -> object:
        try:
            self._send((arguments, named))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise VerdictError("unsupported", f"an argument cannot be sent to another process: {error}") from None
        answer = self._receive()
        if len(answer) == 2 and answer[0] == "returned":
            return answer[1]
        if len(answer) == 3 and answer[0] == "raised":
            kind = getattr(builtins, str(answer[1]), RuntimeError)
            is_exception = isinstance(kind, type) and issubclass(kind, Exception)
            raise _from_candidate(kind if is_exception else RuntimeError, f"{answer[1]}: {answer[2]}")
        raise VerdictError("wrong", "the program wrote into the pipe of its results")

    def _send(self, message: object) -> None:
        content = pickle.dumps(message, protocol=4)
        left = memoryview(len(content).to_bytes(8, "little") + content)
        while left:
            self._wait(self._calls, select.POLLOUT)
            try:
                left = left[os.write(self._calls, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._gone()

    def _receive(self) -> tuple[Any, ...]:
        size = int.from_bytes(self._read(8), "little")
        if size > _MAX_MESSAGE:
            raise VerdictError("wrong", f"a result of more than {_MAX_MESSAGE} bytes")
        try:
            message = _PlainUnpickler(io.BytesIO(self._read(size))).load()
        except VerdictError:
            raise
        except Exception as error:
            raise VerdictError("wrong", f"a result that is no plain data: {error}") from None
        if type(message) is not tuple or not message:
            raise VerdictError("wrong", "the program wrote into the pipe of its results")
        return message

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._wait(self._results, select.POLLIN)
            part = os.read(self._results, 2**16)
            if not part:
                self._gone()
            self._buffer += part
        content, self._buffer = self._buffer[:size], self._buffer[size:]
        return content

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = self._deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise VerdictError("timed_out", "the time limit")

    def _gone(self) -> None:
        try:
            status = self.process.wait(max(0.1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise VerdictError("wrong", "the program closed the pipe of its results") from None
        if status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
            raise VerdictError("timed_out", "the limit of processor time")
        raise VerdictError("crashed", f"the program's process ended, status {status}")


def _from_candidate(kind: type[Exception], text: str) -> Exception:
    try:
        error = kind(text)
    except Exception:  # some want more arguments than a text
        error = RuntimeError(text)
    error.is_from_candidate = True  # type: ignore[attr-defined]
    return error


def lower(kind: int, soft: int, hard: int | None = None) -> None:
    """Sets a limit, or leaves it where this process is already held to less."""
    _, ceiling = resource.getrlimit(kind)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def limit_resources(request: dict[str, Any]) -> None:
    """The limits that hold for this process and those it starts."""
    seconds = int(request["time_s"]) + 1
    lower(resource.RLIMIT_CPU, seconds, seconds + 1)
    lower(resource.RLIMIT_AS, request["memory_bytes"])
    lower(resource.RLIMIT_FSIZE, request["file_bytes"])
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_NOFILE, 64)


def descendants(ancestor: int) -> list[int]:
    """Processes below one, ended ones that nobody has waited for left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            with contextlib.suppress(OSError):
                # The name in parentheses may hold spaces and parentheses itself.
                state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).extend([int(name)] if state != "Z" else [])
    found, left = [], [ancestor]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def end_descendants(ancestor: int, deadline: float) -> None:
    """Kills what a process started and what that started, whatever session it moved to; again, until none is left."""
    while (found := descendants(ancestor)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _reap() -> None:
    """Waits for children that have ended: where nothing does, they would stay in the table of processes."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _compiled(definitions: str) -> Any:
    """A prompt as a program: one that breaks off behind a function's head gets a body."""
    for text in (definitions, definitions + "\n    pass\n"):
        with contextlib.suppress(SyntaxError):
            return compile(text, "<definitions>", "exec")
    raise VerdictError("unsupported", "the definitions before the program are no Python")


def _run(request: dict[str, Any], candidate: Candidate) -> None:
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(_compiled(request["definitions"]), namespace)
        tests = compile(request["tests"], "<tests>", "exec")
    except Exception as error:
        raise VerdictError("unsupported", f"the tests cannot be run: {type(error).__name__}: {error}") from None
    candidate.start()
    namespace[request["entry_point"]] = candidate
    try:
        exec(tests, namespace)
        if "check" in namespace:
            namespace["check"](candidate)
    except NameError as error:
        if not hasattr(error, "is_from_candidate"):
            detail = f"the tests want more than the function {request['entry_point']}: {error}"
            raise VerdictError("unsupported", detail) from None
        raise VerdictError("wrong", str(error)) from None
    except AssertionError as error:
        raise VerdictError("wrong", f"an assertion failed: {error}"[:500]) from None
    except Exception as error:
        raise VerdictError("wrong", f"{type(error).__name__}: {error}"[:500]) from None
    except SystemExit:
        raise VerdictError("unsupported", "the tests left Python") from None


def _on_alarm(number: int, frame: object) -> None:
    raise VerdictError("timed_out", "the time limit")


def main() -> None:
    """Tests one program, ends it and all that it started, and says how it went."""
    request = json.load(sys.stdin)
    deadline = time.monotonic() + request["time_s"]
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    # Nobody but root reads this process's memory or pipes through /proc, and orphans below it stay below it.
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # What comes back from the program is no larger than a message, but tests may copy it.
    lower(resource.RLIMIT_AS, request["memory_bytes"] + 2**30)
    # The tests themselves may loop over what the program answered. Calls notice the limit first, so that an alarm never
    # meets a verdict on its way.
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, request["time_s"] + 1)
    protections: list[str] = []
    try:
        candidate = Candidate(request, deadline)
        protections = candidate.protections
        _run(request, candidate)
        signal.setitimer(signal.ITIMER_REAL, 0)
        verdict = VerdictError("right", "")
    except VerdictError as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        verdict = error
    end_descendants(os.getpid(), time.monotonic() + 5)
    _reap()
    answer = {"outcome": verdict.outcome, "detail": verdict.detail, "protections": protections}
    with os.fdopen(request["verdict"], "w") as pipe:
        pipe.write(json.dumps({**answer, "secret": request["secret"]}) + "\n")
    # Whoever started this process ends it.
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
