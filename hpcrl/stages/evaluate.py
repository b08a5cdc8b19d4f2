"""The evaluation stage: whole episodes with a pinned model, on lanes and random numbers of its own."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from hpcrl.envs import VectorEnv, make_env
from hpcrl.errors import InputError
from hpcrl.models import Policy
from hpcrl.stages.stage import RolloutSource, Stage, StageContext, StageInterruptedError

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Reached:
    """A stopping rule: a metric at or above a threshold in a number of consecutive evaluations.

    Raises: InputError for an unknown metric or times < 1.
    """

    metric: Literal["return", "length"]
    """Mean over the episodes of one evaluation."""
    threshold: float
    times: int = 1
    """Consecutive evaluations that must reach it."""

    def __post_init__(self) -> None:
        if self.metric not in ("return", "length"):
            raise InputError(f"Reached.metric: want 'return' or 'length', given {self.metric!r}")
        if self.times < 1:
            raise InputError(f"Reached.times: want a whole number >= 1, given {self.times}")

    def holds(self, means: list[float]) -> bool:
        """Whether the newest `times` means (newest first) all reach the threshold."""
        return len(means) >= self.times and all(mean >= self.threshold for mean in means[: self.times])


class Evaluation(Stage):
    """A stage that measures a model and may stop the run; its facts hold `return_mean`, `length_mean` and `stop`."""

    every: int
    stop_when: Reached | None

    @property
    def name(self) -> str:
        return "evaluate"

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ()

    def due(self, iteration: int) -> bool:
        return super().due(iteration) and (iteration + 1) % self.every == 0

    def stops(self, context: StageContext, facts: Mapping[str, object]) -> bool:
        """Whether the stopping rule holds for these facts and those of the evaluations before."""
        if self.stop_when is None:
            return False
        key = f"{self.stop_when.metric}_mean"
        earlier = itertools.islice(context.earlier_facts(self.name), self.stop_when.times - 1)
        return self.stop_when.holds([cast(float, facts[key]), *(cast(float, row[key]) for row in earlier)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Evaluation):
    """Plays `episodes` episodes with the model as it stands, every `every` iterations; may stop the run.

    Never touches the training lanes or their random numbers. Its manifest holds every return and length, and whether
    the stopping rule holds, so that a later job finds the decision.
    Raises: InputError for a count below 1.
    """

    every: int = 10
    """Evaluate after every n-th iteration."""
    episodes: int = 20
    """Episodes, one per lane."""
    greedy: bool = True
    """The most likely action (the mean of a Gaussian) instead of a drawn one."""
    env: str | None = None
    """Another environment than the rollout's."""
    env_options: Mapping[str, object] | None = None
    """Other options than the rollout's."""
    model: str = "actor"
    """The role that acts."""
    stop_when: Reached | None = None
    """Ends the run when it holds."""
    max_steps: int = 100_000
    """Episodes still open after so many steps count with what they had."""
    mesh: str = "main"
    """The mesh on which it runs."""

    def __post_init__(self) -> None:
        for field in ("every", "episodes", "max_steps"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"Evaluate.{field}: want a whole number >= 1, given {value!r}")

    @property
    def role(self) -> str | None:
        return self.model

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        gathered = self._gather(context)
        returns = [value for block in gathered for value in block[0]]
        lengths = [value for block in gathered for value in block[1]]
        env, _ = self.played(context.rollout)
        if not np.isfinite(returns).all():
            raise FloatingPointError(f"rewards: want finite numbers, given a return that is none from {env}; mend it")
        facts: dict[str, object] = {
            "returns": returns,
            "lengths": lengths,
            "return_mean": float(np.mean(returns)),
            "length_mean": float(np.mean(lengths)),
            "seconds": time.perf_counter() - started,
        }
        facts["stop"] = self.stops(context, facts)
        context.output.log({key: value for key, value in facts.items() if key not in ("returns", "lengths")})
        context.output.emit_facts(facts)

    def _gather(self, context: StageContext) -> list[tuple[list[float], list[int]]]:
        """Returns and lengths of every block, on every rank. A rank that was interrupted still joins the gathering."""
        played: list[tuple[list[float], list[int]]] | None
        try:
            played = [self._play_block(context, lanes) for lanes in self._lanes(context)]
        except StageInterruptedError:
            played = None
        everyone = context.comm.all_gather(played)
        if any(part is None for part in everyone):
            raise StageInterruptedError
        return [block for part in everyone if part is not None for block in part]

    def played(self, rollout: RolloutSource | None) -> tuple[str, Mapping[str, object]]:
        """The environment it plays and its options: its own, else the rollout's."""
        if rollout is None:
            assert self.env is not None  # the graph check
            return self.env, self.env_options or {}
        return self.env or rollout.env, rollout.env_options if self.env_options is None else self.env_options

    def _lanes(self, context: StageContext) -> list[range]:
        """This rank's blocks of evaluation lanes: as many blocks as the run has, the last ones may be empty."""
        per_block = -(-self.episodes // context.num_blocks)
        starts = [min(block * per_block, self.episodes) for block in range(context.num_blocks + 1)]
        ranges = [range(starts[block], starts[block + 1]) for block in context.owned]
        return [lanes for lanes in ranges if len(lanes)]

    def _play_block(self, context: StageContext, lanes: range) -> tuple[list[float], list[int]]:
        from hpcrl.ops.random import Draw

        env, options = self.played(context.rollout)
        # Lanes of an evaluation are keyed by iteration too, so that every evaluation draws new starts.
        offset = context.iteration * self.episodes
        environment = make_env(
            env,
            lanes=range(lanes.start + offset, lanes.stop + offset),
            seed=context.seed,
            options=options,
            draw=Draw.EVALUATE_RESET,
        )
        try:
            return self._play(context, environment, context.residents.get(self.model).actor_critic, lanes)
        finally:
            environment.close()

    def _play(
        self, context: StageContext, environment: VectorEnv, policy: Policy, lanes: range
    ) -> tuple[list[float], list[int]]:
        from hpcrl.ops.random import Draw, normals, uniforms

        draw = normals if policy.random_kind == "normal" else uniforms
        count = policy.random_numbers_per_action
        lane = np.arange(lanes.start, lanes.stop, dtype=np.int64)
        numbers: Array = np.zeros((len(lanes), count))
        returns, lengths = np.zeros(len(lanes), np.float64), np.zeros(len(lanes), np.int64)
        is_open = np.ones(len(lanes), np.bool_)
        observations = environment.reset()
        for step in range(self.max_steps):
            if step % 64 == 0 and context.stop_requested():
                raise StageInterruptedError
            if not self.greedy:
                numbers = draw(
                    context.seed, lane, step=step, iteration=context.iteration, draw=Draw.EVALUATE_ACTION, count=count
                )
            actions, _, _ = policy.act(observations, numbers, greedy=self.greedy)
            result = environment.step(actions)
            counted = is_open & result.valid
            returns[counted] += result.rewards[counted]
            lengths[counted] += 1
            is_open &= ~(result.valid & (result.terminated | result.truncated))
            if not is_open.any():
                break
            observations = result.observations
        return returns.tolist(), lengths.tolist()
