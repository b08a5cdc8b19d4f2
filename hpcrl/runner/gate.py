"""Before a stage starts: whether what it needs from other loops is published, on disk, where every loop can see it."""

from __future__ import annotations

import enum
import time
from pathlib import Path

from hpcrl.comm import Collectives
from hpcrl.pipeline import Pipeline
from hpcrl.runner.part import Part
from hpcrl.segments import Need, needs, policy_update, stops
from hpcrl.signals import StopFlag
from hpcrl.stages import Stage
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.writer import WriteBehind

_SHORTEST_PAUSE_SECONDS = 0.0005
_LONGEST_PAUSE_SECONDS = 1.0
_PAUSE_SHARE = 0.03
"""A wait looks again after this share of the time it has lasted: at most so much later than it could."""


class Passage(enum.Enum):
    """What a loop may do now."""

    READY = "ready"
    ENDED = "ended"
    """An evaluation has said that the run is over."""
    STOPPED = "stopped"
    """This loop, or another of this launch, was asked to stop."""
    MISSING = "missing"
    """Something is not there, and this loop does not wait."""


class Gate:
    """Lets a loop's stages through, one after another; collective over the loop's ranks."""

    def __init__(
        self,
        run: RunFolder,
        pipeline: Pipeline,
        part: Part,
        *,
        launch: int,
        comm: Collectives,
        stop: StopFlag,
        writer: WriteBehind,
    ) -> None:
        self.run, self.pipeline, self.part = run, pipeline, part
        self.comm, self.stop, self.writer = comm, stop, writer
        self._stopped = Path(run.path) / "launches" / f"launch-{launch:04d}.stopped"
        self._done: set[Need] = set()

    def wait(self, stage: Stage, iteration: int) -> Passage:
        """Returns when the stage may start, or should not.

        Raises: the first error of this rank's writing thread: what the others wait for may never be published.
        """
        wanted = [need for need in needs(self.pipeline, stage, iteration) if self._is_foreign(stage, iteration, need)]
        if not wanted:
            return Passage.READY
        began = time.monotonic()
        while True:
            seen = self._look(stage, iteration, wanted) if self.comm.rank == 0 else None
            passage = self.comm.broadcast(seen)
            if passage is not Passage.MISSING or not self.part.waits:
                assert passage is not None  # rank 0 always says something
                return passage
            self.writer.check()
            if self.stop.agreed(self.comm):
                return Passage.STOPPED
            pause = _PAUSE_SHARE * (time.monotonic() - began)
            time.sleep(min(max(pause, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS))

    def tell_others(self) -> None:
        """This loop was asked to stop: loops of the same launch that wait for it stop too. Rank 0 calls it."""
        if len(self.part.stages) < len(self.pipeline.stages):
            self._stopped.touch()

    def forget(self) -> None:
        """The launch is over: its word to stop goes. Rank 0 of the world calls it when all loops have left."""
        self._stopped.unlink(missing_ok=True)

    def _is_foreign(self, stage: Stage, iteration: int, need: Need) -> bool:
        """Whether this loop cannot know by itself that a need is met."""
        if not self.part.plays(need.stage) or (self.part.iteration is not None and need.iteration < iteration):
            return True
        # Its own update, but one that has been overtaken: the weights come from its checkpoint, written behind.
        return need == policy_update(self.pipeline, stage, iteration) and need.iteration < iteration - 1

    def _look(self, stage: Stage, iteration: int, wanted: list[Need]) -> Passage:
        if self._stopped.exists():
            return Passage.STOPPED
        for need in wanted:
            if need not in self._done:
                if not self.run.stage(need.iteration, need.stage).is_done():
                    return Passage.MISSING
                self._done.add(need)
        ended = any(self._says_stop(need) for need in stops(self.pipeline, stage, iteration))
        return Passage.ENDED if ended else Passage.READY

    def _says_stop(self, need: Need) -> bool:
        folder = self.run.stage(need.iteration, need.stage)
        manifest = folder.manifest() or folder.removed()
        return manifest is not None and bool(manifest.extra.get("stop"))
