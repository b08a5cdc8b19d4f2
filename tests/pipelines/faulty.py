"""An environment that misbehaves when HPCRL_TEST_FAULT says so: "raise", "nan" or "slow", on rank HPCRL_TEST_RANK."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np


class Faulty(gymnasium.Env[np.ndarray, int]):
    """Walks along a line; well-behaved unless asked otherwise."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.place, self.steps, self.steps_ever = 0.0, 0, 0
        here = os.environ.get("PMI_RANK", "0") == os.environ.get("HPCRL_TEST_RANK", "0")
        self.fault = os.environ.get("HPCRL_TEST_FAULT", "") if here else ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1.0, 1.0)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place += 0.1 if action else -0.1
        self.steps, self.steps_ever = self.steps + 1, self.steps_ever + 1
        reward = 1.0 - abs(self.place)
        if self.fault == "nan" and self.steps_ever == 50:
            reward = float("nan")
        if self.fault == "raise" and self.steps_ever == 150:
            raise RuntimeError("the environment broke")
        if self.fault == "slow":
            time.sleep(0.2)
        return self._observe(), reward, abs(self.place) > 2.0, self.steps >= 30, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.place, self.steps / 30.0], np.float32)


def make() -> Faulty:
    """For `--env tests.pipelines.faulty:make`."""
    return Faulty()
