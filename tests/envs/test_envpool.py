"""EnvPool, where it is installed; the NextStep engine in test_endings.py and test_restart.py is its stand-in."""

from __future__ import annotations

import numpy as np
import pytest
from playing import play, random_actions

from hpcrl.envs import describe_env, make_env
from hpcrl.errors import InputError

pytest.importorskip("envpool", reason="envpool is not installed (extra: envpool); counting's NextStep engine stands in")


def cartpole(**options):
    return make_env("envpool:CartPole-v1", lanes=range(4), seed=5, options=options)


def test_the_dummy_step_after_an_ending_is_marked():
    env = cartpole(max_episode_steps=12)
    assert (env.restart, env.max_episode_steps) == ("fresh", 12)
    env.reset()
    ended, step = np.zeros(4, bool), np.zeros(4, int)
    dummies = endings = 0
    for actions in random_actions(env, 150):
        result = env.step(actions)
        assert np.array_equal(result.valid, ~ended)
        assert (result.rewards == result.valid).all()  # CartPole's reward is 1, a dummy's 0
        step = np.where(ended, 0, step + 1)
        assert not (result.truncated & (step != 12)).any()
        # A new episode starts near the middle; a dummy step's observation is such a start.
        assert (np.abs(result.observations[~result.valid]) <= 0.05).all()
        dummies, ended = dummies + int(ended.sum()), result.terminated | result.truncated
        endings += int(ended.sum())
        assert np.array_equal(env.episode_step, np.where(ended, 0, step))
    assert endings > 30
    assert dummies >= endings - 4
    assert env.episode.sum() == endings


def test_fresh_restart_begins_the_next_episodes():
    env = cartpole()
    start = env.reset().copy()
    assert np.array_equal(start, cartpole().reset())
    play(env, random_actions(env, 20))
    saved = env.save()
    again = cartpole()
    restored = again.restore(saved)
    assert np.array_equal(again.episode, saved["episode"] + 1)
    assert (again.episode_step == 0).all()
    assert not np.array_equal(restored, start)
    again.send(np.zeros(4, np.int64))
    again.close()


def test_images_are_stacks():
    env = make_env("envpool:ALE/Pong-v5", lanes=range(2), seed=0, options={"frame_stack": 3, "max_episode_steps": 9})
    assert (env.frame_stack, env.observation_space.shape) == (3, (3, 84, 84))
    previous = env.reset()
    for actions in random_actions(env, 30):
        result = env.step(actions)
        assert np.array_equal(result.observations[result.valid, :2], previous[result.valid, 1:])
        previous = result.observations
    env.close()


def test_wrong_names_and_options_are_refused():
    with pytest.raises(InputError, match="want a task of EnvPool, given 'envpool:CartPol-v1'; near: CartPole-v1"):
        describe_env("envpool:CartPol-v1")
    with pytest.raises(InputError, match=r"options: want some of .*max_episode_steps.*given max_steps"):
        cartpole(max_steps=3)
    with pytest.raises(InputError, match="want 'envpool' for a name that begins with envpool:"):
        cartpole(backend="scalar")
    assert describe_env("CartPole-v1", {"backend": "envpool"}).restart == "fresh"
