"""Starting a run's ranks: in this process or under mpiexec. One interface; the caller gets the run's exit code."""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from hpcrl.comm.exit_code import EXIT_CODE_FILE
from hpcrl.comm.lifeline import end_with_parent
from hpcrl.comm.world import WORLD_SIZE, launched_under_mpi
from hpcrl.errors import InputError
from hpcrl.signals import BAD_INPUT, DONE, FAILED, REQUEUE, STOP_SIGNALS
from hpcrl.store.processes import LAUNCHER

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_FORWARDED = signal.SIGUSR1
"""Every request to stop reaches the ranks as this one. MPICH's mpiexec passes it on but dies of SIGUSR2; Open MPI's
passes it on but answers SIGTERM by killing the ranks; and both count Ctrl-C by rules of their own."""


def is_rank() -> bool:
    """Whether this process is one rank of a launch (by mpiexec or srun) and must not start another."""
    return launched_under_mpi()


def default_ranks(num_blocks: int, compute_threads: int = 1) -> int:
    """Ranks when the user names none: one per `compute_threads` cores that this process may use, at most num_blocks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // compute_threads, num_blocks))


def launch(
    arguments: Sequence[str],
    *,
    on: Literal["here", "mpi"],
    ranks: int,
    compute_threads: int,
    environment: Mapping[str, str] | None = None,
    run_here: Callable[[Sequence[str]], int] | None = None,
    module: str = "hpcrl.cli",
) -> int:
    """Runs the command line `arguments` on `ranks` processes and waits for their end.

    SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask the ranks to stop; a second SIGINT kills them. The ranks end when this
    process ends, even by SIGKILL, and all end when one of them dies.

    Args:
        arguments: what follows `hpcrl` on the command line.
        on: 'here' calls `run_here(arguments)` in this process; 'mpi' starts mpiexec.
        ranks: number of processes; 'here' takes only 1.
        compute_threads: threads of each rank's matrix libraries, >= 1; set in the environment, which a library reads
            when it is first imported.
        environment: further variables for the ranks.
        run_here: the command as a function, for 'here'.
        module: the command as a module, for 'mpi': started with `python -m mpi4py -m MODULE`, under which an exception
            on one rank ends the job.
    Returns:
        DONE 0, REQUEUE 85, BAD_INPUT 2 or FAILED 1: what the ranks agreed on, FAILED when one died before they could.
    Raises:
        InputError: an impossible number, or no mpiexec or mpi4py to start with.
    """
    for name, value in (("ranks", ranks), ("compute_threads", compute_threads)):
        if value < 1:
            raise InputError(f"{name}: want an integer >= 1, given {value}")
    variables = {**dict.fromkeys(THREAD_VARIABLES, str(compute_threads)), **(environment or {})}
    if on == "here":
        return _run_here(arguments, ranks, variables, run_here)
    return _run_mpi([*mpi_command(ranks, module), *arguments], ranks, variables)


def _run_here(
    arguments: Sequence[str],
    ranks: int,
    variables: Mapping[str, str],
    run_here: Callable[[Sequence[str]], int] | None,
) -> int:
    if ranks != 1:
        raise InputError(f"ranks: want 1 with --on here (this process), given {ranks}; use --on mpi")
    if run_here is None:
        raise TypeError("launch: want run_here, the function to call, with on='here'; given None")
    os.environ.update(variables)
    return run_here(arguments)


def find_mpiexec() -> Path:
    """The mpiexec that belongs to the MPI which mpi4py loads: this environment's own (PyPI's mpich), else PATH's.

    Raises: InputError when there is none.
    """
    own = Path(sys.prefix) / "bin" / "mpiexec"  # mpi4py looks into sys.prefix/lib first, too
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise InputError(
            f"--on mpi: want mpiexec, found none in {own.parent} or on PATH; install MPICH with "
            f"pip install 'hpcrl[mpi]', load the cluster's MPI module, or use --on here"
        )
    return Path(found)


def mpi_command(ranks: int, module: str) -> list[str]:
    """The command that starts `ranks` ranks of a module; its arguments follow.

    Raises: InputError when mpiexec or mpi4py is missing.
    """
    mpiexec = find_mpiexec()
    if importlib.util.find_spec("mpi4py") is None:
        raise InputError(
            "--on mpi: want mpi4py, which is not installed; install it with pip install 'hpcrl[mpi]', or use --on here"
        )
    # -m mpi4py: without it, an exception on one rank leaves the others waiting for ever.
    return [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", module]


def _run_mpi(command: Sequence[str], ranks: int, variables: Mapping[str, str]) -> int:
    # Only the ranks create the file, at their very end: whoever is killed leaves nothing behind.
    code_file = Path(tempfile.gettempdir()) / f"hpcrl-{secrets.token_hex(16)}.exit"
    variables = {
        "PYTHONUNBUFFERED": "1",  # lines appear as they are printed, not when a pipe's buffer is full
        **variables,
        WORLD_SIZE: str(ranks),
        LAUNCHER: f"{platform.node()}:{os.getpid()}",
        EXIT_CODE_FILE: str(code_file),
    }
    with _Forwarding() as stop:
        launcher = os.getpid()
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process only, which passes it on once
            preexec_fn=lambda: end_with_parent(launcher),
        )
        stop.deliver_to(process)
        mpiexec_code = process.wait()
    try:
        recorded = int(code_file.read_text(encoding="ascii"))
    except FileNotFoundError:
        recorded = None
    code_file.unlink(missing_ok=True)
    code = exit_code_of(mpiexec_code, recorded, stop.requested)
    if recorded is None and code == FAILED:
        print(
            f"hpcrl: a rank ended before all could agree to (mpiexec's code: {mpiexec_code}, a signal's number if a "
            f"signal ended it); the same command goes on from what was published",
            file=sys.stderr,
        )
    return code


def exit_code_of(mpiexec_code: int, recorded: int | None, stop_requested: bool) -> int:
    """The run's exit code, from what mpiexec returned and what the ranks recorded.

    mpiexec alone cannot tell: MPICH's returns the bitwise or of the ranks' codes, and 2 for a rank that died of signal
    2 as for one that exited with 2.

    Example:
        >>> exit_code_of(85, 85, False), exit_code_of(9, None, False), exit_code_of(11, 0, False)
        (85, 1, 1)
    """
    if recorded is not None:
        died_after_all = recorded == DONE and mpiexec_code != DONE
        return FAILED if died_after_all else recorded
    if stop_requested and mpiexec_code in (_FORWARDED, -_FORWARDED, 128 + _FORWARDED):
        return REQUEUE  # the request came before the ranks could take it: they had begun nothing
    # No record, no signal asked for: ranks that never opened the world (a refused argument), or on another machine.
    if mpiexec_code in (DONE, REQUEUE) or (mpiexec_code == BAD_INPUT and not stop_requested):
        return mpiexec_code
    return FAILED


class _Forwarding:
    """While it is open, requests to stop go to mpiexec; a second SIGINT kills it, and its ranks die with it."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Forwarding:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def deliver_to(self, process: subprocess.Popen[bytes]) -> None:
        """From now on requests go to this process; one that came before is delivered at once."""
        self._process = process
        if self.requested:
            process.send_signal(_FORWARDED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._interrupts += number == signal.SIGINT
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if self._interrupts > 1 else _FORWARDED)
