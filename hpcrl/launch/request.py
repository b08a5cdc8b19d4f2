"""One job to be submitted: what it does and what it asks for, the same for every door."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from hpcrl.scheduler.site import Resources, Site
from hpcrl.store.ledger import Unit

GUARD: Final = Unit("guard", None)
"""The jobs that only repair: one behind the last ones, and one whose time comes while others may be stuck."""


@dataclass(frozen=True)
class Request:
    """A try at a unit, on its way to the scheduler."""

    run: Path
    """The run folder, absolute."""
    title: str
    """The pipeline's name, for people who look at the queue."""
    unit: Unit
    number: int
    """Which try."""
    token: str
    """Stands in the job's comment; see Claim.token."""
    stages: tuple[str, ...]
    """What it plays; empty for the guard."""
    ranks: int
    """MPI ranks of one job (of one element)."""
    compute_threads: int
    resources: Resources
    dependency: tuple[str, ...] = ()
    """Job ids that must have ended, however."""
    elements: tuple[int, ...] | None = None
    """Elements of the mesh's array to submit; None: no array."""
    first_element: int = 0
    """Added to SLURM's array index: arrays longer than MaxArraySize come in several requests."""
    begin_minutes: int = 0
    """It may not start before so long has passed."""

    @property
    def job_name(self) -> str:
        """As in squeue: 'ppo-pong.rollout-000017'."""
        return f"{self.title}.{self.unit.name}"

    @property
    def comment(self) -> str:
        """Tells a person in squeue what the job is, and the ledger which claim it belongs to."""
        return f"hpcrl {'+'.join(self.stages) or 'repairs'} of {self.run} try {self.number} {self.token}"

    @property
    def indices(self) -> tuple[int, ...] | None:
        """SLURM's array indices."""
        return None if self.elements is None else tuple(element - self.first_element for element in self.elements)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `hpcrl job RUN --segment S` is told beside the segment."""
        iteration = () if self.unit.iteration is None else ("--iteration", str(self.unit.iteration))
        first = ("--first-element", str(self.first_element)) if self.first_element else ()
        return (*iteration, "--try", str(self.number), *first)


class Door(Protocol):
    """A way to submit requests."""

    def check(self, requests: tuple[Request, ...]) -> None:
        """Refuses what it could not write for jobs of these units, before anything is written anywhere.

        Raises: InputError.
        """
        ...

    def prepare(self, requests: tuple[Request, ...]) -> None:
        """Writes what jobs of these units need (scripts), before the first is submitted."""
        ...

    def submit(self, request: Request) -> str:
        """Submits one job (or array) and returns its id.

        Raises: SubmissionRefusedError; SchedulerUnavailableError.
        """
        ...


@dataclass(frozen=True)
class Surroundings:
    """What every job of a run is started with."""

    site: Site
    python_path: tuple[str, ...]
    """Folders of the user's own modules (beside the pipeline's file), absolute."""
    folder: Path
    """Working folder, absolute: relative names in a pipeline mean the same as for who submitted."""
