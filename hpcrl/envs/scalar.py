"""Any scalar Gymnasium environment, one per lane, played in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs.episodes import ActionLog, EpisodeCounter, check_replayed
from hpcrl.envs.interface import Array, Restart, StepResult, VectorEnv, picture
from hpcrl.envs.spaces import ActionGate, ObservationGate, action_space_of, observation_space_of, start_of
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw


class ScalarEnvs(VectorEnv):
    """One scalar environment per lane; every episode is reset with its own key; restart level "replay" (or "fresh").

    Time limits are the environment's own (TimeLimit). A lane's bits depend on no other lane.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        name: str,
        lanes: range,
        seed: int,
        draw: Draw,
        *,
        restart: Restart = "replay",
        frame_stack: int = 1,
    ) -> None:
        self.name, self.lanes, self.restart, self.frame_stack = name, lanes, restart, frame_stack
        self._envs = [make() for _ in lanes]
        first = self._envs[0]
        self.observation_space = observation_space_of(first.observation_space, name)
        self.action_space = action_space_of(first.action_space, name)
        self.max_episode_steps = _time_limit(first)
        self._observe = ObservationGate(self.observation_space, start_of(first.observation_space), name)
        self._gate = ActionGate(
            self.action_space,
            start_of(first.action_space),
            len(lanes),
            name,
            getattr(first.action_space, "dtype", None),
        )
        self._counter = EpisodeCounter(name, lanes, seed, draw)
        self.episode, self.episode_step = self._counter.episode, self._counter.episode_step
        box = self.action_space.kind == "box"
        self._log = ActionLog(len(lanes), self.action_space.shape, "float32" if box else "int64")
        self._all_valid = np.ones(len(lanes), np.bool_)

    def _empty(self) -> Array:
        return np.empty((len(self.lanes), *self._observe.shape), self._observe.dtype)

    def reset(self) -> Array:
        self._counter.begin()
        return self._reset_all()

    def _reset_all(self) -> Array:
        """The lanes' current episodes from their first step."""
        self._log.clear()
        self.observations = self._empty()
        for index in range(len(self.lanes)):
            self.observations[index] = self._reset_lane(index)
        return self.observations

    def _reset_lane(self, index: int) -> Array:
        key = self._counter.key(index)
        try:
            observation, _ = self._envs[index].reset(seed=key)
        except Exception as error:
            error.add_note(f"in reset(seed={key}) of {self._where(index)}")
            raise
        return self._observe.one(observation)

    def _where(self, index: int) -> str:
        lane, episode, step = self.lanes[index], self.episode[index], self.episode_step[index]
        return f"{self.name}, lane {lane}, episode {episode}, step {step}"

    def _step_lane(self, index: int, action: Any) -> tuple[Array, float, bool, bool]:
        try:
            observation, reward, terminated, truncated, _ = self._envs[index].step(action)
        except Exception as error:
            error.add_note(f"in step({action!r}) of {self._where(index)}")
            raise
        return self._observe.one(observation), float(reward), bool(terminated), bool(truncated)

    def step(self, actions: Array) -> StepResult:
        num_lanes = len(self.lanes)
        played = self._gate(actions)
        self._log.append(actions)
        observations = final = self._empty()
        rewards = np.empty(num_lanes, np.float32)
        terminated, truncated = np.zeros(num_lanes, np.bool_), np.zeros(num_lanes, np.bool_)
        ended = []
        for index in range(num_lanes):
            observations[index], rewards[index], terminal, cut = self._step_lane(index, played[index])
            if terminal or cut:
                terminated[index], truncated[index] = terminal, not terminal
                ended.append(index)
        self.episode_step += 1
        if ended:
            observations = observations.copy()
            for index in ended:
                self._counter.next_episode(index)
                self._log.begin(index)
                observations[index] = self._reset_lane(index)
        self.observations = observations
        return StepResult(observations, rewards, terminated, truncated, final, self._all_valid)

    def save(self) -> Trajectories:
        return self._counter.save(self.observations, actions=self._log.save() if self.restart == "replay" else None)

    def restore(self, lanes: Trajectories) -> Array:
        if self.restart == "fresh":
            self._counter.restore(lanes)
            for index in range(len(self.lanes)):
                self._counter.next_episode(index)
            return self._reset_all()
        self._counter.restore(lanes, ("actions",))
        self._reset_all()
        self._log.restore(lanes.ragged["actions"])
        for index in range(len(self.lanes)):
            self._replay_lane(index, lanes)
        return self.observations

    def _replay_lane(self, index: int, lanes: Trajectories) -> None:
        actions = lanes.ragged["actions"][index]
        if len(actions) != self.episode_step[index]:
            raise InputError(
                f"{self.name}: saved lanes: lane {self.lanes[index]}: want {self.episode_step[index]} stored actions "
                f"(episode_step), given {len(actions)}; the lanes were saved by other code"
            )
        one_lane = ActionGate(self.action_space, self._gate.start, 1, self.name, self._gate.dtype)
        ended = False
        for action in actions:
            observation, _, terminated, truncated = self._step_lane(index, one_lane(action[None])[0])
            self.observations[index] = observation
            ended = terminated or truncated
            if ended:
                break
        check_replayed(self.name, lanes, index, self.observations[index], in_step=not ended)

    def render(self) -> npt.NDArray[np.uint8] | None:
        if self._envs[0].render_mode is None:
            return None
        return picture(self.name, lambda: self._envs[0].render())

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _time_limit(env: Any) -> int | None:
    """The step limit of the outermost TimeLimit wrapper, or of the registered id."""
    while env is not None:
        limit = getattr(env, "_max_episode_steps", None)
        if isinstance(limit, int):
            return limit
        env = getattr(env, "env", None)
    return None
