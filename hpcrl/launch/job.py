"""One job from inside: repair first, then play this job's unit of work, then say how it ended.

Where the queue was full, it repairs once more at its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from hpcrl.comm import Collectives, close_world
from hpcrl.errors import InputError
from hpcrl.launch.doors import open_door
from hpcrl.launch.orphan import end_when_orphaned
from hpcrl.launch.papers import Case, open_case
from hpcrl.launch.repair import Me, Repair, cancel_rest, my_job
from hpcrl.launch.request import GUARD
from hpcrl.launch.units import Units
from hpcrl.pipeline import Pipeline
from hpcrl.runner.loop import WAITING
from hpcrl.runner.part import Part
from hpcrl.runner.prepare import Launch
from hpcrl.runner.session import RefusedError, ask_rank_zero, open_session, play_session
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.variables import expand
from hpcrl.segments import ONLY
from hpcrl.signals import BAD_INPUT, DONE, FAILED, STOP_SIGNALS, StopFlag
from hpcrl.store.ledger import Claim, End, Ledger, Outcome, Unit, now

LEASE_PATIENCE_SECONDS = 180.0
"""How long a job waits for another that works on the same unit: longer than SLURM takes to kill one (KillWait)."""
_OUTCOMES: dict[int, Outcome] = {DONE: "done", WAITING: "waiting", BAD_INPUT: "refused", FAILED: "failed"}


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What rank 0 found out, for all ranks of the job."""

    pipeline: Pipeline
    launch: Launch
    part: Part | None
    """None: all of it."""
    unit: Unit
    number: int
    element: int | None
    is_ready: bool
    repairs_again: bool
    """Whether the first repair found no room in the queue for what is missing."""
    scratch: str
    """launch.scratch of the site, its variables not expanded: they are each node's own."""


def run_job(path: Path, *, segment: str, iteration: int | None, number: int | None, first_element: int = 0) -> int:
    """Plays one unit of a submitted run on this process's rank; every rank of the job calls it.

    Args:
        iteration: None: the whole run, where it is one world; else the next unfinished one of the segment.
        number: which try of the ledger this is; None: a person submitted it by hand.
        first_element: added to SLURM_ARRAY_TASK_ID, in arrays that are split.
    Returns: DONE (also when the input is not there yet), REQUEUE, BAD_INPUT or FAILED, after all ranks have left MPI.
    """
    end_when_orphaned()
    comm = open_session()
    for signal_number in STOP_SIGNALS:
        # What the flag puts back when it ends: a request that comes after all is done must not look like a failure.
        signal.signal(signal_number, signal.SIG_IGN)
    with StopFlag() as stop:
        try:
            assignment = ask_rank_zero(comm, lambda: _begin(path, segment, iteration, number, first_element))
        except RefusedError as error:
            return close_world(comm, _refused(comm, path, error, segment, iteration, number))
        return close_world(comm, _play(path, assignment, comm, stop))


def run_guard(path: Path, *, number: int | None) -> int:
    """The job behind the last one: repairs; where nothing is left to do, tidies the queue. Returns: the exit code."""
    case = open_case(path)
    _repair(case, Me(GUARD, my_job()))
    if number is not None:
        _record_end(path, GUARD, number, None, "done", "repaired")
    _finish(case)
    return DONE


def _begin(path: Path, segment: str, iteration: int | None, number: int | None, first_element: int) -> Assignment:
    """Rank 0: what is this job's unit, and what else is missing.

    Raises: InputError.
    """
    case = open_case(path)
    units = Units(case.run, case.pipeline)
    unit = _find_unit(units, segment, iteration)
    if number is None:
        number = _claim_by_hand(path, unit)
    element, count = _find_element(units, unit, first_element)
    left_out = False
    if element in (None, _first_submitted(path, unit, number)):
        left_out = _repair(case, Me(unit, my_job()))
    name = unit.name if element is None else f"{unit.name}_{element}"
    launch = Launch(
        run=path,
        command=case.papers.command,
        unit=unit.name,
        lease=None if unit.iteration is None else path / "leases" / name,
        lease_patience_seconds=LEASE_PATIENCE_SECONDS,
    )
    part = None
    if unit.iteration is not None:
        part = Part(
            units.segment(unit).stages, iteration=unit.iteration, element=element or 0, num_elements=count, waits=False
        )
    return Assignment(
        pipeline=case.pipeline,
        launch=launch,
        part=part,
        unit=unit,
        number=number,
        element=element,
        is_ready=units.is_ready(unit),
        repairs_again=left_out,
        scratch=case.site.launch.scratch,
    )


def _find_unit(units: Units, segment: str, iteration: int | None) -> Unit:
    """Raises: InputError for a segment that the pipeline has not."""
    names = [one.name for one in units.segments]
    if units.is_loop:
        names = [ONLY]
    if segment not in names:
        raise InputError(f"--segment: want one of {', '.join(names)}, given {segment!r}")
    if units.is_loop:
        return Unit(segment, None)
    if iteration is not None:
        return Unit(segment, iteration)
    # By hand: the next one of this segment that is not done.
    pending = [unit for unit in units.pending(units.pipeline.num_iterations) if unit.segment == segment]
    return pending[0] if pending else Unit(segment, units.last_iteration)


def _claim_by_hand(path: Path, unit: Unit) -> int:
    """Enters a job that a person submitted into the ledger, so that repair does not submit its unit again."""
    ledger = Ledger(path)
    for one in ledger.tries(unit):
        if one.claim.door == "hand" and one.job is not None and one.job == my_job():
            return one.number  # another element of the same array, or this job before it was requeued
    number = 1
    while not ledger.claim(Claim(unit, number, token=secrets.token_hex(8), door="hand", created=now())):
        number += 1
    if my_job():
        ledger.record_job(unit, number, my_job())
    return number


def _find_element(units: Units, unit: Unit, first_element: int) -> tuple[int | None, int]:
    """(this job's element, how many there are); (None, 1) where the unit is no array."""
    count = 1 if unit.iteration is None else units.segment(unit).mesh.array
    if count == 1:
        return None, 1
    told = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not told.isdecimal() or not 0 <= first_element + int(told) < count:
        raise InputError(
            f"SLURM_ARRAY_TASK_ID: want an element from 0 to {count - 1} (mesh.array = {count}), "
            f"given {told or 'none'}; submit it with --array=0-{count - 1}"
        )
    return first_element + int(told), count


def _first_submitted(path: Path, unit: Unit, number: int) -> int | None:
    """The element of a try that repairs for all of them."""
    elements = [one.claim.elements for one in Ledger(path).tries(unit) if one.number == number]
    return min(elements[0]) if elements and elements[0] else None


def is_last_element(case: Case, unit: Unit, number: int, element: int | None) -> bool:
    """Whether this was the last element of its array to be done, behind which there may be nothing in a full queue.

    Two that end at the same time may both be told so; none is never told.
    """
    if element is None:
        return False
    submitted = [one.claim.elements for one in Ledger(case.run.path).tries(unit) if one.number == number]
    left = Units(case.run, case.pipeline).unfinished_elements(unit) or ()
    return not set(left) & set(submitted[0] or () if submitted else ())


def _repair(case: Case, me: Me) -> bool:
    """Repairs; returns whether the queue had no room for all. What cannot be done is told, and left to the next job."""
    if not case.site.launch.submit_from_jobs:
        return False
    slurm = Slurm(patience_seconds=20.0, say=_say)
    try:
        done = Repair(case, open_door(case, slurm), slurm, me=me, say=_say).repair()
    except (InputError, SchedulerUnavailableError) as error:
        _say(f"repair: {error}")
        return False
    for line in done.reports:
        _say(line)
    return done.left_out


def _play(path: Path, assignment: Assignment, comm: Collectives, stop: StopFlag) -> int:
    def last_words(code: int, reason: str) -> None:
        _record_end(path, assignment.unit, assignment.number, assignment.element, _OUTCOMES[code], reason)

    code = WAITING
    if assignment.is_ready:
        with _deadline(path, comm):
            scratch = Path(expand(assignment.scratch, os.environ, "launch.scratch"))
            launch = dataclasses.replace(assignment.launch, scratch=scratch)
            code = play_session(assignment.pipeline, launch, comm, stop, assignment.part, last_words)
    if comm.rank == 0:
        if code in (DONE, WAITING):
            last_words(code, "" if code == DONE else "its input was not there, or another job was at it")
            case = open_case(path)
            if assignment.repairs_again or is_last_element(
                case, assignment.unit, assignment.number, assignment.element
            ):
                _repair(case, Me(assignment.unit, my_job()))
        if code == DONE:
            _finish(open_case(path))
    return DONE if code == WAITING else code


def _finish(case: Case) -> None:
    """Where this job was the last one to be needed, those that still wait are cancelled."""
    if not Units(case.run, case.pipeline).is_finished() or not case.site.launch.submit_from_jobs:
        return
    try:
        cancelled = cancel_rest(case, Slurm(patience_seconds=30.0, say=_say), but=my_job())
    except (InputError, SchedulerUnavailableError) as error:
        _say(f"jobs that are not needed any more stay queued, and end at once when they start: {error}")
        return
    if cancelled:
        _say(f"the run is over: cancelled {', '.join(cancelled)}")


def _refused(
    comm: Collectives, path: Path, error: RefusedError, segment: str, iteration: int | None, number: int | None
) -> int:
    if comm.rank == 0:
        _say(str(error))
        if number is not None:
            with contextlib.suppress(InputError):
                _record_end(path, Unit(segment, iteration), number, None, "refused", str(error))
                # What was refused here will be refused again, and there may be no other job to see that.
                Ledger(path).halt(f"{Unit(segment, iteration).name}: {error}")
    return BAD_INPUT


def _record_end(path: Path, unit: Unit, number: int, element: int | None, outcome: Outcome, reason: str) -> None:
    job = my_job() if element is None else f"{my_job()}_{element}"
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    Ledger(path).record_end(unit, number, element, End(outcome, reason, job, restarts, now()))


@contextlib.contextmanager
def _deadline(path: Path, comm: Collectives) -> Iterator[None]:
    """Raises the stop flag some time before the job's time limit, also where SLURM's own warning does not arrive."""
    timer = None
    if comm.rank == 0 and os.environ.get("SLURM_JOB_ID"):
        lead = open_case(path).site.limits.signal_lead_seconds
        left = None
        with contextlib.suppress(InputError, SchedulerUnavailableError):
            left = Slurm(patience_seconds=0.0).time_left(os.environ["SLURM_JOB_ID"])
        if left is not None:
            # SLURM's own signal comes first where it comes (up to a minute early): this is the second rope.
            timer = threading.Timer(max(left - lead, 0.0), os.kill, (os.getpid(), signal.SIGUSR1))
            timer.daemon = True
            timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _say(line: str) -> None:
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    print(f"hpcrl job on {node}: {line}", file=sys.stderr, flush=True)
