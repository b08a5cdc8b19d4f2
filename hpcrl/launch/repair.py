"""Repair: compare manifests, ledger and queue, and submit what is missing. Every job begins with it."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from hpcrl.launch.papers import Case
from hpcrl.launch.request import GUARD, Door, Request
from hpcrl.launch.standing import LONE_CLAIM_SECONDS, Standing, standing_of
from hpcrl.launch.units import Units
from hpcrl.runner.part import world_size
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SubmissionRefusedError
from hpcrl.scheduler.site import Resources
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.states import Action, reaction_to_error
from hpcrl.store.ledger import Claim, End, Ledger, Try, Unit, now

GUARD_MINUTES: Final = 30
"""So long after its submission a guard repairs whatever the others are at: SLURM holds a job that it could not start,
and those behind it would wait for ever."""
_LAST_GUARDS: Final = 8
"""A guard that waits is among the last few tries; a run of weeks has had hundreds."""


@dataclasses.dataclass(frozen=True)
class Me:
    """The job that repairs."""

    unit: Unit
    job: str
    """Its SLURM job id; of an array, the array's."""


@dataclasses.dataclass
class Repaired:
    """What a repair did."""

    submitted: list[Request] = dataclasses.field(default_factory=list)
    jobs: list[str] = dataclasses.field(default_factory=list)
    """Ids of what was submitted."""
    active: dict[Unit, list[Job]] = dataclasses.field(default_factory=dict)
    """Jobs found queued or running."""
    halted: str | None = None
    """Why nothing is submitted any more."""
    left_out: bool = False
    """Whether the queue had no room for something that is missing."""
    reports: list[str] = dataclasses.field(default_factory=list)
    """What only a person can help with."""


class Repair:
    """One look at a run's jobs, and what follows from it."""

    def __init__(
        self, case: Case, door: Door, slurm: Slurm, *, me: Me | None = None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.case, self.door, self.slurm, self.me, self.say = case, door, slurm, me, say
        self.ledger = Ledger(case.run.path)
        self.units = Units(case.run, case.pipeline, thorough=me is not None and me.unit == GUARD)
        self.done = Repaired()
        self._room: int | None = None
        self._last_number: dict[Unit, int] = {}
        """Of the tries that were there when it looked, and of its own."""
        self._refused = sys.maxsize
        """So many more jobs of this user SLURM itself does not take."""

    def repair(self) -> Repaired:
        """Submits what is missing.

        Raises: SubmissionRefusedError, after halting the run; SchedulerUnavailableError; InputError for a full disk.
        """
        self.done.halted = self.ledger.halted()
        # Beside the iteration that plays: when it has ended, so many are still queued.
        pending = self.units.pending(self.case.site.limits.window + 1)
        if self.done.halted is not None or not pending:
            return self.done
        tries = {unit: self._adopted(self.ledger.tries(unit)) for unit in pending}
        tries[GUARD] = self._adopted(self.ledger.tries(GUARD)[-_LAST_GUARDS:])
        # Not read again when a try is claimed: who has claimed it meanwhile has seen the same, and submits it.
        self._last_number = {unit: max((one.number for one in found), default=0) for unit, found in tries.items()}
        jobs = self.slurm.look([job for found in tries.values() for one in found if (job := one.job) is not None])
        standings = {unit: self._standing(unit, found, jobs) for unit, found in tries.items()}
        if any(self._heed(standing) for standing in standings.values()):
            return self.done
        ids = {unit: list(standing.active_ids) for unit, standing in standings.items() if unit != GUARD}
        if self.units.is_loop:
            self._keep_two(pending[0], standings[pending[0]])
        for unit in pending if not self.units.is_loop else ():
            before = [job for need in self.units.needs(unit) for job in ids.get(need, [])]
            ids[unit] += self._submit_missing(unit, standings[unit], before)
        is_last = not self.units.is_loop and self.units.reaches_the_end(pending)
        self._keep_guards(standings[GUARD], tries[GUARD], [job for found in ids.values() for job in found] * is_last)
        return self.done

    def _adopted(self, tries: Sequence[Try]) -> list[Try]:
        """The tries, those whose submitter died before it could write the job's id down looked up in the queue."""
        found = []
        for one in tries:
            if one.job is None and not one.ends and _age(one.claim.created) > LONE_CLAIM_SECONDS:
                jobs = self.slurm.find_by_comment(one.claim.token)
                if jobs:
                    self.ledger.record_job(one.unit, one.number, jobs[0].array_id or jobs[0].id)
                    one = dataclasses.replace(one, job=jobs[0].array_id or jobs[0].id)
            found.append(one)
        return found

    def _standing(self, unit: Unit, tries: Sequence[Try], jobs: Mapping[str, Job]) -> Standing:
        """How a unit stands; the job that repairs counts as active only if it can go on."""
        ours = self.me is not None and self.me.unit == unit
        may_go_on = ours and self.units.is_ready(unit) and unit != GUARD
        return standing_of(
            self.case,
            unit,
            tries,
            jobs,
            folders=self.units.folders(unit) if unit != GUARD else [],
            missing=None if unit == GUARD else self.units.unfinished_elements(unit),
            ignored=self.me.job if self.me is not None and ours and not may_go_on else None,
            accounting_is_off=self.slurm.accounting_is_off,
        )

    def _heed(self, standing: Standing) -> bool:
        """Cancels what would wait for ever, tells what only a person can mend; True when it halted the run."""
        self.done.active[standing.unit] = standing.active
        self.done.reports += [f"job {job.id}: {words}" for job, words in standing.reports]
        if standing.replaced:
            self.slurm.cancel(standing.replaced)
        if standing.unit == GUARD:
            return False  # over weeks some fail; what they should have done another does
        reason = standing.reason_to_halt(self.case.site.limits.retries)
        if reason is not None:
            self._halt(f"{standing.unit.name}: {reason}")
        return reason is not None

    def _keep_two(self, loop: Unit, standing: Standing) -> None:
        """A loop has one job that plays, and behind it one that goes on should the first be lost."""
        ids = list(standing.active_ids)
        while len(ids) < 2 and self.done.halted is None:
            ids += (submitted := self._submit(loop, standing, ids[-1:]))
            if not submitted:
                return

    def _keep_guards(self, standing: Standing, tries: Sequence[Try], last: Sequence[str]) -> None:
        """A job that only repairs, behind the last ones; and one whose time comes while others may be stuck.

        Args: last: the jobs after which nothing is queued; [] when more will be submitted before they end.
        """
        if not self.case.site.launch.submit_from_jobs or standing.is_being_submitted:
            return
        active = [one for one in tries if one.job in standing.active_ids]
        if last and not any(one.claim.dependency for one in active):
            self._submit(GUARD, standing, last)
        if all(one.claim.dependency for one in active):
            self._submit(GUARD, standing, (), begin_minutes=GUARD_MINUTES)

    def _submit_missing(self, unit: Unit, standing: Standing, dependency: Sequence[str]) -> list[str]:
        missing = self.units.unfinished_elements(unit)
        if missing is None:
            return [] if standing.is_active else self._submit(unit, standing, dependency)
        missing = tuple(element for element in missing if element not in standing.active_elements)
        ids: list[str] = []
        for chunk in self._chunks(missing):
            ids += self._submit_elements(unit, standing, dependency, chunk)
        return ids

    def _submit_elements(
        self, unit: Unit, standing: Standing, dependency: Sequence[str], elements: tuple[int, ...]
    ) -> list[str]:
        """As many elements as the queue takes now; the others are submitted when these have ended."""
        count = min(self._fitting(len(elements)), self._refused - 1)
        self.done.left_out |= count < len(elements)
        while count > 0:
            ids = self._submit(unit, standing, dependency, elements=elements[:count])
            if ids or count < self._refused:
                return ids
            count //= 2  # SLURM does not say how many it would have taken
        return []

    def _fitting(self, count: int) -> int:
        """How many of an array's elements to try; where not all fit, one job less, so that one fits behind them."""
        room = self._room_left()
        return count if room is None or count <= room else max(room - 1, min(room, 1))

    def _chunks(self, elements: Sequence[int]) -> Iterable[tuple[int, ...]]:
        """Elements by the arrays they fit into: SLURM's index stays below MaxArraySize."""
        if not elements:
            return []
        groups: dict[int, list[int]] = {}
        for element in elements:
            groups.setdefault(element // self._array_size, []).append(element)
        return [tuple(group) for group in groups.values()]

    @functools.cached_property
    def _array_size(self) -> int:
        """Largest array that the cluster takes."""
        return self.case.site.limits.max_array_size or self.slurm.limits().max_array_size or sys.maxsize

    def _submit(
        self,
        unit: Unit,
        standing: Standing,
        dependency: Sequence[str],
        elements: tuple[int, ...] | None = None,
        begin_minutes: int = 0,
    ) -> list[str]:
        """Claims the next try and submits it; [] when somebody else has claimed it or there is no room now."""
        if self.done.halted is not None:
            return []
        count = 1 if elements is None else len(elements)
        if count >= self._refused or not self._has_room(count):
            self.done.left_out = True
            return []
        number = self._last_number[unit] + 1
        request = make_request(
            self.case,
            self.units,
            unit,
            number=number,
            dependency=tuple(dependency),
            elements=elements,
            first_element=min(elements) // self._array_size * self._array_size if elements else 0,
            resources=standing.resources,
            begin_minutes=begin_minutes,
        )
        claim = Claim(
            unit,
            number,
            token=request.token,
            door=self.case.papers.door,
            created=now(),
            dependency=tuple(dependency),
            elements=elements,
            first_element=request.first_element,
            submitter=self.me.job if self.me is not None else "",
        )
        if not self.ledger.claim(claim):
            return []
        self._last_number[unit] = number
        self.door.prepare((request,))
        job = self._hand_over(request)
        if job is None:
            return []
        self.ledger.record_job(unit, number, job)
        self._refused -= count
        self.done.submitted.append(request)
        self.done.jobs.append(job)
        after = f" after {', '.join(dependency)}" if dependency else ""
        after += f", not before {begin_minutes} minutes have passed" if begin_minutes else ""
        self.say(f"submitted {unit.name} as job {job}{after}")
        return [job]

    def _hand_over(self, request: Request) -> str | None:
        """Submits a claimed try and returns its job; None when the queue has no room for it now, or takes no guard.

        Raises: SubmissionRefusedError, after halting the run.
        """
        try:
            return self.door.submit(request)
        except SubmissionRefusedError as error:
            action = reaction_to_error(error).action
            known = self._still_known(request.dependency) if action is Action.RETRY else request.dependency
            if known != request.dependency:
                return self._hand_over(dataclasses.replace(request, dependency=known))
            if action is Action.WAIT:
                self._refused, self.done.left_out = len(request.elements or (0,)), True
            if action is Action.WAIT or request.unit == GUARD:
                self.say(f"{request.unit.name}: not submitted now: {error}")
                # The try is over, so that the next repair does not take it for one that is being submitted.
                end = End("waiting", f"not submitted: {error}", "", 0, now())
                self.ledger.record_end(request.unit, request.number, None, end)
                return None
            self._halt(f"{request.unit.name}: {error}")
            raise

    def _still_known(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        """Of jobs to wait for, those that SLURM has not forgotten; the others have ended long ago."""
        known = {job.array_id or job.id for job in self.slurm.queue(ids)} if ids else set()
        return tuple(id_ for id_ in ids if id_ in known)

    def _has_room(self, count: int) -> bool:
        """Whether the site's limit lets so many more jobs of this user into the queue; from now on they are in it."""
        room = self._room_left()
        if room is None:
            return True
        if room < count:
            limit = self.case.site.limits.max_jobs
            self.say(f"limits.max_jobs = {limit}: {count} more do not fit; the next job submits them")
            return False
        self._room = room - count
        return True

    def _room_left(self) -> int | None:
        """How many more jobs of this user the site's limit lets into the queue; None: it has none."""
        limit = self.case.site.limits.max_jobs
        if limit == 0:
            return None
        if self._room is None:
            self._room = max(limit - sum(not job.is_over for job in self.slurm.queue()), 0)
        return self._room

    def _halt(self, reason: str) -> None:
        self.ledger.halt(reason)
        self.done.halted = self.ledger.halted()
        self.say(f"halted: {self.done.halted}")


def make_request(
    case: Case,
    units: Units,
    unit: Unit,
    *,
    number: int = 1,
    dependency: tuple[str, ...] = (),
    elements: tuple[int, ...] | None = None,
    first_element: int = 0,
    resources: Resources | None = None,
    begin_minutes: int = 0,
) -> Request:
    """A try at a unit, as a door takes it. `resources`: None: what the site says."""
    if unit == GUARD:
        ranks = 1
    elif unit.iteration is None:
        ranks = world_size(case.pipeline) or units.segments[0].mesh.size
    else:
        ranks = units.segment(unit).mesh.size
    return Request(
        run=case.run.path.absolute(),
        title=case.pipeline.name,
        unit=unit,
        number=number,
        token=secrets.token_hex(8),
        stages=() if unit == GUARD else units.stages(unit),
        ranks=ranks,
        compute_threads=case.pipeline.compute_threads,
        resources=case.site.resources(unit.segment) if resources is None else resources,
        dependency=dependency,
        elements=elements,
        first_element=first_element,
        begin_minutes=begin_minutes,
    )


def cancel_rest(case: Case, slurm: Slurm, *, but: str) -> list[str]:
    """The run is over: cancels its jobs that still wait (a loop's second, a guard, rollouts beyond the end).

    Returns: the ids that were cancelled.
    """
    ledger = Ledger(case.run.path)
    last = [
        one for unit, tries in ledger.all_tries().items() for one in tries[-_LAST_GUARDS if unit == GUARD else -2 :]
    ]
    ids = [one.job for one in last if one.job not in (None, but)]
    waiting = [job for job in slurm.queue([id_ for id_ in ids if id_ is not None]) if not job.is_over] if ids else []
    found = sorted({job.array_id or job.id for job in waiting} - {but})
    if found:
        slurm.cancel(found)
    return found


def my_job() -> str:
    """The SLURM job of this process; of an array, the array's id; "" outside SLURM."""
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")


def _age(created: str) -> float:
    """Seconds since a time that the ledger wrote."""
    return (datetime.fromisoformat(now()) - datetime.fromisoformat(created)).total_seconds()
