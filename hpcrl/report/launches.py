"""The launches of a run: every start of a process that worked on it, and how long it is known to have worked."""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcrl.errors import CorruptFileError

_PREFIX, _SUFFIX = "launch-", ".json"

Place = tuple[str, int | None]
"""Name of a unit, and the element of its array (None: no array)."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of `hpcrl run`, or of one of a run's jobs: launches/launch-NNNN.json."""

    number: int
    started: float
    last_sign: float
    """When the last stage was published before the next launch began, or the job said that it ended; `started` where
    there is neither."""
    facts: Mapping[str, Any]

    @property
    def command(self) -> str:
        """What a user types to go on."""
        return str(self.facts.get("command") or "")

    @property
    def job(self) -> str:
        """SLURM job id, or empty."""
        return str(self.facts.get("job") or "")

    @property
    def place(self) -> Place | None:
        """What it worked on as one of many jobs; None for a launch of the whole run."""
        unit = self.facts.get("unit")
        return (str(unit), self.facts.get("element")) if unit else None


def launch_numbers(run_path: Path) -> list[int]:
    """Numbers of all launches, ascending; there may be many thousands."""
    try:
        names = os.listdir(run_path / "launches")
    except FileNotFoundError:
        return []
    texts = (name[len(_PREFIX) : -len(_SUFFIX)] for name in names if name.startswith(_PREFIX))
    return sorted(int(text) for text in texts if text.isdecimal())


def read_launches(run_path: Path, numbers: Iterable[int]) -> list[Launch]:
    """The launches of these numbers; `last_sign` is their start until `with_signs` knows better.

    Raises: CorruptFileError when one is not the JSON that hpcrl wrote.
    """
    found = []
    for number in numbers:
        file = run_path / "launches" / f"{_PREFIX}{number:04d}{_SUFFIX}"
        try:
            facts = json.loads(file.read_bytes())
            started = datetime.fromisoformat(facts["started"]).timestamp()
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{file}: want the JSON that hpcrl wrote, given something else ({error})") from error
        found.append(Launch(number, started, started, facts))
    return found


def with_signs(
    launches: Sequence[Launch],
    published: Sequence[float],
    by_attempt: Mapping[int, float],
    ends: Mapping[Place, Sequence[float]],
) -> list[Launch]:
    """The same launches with their last signs of life.

    Args:
        published: when stages were published, seconds since 1970.
        by_attempt: number of a launch (it names its attempts) -> when the last stage holding one was published.
        ends: when jobs said that they ended, by what they worked on.
    """
    published = sorted(published)
    next_started = _next_starts(launches)
    found = []
    for launch, until in zip(launches, next_started, strict=True):
        if launch.place is None:
            # One launch at a time: all that was published before the next one is its work.
            index = bisect.bisect_left(published, until) - 1
            sign = published[index] if index >= 0 else launch.started
        else:
            said = [end for end in ends.get(launch.place, ()) if launch.started <= end < until]
            # Of an array, the stage is published by the last element: later than this one may have worked.
            sign = min(said) if said else min(by_attempt.get(launch.number, launch.started), until)
        found.append(dataclasses.replace(launch, last_sign=max(sign, launch.started)))
    return found


def _next_starts(launches: Sequence[Launch]) -> list[float]:
    """When the next launch of the same thing began; infinity for the last. One of the whole run comes after any."""
    never = float("inf")
    following: dict[Place, float] = {}
    whole = any_place = never
    found = []
    for launch in reversed(launches):
        if launch.place is None:
            found.append(any_place)
            whole = launch.started
        else:
            found.append(min(following.get(launch.place, never), whole))
            following[launch.place] = launch.started
        any_place = launch.started
    return found[::-1]
