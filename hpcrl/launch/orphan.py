"""A rank that has lost its job: what had started it on its node is dead, so that nobody will ever end it."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Final

from hpcrl.signals import FAILED

GRACE_SECONDS: Final = 60.0
"""So long a rank may go on alone: what it publishes meanwhile is as good as another's."""


def end_when_orphaned(grace_seconds: float = GRACE_SECONDS, *, poll_seconds: float = 1.0) -> None:
    """Ends this process some time after its parent has died (SLURM's daemon for the job's step, or mpiexec's proxy).

    Its peers may have died with the parent, and it would wait for them for ever, with its memory and its GPU. SLURM has
    given the job up by then, and has started it elsewhere.

    Args:
        grace_seconds: from the parent's death to the end.
        poll_seconds: how often it looks.
    """
    parent = os.getppid()
    watch = threading.Thread(
        target=_watch, args=(parent, grace_seconds, poll_seconds), name="hpcrl-orphan", daemon=True
    )
    watch.start()


def _watch(parent: int, grace_seconds: float, poll_seconds: float) -> None:
    while os.getppid() == parent:
        time.sleep(poll_seconds)
    time.sleep(grace_seconds)
    # The main thread may wait inside MPI and never look at a flag; what it has not published is done again elsewhere.
    try:
        print(f"hpcrl job: what had started this process is dead since {grace_seconds:g} s: it ends", file=sys.stderr)
    finally:
        os._exit(FAILED)
