"""A process that ends with its parent: no rank outlives its launcher, however the launcher ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Asks Linux to SIGKILL this process when its parent, process `parent`, is gone; does so itself if it already is.

    The request outlives exec. Elsewhere than on Linux nothing is asked: there the run's lease finds orphans.
    The signal follows the thread that started this process, so a parent must start it from a thread that lasts.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
