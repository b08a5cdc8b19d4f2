"""Gymnasium's CartPoleVectorEnv, its state taken out and put in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs.episodes import EpisodeCounter
from hpcrl.envs.interface import Array, StepResult, VectorEnv, picture
from hpcrl.envs.spaces import ActionGate, action_space_of, observation_space_of
from hpcrl.ops.random import Draw


class CartPoleEnvs(VectorEnv):
    """All lanes in one NumPy step of Gymnasium's own vector environment; restart level "state".

    The engine draws every lane's next start from one generator and spends a step on it. Here an ended lane is put at
    its start at once, and the start is the one `gymnasium.make(id).reset(seed=key)` gives for the episode's key: no
    dummy step, and no lane depends on another.
    """

    restart = "state"

    def __init__(self, engine: Any, name: str, lanes: range, seed: int, draw: Draw) -> None:
        from gymnasium.envs.classic_control.cartpole import CartPoleEnv

        self.name, self.lanes = name, lanes
        self.observation_space = observation_space_of(engine.single_observation_space, name)
        self.action_space = action_space_of(engine.single_action_space, name)
        self.max_episode_steps = int(engine.max_episode_steps)
        self._engine, self._starts = engine, CartPoleEnv()
        self._gate = ActionGate(self.action_space, 0, len(lanes), name)
        self._counter = EpisodeCounter(name, lanes, seed, draw)
        self.episode, self.episode_step = self._counter.episode, self._counter.episode_step
        self._all_valid = np.ones(len(lanes), np.bool_)
        # Allocates the engine's arrays. Its generator is never asked: every start comes from a key.
        engine.reset(seed=0)

    def reset(self) -> Array:
        self._counter.begin()
        states = [self._start_of(key) for key in self._counter.current_keys()]
        return self._put(np.array(states), np.zeros(len(self.lanes), np.int64))

    def _start_of(self, key: int) -> Array:
        self._starts.reset(seed=key)
        return np.asarray(self._starts.state, np.float64)

    def _put(self, states: Array, steps: Array) -> Array:
        """Stands every lane at a state float64[lanes, 4] after int[lanes] steps."""
        engine = self._engine
        engine.state = np.ascontiguousarray(states.T, np.float64)
        engine.steps[:] = steps
        engine.prev_done[:] = False
        self.observations = states.astype(np.float32)
        return self.observations

    def step(self, actions: Array) -> StepResult:
        engine = self._engine
        observations, rewards, terminated, truncated, _ = engine.step(self._gate(actions))
        self.episode_step += 1
        final = observations
        # The engine's own flags of the lanes that ended on this step.
        if engine.prev_done.any():
            truncated &= ~terminated
            ended = np.flatnonzero(engine.prev_done)
            starts = np.array([self._start_of(self._counter.next_episode(index)) for index in ended.tolist()])
            observations = observations.copy()
            observations[ended] = starts
            engine.state[:, ended] = starts.T
            engine.steps[ended] = 0
            engine.prev_done[:] = False
        self.observations = observations
        return StepResult(observations, rewards, terminated, truncated, final, self._all_valid)

    def save(self) -> Trajectories:
        return self._counter.save(self.observations, {"state": np.ascontiguousarray(self._engine.state.T)})

    def restore(self, lanes: Trajectories) -> Array:
        self._counter.restore(lanes, ("state",))
        return self._put(lanes["state"], self._counter.episode_step)

    def render(self) -> npt.NDArray[np.uint8] | None:
        if self._engine.render_mode is None:
            return None
        return picture(self.name, lambda: self._engine.render()[0])

    def close(self) -> None:
        self._engine.close()
