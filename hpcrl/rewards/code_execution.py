"""Unit tests of generated Python as a reward: HumanEval's format (Chen et al. 2021, arXiv:2107.03374).

Generated code runs under limits of time, memory, file size and processes, in a temporary folder, without standard input
and with an environment of its own; where the kernel allows, without network, without sight of other processes (a user
namespace), and without any file but Python's own and its folder's (Landlock). **This is no sandbox against a determined
attacker**: it keeps out what a policy in training finds, and its mistakes. Run what you do not trust on a machine of
its own. Linux only.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.rewards.execution_tester import end_descendants
from hpcrl.rewards.interface import Columns, RewardError, Verifier, column_of

_NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child")
# Inside of some containers, /proc cannot be mounted anew.
_OWN_PROC = "--mount-proc"
_FENCE = re.compile(r"^```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
# Two starts of Python and the end of what they left behind, on a busy machine.
_GRACE_S = 20.0


@dataclasses.dataclass(frozen=True)
class Execution:
    """How one program's tests went.

    `outcome`: "right" (every assertion held), "wrong" (one failed, or the program raised), "timed_out", "crashed" (its
    process ended before the tests did), "unsupported" (the tests cannot be run this way: the data's fault).
    `protections`: what held beside the limits, some of "network" and "processes" (namespaces), "files", "tcp" and
    "signals" (Landlock).
    """

    outcome: str
    detail: str
    seconds: float
    protections: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionLimits:
    """What generated code may use.

    Raises: InputError for a limit that is not positive.
    """

    time_s: float = 10.0
    """Seconds from start to end of all tests of one program."""
    memory_mb: int = 512
    """Address space of each process, MiB."""
    file_mb: float = 1.0
    """Size of each file, MiB."""
    num_processes: int = 32
    """Processes and threads at one time; the kernel does not hold root to it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"ExecutionLimits: {field.name}: want a number > 0, given {value!r}")


@functools.cache
def _namespaces() -> tuple[str, ...]:
    """The command before a command that puts it into namespaces of its own; () where that is not allowed."""
    if shutil.which(_NAMESPACES[0]) is None:
        return ()
    for command in ((*_NAMESPACES, _OWN_PROC), _NAMESPACES):
        done = subprocess.run([*command, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode == 0:
            return command
    return ()


def run_tests(
    program: str,
    tests: str,
    entry_point: str,
    *,
    definitions: str = "",
    limits: ExecutionLimits | None = None,
    namespaces: bool = True,
    landlock: bool = True,
) -> Execution:
    """Runs the tests of one program, which defines the function `entry_point`.

    The tests run in another process than the program. They see the names of `definitions` and `entry_point`, nothing
    else of the program; arguments and results cross as plain data (numbers, text, lists, tuples, dicts, sets, ...), so
    that a result that claims to equal everything is refused. Changes that the function makes to its arguments do not
    come back. Where the tests define `check`, it is called with the function; other assertions are run as they stand.

    Args:
        program: Python source.
        tests: Python source; trusted.
        entry_point: the function's name.
        definitions: Python source that the tests may need; trusted. Where it breaks off behind a function's head, as a
            prompt does, that function gets an empty body.
        limits: what the program may use.
        namespaces, landlock: False: do without, even where the kernel has them.
    Raises:
        InputError: an entry point that is no name.
    Example:
        >>> tests = "def check(candidate):\\n    assert candidate(6, 7) == 42"
        >>> run_tests("def product(a, b):\\n    return a * b", tests, "product").outcome
        'right'
        >>> run_tests("import os\\nos._exit(0)", tests, "product").outcome
        'crashed'
    """
    if not entry_point.isidentifier():
        raise InputError(f"entry_point: want the name of a function, given {entry_point!r}")
    limits = ExecutionLimits() if limits is None else limits
    prefix = _namespaces() if namespaces else ()
    # Unpredictable on purpose, and no part of any result.
    secret = secrets.token_hex(16)
    began = time.perf_counter()
    folder = tempfile.mkdtemp(prefix="hpcrl-")
    try:
        request = {
            "program": program,
            "tests": tests,
            "entry_point": entry_point,
            "definitions": definitions,
            "secret": secret,
            "folder": folder,
            "namespaces": list(prefix),
            "protection": [folder, limits.num_processes, bool(prefix), _OWN_PROC in prefix, landlock],
            "time_s": limits.time_s,
            "memory_bytes": limits.memory_mb * 2**20,
            "file_bytes": int(limits.file_mb * 2**20),
        }
        line = _verdict(request, folder, limits.time_s + _GRACE_S)
    finally:
        _remove(folder)
    seconds = time.perf_counter() - began
    if line is None:
        return Execution("timed_out", "the tests came to no verdict", seconds, ())
    said = json.loads(line) if line else {}
    if said.get("secret") != secret:
        return Execution("crashed", "the tests came to no verdict", seconds, ())
    isolated = ["network"] * bool(prefix) + ["processes"] * (_OWN_PROC in prefix)
    protections = [*isolated, *said["protections"]]
    return Execution(said["outcome"], said["detail"], seconds, tuple(protections))


def _environment(folder: str) -> dict[str, str]:
    fixed = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder}
    # A Python from a module system may find its own library no other way.
    kept = ("LD_LIBRARY_PATH",)
    return {**fixed, **{name: os.environ[name] for name in kept if name in os.environ}}


def _verdict(request: dict[str, object], folder: str, patience_s: float) -> str | None:
    """The line the tester wrote; "" when it ended without one, None when patience did."""
    reading, writing = os.pipe()
    try:
        script = str(Path(__file__).with_name("execution_tester.py"))
        tester = subprocess.Popen(
            [sys.executable, "-I", "-S", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
            env=_environment(folder),
            cwd=folder,
        )
        try:
            content = json.dumps({**request, "verdict": writing}).encode()
            os.close(writing)
            writing = -1
            assert tester.stdin is not None  # it was asked for
            with contextlib.suppress(BrokenPipeError), tester.stdin as stdin:
                stdin.write(content)
            return _read_line(reading, time.monotonic() + patience_s)
        finally:
            end_descendants(tester.pid, time.monotonic() + _GRACE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(tester.pid, signal.SIGKILL)
            tester.wait()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _read_line(descriptor: int, deadline: float) -> str | None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content = b""
    while not content.endswith(b"\n") and len(content) < 2**20:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        part = os.read(descriptor, 2**16)
        if not part:
            break
        content += part
    return content.decode() if content.endswith(b"\n") else ""


def _remove(folder: str) -> None:
    """Removes what a program left, however deep, and whatever rights it took away."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        subprocess.run(["chmod", "-R", "u+rwx", folder], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", folder], capture_output=True, check=False)


def program_of(prompt: str, response: str, continues_prompt: bool) -> str | None:
    """The program in a response: the prompt and all of it, or its last fenced block, or all of it without a fence.

    None where there is no code.
    Example:
        >>> program_of("", "So:\\n```python\\nx = 1\\n```\\n", continues_prompt=False)
        'x = 1\\n'
    """
    if continues_prompt:
        return prompt + response if response.strip() else None
    blocks = _FENCE.findall(response)
    code = blocks[-1] if blocks else response
    return code if code.strip() else None


@dataclasses.dataclass(frozen=True)
class CodeExecution(Verifier):
    """Whether a response's program passes its tests; columns `test` and `entry_point`, as in HumanEval.

    Outcomes: right, wrong, timed_out, crashed, no_code. See `run_tests` for what the tests can see.
    Raises: RewardError, from `verify`, for a missing column, or tests that cannot be run this way.
    """

    _: dataclasses.KW_ONLY
    continues_prompt: bool = True
    """True: the program is prompt + response, and the tests see the prompt's definitions. False: it is the response's
    last fenced block, or the response, and the tests see those in the column `definitions`, where there is one."""
    limits: ExecutionLimits = ExecutionLimits()
    workers: int = 1
    """Programs tested at one time."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise InputError(f"CodeExecution: workers: want a whole number >= 1, given {self.workers!r}")

    def execute(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[Execution | None]:
        """How each response's tests went; None where it holds no code."""
        needed = [column_of(columns, name, "CodeExecution") for name in ("test", "entry_point")]
        for row, values in enumerate(zip(*needed, strict=True)):
            for name, value in zip(("test", "entry_point"), values, strict=True):
                if not isinstance(value, str):
                    raise RewardError(f"reward CodeExecution: want {name} as text, given {value!r} in row {row}")
        definitions = prompts if self.continues_prompt else columns.get("definitions", [""] * len(responses))

        def one(row: int) -> Execution | None:
            program = program_of(prompts[row], responses[row], self.continues_prompt)
            if program is None:
                return None
            test, entry_point = str(needed[0][row]), str(needed[1][row])
            return run_tests(program, test, entry_point, definitions=str(definitions[row]), limits=self.limits)

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            executions = list(pool.map(one, range(len(responses))))
        for row, execution in enumerate(executions):
            if execution is not None and execution.outcome == "unsupported":
                raise RewardError(
                    f"reward CodeExecution: want tests that can be run, row {row} cannot: {execution.detail}"
                )
        return executions

    def verify(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[str]:
        """An outcome for each response."""
        executions = self.execute(prompts, responses, columns)
        return ["no_code" if execution is None else execution.outcome for execution in executions]
