"""Any Gymnasium vector environment with an engine of its own, whatever its autoreset mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs.episodes import EpisodeCounter
from hpcrl.envs.interface import Array, Bool, StepResult, VectorEnv, picture
from hpcrl.envs.spaces import ActionGate, ObservationGate, action_space_of, observation_space_of, start_of
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw


class NativeEnvs(VectorEnv):
    """A vector environment whose state cannot be taken out; restart level "fresh".

    Autoreset as `metadata["autoreset_mode"]` says. NextStep: the step after an ending only resets; it comes back with
    `valid` False. SameStep: the ending's observation is taken from `infos["final_obs"]`. Disabled: the ended lanes are
    reset at once through `options["reset_mask"]`.
    """

    restart = "fresh"

    def __init__(self, engine: Any, name: str, lanes: range, seed: int, draw: Draw) -> None:
        self.name, self.lanes, self._engine = name, lanes, engine
        spaces = engine.single_observation_space, engine.single_action_space
        self._open_gates(*spaces)
        limit = getattr(engine, "max_episode_steps", None)
        self.max_episode_steps = limit if isinstance(limit, int) else None
        self._mode = _autoreset_mode(engine, name)
        self._counter = EpisodeCounter(name, lanes, seed, draw)
        self.episode, self.episode_step = self._counter.episode, self._counter.episode_step
        self._ended = np.zeros(len(lanes), np.bool_)

    def _open_gates(self, observations: Any, actions: Any) -> None:
        self.observation_space = observation_space_of(observations, self.name)
        self.action_space = action_space_of(actions, self.name)
        self._observe = ObservationGate(self.observation_space, start_of(observations), self.name)
        dtype = getattr(actions, "dtype", None)
        self._gate = ActionGate(self.action_space, start_of(actions), len(self.lanes), self.name, dtype)

    def reset(self) -> Array:
        self._counter.begin()
        return self._begin_episodes()

    def _begin_episodes(self) -> Array:
        """All lanes at the first step of their current episodes; one key for all, for the engine has one generator."""
        self._ended[:] = False
        key = self._counter.key(int(np.argmax(self.episode)))
        observations, _ = self._engine.reset(seed=key)
        self.observations = self._observe.batch(observations, len(self.lanes))
        return self.observations

    def step(self, actions: Array) -> StepResult:
        return self._read(*self._engine.step(self._gate(actions)))

    def _read(self, observations: Any, rewards: Any, terminated: Any, truncated: Any, infos: Any) -> StepResult:
        """The engine's answer, with what its autoreset mode hides put right."""
        current = final = self._observe.batch(observations, len(self.lanes))
        valid = ~self._ended
        rewards = np.where(valid, rewards, 0.0).astype(np.float32)
        terminated = np.asarray(terminated, np.bool_) & valid
        truncated = np.asarray(truncated, np.bool_) & valid & ~terminated
        ended = terminated | truncated
        self.episode_step += valid
        if ended.any():
            if self._mode == "SameStep":
                final = self._final_observations(current, ended, infos)
            elif self._mode == "Disabled":
                reset, _ = self._engine.reset(options={"reset_mask": ended})
                current = np.where(_as_mask(ended, final), self._observe.batch(reset, len(self.lanes)), final)
            for index in np.flatnonzero(ended):
                self._counter.next_episode(int(index))
        if self._mode == "NextStep":
            self._ended = ended
        self.observations = current
        return StepResult(current, rewards, terminated, truncated, final, valid)

    def _final_observations(self, current: Array, ended: Bool, infos: Any) -> Array:
        rows = infos.get("final_obs", infos.get("final_observation"))
        if rows is None:
            raise InputError(
                f"{self.name}: autoreset SameStep: want infos['final_obs'] at an episode's end, given {sorted(infos)}; "
                "let the environment report it, or reset on the next step"
            )
        final = current.copy()
        for index in np.flatnonzero(ended):
            final[index] = self._observe.one(rows[index])
        return final

    def save(self) -> Trajectories:
        return self._counter.save(self.observations)

    def restore(self, lanes: Trajectories) -> Array:
        self._counter.restore(lanes)
        for index in range(len(self.lanes)):
            self._counter.next_episode(index)
        return self._begin_episodes()

    def render(self) -> npt.NDArray[np.uint8] | None:
        if getattr(self._engine, "render_mode", None) is None:
            return None
        return picture(self.name, lambda: self._engine.render()[0])

    def close(self) -> None:
        self._engine.close()


def _as_mask(ended: Bool, like: Array) -> Bool:
    return ended.reshape(-1, *(1,) * (like.ndim - 1))


def _autoreset_mode(engine: Any, name: str) -> str:
    mode = engine.metadata.get("autoreset_mode") if isinstance(engine.metadata, dict) else None
    value = getattr(mode, "value", mode)
    if value in ("NextStep", "SameStep", "Disabled"):
        return str(value)
    raise InputError(
        f"{name}: metadata['autoreset_mode']: want a gymnasium.vector.AutoresetMode, given {mode!r}; "
        "declare it in the environment's metadata, or use the option backend='scalar'"
    )
