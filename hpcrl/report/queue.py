"""What the scheduler says of a run's jobs: asked once, for those that did not say themselves how they ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from hpcrl.errors import InputError
from hpcrl.scheduler.jobs import Job
from hpcrl.store.ledger import End, Ledger, Try

State = Literal[
    "done", "waiting", "refused", "failed",
    "running", "queued", "requeued", "held", "suspended", "ended", "submitting", "unsubmitted", "lost",
]  # fmt: skip
"""How a job stands. The first four are its own words at its end (the ledger's outcomes); then SLURM's view of it, or
what files tell where SLURM does not answer: "ended" says that SLURM saw it end and it said nothing; "submitting" that
sbatch has not answered yet; "unsubmitted" that it would not take it; "lost" that SLURM knows nothing of it."""

IN_QUEUE: Final[frozenset[State]] = frozenset({"running", "queued", "requeued", "held", "suspended", "submitting"})
"""States in which a job may still do its work."""

WAITS_FOR_OTHERS: Final = "waits for the jobs before it"
_REASONS = {
    "Dependency": WAITS_FOR_OTHERS,
    "DependencyNeverSatisfied": "can never start: what it waits for will not happen",
    "Resources": "waits for free nodes",
    "Priority": "waits behind other jobs",
    "BeginTime": "starts again shortly",
    "JobArrayTaskLimit": "waits for other elements of its array",
}
"""SLURM's reasons for a pending job, in words; others stand as they are."""
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT")
_PENDING = ("PENDING", "REQUEUED", "REQUEUE_FED")

_CALL_SECONDS = 5.0
"""A person waits for the answer: longer than this is no answer."""
_MOST_ELEMENTS_ASKED = 200
"""Of a larger array the scheduler is asked as a whole."""


class Scheduler(Protocol):
    """What is asked of a cluster; hpcrl.scheduler.slurm.Slurm."""

    def look(self, ids: Sequence[str], /) -> Mapping[str, Job]: ...


def find_scheduler(run_path: Path) -> Scheduler | None:
    """The cluster to ask about a run's jobs; None where the run has none, or this machine not the commands."""
    if not Ledger(run_path).path.is_dir():
        return None
    from hpcrl.scheduler.slurm import Slurm

    slurm = Slurm(call_seconds=_CALL_SECONDS, patience_seconds=0.0)
    return slurm if slurm.is_available() else None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the scheduler said."""

    jobs: Mapping[tuple[str, int | None], Job]
    """(SLURM job id, the ledger's array element) -> job."""
    silence: str
    """Why it was not heard, or empty."""

    @classmethod
    def of(cls, scheduler: Scheduler | None, tries: Sequence[Try]) -> Answer:
        """Asks about the jobs of these tries that did not say how they ended, or that stay to repair."""
        ids = [id_ for tried in tries for id_ in _open_ids(tried)]
        if not ids:
            return cls({}, "")
        if scheduler is None:
            return cls({}, "SLURM's commands are not on this machine")
        from hpcrl.scheduler.refusals import SchedulerUnavailableError

        try:
            found = dict(scheduler.look(ids))
            # An array that was cancelled before it could start stays one job to SLURM.
            whole = [
                tried.job
                for tried in tries
                if tried.job is not None and not has_ended(tried) and not _jobs_of(tried, found)
            ]
            if set(whole) - set(ids):
                found |= scheduler.look(whole)
        except (SchedulerUnavailableError, InputError) as error:
            return cls({}, str(error))
        return cls({key: job for tried in tries for key, job in _jobs_of(tried, found)}, "")


def elements_of(tried: Try) -> Sequence[int | None]:
    """The array elements that a try submitted; (None,) where it is no array."""
    return (None,) if tried.claim.elements is None else tried.claim.elements


def end_of(tried: Try, element: int | None) -> End | None:
    """What a job said at its end; a job that was refused before it knew its place in the array speaks for all of it."""
    return tried.ends.get(element, tried.ends.get(None))


def has_ended(tried: Try) -> bool:
    """Whether all of it said how it ended, and left."""
    return not any(_is_open(tried, element) for element in elements_of(tried))


def _is_open(tried: Try, element: int | None) -> bool:
    return end_of(tried, element) is None or element in tried.stays


def state_of(job: Job) -> tuple[State, str, float | None]:
    """State, its reason and, if it ended, when: SLURM's view of a job that has not said how it ended."""
    if job.is_over:  # its reason may still be the one for which it was pending
        code = f" (exit code {job.exit_code})" if job.state == "FAILED" and job.exit_code is not None else ""
        return "ended", job.state + code, job.ended
    if job.state in _RUNNING:
        return "running", "" if job.state == "RUNNING" else job.state.lower(), None
    if job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT") or "held" in job.reason.lower():
        return "held", "by an administrator" if job.reason == "JobHeldAdmin" else "", None
    if job.state in _PENDING:
        state: State = "queued" if job.state == "PENDING" and not job.restarts else "requeued"
        return state, _REASONS.get(job.reason, job.reason), None
    if job.state in ("SUSPENDED", "STOPPED"):
        return "suspended", "", None
    return "queued", " ".join(filter(None, (job.state.lower(), job.reason))), None  # a state that SLURM may learn yet


def _ids(tried: Try) -> dict[int | None, str]:
    """The ledger's array element -> SLURM's id of its job; a long array comes in several jobs, each counted from 0."""
    first = tried.claim.first_element
    return {
        element: str(tried.job) if element is None else f"{tried.job}_{element - first}"
        for element in elements_of(tried)
    }


def _open_ids(tried: Try) -> list[str]:
    """Ids of the jobs of a try that have not said how they ended.

    Elements are asked for one by one: of a whole array, what the queue has forgotten must be asked of the accounting.
    """
    if tried.job is None:
        return []
    missing = [id_ for element, id_ in _ids(tried).items() if _is_open(tried, element)]
    return [tried.job] if len(missing) > _MOST_ELEMENTS_ASKED else missing


def _jobs_of(tried: Try, found: Mapping[str, Job]) -> list[tuple[tuple[str, int | None], Job]]:
    if tried.job is None:
        return []
    jobs = {element: found.get(id_, found.get(tried.job)) for element, id_ in _ids(tried).items()}
    return [((tried.job, element), job) for element, job in jobs.items() if job is not None]
