"""Restart levels: an episode goes on bit for bit, and depends on no neighbour."""

from __future__ import annotations

import dataclasses

import counting
import numpy as np
import pytest
from playing import assert_same, count_endings, play, random_actions

from hpcrl.data import Ragged, Trajectories
from hpcrl.envs import make_env
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw

EXACT = {
    "cartpole": ("CartPole-v1", {}, "state"),
    "cartpole-scalar": ("CartPole-v1", {"backend": "scalar"}, "replay"),
    "counting": ("counting:Counting", {}, "replay"),
    "pushing": ("counting:Pushing", {"max_episode_steps": 30}, "replay"),
    "switches": ("counting:Switches", {"max_episode_steps": 30}, "replay"),
    "pictures": ("counting:Pictures", {"grayscale": True, "frame_stack": 4}, "replay"),
}


@pytest.mark.parametrize("case", EXACT)
def test_restored_lanes_continue_with_the_same_bits(case):
    name, options, level = EXACT[case]
    env = make_env(name, lanes=range(2, 6), seed=7, options=options)
    assert env.restart == level
    env.reset()
    actions = random_actions(env, 120)
    play(env, actions[:77])
    saved = env.save()
    expected = play(env, actions[77:])
    assert count_endings(expected) > 0
    again = make_env(name, lanes=range(2, 6), seed=7, options=options)
    observations = again.restore(saved)
    assert observations.tobytes() == np.ascontiguousarray(saved["observations"]).tobytes()
    assert_same(expected, play(again, actions[77:]))
    env.close()
    again.close()


@pytest.mark.parametrize("case", EXACT)
def test_saving_changes_nothing_and_a_restored_save_is_the_same(case):
    name, options, _ = EXACT[case]
    env = make_env(name, lanes=range(4), seed=1, options=options)
    env.reset()
    play(env, random_actions(env, 50))
    saved = env.save()
    again = make_env(name, lanes=range(4), seed=1, options=options)
    again.restore(saved)
    for other in (env.save(), again.save()):
        assert other.fields() == saved.fields()
        for field in saved.per_trajectory:
            assert np.array_equal(other[field], saved[field])
        for field in saved.ragged:
            assert np.array_equal(other.ragged[field].values, saved.ragged[field].values)
            assert np.array_equal(other.ragged[field].offsets, saved.ragged[field].offsets)


@pytest.mark.parametrize("case", EXACT)
def test_a_lane_depends_on_no_neighbour(case):
    name, options, _ = EXACT[case]
    whole = make_env(name, lanes=range(8), seed=5, options=options)
    part = make_env(name, lanes=range(3, 5), seed=5, options=options)
    assert whole.reset()[3:5].tobytes() == part.reset().tobytes()
    actions = random_actions(whole, 90)
    assert_same(play(whole, actions), play(part, actions[:, 3:5]), slice(3, 5))


def test_seed_lane_and_draw_each_change_the_episode():
    starts = {
        make_env("CartPole-v1", lanes=range(lane, lane + 1), seed=seed, draw=draw).reset().tobytes()
        for lane in (0, 1)
        for seed in (0, 1)
        for draw in (Draw.RESET, Draw.EVALUATE_RESET)
    }
    assert len(starts) == 8


def test_an_episode_can_be_found_outside():
    """Its key is all that gymnasium.make(...).reset(seed=...) needs."""
    import gymnasium

    from hpcrl.ops.random import episode_seed

    env = make_env("CartPole-v1", lanes=range(3, 5), seed=11)
    env.reset()
    while env.episode[1] < 2:
        env.step(np.zeros(2, np.int64))
    observation, _ = gymnasium.make("CartPole-v1").reset(seed=episode_seed(11, 4, 2))
    assert np.array_equal(env.observations[1], observation)


def test_long_episodes_keep_all_their_actions():
    """Longer than the log's first piece, with neighbours whose episodes end all the time."""
    env = make_env("counting:Pushing", lanes=range(2), seed=0)
    env.reset()
    actions = random_actions(env, 1500)
    play(env, actions)
    saved = env.save()
    assert np.array_equal(saved.ragged["actions"][1], actions[:, 1])
    short = make_env("counting:Counting", lanes=range(3), seed=0)
    short.reset()
    play(short, random_actions(short, 1500))
    assert np.array_equal(np.diff(short.save().ragged["actions"].offsets), short.episode_step)
    assert len(short._log.rows()) <= 256


@pytest.mark.parametrize("name", ["counting:Counting", *counting.MODES.values()])
def test_fresh_drops_open_episodes_and_begins_the_next(name):
    options = {"restart": "fresh"} if ":" in name else {"backend": "native"}
    env = make_env(name, lanes=range(4), seed=0, options=options)
    assert env.restart == "fresh"
    env.reset()
    play(env, random_actions(env, 23))
    saved = env.save()
    assert "actions" not in saved
    again = make_env(name, lanes=range(4), seed=0, options=options)
    observations = again.restore(saved)
    assert (observations[:, 2] == 0).all()
    assert np.array_equal(again.episode, saved["episode"] + 1)
    assert (again.episode_step == 0).all()
    result = again.step(np.zeros(4, np.int64))
    assert result.valid.all()
    assert (result.rewards == 1).all()


def test_an_environment_that_does_not_repeat_itself_is_found_out():
    env = make_env("counting:Forgetful", lanes=range(4), seed=0)
    env.reset()
    play(env, random_actions(env, 30))
    with pytest.raises(InputError, match=r'counting:Forgetful: lane \d+, episode \d+: .*restart="fresh"'):
        make_env("counting:Forgetful", lanes=range(4), seed=0).restore(env.save())
    fresh = make_env("counting:Forgetful", lanes=range(4), seed=0, options={"restart": "fresh"})
    assert (fresh.restore(env.save())[:, 2] == 0).all()


def _saved() -> Trajectories:
    env = make_env("counting:Pushing", lanes=range(3), seed=0)
    env.reset()
    play(env, random_actions(env, 10))
    return env.save()


def test_foreign_lanes_are_refused():
    saved = _saved()
    with pytest.raises(InputError, match=r"want lanes 1 \.\. 3, given \[0, 1, 2\]"):
        make_env("counting:Pushing", lanes=range(1, 4), seed=0).restore(saved)
    with pytest.raises(InputError, match="want the fields state, given"):
        make_env("CartPole-v1", lanes=range(3), seed=0).restore(saved)
    with pytest.raises(InputError, match="want the fields actions, given"):
        make_env("counting:Pushing", lanes=range(3), seed=0).restore(saved.without(["actions"]))


def test_changed_or_missing_stored_actions_are_refused():
    saved = _saved()
    values = saved.ragged["actions"].values.copy()
    values[4] += 0.25
    changed = dataclasses.replace(saved, ragged={"actions": Ragged(values, saved.ragged["actions"].offsets)})
    with pytest.raises(InputError, match="lane 0, episode 0: want the saved observation after 10 replayed actions"):
        make_env("counting:Pushing", lanes=range(3), seed=0).restore(changed)
    short = dataclasses.replace(saved, ragged={"actions": Ragged(values[:27], np.array([0, 9, 18, 27]))})
    with pytest.raises(InputError, match="want 10 stored actions"):
        make_env("counting:Pushing", lanes=range(3), seed=0).restore(short)
