"""The ledger: what was submitted to a scheduler and how it ended, one small published file per fact."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from hpcrl.store.documents import read_document, seal
from hpcrl.store.manifest import read_if_there
from hpcrl.store.publish import make_folder, publish

LOOP: Final = "loop"
"""What stands for the iteration in the name of a unit that plays all iterations."""

Outcome = Literal["done", "waiting", "refused", "failed"]
"""How a job ended, in its own words: done; its input was not there; bad input (2); failed (1)."""

_NAME = re.compile(r"(claim|job|end|stay)-([A-Za-z0-9_.]+)-(\d{6,}|loop)-(\d{2,})(?:_(\d+))?\.json")
_HALTED = "halted.json"


@dataclass(frozen=True, order=True)
class Unit:
    """What one job does: an iteration of a segment, or (iteration None) all of them.

    Example:
        >>> Unit("play", 17).name, Unit("main", None).name
        ('play-000017', 'main-loop')
    """

    segment: str
    """Name of the segment: letters, digits, '_' and '.'."""
    iteration: int | None

    @property
    def name(self) -> str:
        """As it stands in file and job names."""
        return f"{self.segment}-{LOOP if self.iteration is None else f'{self.iteration:06d}'}"


@dataclass(frozen=True)
class Claim:
    """A try at a unit that is about to be submitted. It is published before sbatch is called."""

    unit: Unit
    number: int
    """Which try, from 1."""
    token: str
    """Stands in the job's comment, so that a job whose id was never written down is found in the queue."""
    door: str
    """"slurm" (submitit) or "sbatch"."""
    created: str
    """UTC, ISO 8601."""
    dependency: tuple[str, ...] = ()
    """Job ids that must have ended before this one starts."""
    elements: tuple[int, ...] | None = None
    """Array elements that are submitted; None: no array."""
    first_element: int = 0
    """Added to SLURM's array indices to get them."""
    submitter: str = ""
    """Job id of the job that submits, or "" for a person's shell."""
    begin_minutes: int = 0
    """It may not start before so long after its submission."""


@dataclass(frozen=True)
class End:
    """How one job, or one element of its array, says it ended."""

    outcome: Outcome
    reason: str
    job: str
    """Its SLURM job id (with _ELEMENT), or "" outside SLURM."""
    restart_count: int
    """How often SLURM had requeued it."""
    ended: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Try:
    """All that the ledger says of one try at a unit."""

    claim: Claim
    job: str | None
    """SLURM job id; None until sbatch has answered."""
    submitted: str | None
    """When sbatch had answered; UTC, ISO 8601."""
    ends: Mapping[int | None, End]
    """Array element (None: no array) -> how it ended."""
    stays: frozenset[int | None] = frozenset()
    """Of those that ended, who asked to be started again, to repair."""

    @property
    def unit(self) -> Unit:
        return self.claim.unit

    @property
    def number(self) -> int:
        return self.claim.number


class Ledger:
    """The folder `ledger/` of a run. Looking creates nothing; nothing is ever rewritten."""

    def __init__(self, run_path: Path) -> None:
        self.path = Path(run_path) / "ledger"

    def claim(self, claim: Claim) -> bool:
        """Publishes a claim; False when somebody else has claimed this try.

        Raises: InputError when the disk is full or read-only.
        """
        make_folder(self.path)
        body = dataclasses.asdict(claim)
        return publish(self.path / _name("claim", claim.unit, claim.number), seal("claim", body))

    def record_job(self, unit: Unit, number: int, job: str) -> bool:
        """Notes the id that sbatch gave; False when it was noted before."""
        body = {"job": job, "submitted": now()}
        return publish(self.path / _name("job", unit, number), seal("job", body))

    def record_end(self, unit: Unit, number: int, element: int | None, end: End) -> bool:
        """Notes how a job ended its work; the first word stands. Started again, it only repairs."""
        make_folder(self.path)
        return publish(self.path / _name("end", unit, number, element), seal("end", dataclasses.asdict(end)))

    def record_stay(self, unit: Unit, number: int, element: int | None) -> bool:
        """Notes that a job which has ended its work goes back into the queue, to repair; False when it was before."""
        return publish(self.path / _name("stay", unit, number, element), seal("stay", {"created": now()}))

    def tries(self, unit: Unit) -> list[Try]:
        """The tries at one unit, oldest first. Raises: CorruptFileError when a document is damaged."""
        return self.all_tries(f"-{unit.name}-").get(unit, [])

    def all_tries(self, containing: str = "") -> dict[Unit, list[Try]]:
        """Every unit's tries, oldest first.

        Args: containing: only files whose names hold this, for a ledger of many thousand files.
        Raises: CorruptFileError when a document is damaged.
        """
        numbers: dict[Unit, set[int]] = {}
        elements: dict[tuple[str, Unit, int], set[int | None]] = {}
        for name in _names(self.path):
            match = _NAME.fullmatch(name) if containing in name else None
            if match is None:
                continue
            unit = Unit(match[2], None if match[3] == LOOP else int(match[3]))
            if match[1] == "claim":
                numbers.setdefault(unit, set()).add(int(match[4]))
            element = None if match[5] is None else int(match[5])
            elements.setdefault((match[1], unit, int(match[4])), set()).add(element)
        return {
            unit: [
                self._read(unit, number, *(elements.get((kind, unit, number), set()) for kind in ("end", "stay")))
                for number in sorted(found)
            ]
            for unit, found in sorted(numbers.items(), key=lambda item: (item[0].iteration or 0, item[0].segment))
        }

    def elements(self, unit: Unit, number: int) -> tuple[int, ...]:
        """The array elements that one try submitted; none where it is no array, or there is no such try."""
        body = read_if_there(lambda path: read_document(path, "claim"), self.path / _name("claim", unit, number))
        return () if body is None else tuple(body["elements"] or ())

    def ended(self, unit: Unit, number: int) -> set[int | None]:
        """The elements of one try that said how they ended (None: no array, or all of them); reads names only."""
        matches = (_NAME.fullmatch(name) for name in _names(self.path) if f"end-{unit.name}-{number:02d}" in name)
        return {
            None if match[5] is None else int(match[5])
            for match in matches
            if match is not None and match[1] == "end" and int(match[4]) == number
        }

    def _read(self, unit: Unit, number: int, ended: Collection[int | None], stays: Collection[int | None]) -> Try:
        body = read_document(self.path / _name("claim", unit, number), "claim")
        fields = {**body, "unit": Unit(**body["unit"]), "dependency": tuple(body["dependency"])}
        fields["elements"] = None if body["elements"] is None else tuple(body["elements"])
        job = read_if_there(lambda path: read_document(path, "job"), self.path / _name("job", unit, number)) or {}
        ends = {
            element: End(**read_document(self.path / _name("end", unit, number, element), "end"))
            for element in sorted(ended, key=str)
        }
        return Try(Claim(**fields), job.get("job"), job.get("submitted"), ends, frozenset(stays))

    def halt(self, reason: str) -> bool:
        """Nothing more is submitted from here on; False when the run was halted before."""
        make_folder(self.path)
        return publish(self.path / _HALTED, seal("halted", {"reason": reason, "created": now()}))

    def halted(self) -> str | None:
        """Why nothing more is submitted; None while jobs may be."""
        body: Mapping[str, Any] | None = read_if_there(lambda path: read_document(path, "halted"), self.path / _HALTED)
        return None if body is None else str(body["reason"])

    def go_on(self) -> None:
        """Jobs may be submitted again: a person said so."""
        (self.path / _HALTED).unlink(missing_ok=True)


def now() -> str:
    """The time as the ledger writes it: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _name(kind: str, unit: Unit, number: int, element: int | None = None) -> str:
    suffix = "" if element is None else f"_{element}"
    return f"{kind}-{unit.name}-{number:02d}{suffix}.json"


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
