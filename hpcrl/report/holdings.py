"""Who holds a run's leases: one for the run, or one for each of its jobs, and whether they live."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpcrl.report.wording import plural, seconds_text
from hpcrl.store.lease import Holder

HEARTBEAT_STALE_SECONDS = 60.0
"""A holder on another host counts as gone after this, as when a lease is taken over."""
_LEASE = "lease"


@dataclasses.dataclass(frozen=True)
class Holding:
    """One lease and who holds it, dead or alive."""

    name: str
    """UNIT or UNIT_ELEMENT of a job; empty for the run's own lease."""
    path: Path
    holder: Holder

    def is_held(self) -> bool | None:
        """Whether its holder lives: yes, no, or None where only another host could tell and the heartbeat is stale."""
        if self.holder.process.is_local():
            return self.holder.is_alive
        return True if self.heartbeat_age() < HEARTBEAT_STALE_SECONDS else None

    def heartbeat_age(self) -> float:
        """Seconds since the lease was last touched; 0 when it was given back meanwhile."""
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    @property
    def text(self) -> str:
        """Who holds it, since when, and whether it lives."""
        job = f", job {self.holder.job}" if self.holder.job else ""
        alive = {
            True: "alive",
            False: "dead",
            None: f"on another host, last heartbeat {seconds_text(self.heartbeat_age())} ago",
        }[self.is_held()]
        return f"{self.holder.process}{job}, since {self.holder.since}, {alive}"


def read_holdings(run_path: Path, wanted: Callable[[str], bool] = lambda name: True) -> tuple[Holding, ...]:
    """The run's own lease first, then those of its jobs by name.

    Args: wanted: which jobs' leases are looked at, by UNIT or UNIT_ELEMENT.
    Raises: CorruptFileError naming a damaged lease.
    """
    try:
        names = sorted(filter(wanted, os.listdir(run_path / "leases")))
    except FileNotFoundError:
        names = []
    places = [("", run_path / _LEASE), *((name, run_path / "leases" / name / _LEASE) for name in names)]
    found = []
    for name, path in places:
        try:
            found.append(Holding(name, path, Holder.read(path)))
        except FileNotFoundError:  # nobody holds it, or it was given back meanwhile
            continue
    return tuple(found)


def is_any_held(holdings: Sequence[Holding]) -> bool | None:
    """Whether somebody works on the run: yes, no, or None where no holder is known to live and one may."""
    states = [holding.is_held() for holding in holdings]
    if True in states:
        return True
    return None if None in states else False


def holdings_text(holdings: Sequence[Holding]) -> str:
    """One line about all leases."""
    if not holdings:
        return "nobody"
    if len(holdings) == 1:
        only = holdings[0]
        return f"{only.name}: {only.text}" if only.name else only.text
    alive = sum(holding.is_held() is True for holding in holdings)
    hosts = sorted({holding.holder.process.host for holding in holdings})
    shown = ", ".join(hosts[:6]) + (f" and {len(hosts) - 6} more" if len(hosts) > 6 else "")
    gone = len(holdings) - alive
    rest = f"; {plural(gone, 'lease')} without a living holder" if gone else ""
    return f"{plural(alive, 'holder')} alive on {shown}{rest}"
