"""A policy that costs nothing: actions drawn uniformly from the action space."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.envs import Space
from hpcrl.errors import InputError

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class RandomPolicy:
    """Uniform over a discrete, multi-discrete or bounded box space; values are 0.

    Raises: InputError for a box without finite bounds, over which nothing is uniform.
    """

    random_kind: Literal["uniform", "normal"] = "uniform"

    def __init__(self, action_space: Space) -> None:
        self.space = action_space
        if action_space.kind == "discrete":
            assert action_space.n is not None
            self._counts: Array = np.array([action_space.n])
        elif action_space.kind == "multi_discrete":
            self._counts = np.asarray(action_space.nvec)
        else:
            low, high = np.asarray(action_space.low, np.float64), np.asarray(action_space.high, np.float64)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise InputError("random policy: want finite action bounds, given an unbounded box; use policy='model'")
            self._low, self._high = low.reshape(-1), high.reshape(-1)
            self._counts = np.zeros(len(self._low))
        extents = self._high - self._low if action_space.kind == "box" else self._counts
        self._log_prob = -float(np.log(extents).sum())
        self._answers = self._make_answers(0)
        self.random_numbers_per_action = len(self._counts)

    def act(
        self, observations: Array, random_numbers: Float64, *, greedy: bool = False
    ) -> tuple[Array, Float32, Float32]:
        """Actions, log-probabilities f32[rows] and values f32[rows] = 0; the last two are the same arrays each time."""
        rows = len(observations)
        if rows != len(self._answers[0]):
            self._answers = self._make_answers(rows)
        log_probs, values = self._answers
        if self.space.kind == "box":
            actions = (self._low + random_numbers * (self._high - self._low)).astype(np.float32)
            return actions.reshape(rows, *self.space.shape), log_probs, values
        drawn = (random_numbers * self._counts).astype(np.int64)
        return (drawn[:, 0] if self.space.kind == "discrete" else drawn), log_probs, values

    def _make_answers(self, rows: int) -> tuple[Float32, Float32]:
        """The log-probabilities and values of so many rows, read-only: they never change."""
        log_probs, values = np.full(rows, self._log_prob, np.float32), np.zeros(rows, np.float32)
        log_probs.flags.writeable = values.flags.writeable = False
        return log_probs, values

    def values(self, observations: Array) -> Float32:
        """f32[rows], all 0."""
        return np.zeros(len(observations), np.float32)
