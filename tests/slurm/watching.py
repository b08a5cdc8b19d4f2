"""What the queue says of a run's jobs, looked at again and again: who waits, who runs where, what became of whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.slurm import Slurm
from hpcrl.store.ledger import Ledger
from tests.slurm.dev_cluster import DevCluster


class Watch:
    """The jobs of one run, as squeue last told them; a controller that is down tells nothing new."""

    def __init__(self, cluster: DevCluster, run: Path) -> None:
        self.cluster, self.run = cluster, run
        self._slurm = Slurm(cluster.environment, call_seconds=10.0, patience_seconds=0.0)
        self._jobs: dict[str, Job] = {}
        self._changes: list[str] = []
        self.restarts: dict[str, int] = {}
        """Job or element -> how often it was put back into the queue, as squeue told it."""

    def look(self) -> None:
        """Asks once, and notes what has changed."""
        try:
            found = [job for job in self._slurm.queue() if f" of {self.run} " in job.comment]
        except (SchedulerUnavailableError, InputError):
            return
        for job in found:
            before = self._jobs.get(job.id)
            if before is None and job.state == "PENDING":
                pass  # submitted: the run's own log tells that
            elif before is None or (before.state, before.restarts) != (job.state, job.restarts):
                self._changes.append(_change(job))
            self.restarts[job.id] = max(job.restarts, self.restarts.get(job.id, 0))
        self._jobs = {job.id: job for job in found}

    def changes(self) -> list[str]:
        """What has changed since this was last asked."""
        changes, self._changes = self._changes, []
        return changes

    def in_state(self, *states: str) -> list[Job]:
        """The jobs and array elements in one of some states, in the order of their numbers."""
        found = [job for job in self._jobs.values() if job.state in states]
        return sorted(found, key=lambda job: (int(job.array_id or job.id), job.element or 0))

    def left(self) -> list[Job]:
        """Those that have not ended."""
        return [job for job in self._jobs.values() if not job.is_over]

    def accounting(self) -> list[Job]:
        """Every job and array element that the ledger names; from sacct, which forgets none."""
        tries = [one for found in Ledger(self.run).all_tries().values() for one in found]
        return self._slurm.accounting([one.job for one in tries if one.job is not None])


def label(job: Job) -> str:
    """A job for people: its unit, its element, its number."""
    return f"{job.name.partition('.')[2]} ({job.id})"


def _change(job: Job) -> str:
    where = f" on {job.nodes}" if job.state == "RUNNING" else ""
    again = f", restart {job.restarts}" if job.restarts and not job.is_over else ""
    return f"{label(job)} {job.state.lower()}{where}{again}"


@dataclass(frozen=True)
class Rank:
    """A process of a job: one rank of its MPI world."""

    pid: int
    number: int
    unit: str
    """What its job plays, with the array's element."""

    def __str__(self) -> str:
        return f"rank {self.number} of {self.unit}"


def ranks_of(cluster: DevCluster) -> list[Rank]:
    """The ranks that run now on a cluster's nodes, also on those whose daemons are dead."""
    found = []
    for pid, variables, words in _processes_of(cluster):
        # srun's own command line names what it starts.
        if b"mpi4py" in words and not words[0].endswith(b"srun"):
            element = variables.get("SLURM_ARRAY_TASK_ID")
            unit = variables["SLURM_JOB_NAME"].partition(".")[2] + ("" if element is None else f"_{element}")
            found.append(Rank(pid, int(variables.get("SLURM_PROCID", "0")), unit))
    return sorted(found, key=lambda rank: (rank.unit, rank.number, rank.pid))


def job_processes(cluster: DevCluster, node: str | None = None) -> list[int]:
    """Everything that jobs have started on a cluster (None) or one node and that is still there."""
    found = _processes_of(cluster)
    return [pid for pid, variables, _ in found if node in (None, variables.get("SLURMD_NODENAME"))]


def _processes_of(cluster: DevCluster) -> Iterator[tuple[int, dict[str, str], list[bytes]]]:
    """(number, environment, command line) of each process that belongs to a job of a cluster."""
    ours = cluster.environment["SLURM_CONF"]
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            pairs = Path(entry.path, "environ").read_text(errors="replace").split("\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if variables.get("SLURM_CONF") == ours and "SLURM_JOB_ID" in variables and words != [b""]:
            yield int(entry.name), variables, words
