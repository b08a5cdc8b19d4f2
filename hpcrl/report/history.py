"""The run as series over its iterations: steps, working time, returns, evaluations."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hpcrl.pipeline import evaluation
from hpcrl.report.launches import Launch
from hpcrl.report.record import RunRecord
from hpcrl.stages import Demonstrate, Score

EPISODES_PER_MEAN = 100
"""Episodes in the running mean, as in Stable-Baselines3's ep_rew_mean."""


class WorkingTime:
    """Seconds in which somebody worked on the run; pauses between launches do not count.

    A launch counts from its start to the last stage it published: a killed one leaves no later sign. Jobs that work
    at the same time count once.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        self._starts: list[float] = []
        self._stops: list[float] = []
        for start, stop in sorted((launch.started, launch.last_sign) for launch in launches):
            if self._stops and start <= self._stops[-1]:
                self._stops[-1] = max(self._stops[-1], stop)
            else:
                self._starts.append(start)
                self._stops.append(stop)
        lengths = (stop - start for start, stop in zip(self._starts, self._stops, strict=True))
        self._before = [0.0, *itertools.accumulate(lengths)]

    def __call__(self, moment: float) -> float:
        """Working seconds until a moment (seconds since 1970)."""
        index = bisect.bisect_right(self._starts, moment)
        if not index:
            return 0.0
        return self._before[index - 1] + min(moment, self._stops[index - 1]) - self._starts[index - 1]

    @property
    def total(self) -> float:
        return self._before[-1]


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What one iteration added."""

    number: int
    steps: int
    """Environment steps of its rollout; offline, steps that its update trained on."""
    steps_so_far: int
    ended: float
    """When its last published stage had computed, seconds since 1970."""
    working_seconds: float
    """Working time until then."""
    seconds: Mapping[str, float]
    """Stage -> how long it computed."""
    returns: Sequence[float]
    """Undiscounted returns of the episodes that ended in its rollout."""
    lengths: Sequence[int]
    """Their lengths in steps."""
    update: Mapping[str, Any]
    """What the training stage published: losses and the other statistics."""
    evaluation: Mapping[str, Any] | None
    """What its evaluation published."""


@dataclasses.dataclass(frozen=True)
class History:
    """All iterations that published anything, oldest first."""

    iterations: tuple[Iteration, ...]
    working_seconds: float

    @classmethod
    def of(cls, record: RunRecord) -> History:
        """Derived from published manifests alone."""
        working_time = WorkingTime(record.launches)
        trained = [stage.name for stage in record.pipeline.stages if stage.trains is not None]
        evaluating = evaluation(record.pipeline)
        acting = [stage.name for stage in record.pipeline.stages if stage.acts or isinstance(stage, Demonstrate)]
        scoring = [stage.name for stage in record.pipeline.stages if isinstance(stage, Score)]
        by_iteration: dict[int, dict[str, Any]] = {}
        for stage in record.stages:
            by_iteration.setdefault(stage.iteration, {})[stage.stage] = stage
        found: list[Iteration] = []
        steps_so_far = 0
        for number, stages in sorted(by_iteration.items()):
            rollout = next((stages[name] for name in acting if name in stages), None)
            scored = next((stages[name] for name in scoring if name in stages), rollout)
            update: Mapping[str, Any] = next((stages[name].facts for name in reversed(trained) if name in stages), {})
            evaluated = stages.get(evaluating.name) if evaluating is not None else None
            steps = rollout.manifest.rows if rollout is not None else 0
            if not acting:
                steps = int(update.get("steps", 0))
            steps_so_far += steps
            ended = max(stage.ended for stage in stages.values())
            found.append(
                Iteration(
                    number=number,
                    steps=steps,
                    steps_so_far=steps_so_far,
                    ended=ended,
                    working_seconds=working_time(ended),
                    seconds={name: stage.seconds for name, stage in stages.items()},
                    returns=scored.facts.get("episode_returns", ()) if scored is not None else (),
                    lengths=scored.facts.get("episode_lengths", ()) if scored is not None else (),
                    update=update,
                    evaluation=evaluated.facts if evaluated is not None else None,
                )
            )
        return cls(tuple(found), working_time.total)

    @property
    def steps(self) -> int:
        return self.iterations[-1].steps_so_far if self.iterations else 0

    @property
    def episodes(self) -> int:
        return sum(len(iteration.returns) for iteration in self.iterations)

    @property
    def evaluated(self) -> list[Iteration]:
        """Iterations with an evaluation."""
        return [iteration for iteration in self.iterations if iteration.evaluation is not None]

    @property
    def best_evaluation(self) -> Iteration | None:
        """The one with the highest mean return; the first of equals."""
        return max(self.evaluated, key=evaluation_mean, default=None)

    def newest_episodes(self, field: str = "returns") -> list[list[float]]:
        """After each iteration, the newest 100 finished episodes.

        Args: field: "returns" or "lengths".
        """
        newest: list[float] = []
        found = []
        for iteration in self.iterations:
            newest = [*newest, *getattr(iteration, field)][-EPISODES_PER_MEAN:]
            found.append(newest)
        return found

    def running_means(self, field: str = "returns") -> list[float | None]:
        """Mean of the newest 100 finished episodes after each iteration; None before the first one ended."""
        return [sum(newest) / len(newest) if newest else None for newest in self.newest_episodes(field)]

    def durations(self) -> list[float]:
        """Working seconds of each iteration, from the end of the one before it."""
        ends = [0.0, *(iteration.working_seconds for iteration in self.iterations)]
        return [after - before for before, after in itertools.pairwise(ends)]


def evaluation_mean(iteration: Iteration) -> float:
    """Mean return of an iteration's evaluation."""
    assert iteration.evaluation is not None  # asked only of iterations in `evaluated`
    return float(iteration.evaluation["return_mean"])
