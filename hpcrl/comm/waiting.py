"""How a rank waits: it spins for a moment, then sleeps between looks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

_FIRST_SLEEP_SECONDS = 20e-6  # Linux adds about 50 us of timer slack, so a shorter one would not be shorter
_SLEEP_GROWTH = 1.25


@dataclass(frozen=True)
class Waiting:
    """Spin, then sleep-poll. MPI's own blocking calls burn a core for as long as they wait; these do not.

    Example:
        >>> looks = iter([False, False, True])
        >>> Waiting(spin_seconds=0.0).until(lambda: next(looks))
    """

    spin_seconds: float = 100e-6
    """How long to look without sleeping. Covers the tree sums of a small model, whose peer is microseconds away; the
    core is offered to others between looks, so that more ranks than cores still move."""
    longest_sleep_seconds: float = 2e-3
    """Sleeps grow to this: a wait of minutes costs well under 1 % of a core and ends at most this late."""

    def until(self, is_ready: Callable[[], bool]) -> None:
        """Returns once `is_ready()` is true."""
        if is_ready():
            return
        deadline = time.perf_counter() + self.spin_seconds
        while time.perf_counter() < deadline:
            os.sched_yield()
            if is_ready():
                return
        pause = min(_FIRST_SLEEP_SECONDS, self.longest_sleep_seconds)
        while not is_ready():
            time.sleep(pause)
            pause = min(pause * _SLEEP_GROWTH, self.longest_sleep_seconds)
