"""Stage to stage inside a world: from the end of one stage's `run` to the first input of the next.

Limits: at most 5 ms with write-behind, at most 50 ms with fsync in the path (`--handoff disk`: written, fsynced,
published, read back and verified). Fields of 4 blocks of a CartPole-sized iteration, and of 32 MiB in all.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from harness import Bench, Result, add_arguments

from hpcrl.comm import SingleProcess
from hpcrl.data import Trajectories
from hpcrl.envs import EnvDescription, Space
from hpcrl.pipeline import Pipeline
from hpcrl.runner import Launch, Prepared
from hpcrl.runner.loop import Loop
from hpcrl.runner.position import find_position
from hpcrl.signals import StopFlag
from hpcrl.stages import Stage, StageContext
from hpcrl.store.retention import Keep
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.writer import WriteBehind

_left: list[float] = []
_gaps: list[float] = []


@dataclasses.dataclass(frozen=True)
class Make(Stage):
    """Emits one field per block."""

    name: ClassVar[str] = "make"
    num_steps: int

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ("rewards",)

    def run(self, context: StageContext) -> None:
        offsets = np.array([0, self.num_steps], np.int64)
        for block in context.owned:
            rewards = np.full(self.num_steps, float(context.iteration), np.float32)
            context.output.emit(block, Trajectories(offsets, {"rewards": rewards}))
        _left.append(time.perf_counter())


@dataclasses.dataclass(frozen=True)
class Take(Stage):
    """Reads them."""

    name: ClassVar[str] = "take"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("rewards",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ()

    def run(self, context: StageContext) -> None:
        for block in context.owned:
            assert context.inputs(block)["rewards"][0] == context.iteration
        _gaps.append(time.perf_counter() - _left[-1])
        # The stage's own work: longer than writing takes, as in a run, so that the queue is empty again.
        time.sleep(0.1)
        context.output.emit_facts({})


def median_gap(num_steps: int, handoff: str, folder: Path, iterations: int) -> float:
    """Median seconds between the two stages."""
    pipeline = Pipeline(
        name="handoff",
        num_iterations=iterations,
        stages=[Make(num_steps), Take()],
        keep=Keep(rollouts=1, checkpoints=None),
    )
    description = EnvDescription(Space("discrete", n=2), Space("discrete", n=2), 1, "state", None)
    run = RunFolder.create(folder, {"pipeline": {}})
    _gaps.clear()
    launch = Launch(run=folder, handoff="disk" if handoff == "disk" else "memory", quiet=True)
    with StopFlag() as stop, WriteBehind() as writer:
        Loop(
            Prepared(pipeline, description, run),
            launch,
            number=1,
            position=find_position(run, pipeline),
            comm=SingleProcess(),
            stop=stop,
            writer=writer,
        ).play()
    return statistics.median(_gaps[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=21)
    add_arguments(parser, repeats=None)
    arguments = parser.parse_args()
    bench = Bench()
    rows = []
    for name, num_steps in (("4 blocks of 256 steps", 256), ("4 blocks of 8 MiB", 2 << 20)):
        for handoff, limit in (("memory", 0.005), ("disk", 0.050)):
            parent = Path(tempfile.mkdtemp(dir=".", prefix="handoff-"))
            try:
                seconds = median_gap(num_steps, handoff, parent / "run", arguments.iterations)
            finally:
                shutil.rmtree(parent)
            rows.append({"fields": name, "handoff": handoff, "ms": seconds * 1e3, "limit ms": limit * 1e3})
    worst = max(float(row["ms"]) / float(row["limit ms"]) for row in rows[:2])
    bench.publish(
        Result(
            name="handoff",
            rows=rows,
            peer="the limits 5 ms (write-behind) and 50 ms (fsync in the path)",
            ratio=worst,
            wanted="at most 1 for a CartPole-sized iteration",
            met=worst <= 1,
        ),
        arguments.json,
    )


if __name__ == "__main__":
    main()
