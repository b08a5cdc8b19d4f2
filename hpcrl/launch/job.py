"""One job from inside: repair first, then play this job's unit of work, say how it ended, and repair once more.

Where nothing of the run would be left in the queue after it, it asks to be put back there, and repairs again when it is
started again: its place in a full queue is not given away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import random
import secrets
import signal
import sys
import threading
import time
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
from hpcrl.signals import BAD_INPUT, DONE, FAILED, REQUEUE, STOP_SIGNALS, StopFlag
from hpcrl.store.ledger import Claim, End, Ledger, Outcome, Unit, now

LEASE_PATIENCE_SECONDS = 180.0
"""How long a job waits for another that works on the same unit: longer than SLURM takes to kill one (KillWait)."""
_APART_SECONDS = 20.0
"""Within so long jobs that were started again look whether they are still needed."""
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
    has_ended: bool
    """Whether it said its last word when it was started before: it only repairs now."""
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
    """The job behind the last one: repairs; where nothing is left to do, tidies the queue. Returns: DONE or REQUEUE."""
    case = open_case(path)
    if number is not None:
        _record_end(path, GUARD, number, None, "done", "repairs")
    return _leave(case, Me(GUARD, my_job()), number, None)


def _begin(path: Path, segment: str, iteration: int | None, number: int | None, first_element: int) -> Assignment:
    """Rank 0: what is this job's unit, and what else is missing.

    Raises: InputError.
    """
    case = open_case(path)
    units = Units(case.run, case.pipeline)
    unit = _find_unit(units, segment, iteration, is_by_hand=number is None)
    element, count = _find_element(units, unit, first_element)
    if number is None:
        number = _claim_by_hand(path, unit, element, first_element)
    has_ended = bool(Ledger(path).ended(unit, number) & {None, element})
    if not has_ended and element in (None, min(Ledger(path).elements(unit, number), default=element)):
        _repair(case, Me(unit, my_job()))
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
        has_ended=has_ended,
        scratch=case.site.launch.scratch,
    )


def _find_unit(units: Units, segment: str, iteration: int | None, *, is_by_hand: bool) -> Unit:
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
    if is_by_hand and my_job():
        # What other elements of its array, or this job when it was started before, have chosen.
        for unit, tries in Ledger(units.run.path).all_tries(f"-{segment}-").items():
            if any(one.claim.door == "hand" and one.job == my_job() for one in tries):
                return unit
    # By hand: the next one of this segment that is not done.
    pending = [unit for unit in units.pending(units.pipeline.num_iterations) if unit.segment == segment]
    return pending[0] if pending else Unit(segment, units.last_iteration)


def _claim_by_hand(path: Path, unit: Unit, element: int | None, first_element: int) -> int:
    """Enters a job that a person submitted into the ledger, so that repair does not submit its unit again."""
    ledger = Ledger(path)
    elements = None if element is None else _elements_by_hand(element, first_element)
    # The same for all elements of one submission, and for a job that was requeued: they find each other's claim by it.
    token = f"hand {my_job()} {elements}" if my_job() else secrets.token_hex(8)
    while True:
        tries = ledger.tries(unit)
        found = next((one for one in tries if one.claim.token == token), None)
        if found is not None:
            return found.number
        number = max((one.number for one in tries), default=0) + 1
        claim = Claim(
            unit, number, token=token, door="hand", created=now(), elements=elements, first_element=first_element
        )
        if ledger.claim(claim) and my_job():
            ledger.record_job(unit, number, my_job())


def _elements_by_hand(element: int, first_element: int) -> tuple[int, ...]:
    """The array that a person submitted, as SLURM tells its jobs; this element alone where it is no regular one."""
    first, last, step, count = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", element), ("MAX", element), ("STEP", 1), ("COUNT", 0))
    )
    elements = tuple(first_element + index for index in range(first, last + 1, max(step, 1)))
    return elements if len(elements) == count else (element,)


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


def others_go_on(case: Case, unit: Unit, number: int, element: int | None) -> bool:
    """Whether at least two other elements of an array have not said their last word: they will repair, not this one."""
    ledger = Ledger(case.run.path)
    return len(set(ledger.elements(unit, number)) - ledger.ended(unit, number) - {element}) >= 2


def _repair(case: Case, me: Me) -> bool:
    """Repairs; returns whether another job will look after the run. What cannot be done is told, and left to the next.

    Where SLURM does not answer nobody knows, so that this one should not leave.
    """
    if not case.site.launch.submit_from_jobs:
        return True
    slurm = Slurm(patience_seconds=20.0, say=_say)
    try:
        done = Repair(case, open_door(case, slurm), slurm, me=me, say=_say).repair()
    except InputError as error:
        _say(f"repair: {error}")
        return True
    except SchedulerUnavailableError as error:
        _say(f"repair: {error}")
        return False
    for line in done.reports:
        _say(line)
    return done.is_followed


def _leave(case: Case, me: Me, number: int | None, element: int | None) -> int:
    """The end of a job that has said its last word: repairs, and stays where nothing of the run would be behind it.

    Returns: DONE or REQUEUE.
    """
    if not _repair(case, me) and case.site.limits.max_jobs != 1:  # where one is allowed, it can never submit another
        _say("nothing of the run would be in the queue behind this job: it goes back there, and looks again")
        if number is not None:
            Ledger(case.run.path).record_stay(me.unit, number, element)
        return REQUEUE
    _finish(case)
    return DONE


def _play(path: Path, assignment: Assignment, comm: Collectives, stop: StopFlag) -> int:
    def last_words(code: int, reason: str) -> None:
        _record_end(path, assignment.unit, assignment.number, assignment.element, _OUTCOMES[code], reason)

    code = WAITING
    if assignment.has_ended:
        code = DONE
    elif assignment.is_ready:
        with _deadline(path, comm):
            scratch = Path(expand(assignment.scratch, os.environ, "launch.scratch"))
            launch = dataclasses.replace(assignment.launch, scratch=scratch)
            code = play_session(assignment.pipeline, launch, comm, stop, assignment.part, last_words)
    if comm.rank == 0 and code in (DONE, WAITING):
        if not assignment.has_ended:
            last_words(code, "" if code == DONE else "its input was not there, or another job was at it")
        else:
            # Several that were put back at once, and see each other run, would all stay, again and again.
            time.sleep(random.uniform(0.0, _APART_SECONDS))
        case = open_case(path)
        if others_go_on(case, assignment.unit, assignment.number, assignment.element):
            code = DONE
        else:
            code = _leave(case, Me(assignment.unit, my_job()), assignment.number, assignment.element)
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
