"""Plays environments and keeps what a rollout would keep."""

from __future__ import annotations

import numpy as np

from hpcrl.envs import VectorEnv


def random_actions(env: VectorEnv, num_steps: int, seed: int = 0) -> np.ndarray:
    """[num_steps, lanes, ...], beyond the bounds of a box too."""
    rng, space = np.random.default_rng(seed), env.action_space
    if space.kind == "discrete":
        return rng.integers(0, space.n, (num_steps, env.num_lanes))
    if space.kind == "multi_discrete":
        return rng.integers(0, space.nvec, (num_steps, env.num_lanes, *space.shape))
    return rng.normal(size=(num_steps, env.num_lanes, *space.shape)).astype(np.float32)


def play(env: VectorEnv, actions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Everything each step answered, and the counters after it."""
    answers = []
    for row in actions:
        result = env.step(row)
        arrays = (
            result.observations,
            result.rewards,
            result.terminated,
            result.truncated,
            result.final_observations,
            result.valid,
            env.episode.copy(),
            env.episode_step.copy(),
        )
        answers.append(arrays)
    return answers


def assert_same(one: list, other: list, lanes: slice = slice(None)) -> None:
    """The same bits, for the chosen lanes of the first."""
    assert len(one) == len(other) > 0
    for mine, yours in zip(one, other, strict=True):
        for a, b in zip(mine, yours, strict=True):
            assert a.dtype == b.dtype
            assert a[lanes].tobytes() == b.tobytes()


def count_endings(answers: list) -> int:
    return int(sum((terminated | truncated).sum() for _, _, terminated, truncated, *_ in answers))
