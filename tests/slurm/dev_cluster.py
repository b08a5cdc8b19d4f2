"""A SLURM cluster for tests: brought up by slurm/dev-cluster in a folder of its own, on free ports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
DEV_CLUSTER = ROOT / "slurm" / "dev-cluster"
GONE = "GONE"
"""State of a job that the controller does not know (any more)."""


class NotInstalledError(Exception):
    """SLURM's programs are not on this machine; the message says how to install them."""


class DevCluster:
    """A cluster that runs; `down()` ends it and removes its folder."""

    def __init__(self, *options: str, folder: Path | None = None) -> None:
        """Brings it up. Raises: NotInstalledError; AssertionError when it does not come up."""
        self.folder = folder or Path(tempfile.mkdtemp(prefix="hpcrl-cluster-"))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "HPCRL"))},
            "SLURM_CONF": str(self.folder / "etc" / "slurm.conf"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self._crashed: set[int] = set()
        done = self.control("up", "--port", "0", *options, timeout=180)
        if done.returncode != 0 and self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        if done.returncode == 2 and "install-packages" in done.stderr:
            raise NotInstalledError(done.stderr.strip())
        assert done.returncode == 0, done.stderr

    def control(self, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`slurm/dev-cluster ARGUMENTS` for this cluster."""
        return run_dev_cluster(*arguments, "--folder", self.folder, timeout=timeout)

    def down(self) -> None:
        """Ends everything, whatever state it is in."""
        done = self.control("down")
        assert done.returncode == 0, done.stderr

    def run(self, *command: object, timeout: float = 60, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command that sees this cluster, to its end.

        Args:
            timeout: seconds.
            user: who runs it, where this process is root's; None: this user.
        """
        words = [str(word) for word in command]
        if user is not None:
            words = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups", *words]
        return subprocess.run(
            words,
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def output(self, *command: object, timeout: float = 60) -> str:
        """What a command prints on stdout, stripped; it must succeed."""
        done = self.run(*command, timeout=timeout)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *options: object) -> str:
        """Submits a shell script's lines; returns the job id. Its output goes nowhere unless an option says so."""
        words = ["sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script]
        return self.output(*words).partition(";")[0]

    def job_state(self, job: object) -> str:
        """What the controller says of a job or array element: PENDING, RUNNING, ...; GONE when it knows none."""
        done = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job}")
        if done.returncode != 0:
            assert "Invalid job id" in done.stderr, done.stderr
            return GONE
        states = sorted(set(done.stdout.split()))
        return ",".join(states) if states else GONE

    def job_field(self, job: object, name: str) -> str:
        """A field of `scontrol show job`, for instance Restarts, BatchHost or Reason."""
        words = self.output("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait_for(self, is_true: Callable[[], T], seconds: float, what: str = "") -> T:
        """Waits until a function returns something true, and returns it. Raises: AssertionError with the queue."""
        deadline = time.monotonic() + seconds
        while not (value := is_true()):
            if time.monotonic() > deadline:
                queue = self.run("squeue", "--states=all").stdout
                raise AssertionError(f"waited {seconds} s for {what or is_true}\n{queue}")
            time.sleep(0.05)
        return value

    def wait_for_state(self, job: object, states: str | Iterable[str], seconds: float) -> str:
        """Waits until a job is in one of some states; returns it."""
        wanted = {states} if isinstance(states, str) else set(states)
        what = f"job {job} to be {' or '.join(sorted(wanted))}"
        self.wait_for(lambda: self.job_state(job) in wanted, seconds, what)
        return self.job_state(job)

    def crash_node(self, number: int, *, whole: bool = False, noticed: bool = False) -> None:
        """The node's daemons die at once.

        Args:
            whole: its jobs' processes die too; without it they may go on writing.
            noticed: the controller is told and requeues the jobs at once; without it it finds out after half a minute.
        """
        self._crashed.add(number)
        options = [name for name, is_on in (("--whole", whole), ("--noticed", noticed)) if is_on]
        self._succeed("crash-node", number, *options)

    def start_node(self, number: int) -> None:
        """Brings a node back."""
        self._succeed("start-node", number)
        self._crashed.discard(number)

    def stop_controller(self) -> None:
        self._succeed("stop-controller")

    def start_controller(self) -> None:
        self._succeed("start-controller")

    def tidy(self) -> None:
        """Makes it as it was at first: all daemons up, every node idle, no job."""
        self.start_controller()
        for number in sorted(self._crashed):
            self.crash_node(number, whole=True)
            self.start_node(number)
        self._succeed("up")
        jobs = self.output("squeue", "--noheader", "--format=%A").split()
        if jobs:
            self.run("scancel", "--full", *jobs)
            self.run("scancel", *jobs)
        self.wait_for(lambda: self.output("squeue", "--noheader") == "", 40, "the queue to be empty")
        for line in self.output("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%N %T").splitlines():
            name, state = line.split()
            if state.startswith(("down", "drain")):
                self.output("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def _succeed(self, *arguments: object) -> None:
        done = self.control(*arguments)
        assert done.returncode == 0, f"dev-cluster {arguments}: {done.stderr}"


def run_dev_cluster(
    *arguments: object, timeout: float = 60, prefix: Iterable[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """`slurm/dev-cluster ARGUMENTS`."""
    return subprocess.run(
        [*prefix, sys.executable, str(DEV_CLUSTER), *map(str, arguments)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def interpreter_for(user: str) -> str | None:
    """A Python that another user may run; None when there is none. For root only."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        words = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups", candidate, "-c", ""]
        if shutil.which(candidate) and subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return candidate
    return None
