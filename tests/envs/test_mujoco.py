"""MuJoCo tasks, where MuJoCo is installed; `counting.Pushing` in test_restart.py is their stand-in."""

from __future__ import annotations

import numpy as np
import pytest
from playing import assert_same, count_endings, play, random_actions

from hpcrl.envs import describe_env, make_env

pytest.importorskip("mujoco", reason="mujoco is not installed (extra: mujoco); counting.Pushing stands in for it")


@pytest.mark.parametrize(("name", "limit"), [("Hopper-v5", None), ("HalfCheetah-v5", 25)])
@pytest.mark.filterwarnings("ignore:MuJoCo")
def test_restored_lanes_continue_with_the_same_bits_and_depend_on_no_neighbour(name, limit):
    options = {"max_episode_steps": limit}
    env = make_env(name, lanes=range(3), seed=4, options=options)
    env.reset()
    actions = random_actions(env, 120)
    first = play(env, actions[:80])
    saved = env.save()
    assert (saved["episode_step"] > 0).any()
    expected = play(env, actions[80:])
    assert count_endings(first) > 2
    again = make_env(name, lanes=range(3), seed=4, options=options)
    again.restore(saved)
    assert_same(expected, play(again, actions[80:]))
    alone = make_env(name, lanes=range(2, 3), seed=4, options=options)
    alone.reset()
    assert_same(first + expected, play(alone, actions[:, 2:3]), slice(2, 3))
    for each in (env, again, alone):
        each.close()


@pytest.mark.filterwarnings("ignore:MuJoCo")
def test_observations_are_float32_and_limits_the_environments_own():
    description = describe_env("HalfCheetah-v5")
    assert (description.observation_space.shape, description.observation_space.dtype) == ((17,), "float32")
    assert (description.action_space.shape, description.action_space.dtype) == ((6,), "float32")
    assert np.array_equal(description.action_space.low, -np.ones(6))
    assert (description.restart, description.max_episode_steps) == ("replay", 1000)
