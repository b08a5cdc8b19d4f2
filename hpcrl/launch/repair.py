"""Repair: compare manifests, ledger and queue, and submit what is missing. Every job begins with it."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from hpcrl.launch.papers import Case
from hpcrl.launch.request import GUARD, Door, Request
from hpcrl.launch.standing import GUARD_MINUTES, LONE_CLAIM_SECONDS, Standing, standing_of, waits_again, will_repair
from hpcrl.launch.units import Units
from hpcrl.runner.part import world_size
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SubmissionRefusedError
from hpcrl.scheduler.site import Resources
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.states import Action, reaction_to_error
from hpcrl.store.ledger import Claim, End, Ledger, Try, Unit, now

_SOON_MINUTES: Final = 2
"""So long after its submission a guard looks whether what somebody was about to submit has arrived."""
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
    halted: str | None = None
    """Why nothing is submitted any more."""
    left_out: bool = False
    """Whether the queue had no room for something that is missing."""
    is_followed: bool = True
    """Whether another job will look after the run, or nothing of it is left to do. The job that repairs counts until
    it has said its last word."""
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
        self._has_guard = False
        """Whether a job waits that only repairs, and begins before half an hour has passed."""
        self._refused = sys.maxsize
        """So many more jobs of this user SLURM itself does not take."""

    def repair(self) -> Repaired:
        """Submits what is missing.

        Raises: SubmissionRefusedError, after halting the run; SchedulerUnavailableError; InputError for a full disk.
        """
        self.done.halted = self.ledger.halted()
        if self.done.halted is not None:
            self.say(f"nothing is submitted, the run is halted: {self.done.halted}; go on with: {self._command}")
            return self.done
        # Beside the iteration that plays: when it has ended, so many are still queued.
        pending = self.units.pending(self.case.site.limits.window + 1)
        if not pending:
            return self.done
        tries = {unit: self._adopted(self.ledger.tries(unit)) for unit in self.units.around(pending)}
        tries[GUARD] = self._adopted(self.ledger.tries(GUARD)[-_LAST_GUARDS:])
        # Not read again when a try is claimed: who has claimed it meanwhile has seen the same, and submits it.
        self._last_number = {unit: max((one.number for one in found), default=0) for unit, found in tries.items()}
        jobs = self.slurm.look([job for found in tries.values() for one in found if (job := one.job) is not None])
        # A job may have published and ended since: what it did is looked for after the jobs.
        pending = [unit for unit in pending if not self.units.is_done(unit)]
        standings = {unit: self._standing(unit, tries[unit], jobs) for unit in (*pending, GUARD)}
        if any(self._heed(standing) for standing in standings.values()):
            return self.done
        self.done.is_followed = any(will_repair(one, jobs) for found in tries.values() for one in found)
        guards = [one.claim for one in tries[GUARD] if one.job in standings[GUARD].active_ids]
        self._has_guard = any(claim.begin_minutes != GUARD_MINUTES for claim in guards) or any(
            waits_again(one, jobs) for found in tries.values() for one in found
        )
        ids = {unit: list(standing.active_ids) for unit, standing in standings.items() if unit != GUARD}
        on_its_way = {unit for unit, standing in standings.items() if standing.is_being_submitted}
        for unit in pending:
            if self.units.is_loop:
                self._keep_two(unit, standings[unit], ids[unit])
            elif not on_its_way.isdisjoint(self.units.needs(unit)):
                on_its_way.add(unit)  # whoever submits what it needs submits it too
            else:
                before = [job for need in self.units.needs(unit) for job in ids.get(need, [])]
                ids[unit] += self._submit_missing(unit, standings[unit], before)
        self._keep_guards(standings, guards, [job for found in ids.values() for job in found])
        if self.me is not None and self.done.left_out and not self.done.is_followed:
            self.slurm.cancel(standings[GUARD].active_ids)  # they wait for half an hour, where others could begin
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
        return standing_of(
            self.case,
            unit,
            tries,
            jobs,
            folders=self.units.folders(unit) if unit != GUARD else [],
            missing=None if unit == GUARD else self.units.unfinished_elements(unit),
            ignored=self.me.job if self.me is not None and ours and not self.units.is_ready(unit) else None,
            accounting_is_off=self.slurm.accounting_is_off,
        )

    def _heed(self, standing: Standing) -> bool:
        """Cancels what would wait for ever, tells what only a person can mend; True when it halted the run."""
        self.done.reports += [f"job {job.id}: {words}" for job, words in standing.reports]
        if standing.replaced:
            self.slurm.cancel(standing.replaced)
        if standing.unit == GUARD:
            return False  # over weeks some fail; what they should have done another does
        reason = standing.reason_to_halt(self.case.site.limits.retries)
        if reason is not None:
            self._halt(f"{standing.unit.name}: {reason}")
        return reason is not None

    def _keep_two(self, loop: Unit, standing: Standing, ids: list[str]) -> None:
        """A loop has one job that plays, and behind it one that goes on should the first be lost; adds to `ids`."""
        while not standing.is_being_submitted and len(ids) < 2:
            submitted = self._submit(loop, standing, ids[-1:])
            if not submitted:
                return
            ids += submitted

    def _keep_guards(self, standings: Mapping[Unit, Standing], guards: Sequence[Claim], others: Sequence[str]) -> None:
        """Jobs that only repair: behind the last ones; and some whose time comes while others may be stuck.

        Args:
            guards: those that wait.
            others: the jobs of all units.
        """
        guard = standings[GUARD]
        if not self.case.site.launch.submit_from_jobs or guard.is_being_submitted:
            return
        nothing_follows = self.units.is_loop or self.units.reaches_the_end(list(standings)) or self.done.left_out
        if others and nothing_follows and not any(claim.dependency for claim in guards):
            self._submit(GUARD, guard, others)
        claimed = [unit.name for unit, standing in standings.items() if standing.is_being_submitted]
        if claimed and not self._has_guard:
            self.say(
                f"{', '.join(claimed)}: somebody is submitting it now; in {_SOON_MINUTES} minutes a guard looks again"
            )
            self._submit(GUARD, guard, (), begin_minutes=_SOON_MINUTES)
        if not self.done.left_out and all(claim.begin_minutes != GUARD_MINUTES for claim in guards):
            self._submit(GUARD, guard, (), begin_minutes=GUARD_MINUTES)

    def _submit_missing(self, unit: Unit, standing: Standing, dependency: Sequence[str]) -> list[str]:
        if standing.missing is None:
            return [] if standing.is_active else self._submit(unit, standing, dependency)
        missing = [element for element in standing.missing if element not in standing.active_elements]
        if not standing.missing and not standing.is_active and not self.units.is_done(unit):
            missing = [0]  # all parts are there, but no manifest: whoever comes next publishes it
        ids: list[str] = []
        for chunk in self._chunks(missing):
            ids += self._submit_elements(unit, standing, dependency, chunk)
        return ids

    def _submit_elements(
        self, unit: Unit, standing: Standing, dependency: Sequence[str], elements: tuple[int, ...]
    ) -> list[str]:
        """As many elements as the queue takes now; the others are submitted when these have ended."""
        count = min(len(elements), self._room_for(unit), self._refused - 1)
        self.done.left_out |= count < len(elements)
        while count > 0:
            ids = self._submit(unit, standing, dependency, elements=elements[:count])
            if ids or count < self._refused:
                return ids
            count //= 2  # SLURM does not say how many it would have taken
        return []

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
        if count >= self._refused or self._room_for(unit) < count:
            self.done.left_out |= unit != GUARD
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
            begin_minutes=begin_minutes,
        )
        self.door.prepare((request,))
        # From here until the job's id is written down, an interruption leaves a claim that others wait for.
        if not self.ledger.claim(claim):
            return []
        self._last_number[unit] = number
        job = self._hand_over(request)
        if job is None:
            return []
        self.ledger.record_job(unit, number, job)
        self._refused -= count
        if self._room is not None:
            self._room -= count
        if begin_minutes != GUARD_MINUTES:
            self.done.is_followed = True
            self._has_guard |= unit == GUARD
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
                self._refused = len(request.elements or (0,))
                self.done.left_out |= request.unit != GUARD
            is_passed_over = action is Action.WAIT or request.unit == GUARD
            # The try is over, so that the next repair does not take it for one that is being submitted.
            end = End("waiting" if is_passed_over else "refused", f"not submitted: {error}", "", 0, now())
            self.ledger.record_end(request.unit, request.number, None, end)
            if is_passed_over:
                self.say(f"{request.unit.name}: not submitted now: {error}")
                return None
            self.ledger.halt(f"{request.unit.name}: {error}")
            raise

    def _still_known(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        """Of jobs to wait for, those that SLURM has not forgotten; the others have ended long ago."""
        known = {job.array_id or job.id for job in self.slurm.queue(ids)} if ids else set()
        return tuple(id_ for id_ in ids if id_ in known)

    def _room_for(self, unit: Unit) -> int:
        """How many more jobs of a unit the site's limit lets into the queue.

        One place stays free for a guard that follows them; the last place is taken where nothing else would go on.
        """
        room = self._room_left()
        if room is None:
            return sys.maxsize
        if unit == GUARD or self.units.is_loop or self._has_guard:
            return room
        return max(room - 1, 0 if self.done.is_followed else min(room, 1))

    def _room_left(self) -> int | None:
        """How many more jobs of this user the site's limit lets into the queue; None: it has none."""
        limit = self.case.site.limits.max_jobs
        if limit == 0:
            return None
        if self._room is None:
            self._room = max(limit - sum(not job.is_over for job in self.slurm.queue()), 0)
        return self._room

    @property
    def _command(self) -> str:
        return self.case.papers.command or f"hpcrl run PIPELINE --on {self.case.papers.door} --run {self.case.run.path}"

    def _halt(self, reason: str) -> None:
        self.ledger.halt(reason)
        self.done.halted = self.ledger.halted()
        self.say(f"halted: {self.done.halted}; when that is mended, go on with: {self._command}")


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
    found = sorted({job.array_id or job.id for job in jobs_in_queue(case.run.path, slurm)} - {but})
    if found:
        slurm.cancel(found)
    return found


def jobs_in_queue(run: Path, slurm: Slurm) -> list[Job]:
    """A run's jobs that are queued or running, as far as their ids were written down.

    Raises: SchedulerUnavailableError; InputError.
    """
    ids = {one.job for tries in Ledger(run).all_tries().values() for one in tries}
    return [job for job in slurm.queue() if not job.is_over and (job.array_id or job.id) in ids]


def my_job() -> str:
    """The SLURM job of this process; of an array, the array's id; "" outside SLURM."""
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")


def _age(created: str) -> float:
    """Seconds since a time that the ledger wrote."""
    return (datetime.fromisoformat(now()) - datetime.fromisoformat(created)).total_seconds()
