"""Atari games through ale-py's C++ vector environment, preprocessed and stacked there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs.episodes import ActionLog, EpisodeCounter, check_replayed
from hpcrl.envs.interface import Array, Bool, Restart, StepResult, VectorEnv
from hpcrl.envs.spaces import ActionGate, action_space_of, observation_space_of
from hpcrl.ops.random import Draw


class AtariEnvs(VectorEnv):
    """All lanes in ale-py's AtariVectorEnv; restart level "replay" (or "fresh").

    Observations uint8[lanes, k, H, W], newest frame last, straight from the engine's memory. The engine resets a lane
    on the step after its ending; here an ended lane is reset at once (one call with `reset_mask`), so that this dummy
    step never comes.

    Seeding a lane costs the engine about 90 ms, as much as 300 steps, for it loads the game anew; a reset, 4 ms. So
    a lane is seeded with an episode's key only at the first ending `reseed_after` steps after its last seeding; until
    then its episodes follow from that key and the actions since, and these are what is stored and replayed.
    """

    def __init__(
        self,
        engine: Any,
        name: str,
        lanes: range,
        seed: int,
        draw: Draw,
        *,
        restart: Restart = "replay",
        reseed_after: int = 8192,
    ) -> None:
        self.name, self.lanes, self.restart, self._engine = name, lanes, restart, engine
        self.observation_space = observation_space_of(engine.single_observation_space, name)
        self.action_space = action_space_of(engine.single_action_space, name)
        self.frame_stack = self.observation_space.shape[0]
        self._gate = ActionGate(self.action_space, 0, len(lanes), name)
        self._counter = EpisodeCounter(name, lanes, seed, draw)
        self.episode, self.episode_step = self._counter.episode, self._counter.episode_step
        self._reseed_after = reseed_after
        self._seeded_episode = np.zeros(len(lanes), np.int64)
        # The Atari 2600 has 18 joystick actions: one byte each.
        self._log = ActionLog(len(lanes), (), "uint8")
        self._all_valid = np.ones(len(lanes), np.bool_)
        self._in_flight = False

    def reset(self) -> Array:
        self._counter.begin()
        return self._seed_all()

    def _seed_all(self) -> Array:
        """Every lane at the start of its current episode, seeded with that episode's key."""
        self._log.clear()
        self._seeded_episode[:] = self.episode
        self.observations = self._reset_lanes(np.ones(len(self.lanes), np.bool_), self._counter.current_keys())
        return self.observations

    def _reset_lanes(self, mask: Bool, keys: list[int]) -> Array:
        """Resets the chosen lanes, one key each (-1: not seeded); the observations of all lanes."""
        observations, _ = self._engine.reset(seed=np.array(keys), options={"reset_mask": mask})
        return np.asarray(observations)

    def _begin_next_episodes(self, ended: Bool) -> Array:
        steps, keys = self._log.lengths(), []
        for index in np.flatnonzero(ended).tolist():
            key = self._counter.next_episode(index)
            if steps[index] >= self._reseed_after:
                self._seeded_episode[index] = self.episode[index]
                self._log.begin(index)
            else:
                key = -1
            keys.append(key)
        return self._reset_lanes(ended, keys)

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
        if np.count_nonzero(terminated) or np.count_nonzero(truncated):
            ended, truncated = terminated | truncated, truncated & ~terminated
            self.observations = self._begin_next_episodes(ended)
        return StepResult(self.observations, rewards.astype(np.float32), terminated, truncated, final, self._all_valid)

    def save(self) -> Trajectories:
        if self.restart == "fresh":
            return self._counter.save(self.observations)
        return self._counter.save(
            self.observations, {"seeded_episode": self._seeded_episode.copy()}, actions=self._log.save()
        )

    def restore(self, lanes: Trajectories) -> Array:
        if self.restart == "fresh":
            self._counter.restore(lanes)
            for index in range(len(self.lanes)):
                self._counter.next_episode(index)
            return self._seed_all()
        self._counter.restore(lanes, ("seeded_episode", "actions"))
        self.episode[:] = lanes["seeded_episode"]
        self._seed_all()
        self._log.restore(lanes.ragged["actions"])
        self._replay()
        for index in range(len(self.lanes)):
            same_episode = self.episode[index] == lanes["episode"][index]
            same_step = self.episode_step[index] == lanes["episode_step"][index]
            same = bool(same_episode and same_step)
            check_replayed(self.name, lanes, index, self.observations[index], in_step=same)
        return self.observations

    def _replay(self) -> None:
        """Plays the stored actions of all lanes at once, from their seeding on.

        The engine always steps every lane. So the replays are aligned at their ends: a lane idles, in an episode that
        does not count, until its turn comes; then it is seeded.
        """
        begins, rows = self._log.begins(), self._log.rows()
        self.episode_step[:] = 0
        for row in range(len(rows) + 1):
            starting = begins == row
            if row > 0 and starting.any():
                keys = [self._counter.key(int(index)) for index in np.flatnonzero(starting)]
                self.observations = self._reset_lanes(starting, keys)
            if row == len(rows):
                break
            playing = begins <= row
            self.observations, _, terminated, truncated, _ = self._engine.step(rows[row].astype(np.int64))
            self.episode_step += playing
            ended = (terminated | truncated) & playing
            if ended.any():
                self.episode += ended
                self.episode_step[ended] = 0
                self.observations = self._reset_lanes(ended, [-1] * int(ended.sum()))

    def render(self) -> npt.NDArray[np.uint8]:
        """The newest frame of the first lane, as the policy sees it, in three equal colours."""
        return np.repeat(self.observations[0, -1][:, :, None], 3, axis=2)

    def close(self) -> None:
        if self._in_flight:
            self._engine.recv()
            self._in_flight = False
        self._engine.close()
