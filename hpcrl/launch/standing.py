"""How a unit stands: which of its jobs are alive, how often it failed, what its next try should ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from hpcrl.launch.papers import Case
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.site import Resources
from hpcrl.scheduler.states import Action, Reaction, reaction
from hpcrl.store.ledger import End, Try, Unit
from hpcrl.store.stage_folder import StageFolder

LONE_CLAIM_SECONDS = 60.0
"""A claim without a job id is somebody's submission under way for so long; then the queue is asked for its token."""
GUARD_MINUTES: Final = 30
"""So long after its submission a guard repairs whatever the others are at: SLURM holds a job that it could not start,
and those behind it would wait for ever."""


@dataclasses.dataclass
class Standing:
    """What the ledger and the queue say of one unit together."""

    unit: Unit
    resources: Resources
    """What the next try asks for: the site's, grown where earlier tries needed more."""
    missing: Collection[int] | None
    """Elements of an array that have not published all of theirs; None: no array."""
    active: list[Job] = dataclasses.field(default_factory=list)
    """Jobs that wait or run, one for each element."""
    active_elements: set[int] = dataclasses.field(default_factory=set)
    is_being_submitted: bool = False
    """Somebody has claimed a try a moment ago, and its job id is not written down yet."""
    replaced: list[str] = dataclasses.field(default_factory=list)
    """Jobs that would wait for ever."""
    reports: list[tuple[Job, str]] = dataclasses.field(default_factory=list)
    """What only a person can help with."""
    failures: list[str] = dataclasses.field(default_factory=list)
    """One line for each failed try since a person last submitted the run."""
    stop: str | None = None
    """Why trying again cannot help."""

    @property
    def active_ids(self) -> tuple[str, ...]:
        """Ids to depend on, an array by its own."""
        return tuple(dict.fromkeys(job.array_id or job.id for job in self.active))

    @property
    def is_active(self) -> bool:
        """Whether something is on its way."""
        return bool(self.active) or self.is_being_submitted

    def reason_to_halt(self, retries: int) -> str | None:
        """Why the run should halt; None while another try may help."""
        if self.stop is not None:
            return self.stop
        if len(self.failures) > retries:
            return f"failed {len(self.failures)} times (limits.retries = {retries}); the last time: {self.failures[-1]}"
        return None


def standing_of(
    case: Case,
    unit: Unit,
    tries: Sequence[Try],
    jobs: Mapping[str, Job],
    *,
    folders: Sequence[StageFolder],
    missing: Collection[int] | None,
    ignored: str | None,
    accounting_is_off: bool,
) -> Standing:
    """Reads one unit's tries in the light of the queue.

    Args:
        jobs: what SLURM knows, by id of job or element.
        folders: where the unit publishes, to see whether a try got anything done.
        missing: see Standing.
        ignored: a job that is alive but will do nothing (the one that repairs, its input missing).
    """
    standing = Standing(unit, case.site.resources(unit.segment), missing)
    for one in tries:
        if datetime.fromisoformat(one.claim.created) < datetime.fromisoformat(case.papers.submitted):
            _note_living(standing, one, jobs)
        else:
            _weigh(case, standing, one, jobs, folders, ignored, accounting_is_off)
    return standing


def _note_living(standing: Standing, one: Try, jobs: Mapping[str, Job]) -> None:
    """A try from before a person submitted the run again: it counts if it is alive; how it failed is forgiven."""
    for element, job in elements_of(one, jobs):
        if job is not None and not job.is_over and end_of(one, element) is None:
            _add(standing, one, job)


def _weigh(
    case: Case,
    standing: Standing,
    one: Try,
    jobs: Mapping[str, Job],
    folders: Sequence[StageFolder],
    ignored: str | None,
    accounting_is_off: bool,
) -> None:
    """One try: what is alive of it, and what became of the rest."""
    if one.job is None and not one.ends:
        # Adopted if the queue knew it; a lone claim that is old was never submitted.
        if _is_young(one):
            standing.is_being_submitted = True
            standing.active_elements.update(one.claim.elements or ())
        return
    if ignored is not None and one.job == ignored:
        return
    grown: Resources | None = None
    failures: list[str] = []
    for element, job in elements_of(one, jobs):
        end = end_of(one, element)
        more_memory = case.site.more_memory(standing.resources)
        more_time = case.site.more_time(standing.resources)
        answer = reaction(
            job,
            outcome=None if end is None else end.outcome,
            is_published=element is not None and standing.missing is not None and element not in standing.missing,
            has_progressed=_has_progressed(folders, one.submitted if job is None else job.started),
            memory_may_grow=more_memory is not None,
            time_may_grow=more_time is not None,
            accounting_is_off=accounting_is_off,
        )
        words = f"{_where(one, element)}{answer.words}"
        _apply(standing, one, answer, job, words)
        if answer.action is Action.GO_ON and end is None and job is not None and not job.is_over:
            _add(standing, one, job)  # its blocks are there, but it may be about to publish the manifest
        if answer.counts_as_failure:
            failures.append(words)
        if answer.action is Action.RETRY_WITH_MORE_MEMORY:
            grown = more_memory
        if answer.action is Action.RETRY_WITH_MORE_TIME:
            grown = more_time
    standing.failures += failures[:1]  # an array counts once, however many of its elements failed
    if grown is not None:
        standing.resources = grown


def _apply(standing: Standing, one: Try, answer: Reaction, job: Job | None, words: str) -> None:
    if answer.action in (Action.WAIT, Action.REPORT) and job is not None:
        _add(standing, one, job)
        if answer.action is Action.REPORT:
            standing.reports.append((job, answer.words))
    if answer.action is Action.REPLACE and job is not None:
        standing.replaced.append(job.id)
    if answer.action is Action.STOP:
        standing.stop = words


def _add(standing: Standing, one: Try, job: Job) -> None:
    standing.active.append(job)
    if job.element is not None:
        standing.active_elements.add(job.element + one.claim.first_element)


def elements_of(one: Try, jobs: Mapping[str, Job]) -> Iterator[tuple[int | None, Job | None]]:
    """(element, its job) of one try; None where SLURM does not know it."""
    whole = jobs.get(one.job or "")
    if one.claim.elements is None:
        yield None, whole
        return
    for element in one.claim.elements:
        # An array that was cancelled before it could start is one job to SLURM, and stays one.
        yield element, jobs.get(f"{one.job}_{element - one.claim.first_element}", whole)


def end_of(one: Try, element: int | None) -> End | None:
    """What a job of one try said at its end; a word without an element speaks for all of them."""
    return one.ends.get(element, one.ends.get(None))


def will_repair(one: Try, jobs: Mapping[str, Job]) -> bool:
    """Whether a job of this try will still look after the run, and without half an hour's wait."""
    comes_late = one.claim.begin_minutes == GUARD_MINUTES
    return waits_again(one, jobs) or any(
        end_of(one, element) is None and not (job.waits and comes_late)
        for element, job in elements_of(one, jobs)
        if job is not None and not job.is_over
    )


def waits_again(one: Try, jobs: Mapping[str, Job]) -> bool:
    """Whether a job that has said its last word was put back into the queue, to repair when it is started again."""
    return any(
        job is not None and job.waits and end_of(one, element) is not None for element, job in elements_of(one, jobs)
    )


def _is_young(one: Try) -> bool:
    age = (datetime.now().astimezone() - datetime.fromisoformat(one.claim.created)).total_seconds()
    return age <= LONE_CLAIM_SECONDS


def _has_progressed(folders: Sequence[StageFolder], since: float | str | None) -> bool:
    """Whether anything was published since a job began."""
    if since is None:
        return False
    moment = datetime.fromisoformat(since).timestamp() if isinstance(since, str) else since
    return any(
        path.stat().st_mtime >= moment
        for folder in folders
        if folder.path.is_dir()
        for path in folder.path.glob("*.json")
    )


def _where(one: Try, element: int | None) -> str:
    job = one.job or "never submitted"
    return f"try {one.number} (job {job}{'' if element is None else f', element {element}'}): "
