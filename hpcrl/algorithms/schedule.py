"""How a knob moves over a run."""

from __future__ import annotations

import math
from typing import Literal, get_args

from hpcrl.errors import InputError

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def scheduled_share(schedule: Schedule, progress: float) -> float:
    """Share of a knob's first value at `progress` of the run.

    constant: 1; linear: 1 - p; cosine: (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983, one period).

    Args:
        progress: iterations done / iterations planned, in [0, 1].
    Raises:
        InputError: progress outside [0, 1].

    >>> [scheduled_share(name, 0.25) for name in ("constant", "linear")]
    [1.0, 0.75]
    """
    if not 0.0 <= progress <= 1.0:
        raise InputError(f"progress: want a number in [0, 1], given {progress}")
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
