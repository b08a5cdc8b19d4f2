"""A run's jobs: what its ledger says was submitted, how each stands, and how long it waited and ran."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from hpcrl.report.holdings import Holding
from hpcrl.report.launches import Launch, Place
from hpcrl.report.queue import (
    IN_QUEUE,
    WAITS_FOR_OTHERS,
    Answer,
    Scheduler,
    State,
    elements_of,
    end_of,
    has_ended,
    state_of,
)
from hpcrl.store.ledger import Ledger, Try, Unit

_SUBMITTING_SECONDS = 60.0
"""A claim without a job id counts as never submitted after this."""
_NEWEST_TRIES = 4
"""Tries that are read of a unit that plays all iterations."""
GUARD: Final = "guard"
"""Segment of the jobs that only repair."""


@dataclasses.dataclass(frozen=True)
class Span:
    """One time that a job was on its nodes: it starts once, and again after each requeue. Seconds since 1970."""

    started: float
    ended: float | None
    """Its end or last sign of life; None while it runs."""


@dataclasses.dataclass(frozen=True)
class Element:
    """One job of a try: all of it, or one element of its array."""

    number: int | None
    state: State
    detail: str
    """What the state leaves out: a reason, SLURM's own word; may be empty."""
    spans: tuple[Span, ...]
    ended: float | None
    """When it ended for good; None before that."""

    @property
    def waits_for_others(self) -> bool:
        """Whether it may not start yet because of the jobs it depends on."""
        return self.state == "queued" and self.detail == WAITS_FOR_OTHERS


@dataclasses.dataclass(frozen=True)
class JobTry:
    """One try at a unit with all that is known of it."""

    tried: Try
    submitted: float
    """When sbatch had answered, or the claim was made; seconds since 1970."""
    eligible: float
    """From when on it could have started: submitted, and the jobs it depends on had ended."""
    elements: tuple[Element, ...]

    @property
    def unit(self) -> Unit:
        return self.tried.unit

    @property
    def job(self) -> str:
        """SLURM job id, or empty."""
        return self.tried.job or ""

    @property
    def number(self) -> int:
        """Which try, from 1."""
        return self.tried.number

    @property
    def is_array(self) -> bool:
        return self.tried.claim.elements is not None

    @property
    def is_in_queue(self) -> bool:
        """Whether any of it may still do its work."""
        return any(element.state in IN_QUEUE for element in self.elements)

    @property
    def started(self) -> float | None:
        """When its first job began; None before that."""
        return min((span.started for element in self.elements for span in element.spans), default=None)

    @property
    def ended(self) -> float | None:
        """When the last of it ended; None before that."""
        ends = [element.ended for element in self.elements]
        return None if None in ends or not ends else max(end for end in ends if end is not None)

    @property
    def requeues(self) -> int:
        """How often its jobs began anew."""
        return sum(max(0, len(element.spans) - 1) for element in self.elements)

    def counts(self) -> Counter[State]:
        """How many of its jobs are in each state."""
        return Counter(element.state for element in self.elements)


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What a run's ledger, its launches, its leases and the scheduler say together."""

    tries: tuple[JobTry, ...]
    """By iteration, then in the pipeline's order, then by number; those that play all iterations last."""
    halted: str | None
    """Why nothing more is submitted; None while jobs may be."""
    silence: str
    """Why the scheduler was not heard, or empty: then queued and lost jobs cannot be told apart."""

    def counts(self) -> Counter[State]:
        """How many jobs are in each state, an array's elements one by one."""
        found: Counter[State] = Counter()
        for entry in self.tries:
            found.update(entry.counts())
        return found

    def states(self, segment: str, iteration: int) -> set[State]:
        """How the jobs stand that play a segment's iteration (or all of them): those in the queue, else the newest."""
        mine = [
            entry
            for entry in self.tries
            if entry.unit == Unit(segment, iteration) or (entry.unit.iteration is None and entry.unit.segment != GUARD)
        ]
        chosen = [entry for entry in mine if entry.is_in_queue] or mine[-1:]
        return {element.state for entry in chosen for element in entry.elements}


def read_tries(run_path: Path, iterations: Sequence[int] | None) -> list[Try] | None:
    """What the ledger holds, by iteration, segment and number; None when the run was never played as jobs.

    Args:
        iterations: only the units of these iterations, of those after them as far as jobs were submitted, and the
            newest tries of units that play all iterations; None: everything.
    Raises: CorruptFileError naming a damaged document.
    """
    ledger = Ledger(run_path)
    if not ledger.path.is_dir():
        return None
    units = ledger.all_tries() if iterations is None else _read_window(ledger, iterations)
    return [tried for tries in units.values() for tried in tries]


def said_ends(tries: Iterable[Try]) -> dict[Place, list[float]]:
    """When jobs said that they ended, by what they worked on; seconds since 1970."""
    found: dict[Place, list[float]] = {}
    for tried in tries:
        for element, end in tried.ends.items():
            found.setdefault((tried.unit.name, element), []).append(_moment(end.ended))
    return found


def jobs_of(
    run_path: Path,
    tries: Sequence[Try],
    launches: Sequence[Launch],
    holdings: Sequence[Holding],
    scheduler: Scheduler | None,
    read_at: float,
) -> Jobs:
    """The jobs behind a ledger's tries.

    Args:
        scheduler: asked about jobs that did not say how they ended; None: files alone.
        read_at: now, seconds since 1970.
    """
    answer = Answer.of(scheduler, tries)
    launched = _launches_of(tries, launches)
    alive = [holding for holding in holdings if holding.is_held()]
    not_ended = frozenset(tried.job for tried in tries if tried.job is not None and not has_ended(tried))
    elements: list[tuple[Element, ...]] = []
    for tried in tries:
        view = _View(tried, answer, launched, alive, not_ended, read_at)
        elements.append(tuple(view.element(number) for number in elements_of(tried)))
    ends = _ends_of(tries, elements)
    made = []
    for tried, mine in zip(tries, elements, strict=True):
        submitted = _moment(tried.submitted or tried.claim.created)
        eligible = max([submitted, *(ends[job] for job in tried.claim.dependency if job in ends)])
        made.append(JobTry(tried, submitted, eligible, mine))
    return Jobs(tuple(_in_order(made)), Ledger(run_path).halted(), answer.silence)


def _in_order(tries: Sequence[JobTry]) -> list[JobTry]:
    """By iteration, then as their units were first submitted, which is the pipeline's order; guards and loops last."""
    first: dict[Unit, tuple[float, int]] = {}
    for entry in tries:
        submission = (entry.submitted, int(entry.job) if entry.job.isdecimal() else 0)
        first[entry.unit] = min(first.get(entry.unit, submission), submission)

    def key(entry: JobTry) -> tuple[float, tuple[float, int], str, int]:
        iteration = float("inf") if entry.unit.iteration is None else entry.unit.iteration
        return iteration, first[entry.unit], entry.unit.segment, entry.number

    return sorted(tries, key=key)


def _read_window(ledger: Ledger, iterations: Sequence[int]) -> dict[Unit, list[Try]]:
    """Tries of these iterations and of later ones that were submitted ahead, then of units that play all iterations."""
    found: dict[Unit, list[Try]] = {}
    for iteration in iterations:
        found |= ledger.all_tries(f"-{iteration:06d}-")
    for iteration in itertools.count(max(iterations, default=-1) + 1):
        ahead = ledger.all_tries(f"-{iteration:06d}-")
        if not ahead:
            break
        found |= ahead
    loops = ledger.all_tries("-loop-")
    return found | {unit: tries[-_NEWEST_TRIES:] for unit, tries in loops.items()}


def _ends_of(tries: Sequence[Try], elements: Sequence[Sequence[Element]]) -> dict[str, float]:
    """SLURM job id -> when all of it had ended."""
    found: dict[str, float] = {}
    for tried, mine in zip(tries, elements, strict=True):
        ends = [element.ended for element in mine if element.ended is not None]
        if tried.job is not None and len(ends) == len(mine):
            found[tried.job] = max(ends)
    return found


def _launches_of(tries: Iterable[Try], launches: Sequence[Launch]) -> dict[tuple[Unit, int, int | None], list[Launch]]:
    """The launches of each try's elements, oldest first."""
    by_place: dict[Place, list[Launch]] = {}
    for launch in launches:
        if launch.place is not None:
            by_place.setdefault(launch.place, []).append(launch)
    found: dict[tuple[Unit, int, int | None], list[Launch]] = {}
    by_unit: dict[Unit, list[Try]] = {}
    for tried in tries:
        by_unit.setdefault(tried.unit, []).append(tried)
    for unit, mine in by_unit.items():
        elements = {element for tried in mine for element in elements_of(tried)}
        for element in elements:
            for launch in by_place.get((unit.name, element), ()):
                # A long array comes in several tries at once, each with some of the elements.
                tried = _try_of(launch, [one for one in mine if element in elements_of(one)])
                found.setdefault((unit, tried.number, element), []).append(launch)
    return found


def _try_of(launch: Launch, tries: Sequence[Try]) -> Try:
    """By its job id; an array's elements have ids of their own, so by its start: the newest try claimed before it."""
    for tried in tries:
        if tried.job is not None and launch.job.split("_")[0] == tried.job:
            return tried
    before = [tried for tried in tries if _moment(tried.claim.created) <= launch.started]
    return before[-1] if before else tries[0]


@dataclasses.dataclass(frozen=True)
class _View:
    """One try, and where to look for how its jobs stand."""

    tried: Try
    answer: Answer
    launches: Mapping[tuple[Unit, int, int | None], Sequence[Launch]]
    alive: Sequence[Holding]
    """Leases whose holders live."""
    not_ended: frozenset[str]
    """Jobs of the run that have not said that they ended."""
    read_at: float

    def element(self, number: int | None) -> Element:
        """How one of its jobs stands."""
        launches = self.launches.get((self.tried.unit, self.tried.number, number), ())
        state, detail, ended = self._state(number, launches)
        starts = [launch.started for launch in launches]
        job = self.answer.jobs.get((self.tried.job or "", number))
        # SLURM says of a job cancelled in the queue that it started when it ended, as of one that died at once.
        was_cancelled = job is not None and job.state == "CANCELLED" and job.started == job.ended
        if not starts and job is not None and job.started is not None and not was_cancelled:
            starts = [job.started]  # on its nodes, but not yet (or never) in Python
        spans = []
        for index, start in enumerate(starts):
            last = index == len(starts) - 1
            sign = launches[index].last_sign if index < len(launches) else start
            end = (None if state in ("running", "suspended") else ended or sign) if last else sign
            spans.append(Span(start, end if end is None else max(end, start)))
        return Element(number, state, detail, tuple(spans), ended)

    def _state(self, number: int | None, launches: Sequence[Launch]) -> tuple[State, str, float | None]:
        """State, detail, and when it ended."""
        end = end_of(self.tried, number)
        job = self.answer.jobs.get((self.tried.job or "", number))
        if end is not None and number in self.tried.stays and job is not None and not job.is_over:
            state, _, _ = state_of(job)
            return state, "its work is done; it repairs what did not fit the queue", None
        if end is not None and self.tried.job is None:
            return "unsubmitted", _short(end.reason), _moment(end.ended)
        if end is not None:
            return end.outcome, end.reason, _moment(end.ended)
        if self.tried.job is None:
            age = self.read_at - _moment(self.tried.claim.created)
            return ("submitting", "", None) if age < _SUBMITTING_SECONDS else ("lost", "never submitted", None)
        if job is not None:
            return state_of(job)
        if self._is_alive(number):
            return "running", "", None
        if not self.answer.silence:
            return "lost", "SLURM knows nothing of it", None
        if launches:
            return "requeued", "it has begun, but nobody holds its lease", None
        waits = not self.not_ended.isdisjoint(self.tried.claim.dependency)
        return "queued", WAITS_FOR_OTHERS if waits else "", None

    def _is_alive(self, number: int | None) -> bool:
        """Whether its lease has a living holder; a job that plays all iterations holds the run's own."""
        name = self.tried.unit.name + ("" if number is None else f"_{number}")
        if self.tried.unit.iteration is None:
            return any(holding.name in ("", name) and holding.holder.job == self.tried.job for holding in self.alive)
        return any(holding.name == name for holding in self.alive)


def _short(refusal: str) -> str:
    """SLURM's first words of a refusal: a limit stands there at every repair, with advice that the first one gave."""
    return refusal.rpartition("SLURM refused the job: ")[2].removeprefix("not submitted: ").partition(";")[0]


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
