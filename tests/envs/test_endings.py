"""Endings, final observations and autoreset: exact in every adapter, against an environment that says what is due."""

from __future__ import annotations

import counting
import numpy as np
import pytest
from playing import play, random_actions

from hpcrl.envs import make_env

ADAPTERS = {
    "scalar": ("counting:Counting", {}),
    "NextStep": (counting.MODES["NextStep"], {"backend": "native"}),
    "SameStep": (counting.MODES["SameStep"], {"backend": "native"}),
    "Disabled": (counting.MODES["Disabled"], {"backend": "native"}),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_recorded_step_is_the_one_due(adapter):
    name, options = ADAPTERS[adapter]
    env = make_env(name, lanes=range(6, 12), seed=3, options=options)
    before = env.reset()
    assert before.dtype == np.float32  # float64 in the environment
    recorded = np.zeros(6, int)
    endings = {True: 0, False: 0}
    for actions in random_actions(env, 80):
        result = env.step(actions)
        for lane in range(6):
            if not result.valid[lane]:
                # A dummy step: nothing of it counts, and it brings the new episode's first observation.
                assert result.rewards[lane] == 0
                assert not result.terminated[lane]
                assert not result.truncated[lane]
                assert result.observations[lane, 2] == 0
                assert env.episode_step[lane] == 0
                continue
            recorded[lane] += 1
            length, terminates, step = before[lane]
            assert result.rewards[lane] == step + 1
            assert result.final_observations[lane].tolist() == [length, terminates, step + 1]
            over = step + 1 == length
            assert result.terminated[lane] == (over and terminates == 1)
            assert result.truncated[lane] == (over and terminates == 0)
            if over:
                endings[bool(terminates)] += 1
                assert env.episode_step[lane] == 0
                # Where the engine resets on the next step, the ending's observation stands until then.
                assert result.observations[lane, 2] == (step + 1 if adapter == "NextStep" else 0)
            else:
                assert env.episode_step[lane] == step + 1
                assert np.array_equal(result.observations[lane], result.final_observations[lane])
        before = result.observations
    assert min(endings.values()) > 20
    assert env.episode.sum() == sum(endings.values())
    dummies = 80 * 6 - recorded.sum()
    assert dummies == 0 if adapter != "NextStep" else dummies > 100
    env.close()


def test_terminated_wins_over_truncated():
    env = make_env("counting:Both", lanes=range(4), seed=0)
    env.reset()
    answers = play(env, random_actions(env, 20))
    terminated, truncated = np.array([a[2] for a in answers]), np.array([a[3] for a in answers])
    assert terminated.sum() > 10
    assert not truncated.any()


def test_time_limit_truncates_and_keeps_the_last_observation():
    env = make_env("counting:Counting", lanes=range(8), seed=1, options={"max_episode_steps": 2})
    assert env.max_episode_steps == 2
    before = env.reset()
    env.step(np.zeros(8, np.int64))
    result = env.step(np.zeros(8, np.int64))
    cut = before[:, 0] > 2
    assert cut.any()
    assert result.truncated[cut].all()
    assert (result.final_observations[cut, 2] == 2).all()


def test_cartpole_ends_where_the_scalar_environment_ends():
    """Both backends play the same episodes: the starts are equal bit for bit, the endings fall on the same steps."""
    native = make_env("CartPole-v1", lanes=range(4), seed=9, options={"max_episode_steps": 40})
    scalar = make_env("CartPole-v1", lanes=range(4), seed=9, options={"backend": "scalar", "max_episode_steps": 40})
    assert (native.restart, scalar.restart) == ("state", "replay")
    assert np.array_equal(native.reset(), scalar.reset())
    truncations = 0
    for _ in range(150):
        # A policy that balances for a while, so that some episodes reach the limit.
        actions = (native.observations[:, 2] + 0.4 * native.observations[:, 3] > 0).astype(np.int64)
        one, other = native.step(actions), scalar.step(actions)
        assert np.array_equal(one.terminated, other.terminated)
        assert np.array_equal(one.truncated, other.truncated)
        assert np.array_equal(one.rewards, other.rewards)
        # NumPy's vector sine and the C library's may differ in the last bit.
        np.testing.assert_allclose(one.final_observations, other.final_observations, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.observations, other.observations, rtol=1e-5, atol=1e-6)
        truncations += int(one.truncated.sum())
    assert truncations >= 4
    assert np.array_equal(native.episode, scalar.episode)


def test_cartpole_has_no_dummy_step():
    env = make_env("CartPole-v1", lanes=range(16), seed=2)
    env.reset()
    answers = play(env, random_actions(env, 100))
    assert sum(int(a[2].sum()) for a in answers) > 30
    assert all(a[5].all() for a in answers)
    assert all((a[1] == 1).all() for a in answers)


def test_results_are_not_written_again():
    for name, options in [*ADAPTERS.values(), ("CartPole-v1", {})]:
        env = make_env(name, lanes=range(4), seed=0, options=options)
        env.reset()
        actions = random_actions(env, 30)
        kept = play(env, actions[:1])[0]
        copies = [array.copy() for array in kept]
        play(env, actions[1:])
        for array, copy in zip(kept, copies, strict=True):
            assert np.array_equal(array, copy)


def test_same_step_without_final_observation_is_refused():
    from hpcrl.errors import InputError

    env = make_env(counting.MODES["SameStep"], lanes=range(4), seed=0, options={"backend": "native"})
    env.reset()
    step = env._engine.step
    env._engine.step = lambda actions: (*step(actions)[:4], {})
    with pytest.raises(InputError, match=r"want infos\['final_obs'\]"):
        play(env, random_actions(env, 10))
