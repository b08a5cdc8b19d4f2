"""`hpcrl` on a node that has a name of its own, waiting at a kill point until a test lets it go on.

    python -m tests.slurm.paused POINT[:N] FILE job RUN ...

At the N-th passage of the point it makes FILE.reached, and goes on when FILE is there or it has been asked to stop.
The nodes of the test cluster are one machine; here each has the host name that SLURM gives it, so that a process of
another node cannot be looked up or ended, as on a real cluster.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from hpcrl.signals import StopFlag
from hpcrl.store import killpoints

LONGEST_SECONDS = 180.0
"""A test that failed never lets go on; its processes end all the same."""

_asked_to_stop = threading.Event()


class Pause:
    """In place of the killer of `killpoints`: waits where that would kill."""

    def __init__(self, target: str, file: Path) -> None:
        self.point, _, passage = target.partition(":")
        assert self.point in killpoints.ALL_POINTS, target
        self.passage, self.file = int(passage or 1), file
        self.passed: Counter[str] = Counter()

    def reach(self, point: str) -> None:
        self.passed[point] += 1
        if point != self.point or self.passed[point] != self.passage:
            return
        self.file.with_name(f"{self.file.name}.reached").touch()
        deadline = time.monotonic() + LONGEST_SECONDS
        while not (self.file.exists() or _asked_to_stop.is_set()):
            assert time.monotonic() < deadline, f"{self.file}: nobody lets it go on"
            time.sleep(0.05)


def main() -> int:
    target, file, *arguments = sys.argv[1:]
    handle = StopFlag._handle

    def note(flag: StopFlag, number: int, frame: FrameType | None) -> None:
        handle(flag, number, frame)
        _asked_to_stop.set()

    StopFlag._handle = note  # type: ignore[method-assign]
    platform.node = lambda: os.environ["SLURMD_NODENAME"]
    killpoints._killer = Pause(target, Path(file))  # type: ignore[assignment]
    sys.argv = ["hpcrl", *arguments]
    from hpcrl.cli import main as hpcrl

    return hpcrl(arguments)


if __name__ == "__main__":
    sys.exit(main())
