"""`hpcrl cancel`: nothing more is submitted, then every job of the run that is still in the queue is cancelled."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from hpcrl.errors import InputError
from hpcrl.launch.active import jobs_of_run
from hpcrl.launch.papers import is_played_as_jobs
from hpcrl.launch.units import Units
from hpcrl.report.resume import resume_command
from hpcrl.report.wording import path_text
from hpcrl.runner.stored import stored_pipeline
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.slurm import Slurm
from hpcrl.signals import DONE, FAILED
from hpcrl.store.ledger import Ledger, Try
from hpcrl.store.run_folder import RunFolder

SUBMISSION_SECONDS: Final = 20.0
"""A job may be on its way while the run is halted: a claim this young is waited for until sbatch has answered."""
_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 1.0


class Queue(Protocol):
    """What is asked of a cluster; hpcrl.scheduler.slurm.Slurm."""

    def missing_commands(self) -> list[str]: ...
    def queue(self) -> list[Job]: ...
    def cancel(self, ids: Sequence[str], /) -> None: ...


def print_cancel(path: Path, slurm: Queue | None = None) -> int:
    """Cancels a run and says what it did and how to go on; returns DONE, or FAILED when SLURM does not answer.

    Raises: InputError when the run was never submitted, or SLURM's commands are missing: nothing is done then.
    """
    path = Path(path)
    is_over = _is_over(path)
    try:
        cancelled = cancel_run(path, slurm, say=print)
    except SchedulerUnavailableError as error:
        print(f"hpcrl cancel: jobs in the queue are left there, and submit nothing more: {error}", file=sys.stderr)
        return FAILED
    if not cancelled:
        print("no job of it was in the queue")
    if is_over:
        print(f"the run had reached its end: hpcrl report {path_text(path)}")
    else:
        print(f"what is published stays; go on with: {_command(path)}")
    return DONE


def cancel_run(
    path: Path,
    slurm: Queue | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Halts a run, then cancels its jobs; running ones publish what they have and end.

    Of a run that has reached its end, jobs that still wait are cancelled, and nothing is written.

    Args:
        slurm: the cluster; None: the one this environment reaches.
        say: told in lines what was done.
    Returns: ids of the cancelled jobs, an array by its own.
    Raises: InputError when the run was never submitted, or SLURM's commands are missing: nothing is done then;
        SchedulerUnavailableError: the run is halted, but its jobs are where they were.
    """
    RunFolder.open(path)
    ledger = Ledger(path)
    if not (ledger.path.is_dir() or is_played_as_jobs(path)):
        raise InputError(
            f"{path}: want a run that was submitted, given one that was not; end it with Ctrl-C where it runs"
        )
    slurm = Slurm(patience_seconds=_PATIENCE_SECONDS, say=say) if slurm is None else slurm
    missing = slurm.missing_commands()
    if missing:
        raise InputError(
            f"hpcrl cancel: want SLURM's commands, found no {', '.join(missing)}; run this on a login node"
        )
    if _is_over(path):
        say("the run is over, nothing more is submitted")
    elif ledger.halt(f"cancelled by {_user()} with hpcrl cancel"):
        say("nothing more is submitted")
    else:
        say(f"nothing more was submitted already: {ledger.halted()}")
    return _cancel_all(ledger, slurm, say, sleep)


def _cancel_all(ledger: Ledger, slurm: Queue, say: Callable[[str], None], sleep: Callable[[float], None]) -> list[str]:
    """Cancels, and looks again for jobs that were on their way, until there can be none."""
    cancelled: list[str] = []
    deadline = time.monotonic() + SUBMISSION_SECONDS
    while True:
        tries = [one for found in ledger.all_tries().values() for one in found]
        jobs = [job for job in slurm.queue() if not job.is_over]
        found = {id_: units for id_, units in jobs_of_run(tries, jobs).items() if id_ not in cancelled}
        if found:
            slurm.cancel(list(found))
            cancelled += found
            for id_, unit in found.items():
                say(f"cancelled {id_} ({unit}: {_states(id_, jobs)})")
        if not any(_is_on_its_way(one) for one in tries) or time.monotonic() > deadline:
            return cancelled
        sleep(_PAUSE_SECONDS)


def _is_over(path: Path) -> bool:
    """Whether it has reached its end.

    A run that cannot be read here (a damaged file, a class that only its jobs can import) is ended as one that goes on.
    """
    try:
        run = RunFolder.open(path)
        return Units(run, stored_pipeline(run.pipeline())).is_finished()
    except InputError:
        return False


def _command(path: Path) -> str:
    """What the person types to go on."""
    command = ""
    with contextlib.suppress(InputError):  # a damaged document: the jobs are gone all the same
        command = resume_command(path, ())
    return command or f"hpcrl run PIPELINE --on slurm --run {path_text(path)}"


def _is_on_its_way(one: Try) -> bool:
    """Whether somebody may be about to submit it: claimed a moment ago, and no job id written down."""
    age = (datetime.now(UTC) - datetime.fromisoformat(one.claim.created)).total_seconds()
    return one.job is None and not one.ends and age < SUBMISSION_SECONDS


def _states(id_: str, jobs: Sequence[Job]) -> str:
    """How its jobs stood: "2 pending, 1 running"; of a single job the state alone."""
    states = Counter(job.state.lower() for job in jobs if id_ in (job.id, job.array_id))
    if sum(states.values()) == 1:
        return next(iter(states))
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
