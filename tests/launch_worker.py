"""A rank that behaves as test_launch.py asks: `python -m mpi4py -m launch_worker BEHAVIOUR FOLDER [NUMBERS]`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hpcrl.comm import Collectives, leave, open_world
from hpcrl.signals import REQUEUE, StopFlag

PATIENCE_SECONDS = 40


def say_ready(world: Collectives, folder: Path) -> None:
    """Tells the test this rank's process and its parent's."""
    pids = {"pid": os.getpid(), "parent": os.getppid(), "cores": sorted(os.sched_getaffinity(0))}
    beside = folder / f"{world.rank}.tmp"
    beside.write_text(json.dumps(pids | {"environment": dict(os.environ)}))
    beside.rename(folder / f"ready-{world.rank}.json")


def wait_for_the_flag(world: Collectives, folder: Path) -> None:
    with StopFlag() as stop:
        say_ready(world, folder)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not stop.agreed(world):
            if time.monotonic() > deadline:
                leave(world, 1)
            time.sleep(0.01)
    (folder / f"stopped-{world.rank}").write_text(stop.reason)
    leave(world, REQUEUE)


def ignore_everything(world: Collectives, folder: Path) -> None:
    with StopFlag():
        say_ready(world, folder)
        time.sleep(PATIENCE_SECONDS)


def leave_early_and_late(world: Collectives, folder: Path) -> None:
    """Rank 0 wants to leave at once; rank 1 still has something to write."""
    if world.rank == 1:
        time.sleep(0.7)
        (folder / "late").write_text("written")
    leave(world, REQUEUE)


def end_one(world: Collectives, how: str) -> None:
    """Rank 1 ends in its own way while rank 0 waits for it."""
    if world.rank == 1:
        if how == "raise":
            raise RuntimeError("rank 1 has had enough")
        if how == "abort":
            world.abort(2)
        if how == "exit":
            sys.exit(2)
        os.kill(os.getpid(), getattr(signal, how))
    time.sleep(PATIENCE_SECONDS)


def main(behaviour: str, folder: Path, *numbers: str) -> None:
    if behaviour == "never-open":
        sys.exit(int(numbers[0]))
    world = open_world()
    if behaviour == "leave":
        say_ready(world, folder)
        leave(world, int(numbers[world.rank]))
    elif behaviour == "end-one":
        end_one(world, numbers[0])
    else:
        {"wait": wait_for_the_flag, "deaf": ignore_everything, "late": leave_early_and_late}[behaviour](world, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
