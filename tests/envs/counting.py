"""Environments whose every step is known: the observation says how long the episode lasts, how it ends, the step."""

from __future__ import annotations

from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Counting(gymnasium.Env):
    """Observation (length, 1 if it terminates, steps so far); the reward of a step is its number, counted from 1."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0, 100, (3,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, longest: int = 5, render_mode: str | None = None) -> None:
        self.longest, self.render_mode = longest, render_mode

    def _observe(self):
        return np.array([self.length, self.terminates, self.steps], np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, self.longest + 1))
        self.terminates, self.steps = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action):
        assert self.steps < self.length, "stepped after its end"
        self.steps += 1
        over = self.steps == self.length
        return self._observe(), float(self.steps), over and bool(self.terminates), over and not self.terminates, {}

    def render(self):
        return np.full((4, 6, 3), self.steps, np.uint8)


class Forgetful(Counting):
    """Counting, but the seed is ignored: no two episodes are the same."""

    drawn = 0

    def reset(self, *, seed=None, options=None):
        Forgetful.drawn += 1
        return super().reset(seed=Forgetful.drawn)


class Both(Counting):
    """Says terminated and truncated at once."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, terminated or truncated, info


class Pushing(gymnasium.Env):
    """Actions of a box; the observation is the sum of what arrived."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sum = self.np_random.normal(size=2).astype(np.float32)
        return self.sum.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.sum += action
        return self.sum.copy(), 0.0, False, False, {}


class Switches(gymnasium.Env):
    """Multi-discrete actions and discrete observations that do not count from 0."""

    observation_space = spaces.Discrete(10, start=5)
    action_space = spaces.MultiDiscrete([2, 3], start=[10, 20])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 5, {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action)), action
        return int(action[0] - 10) * 3 + int(action[1] - 20) + 5, 1.0, False, False, {}


class Pictures(gymnasium.Env):
    """Colour images that show the step; ends after `length` steps."""

    observation_space = spaces.Box(0, 255, (6, 4, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 7) -> None:
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.first, self.steps = int(self.np_random.integers(1, 50)), 0
        return np.full((6, 4, 3), self.first, np.uint8), {}

    def step(self, action):
        self.steps += 1
        picture = np.full((6, 4, 3), self.first + self.steps * 10, np.uint8)
        return picture, 1.0, self.steps >= self.length, False, {}


class Crashing(Counting):
    def step(self, action):
        raise ZeroDivisionError("the physics broke")


class WrongShape(Counting):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation[:2], *rest


class DictObservations(Counting):
    observation_space = spaces.Dict({"a": spaces.Box(0, 1, (2,), np.float32), "b": spaces.Discrete(3)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"a": np.zeros(2, np.float32), "b": 1}, {}


class TextActions(Counting):
    action_space = spaces.Text(5)


def make_counting(longest: int = 3) -> gymnasium.Env:
    """A factory, as a user may name one."""
    return Counting(longest)


def not_an_environment() -> int:
    return 3


def _vector(mode: AutoresetMode):
    def make(num_envs: int = 1, **arguments) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: Counting(**arguments)] * num_envs, autoreset_mode=mode)

    return make


MODES = {mode.value: f"Counting{mode.value}-v0" for mode in AutoresetMode}
for _mode in AutoresetMode:
    if MODES[_mode.value] not in gymnasium.registry:
        gymnasium.register(MODES[_mode.value], entry_point=Counting, vector_entry_point=_vector(_mode))
