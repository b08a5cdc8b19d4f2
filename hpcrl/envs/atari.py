"""Atari games through ale-py's C++ vector environment, preprocessed and stacked there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs.episodes import ActionLog, EpisodeCounter, check_replayed
from hpcrl.envs.interface import Array, Restart, StepResult, VectorEnv
from hpcrl.envs.spaces import ActionGate, action_space_of, observation_space_of
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw


class AtariEnvs(VectorEnv):
    """All lanes in ale-py's AtariVectorEnv; restart level "replay" (or "fresh").

    Observations uint8[lanes, k, H, W], newest frame last, straight from the engine's memory. The engine resets a lane
    on the step after its ending, unseeded; here an ended lane is reset at once with its next episode's key (one call
    with `reset_mask`), so that this step never comes and an episode depends on its key and actions alone.
    """

    def __init__(self, engine: Any, name: str, lanes: range, seed: int, draw: Draw, *, restart: Restart) -> None:
        self.name, self.lanes, self.restart, self._engine = name, lanes, restart, engine
        self.observation_space = observation_space_of(engine.single_observation_space, name)
        self.action_space = action_space_of(engine.single_action_space, name)
        self.frame_stack = self.observation_space.shape[0]
        self._gate = ActionGate(self.action_space, 0, len(lanes), name)
        self._counter = EpisodeCounter(name, lanes, seed, draw)
        self.episode, self.episode_step = self._counter.episode, self._counter.episode_step
        # The Atari 2600 has 18 joystick actions: one byte each.
        self._log = ActionLog(len(lanes), (), "uint8")
        self._all_valid = np.ones(len(lanes), np.bool_)
        self._in_flight = False

    def reset(self) -> Array:
        self._counter.begin()
        self._log.clear()
        return self._reset_lanes(np.ones(len(self.lanes), np.bool_))

    def _reset_lanes(self, mask: npt.NDArray[np.bool_]) -> Array:
        """Resets the chosen lanes with the keys of their current episodes; all lanes' observations."""
        keys = np.array([self._counter.key(int(index)) for index in np.flatnonzero(mask)])
        self.observations, _ = self._engine.reset(seed=keys, options={"reset_mask": mask})
        return self.observations

    def step(self, actions: Array) -> StepResult:
        self.send(actions)
        return self.receive()

    def send(self, actions: Array) -> None:
        played = self._gate(actions)
        self._log.append(played)
        self._engine.send(played)
        self._in_flight = True

    def receive(self) -> StepResult:
        if not self._in_flight:
            raise RuntimeError(f"{self.name}: receive() without send()")
        final, rewards, terminated, truncated, _ = self._engine.recv()
        self._in_flight = False
        self.episode_step += 1
        self.observations = final
        ended = terminated | truncated
        if ended.any():
            truncated = truncated & ~terminated
            for index in np.flatnonzero(ended):
                self._counter.next_episode(int(index))
                self._log.begin_episode(int(index))
            self._reset_lanes(ended)
        return StepResult(self.observations, rewards.astype(np.float32), terminated, truncated, final, self._all_valid)

    def save(self) -> Trajectories:
        return self._counter.save(self.observations, actions=self._log.save() if self.restart == "replay" else None)

    def restore(self, lanes: Trajectories) -> Array:
        everyone = np.ones(len(self.lanes), np.bool_)
        if self.restart == "fresh":
            self._counter.restore(lanes)
            self._log.clear()
            for index in range(len(self.lanes)):
                self._counter.next_episode(index)
            return self._reset_lanes(everyone)
        self._counter.restore(lanes, ("actions",))
        lengths = np.diff(lanes.ragged["actions"].offsets)
        if not np.array_equal(lengths, self.episode_step):
            raise InputError(
                f"{self.name}: saved lanes: want {self.episode_step.tolist()} stored actions (episode_step), given "
                f"{lengths.tolist()}; the lanes were saved by other code"
            )
        self._log.restore(lanes.ragged["actions"])
        self._replay(lanes, self._reset_lanes(everyone))
        return self.observations

    def _replay(self, lanes: Trajectories, observations: Array) -> None:
        """Plays the stored actions of all lanes at once.

        The engine always steps every lane. So the replays are aligned at their ends: a lane idles, in an episode that
        does not count, until its turn comes; then it is reset with its key.
        """
        begins, rows = self._log.begins(), self._log.rows()
        ended = np.zeros(len(self.lanes), np.bool_)
        for row, actions in enumerate(rows):
            starting = begins == row
            if row > 0 and starting.any():
                self._reset_lanes(starting)
            observations, _, terminated, truncated, _ = self._engine.step(actions.astype(np.int64))
            ended |= (terminated | truncated) & (row >= begins)
        late = begins == len(rows)
        self.observations = self._reset_lanes(late) if len(rows) and late.any() else observations
        for index in range(len(self.lanes)):
            check_replayed(self.name, lanes, index, self.observations[index], ended=bool(ended[index]))

    def render(self) -> npt.NDArray[np.uint8]:
        """The newest frame of the first lane, as the policy sees it, in three equal colours."""
        return np.repeat(self.observations[0, -1][:, :, None], 3, axis=2)

    def close(self) -> None:
        if self._in_flight:
            self._engine.recv()
            self._in_flight = False
        self._engine.close()
