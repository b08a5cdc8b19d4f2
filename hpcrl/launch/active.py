"""Which jobs of a run are queued or running, and who must therefore leave it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from hpcrl.errors import InputError
from hpcrl.launch.papers import is_played_as_jobs
from hpcrl.report.wording import path_text
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.slurm import Slurm
from hpcrl.store.ledger import Ledger, Try

_PATIENCE_SECONDS = 20.0


class Queue(Protocol):
    """What is asked of a cluster; hpcrl.scheduler.slurm.Slurm."""

    def queue(self) -> list[Job]: ...


def jobs_of_run(tries: Sequence[Try], jobs: Sequence[Job]) -> dict[str, str]:
    """Those of a user's jobs that belong to a run's tries: id (of an array its own) -> the unit that it plays.

    A job whose id was never written down is known by its try's token.
    """
    units = {one.job: one.unit.name for one in tries if one.job is not None}
    tokens = {one.claim.token: one.unit.name for one in tries if one.job is None}
    found: dict[str, str] = {}
    for job in jobs:
        id_ = job.array_id or job.id
        unit = units.get(id_) or next((name for token, name in tokens.items() if token in job.comment), None)
        if unit is not None:
            found[id_] = unit
    return found


def refuse_active(path: Path, slurm: Queue) -> None:
    """Raises: InputError when jobs of the run are queued or running; SchedulerUnavailableError."""
    # All tries: of an array that came in pieces, each piece is one.
    tries = [one for found in Ledger(path).all_tries().values() for one in found]
    if not tries:
        return
    in_queue = [job for job in slurm.queue() if not job.is_over]
    ours = jobs_of_run(tries, in_queue)
    active = [job for job in in_queue if (job.array_id or job.id) in ours]
    if active:
        words = ", ".join(f"{job.id} ({job.state})" for job in active[:4]) + (", ..." if len(active) > 4 else "")
        is_halted = Ledger(path).halted() is not None
        goes_on = "it was halted, and they end by themselves" if is_halted else "it goes on by itself"
        name = path_text(path)
        raise InputError(
            f"{path}: want a run nobody works on, given one with jobs {words}; {goes_on}: hpcrl status {name}; to end "
            f"{'them' if is_halted else 'it'}: hpcrl cancel {name}"
        )


def refuse_beside_jobs(path: Path, say: Callable[[str], None]) -> None:
    """Refuses to play a run in this process or under mpiexec while its jobs would do the same work.

    Args: say: told in one line when nobody can tell whether there are any.
    Raises: InputError when there are, or when SLURM does not answer.
    """
    if not is_played_as_jobs(path):
        return
    slurm = Slurm(patience_seconds=_PATIENCE_SECONDS, say=say)
    missing = slurm.missing_commands()
    if missing:
        say(
            f"{path}: was submitted to SLURM; found no {', '.join(missing)} on PATH to ask whether jobs of it are "
            f"queued: if they are, they do the same work beside this one"
        )
        return
    try:
        refuse_active(path, slurm)
    except SchedulerUnavailableError as error:
        raise InputError(f"{error}; want its word that no job of {path} is queued or running") from error
