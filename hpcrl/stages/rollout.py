"""The rollout stage: every block's environments played for a fixed number of steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from hpcrl.data import Blocks, Ending, Trajectories
from hpcrl.envs import EnvDescription, VectorEnv, describe_env, make_env
from hpcrl.errors import InputError
from hpcrl.models import Policy
from hpcrl.stages.batch import final_observations
from hpcrl.stages.packing import FinishedEpisodes, RolloutBuffer
from hpcrl.stages.random_policy import RandomPolicy
from hpcrl.stages.stage import Stage, StageContext, StageInterruptedError

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout(Stage):
    """Plays `num_envs` lanes for `num_steps` steps each; episodes go on where the previous iteration left them.

    Writes packed trajectories, one shard per block; a lane's open episode is cut at the end and continues in the next.
    Raises: InputError for a count below 1 or an unknown policy; for the environment, what `make_env` raises.
    """

    name: ClassVar[str] = "rollout"
    by_block: ClassVar[bool] = True
    acts: ClassVar[bool] = True

    env: str
    """A Gymnasium id, `ALE/...`, `envpool:...`, or `module:attribute` of your own."""
    num_envs: int = 8
    """Environments stepped in parallel, over all blocks; divisible by the pipeline's num_blocks."""
    num_steps: int = 128
    """Steps per environment and iteration."""
    env_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Options of the environment's adapter (docs/environments.md)."""
    env_threads: int = 1
    """Threads of an engine that has its own (ALE, EnvPool), per block."""
    model: str = "actor"
    """The role that acts."""
    policy: Literal["model", "random"] = "model"
    """"random" draws actions uniformly and asks no network: for measuring and for data sets."""
    mesh: str = "main"
    """The mesh on which it runs."""

    def __post_init__(self) -> None:
        for field in ("num_envs", "num_steps", "env_threads"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"Rollout.{field}: want a whole number >= 1, given {value!r}")
        if self.policy not in ("model", "random"):
            raise InputError(f"Rollout.policy: want 'model' or 'random', given {self.policy!r}")

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ("observations", "actions", "rewards", "values", "log_probs", "bootstrap_values", "ending")

    @property
    def role(self) -> str | None:
        return self.model if self.policy == "model" else None

    def describe(self) -> EnvDescription:
        """Spaces, frame stack and restart level of the environment; makes and closes one."""
        return describe_env(self.env, self.env_options)

    def run(self, context: StageContext) -> None:
        blocks = Blocks(context.num_blocks, self.num_envs)
        todo = [block for block in context.owned if block not in context.output.finished_blocks()]
        policy, version = self._policy(context)
        started = time.perf_counter()
        players = [_BlockPlayer(self, context, policy, block, blocks.lanes(block)) for block in todo]
        for t in range(self.num_steps):
            if context.stop_requested():
                # An unfinished rollout keeps nothing: it is played again from the lanes, with the same bits.
                for player in players:
                    player.abandon()
                raise StageInterruptedError
            for player in players:
                player.finish_step(t - 1)
                player.begin_step(t)
            context.tick("rollout", t + 1, self.num_steps)
        episodes = [player.emit(version) for player in players]
        context.output.log(_summary(players, episodes, time.perf_counter() - started))

    def _policy(self, context: StageContext) -> tuple[Policy, int]:
        assert context.description is not None  # the runner describes every pipeline that has a Rollout
        if self.policy == "random":
            return RandomPolicy(context.description.action_space), 0
        resident = context.residents.get(self.model)
        return resident.actor_critic, resident.version


class _BlockPlayer:
    """One block in play: its environments, its buffer, the observation it stands at."""

    def __init__(self, stage: Rollout, context: StageContext, policy: Policy, block: int, lanes: range) -> None:
        from hpcrl.ops.random import Draw, normals, uniforms

        self.stage, self.context, self.policy, self.block = stage, context, policy, block
        self.lane = np.arange(lanes.start, lanes.stop, dtype=np.int64)
        self.environment, self.start, self.observations = self._open(lanes)
        running = self.start.per_trajectory.get("episode_return")
        if running is None:
            running = np.zeros(len(lanes), np.float64)
        stack = self.environment.frame_stack
        self.buffer = RolloutBuffer(stage.num_steps, self.observations, stack, running)
        count = policy.random_numbers_per_action
        draw = normals if policy.random_kind == "normal" else uniforms
        # Counter = (lane, step of the rollout, iteration, draw): the same numbers on any number of ranks.
        flat = draw(
            context.seed,
            np.tile(self.lane, stage.num_steps),
            step=np.repeat(np.arange(stage.num_steps), len(lanes)),
            iteration=context.iteration,
            draw=Draw.ACTION,
            count=count,
        )
        self.random_numbers = flat.reshape(stage.num_steps, len(lanes), count)

    def _open(self, lanes: range) -> tuple[VectorEnv, Trajectories, Array]:
        """The block's environments where the previous iteration left them: live, restored, or reset."""
        context, stage = self.context, self.stage
        key = (stage.name, self.block)
        previous = context.previous_lanes(self.block)
        live = context.environments.live.pop(key, None)
        if live is not None and previous is not None and live[1] == context.iteration - 1:
            environment = live[0]
            return environment, previous, environment.observations
        if live is not None:
            live[0].close()
        environment = make_env(
            stage.env, lanes=lanes, seed=context.seed, options=stage.env_options, num_threads=stage.env_threads
        )
        if previous is None:
            observations = environment.reset()
            return environment, environment.save(), observations
        return environment, previous, environment.restore(previous)

    def begin_step(self, t: int) -> None:
        actions, log_probs, values = self.policy.act(self.observations, self.random_numbers[t])
        self.buffer.record_decision(t, self.observations, actions, log_probs, values)
        self.environment.send(actions)

    def finish_step(self, t: int) -> None:
        if t < 0:
            return
        result = self.environment.receive()
        self.observations = result.observations
        self.buffer.record_outcome(
            t,
            result.observations,
            result.rewards,
            result.terminated,
            result.truncated,
            result.final_observations,
            result.valid,
        )

    def abandon(self) -> None:
        self.environment.close()

    def emit(self, version: int) -> FinishedEpisodes:
        self.finish_step(self.stage.num_steps - 1)
        episode = cast(Int64, self.start["episode"])
        episode_step = cast(Int64, self.start["episode_step"])
        packed, episodes, running = self.buffer.pack(self.lane, episode, episode_step)
        self._refuse_numbers_that_are_none(packed)
        packed = packed.with_fields(
            per_trajectory={
                "bootstrap_values": self._bootstrap_values(packed),
                "policy_version": np.full(packed.num_trajectories, version, np.int64),
            }
        )
        lanes = self.environment.save().with_fields(per_trajectory={"episode_return": running})
        self.context.environments.live[self.stage.name, self.block] = (self.environment, self.context.iteration)
        self.context.output.emit(
            self.block,
            packed,
            lanes=lanes,
            facts={"episode_returns": episodes.returns.tolist(), "episode_lengths": episodes.lengths.tolist()},
        )
        return episodes

    def _refuse_numbers_that_are_none(self, packed: Trajectories) -> None:
        """One NaN from an environment would turn every weight into NaN.

        Raises: FloatingPointError naming where the number came from.
        """
        for name in ("rewards", "observations"):
            values = packed.steps.get(name)
            if values is None or values.dtype.kind != "f" or np.isfinite(values).all():
                continue
            step = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
            trajectory = int(np.searchsorted(packed.offsets, step, side="right")) - 1
            given = values[step][~np.isfinite(values[step])].flat[0]
            raise FloatingPointError(
                f"{name}: want finite numbers, given {given} from "
                f"{self.stage.env}, lane {packed['lane'][trajectory]}, episode {packed['episode'][trajectory]}, step "
                f"{packed['episode_step'][trajectory] + step - packed.offsets[trajectory]}; mend the environment"
            )

    def _bootstrap_values(self, packed: Trajectories) -> Array:
        """V(final observation) where the trajectory did not terminate, 0 where it did; f32[num_trajectories]."""
        bootstrap = np.zeros(packed.num_trajectories, np.float32)
        open_ended = np.flatnonzero(packed["ending"] != Ending.TERMINATED)
        if len(open_ended):
            bootstrap[open_ended] = self.policy.values(final_observations(packed)[open_ended])
        return bootstrap


def _summary(players: list[_BlockPlayer], episodes: list[FinishedEpisodes], seconds: float) -> dict[str, object]:
    steps = int(sum(player.buffer.valid.sum() for player in players))
    returns = np.concatenate([block.returns for block in episodes]) if episodes else np.zeros(0)
    return {
        "steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds if seconds > 0 else 0.0,
        "episodes": len(returns),
        "episode_return_mean": float(returns.mean()) if len(returns) else None,
    }
