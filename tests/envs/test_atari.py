"""Atari: ale-py's engine where it is installed, and always a stand-in with the engine's manners."""

from __future__ import annotations

import itertools

import gymnasium.spaces
import numpy as np
import pytest
from playing import assert_same, count_endings, play, random_actions

from hpcrl.envs import make_env
from hpcrl.envs.atari import AtariEnvs
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw


class StandIn:
    """The manners of ale-py's AtariVectorEnv: masked resets with seeds, a reset on the step after an ending.

    Each lane has a generator: a seed sets it, a reset with -1 goes on. A frame shows (number of the episode, step, last
    action); an episode lasts 3 to 9 steps, as its number says.
    """

    def __init__(self, num_envs, frame_stack=4, drift=0):
        self.num_envs, self.drift, self.dummy_steps, self.seedings = num_envs, drift, 0, 0
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (frame_stack, 2, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(6)
        self.stacks = np.zeros((num_envs, frame_stack, 2, 3), np.uint8)
        self.numbers, self.steps, self.over = (np.zeros(num_envs, int) for _ in range(3))
        self.generators = [np.random.default_rng(lane) for lane in range(num_envs)]

    def _begin(self, lane, seed):
        if seed >= 0:
            self.generators[lane] = np.random.default_rng(seed)
            self.seedings += 1
        self.numbers[lane], self.steps[lane], self.over[lane] = self.generators[lane].integers(1, 250), 0, 0
        self.stacks[lane] = 0
        self._show(lane, 0)

    def _show(self, lane, action):
        self.stacks[lane, :-1] = self.stacks[lane, 1:].copy()
        self.stacks[lane, -1] = (self.numbers[lane] + self.drift, self.steps[lane], action)

    def reset(self, *, seed, options):
        for lane, key in zip(np.flatnonzero(options["reset_mask"]), seed, strict=True):
            self._begin(lane, int(key))
        return self.stacks.copy(), {}

    def send(self, actions):
        self.actions = actions

    def recv(self):
        rewards = np.zeros(self.num_envs, np.int32)
        for lane, action in enumerate(self.actions):
            if self.over[lane]:
                self.dummy_steps += 1
                self._begin(lane, -1)
                continue
            self.steps[lane] += 1
            rewards[lane] = self.steps[lane]
            self._show(lane, action)
            self.over[lane] = self.steps[lane] == self.numbers[lane] % 7 + 3
        over = self.over.astype(bool)
        return self.stacks.copy(), rewards, over & (self.numbers % 2 == 0), over & (self.numbers % 2 == 1), {}

    def step(self, actions):
        self.send(actions)
        return self.recv()

    def close(self):
        self.closed = True


def stand_in(lanes=range(4), restart="replay", reseed_after=40, **engine):
    engine = StandIn(len(lanes), **engine)
    return AtariEnvs(engine, "stand-in", lanes, 3, Draw.RESET, restart=restart, reseed_after=reseed_after)


def test_stand_in_endings_are_exact_and_no_dummy_step_comes():
    env = stand_in()
    observations = env.reset()
    assert not observations[:, :3].any()
    endings = np.zeros(2, int)
    for actions in random_actions(env, 100):
        previous, result = env.observations, env.step(actions)
        keys_steps = result.final_observations[:, -1, 0, :]
        assert np.array_equal(keys_steps[:, 1], previous[:, -1, 0, 1] + 1)
        assert np.array_equal(keys_steps[:, 2], actions)
        assert np.array_equal(result.final_observations[:, :-1], previous[:, 1:])
        assert np.array_equal(result.rewards, keys_steps[:, 1].astype(np.float32))
        assert result.rewards.dtype == np.float32
        assert result.valid.all()
        ended = result.terminated | result.truncated
        assert not result.observations[ended, :-1].any()
        assert (result.observations[ended, -1, 0, 1] == 0).all()
        assert np.array_equal(result.observations[~ended], result.final_observations[~ended])
        endings += result.terminated.sum(), result.truncated.sum()
    assert env._engine.dummy_steps == 0
    assert (endings > 10).all()
    assert env.episode.sum() == endings.sum()


@pytest.mark.parametrize("reseed_after", [1, 40])
@pytest.mark.parametrize("cut", [0, 1, 3, 30, 61, 62, 63, 100])
def test_stand_in_restores_in_mid_episode(cut, reseed_after):
    env = stand_in(reseed_after=reseed_after)
    env.reset()
    actions = random_actions(env, 160)
    play(env, actions[:cut])
    saved = env.save()
    assert (saved["seeded_episode"] <= saved["episode"]).all()
    if reseed_after == 1:
        assert np.array_equal(np.diff(saved.ragged["actions"].offsets), saved["episode_step"])
    again = stand_in(reseed_after=reseed_after)
    again.restore(saved)
    for field in ("episode", "episode_step", "seeded_episode", "observations"):
        assert np.array_equal(again.save()[field], saved[field])
    assert_same(play(env, actions[cut:]), play(again, actions[cut:]))


def test_stand_in_is_seeded_again_only_when_its_actions_are_many():
    for reseed_after, seedings in ((1, range(50, 200)), (40, range(4 + 8, 4 + 17)), (10_000, range(4, 5))):
        env = stand_in(reseed_after=reseed_after)
        env.reset()
        play(env, random_actions(env, 170))
        assert env._engine.seedings in seedings
        assert (np.diff(env.save().ragged["actions"].offsets) < reseed_after + 10).all()


def test_a_stand_in_that_plays_differently_is_found_out():
    env = stand_in()
    env.reset()
    play(env, random_actions(env, 50))
    saved = env.save()
    with pytest.raises(InputError, match=r"want the saved observation after .* given another"):
        stand_in(drift=1).restore(saved)
    other = saved.with_fields(per_trajectory={"episode": saved["episode"] + 1})
    with pytest.raises(InputError, match="given an episode that ended elsewhere"):
        stand_in().restore(other)


def test_stand_in_fresh_and_flight():
    env = stand_in(restart="fresh")
    env.reset()
    play(env, random_actions(env, 10))
    saved = env.save()
    assert "actions" not in saved
    again = stand_in(restart="fresh")
    assert (again.restore(saved)[:, -1, 0, 1] == 0).all()
    assert np.array_equal(again.episode, saved["episode"] + 1)
    with pytest.raises(RuntimeError, match="without send"):
        again.receive()
    again.send(np.zeros(4, np.int64))
    again.close()
    assert again._engine.closed


def pong(lanes=range(3), **options):
    pytest.importorskip("ale_py", reason="ale-py is not installed (extra: atari); the stand-in above plays instead")
    return make_env("ALE/Pong-v5", lanes=lanes, seed=7, options=options)


def test_pong_is_preprocessed_and_a_sliding_window():
    env = pong()
    observations = env.reset()
    assert (observations.shape, observations.dtype, env.frame_stack) == ((3, 4, 84, 84), np.uint8, 4)
    assert (env.action_space.n, env.restart, env.max_episode_steps) == (6, "replay", 27_000)
    assert not observations[:, :3].any()  # lead-in frames are black
    assert observations[:, 3].any(axis=(1, 2)).all()
    for actions in random_actions(env, 80):
        previous, result = env.observations, env.step(actions)
        assert np.array_equal(result.observations[:, :3], previous[:, 1:])
    assert env.render().shape == (84, 84, 3)
    assert np.array_equal(env.render()[:, :, 1], result.observations[0, -1])


def test_pong_time_limit_final_frames_and_restart():
    env = pong(max_episode_steps=40)
    env.reset()
    actions = random_actions(env, 110)
    first = play(env, actions[:65])
    assert [int(a[3].sum()) for a in first] == [3 if (t + 1) % 40 == 0 else 0 for t in range(65)]
    assert all(a[5].all() for a in first)
    ending, before = first[39], first[38]
    assert np.array_equal(ending[4][:, :3], before[0][:, 1:])
    assert not ending[0][:, :3].any()
    saved = env.save()
    assert saved["episode_step"].tolist() == [25, 25, 25]
    expected = play(env, actions[65:])
    again = pong(max_episode_steps=40)
    again.restore(saved)
    assert_same(expected, play(again, actions[65:]))
    alone = pong(lanes=range(1, 2), max_episode_steps=40)
    alone.reset()
    assert_same(first + expected, play(alone, actions[:, 1:2]), slice(1, 2))


def test_breakout_lives_end_episodes_only_when_asked():
    pytest.importorskip("ale_py", reason="ale-py is not installed (extra: atari)")
    counts = {}
    for episodic in (False, True):
        env = make_env("ALE/Breakout-v5", lanes=range(2), seed=1, options={"episodic_life": episodic, "noop_max": 0})
        env.reset()
        answers = play(env, random_actions(env, 330))
        counts[episodic] = count_endings(answers)
        for answer, following in itertools.pairwise(answers):
            # The window slides on every step, endings included: nowhere a dummy step.
            assert np.array_equal(following[4][:, :3], answer[0][:, 1:])
    assert counts[True] > 2 * counts[False] > 0


def test_a_closed_flight_and_wrong_actions():
    env = pong(lanes=range(2))
    env.reset()
    with pytest.raises(InputError, match=r"want 0 \.\. 5, given 6 in row 1"):
        env.step(np.array([0, 6]))
    env.send(np.array([0, 1]))
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_stack": 0}, "frame_stack: want a whole number >= 1"),
        ({"repeat_action_probability": 2}, r"want a number in \[0, 1\]"),
        ({"grayscale": True}, "options: want some of .*frame_skip.*given 'grayscale'"),
    ],
)
def test_wrong_atari_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        pong(**options)


def test_near_names_of_games():
    pytest.importorskip("ale_py", reason="ale-py is not installed (extra: atari)")
    for name in ("ALE/pong-v5", "Pong-v5"):
        with pytest.raises(InputError, match=r"near: .*ALE/Pong-v5"):
            make_env(name, lanes=range(1), seed=0)
