"""The units of a run played as jobs, and what manifests say of each. Reads the run folder, writes nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from hpcrl.pipeline import Pipeline, evaluation
from hpcrl.segments import ONLY, Need, Segment, is_one_world, needs, segment_of, segments
from hpcrl.store.ledger import Unit
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder

_SETTLED: Final = 64
"""So many finished iterations in a row, and those before them are taken for finished: a run has thousands, and the
shared file system answers slowly. The guard looks at all."""


class Units:
    """What is to be done, what is done, and what each unit needs; a picture of one moment."""

    def __init__(self, run: RunFolder, pipeline: Pipeline, *, thorough: bool = False) -> None:
        self.run, self.pipeline, self.thorough = run, pipeline, thorough
        self.segments = segments(pipeline)
        self.is_loop = is_one_world(pipeline)
        self._segment_of = segment_of(pipeline)
        self._done: dict[Need, bool] = {}

    def segment(self, unit: Unit) -> Segment:
        """The segment of a unit that is one iteration's. Raises: KeyError."""
        return next(segment for segment in self.segments if segment.name == unit.segment)

    def stages(self, unit: Unit) -> tuple[str, ...]:
        """What a unit plays: the stages of its segment that are due; all stages for a loop."""
        if unit.iteration is None:
            return tuple(stage.name for stage in self.pipeline.stages)
        due = {stage.name for stage in self.pipeline.stages if stage.due(unit.iteration)}
        return tuple(name for name in self.segment(unit).stages if name in due)

    def is_done(self, unit: Unit) -> bool:
        """Whether all of a unit is published."""
        if unit.iteration is None:
            return self.is_finished()
        return all(self._is_published(Need(unit.iteration, stage)) for stage in self.stages(unit))

    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return next(self._unfinished(), None) is None

    @functools.cached_property
    def last_iteration(self) -> int:
        """Where the run ends: where its newest evaluation says so, else where the pipeline does."""
        stage = evaluation(self.pipeline)
        for iteration in reversed(self.run.iterations()) if stage is not None and stage.stop_when is not None else ():
            assert stage is not None
            folder = self.run.stage(iteration, stage.name)
            manifest = folder.manifest() or folder.removed()
            if manifest is not None:
                return iteration if manifest.extra.get("stop") else self.pipeline.num_iterations - 1
        return self.pipeline.num_iterations - 1

    def pending(self, window: int) -> list[Unit]:
        """The units of the first `window` unfinished iterations that are not done, in the order in which they play."""
        if self.is_loop:
            return [] if self.is_finished() else [Unit(ONLY, None)]
        found = []
        for iteration, _ in zip(self._unfinished(), range(window), strict=False):
            units = [Unit(segment.name, iteration) for segment in self.segments]
            found += [unit for unit in units if self.stages(unit) and not self.is_done(unit)]
        return found

    def around(self, pending: list[Unit]) -> list[Unit]:
        """All units of the iterations of these and of the one before: jobs of done ones may still be there."""
        if self.is_loop:
            return pending
        iterations = [unit.iteration for unit in pending if unit.iteration is not None]
        window = range(max(min(iterations) - 1, 0), max(iterations) + 1)
        return [Unit(segment.name, iteration) for iteration in window for segment in self.segments]

    def reaches_the_end(self, pending: list[Unit]) -> bool:
        """Whether nothing comes after these units."""
        return any(unit.iteration is not None and unit.iteration >= self.last_iteration for unit in pending)

    def needs(self, unit: Unit) -> list[Unit]:
        """The units that must be done before this one can start, as far as they are not."""
        if unit.iteration is None:
            return []
        wanted = {
            Unit(self._segment_of[need.stage].name, need.iteration)
            for need in self._outer_needs(unit)
            if not self._is_published(need)
        }
        order = [segment.name for segment in self.segments]
        return sorted(wanted, key=lambda other: (other.iteration or 0, order.index(other.segment)))

    def is_ready(self, unit: Unit) -> bool:
        """Whether everything that a unit needs is published."""
        return unit.iteration is None or all(self._is_published(need) for need in self._outer_needs(unit))

    def unfinished_elements(self, unit: Unit) -> tuple[int, ...] | None:
        """Elements of an array some of whose blocks are missing; None where it is no array."""
        if unit.iteration is None or self.segment(unit).mesh.array == 1:
            return None
        count, num_blocks = self.segment(unit).mesh.array, self.pipeline.num_blocks
        found: set[int] = set()
        for stage in self.stages(unit):
            folder = self.run.stage(unit.iteration, stage)
            if not folder.is_done():
                published = folder.parts()
                for element in range(count):
                    # As StageContext.owned shares blocks out, over all ranks of an element.
                    blocks = range(element * num_blocks // count, (element + 1) * num_blocks // count)
                    if any(block not in published for block in blocks):
                        found.add(element)
        return tuple(sorted(found))

    def folders(self, unit: Unit) -> list[StageFolder]:
        """The stage folders in which a unit publishes; of a loop, those of its newest iteration."""
        newest = max(self.run.iterations(), default=0)
        iteration = newest if unit.iteration is None else unit.iteration
        return [self.run.stage(iteration, stage) for stage in self.stages(unit)]

    def _outer_needs(self, unit: Unit) -> Iterator[Need]:
        """What its stages need from other units."""
        own = self.stages(unit)
        assert unit.iteration is not None
        for stage in self.pipeline.stages:
            if stage.name in own:
                for need in needs(self.pipeline, stage, unit.iteration):
                    if need.iteration != unit.iteration or need.stage not in own:
                        yield need

    def _unfinished(self) -> Iterator[int]:
        """Unfinished iterations up to the run's end, ascending."""
        for iteration in range(self._first_open(), self.last_iteration + 1):
            if not self._is_iteration_done(iteration):
                yield iteration

    def _first_open(self) -> int:
        """An iteration before which all are finished."""
        if self.thorough:
            return 0
        newest = min(max(self.run.iterations(), default=0), self.last_iteration)
        first, in_a_row = newest, 0
        for iteration in range(newest, -1, -1):
            in_a_row = in_a_row + 1 if self._is_iteration_done(iteration) else 0
            first = iteration
            if in_a_row == _SETTLED:
                break
        return first

    def _is_iteration_done(self, iteration: int) -> bool:
        return all(
            self._is_published(Need(iteration, stage.name)) for stage in self.pipeline.stages if stage.due(iteration)
        )

    def _is_published(self, need: Need) -> bool:
        if not self._done.get(need, False):
            self._done[need] = self.run.stage(need.iteration, need.stage).is_done()
        return self._done[need]
