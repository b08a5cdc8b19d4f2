"""A cluster's processes: started so that no kill loses one, ended by their own numbers only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from dev_cluster.layout import Cluster, RefusedError


def ask(cluster: Cluster, *command: str, text: str = "", seconds: float = 20) -> subprocess.CompletedProcess[str]:
    """Runs one of SLURM's commands, which reads `text`; one that takes too long has failed."""
    try:
        return subprocess.run(
            command,
            env=cluster.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {seconds:.0f} s")


def find(cluster: Cluster, daemon: str) -> int | None:
    """Process number of a daemon that runs; None when it does not."""
    try:
        number, started = _record(cluster, daemon).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(number) if start_time(int(number)) == started else None


def start(cluster: Cluster, daemon: str, is_ready: Callable[[], bool], seconds: float = 60) -> None:
    """Starts a daemon unless it runs, and waits until it is ready. Raises: RefusedError when it is not in time."""
    if find(cluster, daemon) is None:
        _spawn(cluster, daemon)
    deadline = time.monotonic() + seconds
    while find(cluster, daemon) is not None and not is_ready():
        if time.monotonic() > deadline:
            raise RefusedError(f"{daemon}: want it ready in {seconds:.0f} s, it is not: {_last_error(cluster, daemon)}")
        time.sleep(0.02)
    if find(cluster, daemon) is None:
        raise RefusedError(f"{daemon}: want it to start, but it ended: {_last_error(cluster, daemon)}")


def _spawn(cluster: Cluster, daemon: str) -> None:
    record = _record(cluster, daemon)

    def write_record() -> None:  # by the daemon before it is one, so that a kill of this process loses nobody
        record.write_text(f"{os.getpid()} {start_time(os.getpid())}")

    with (cluster.folder / "log" / f"{daemon}.out").open("ab") as output:
        subprocess.Popen(
            cluster.command(daemon),
            env=cluster.environment,
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C meant for a shell reaches no daemon
            preexec_fn=write_record,
        )


def stop(cluster: Cluster, daemons: Iterable[str], seconds: float = 10) -> None:
    """Ends daemons: SIGTERM to all, SIGKILL to those that are still there after a while."""
    pids = [pid for daemon in daemons if (pid := find(cluster, daemon)) is not None]
    end(end(pids, signal.SIGTERM, seconds), signal.SIGKILL, 5)


def end(pids: Collection[int], number: signal.Signals, seconds: float) -> list[int]:
    """Sends processes a signal and waits for their end; returns those that are still there."""
    since = {pid: start_time(pid) for pid in pids}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid, started in since.items() if started is not None and start_time(pid) == started]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def find_step_daemons(cluster: Cluster, nodes: Iterable[str]) -> set[int]:
    """The slurmstepds of nodes, whether their slurmd lives or not: who listens on the sockets in the spool folders."""
    found = set()
    for path in (path for node in nodes for path in (cluster.folder / "spool" / node).glob("*") if path.is_socket()):
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):  # refused: its slurmstepd is dead
            client.settimeout(2)
            client.connect(str(path))
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            found.add(struct.unpack("3i", credentials)[0])
    return found


def find_job_processes(cluster: Cluster, nodes: Iterable[str], step_daemons: Collection[int]) -> set[int]:
    """What jobs have started on nodes: all that descends from a slurmstepd, and all whose environment names the node.

    The second finds those whose slurmstepd is dead.
    """
    ours = f"SLURM_CONF={cluster.configuration}".encode()
    places = {f"SLURMD_NODENAME={node}".encode() for node in nodes}
    parents: dict[int, int] = {}
    found = set()
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        fields = _status(pid)
        if fields is None or fields[0] == "Z":
            continue
        parents[pid] = int(fields[1])
        with contextlib.suppress(OSError):  # gone, or another user's
            variables = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
            if ours in variables and places & variables:
                found.add(pid)
    for pid in parents:
        ancestor = parents[pid]
        while ancestor in parents and ancestor not in step_daemons:
            ancestor = parents[ancestor]
        if ancestor in step_daemons:
            found.add(pid)
    return found - set(step_daemons)


def end_jobs(cluster: Cluster, nodes: Iterable[str]) -> None:
    """Kills whatever jobs have left on nodes, slurmstepds first: they would report the death of the others."""
    nodes = list(nodes)
    for _ in range(10):  # what was forked while we looked is found the next time
        step_daemons = find_step_daemons(cluster, nodes)
        processes = find_job_processes(cluster, nodes, step_daemons)
        if not step_daemons | processes:
            return
        end(step_daemons, signal.SIGKILL, 5)
        end(processes, signal.SIGKILL, 5)


def start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with its number, the name of one process. None when it is dead."""
    fields = _status(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _status(pid: int) -> list[str] | None:
    """What /proc/PID/stat says from the state on; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _record(cluster: Cluster, daemon: str) -> Path:
    return cluster.folder / "run" / f"{daemon}.process"


def _last_error(cluster: Cluster, daemon: str) -> str:
    """The last words of a daemon's logs that speak of an error, and where they stand."""
    for path in (cluster.folder / "log" / f"{daemon}.log", cluster.folder / "log" / f"{daemon}.out"):
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        wrong = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
        if wrong:
            return f"{wrong[-1].strip()} ({path})"
    return f"look into {cluster.folder}/log"
