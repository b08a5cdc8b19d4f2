"""What passes into and out of an environment: shapes, dtypes, ranges, names, options."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from playing import play, random_actions

from hpcrl.envs import Space, describe_env, make_env
from hpcrl.errors import InputError


def made(name="counting:Counting", lanes=range(2), **options):
    env = make_env(name, lanes=lanes, seed=0, options=options)
    env.reset()
    return env


@pytest.mark.parametrize(
    ("name", "actions", "message"),
    [
        ("counting:Counting", np.zeros(3, np.int64), r"want shape \[2\] \(lanes first\), given \[3\]"),
        ("counting:Counting", np.zeros((2, 1), np.int64), r"given \[2, 1\]"),
        ("counting:Counting", [0, 1], "given list"),
        ("counting:Counting", np.zeros(2, np.float32), r"want whole numbers \(int64\), given dtype float32"),
        ("counting:Counting", np.array([0, 3]), r"want 0 \.\. 2, given 3 in row 1"),
        ("counting:Counting", np.array([-1, 0]), r"want 0 \.\. 2, given -1 in row 0"),
        ("CartPole-v1", np.array([0, 2]), r"CartPole-v1: actions: want 0 \.\. 1, given 2 in row 1"),
        ("counting:Switches", np.array([[0, 2], [2, 0]]), r"want 0 \.\. 1, given 2 in row 1, entry 0"),
        (
            "counting:Pushing",
            np.array([[0, 0], [np.nan, 0]], np.float32),
            "want finite numbers, given .*row 1; the",
        ),
        ("counting:Pushing", np.array([[0, np.inf], [0, 0]], np.float32), "want finite numbers, given .*row 0"),
        ("counting:Pushing", np.zeros((2, 2), np.int64), r"want real numbers \(float32\), given dtype int64"),
        ("counting:Pushing", np.zeros((2, 3), np.float32), r"want shape \[2, 2\]"),
    ],
)
def test_wrong_actions_are_refused(name, actions, message):
    env = made(name)
    before = env.save()
    with pytest.raises(InputError, match=message):
        env.step(actions)
    assert np.array_equal(env.save()["observations"], before["observations"])
    assert np.array_equal(env.episode_step, [0, 0])


def test_box_actions_are_clipped_at_the_door_and_logged_as_they_came():
    env = made("counting:Pushing")
    start = env.observations.copy()
    actions = np.array([[5.0, -5.0], [0.5, 0.5]], np.float32)
    result = env.step(actions)
    np.testing.assert_allclose(result.observations - start, [[1, -2], [0.5, 0.5]], rtol=1e-6)
    assert np.array_equal(env.save().ragged["actions"].values, actions)


def test_spaces_that_do_not_count_from_zero():
    env = made("counting:Switches")
    assert env.observation_space == Space("discrete", n=10)
    assert env.action_space == Space("multi_discrete", shape=(2,), nvec=(2, 3))
    assert env.observations.tolist() == [0, 0]
    assert env.step(np.array([[0, 2], [1, 1]])).observations.tolist() == [2, 4]


def test_images_are_stacked_with_zeros_before_the_first():
    env = made("counting:Pictures", grayscale=True, frame_stack=3)
    assert env.frame_stack == 3
    assert env.observation_space == Space("box", (3, 6, 4), "uint8")
    assert not env.observations[:, :2].any()
    for _ in range(20):
        previous = env.observations
        result = env.step(np.zeros(2, np.int64))
        # A sliding window within the episode, the ending's observation included.
        assert np.array_equal(result.final_observations[:, :2], previous[:, 1:])
        assert not result.observations[result.terminated, :2].any()


def test_plain_images_and_frame_skip():
    env = made("counting:Pictures")
    assert (env.frame_stack, env.observation_space.shape) == (1, (6, 4, 3))
    skipping = made("counting:Pictures", frame_skip=4)
    assert skipping.step(np.zeros(2, np.int64)).rewards.tolist() == [4, 4]


def test_flatten_makes_a_box_of_a_dict():
    with pytest.raises(InputError, match=r"DictObservations: observation space: want Box or Discrete.*flatten=True"):
        made("counting:DictObservations")
    env = made("counting:DictObservations", flatten=True)
    assert env.observations.tolist() == [[0, 0, 0, 1, 0]] * 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartPol-v1", {}, "want a registered Gymnasium id, given 'CartPol-v1'; near: CartPole-v1"),
        ("cartpole", {}, "near: CartPole-v1"),
        ("Zzz", {}, "no name here is near it"),
        ("", {}, "want an environment's name"),
        ("no_such_module:Env", {}, "want a module that can be imported before the colon"),
        ("counting:Countin", {}, "near: Counting"),
        ("counting:MODES", {}, "want a class or a function that makes an environment"),
        ("counting:not_an_environment", {}, r"want a gymnasium\.Env from the class or function, given int"),
        ("counting:TextActions", {}, "action space: want Discrete, MultiDiscrete of one axis, or Box of one axis"),
        ("counting:Counting", {"backend": "native"}, "want 'scalar' for 'module:attribute'"),
        ("Pendulum-v1", {"backend": "native"}, "want 'scalar'.*given 'native'"),
        ("Pendulum-v1", {"backend": "ale"}, "'ale' wants an id that begins with ALE/"),
        ("CartPole-v1", {"backend": "fast"}, "want one of scalar, native, ale, envpool, given 'fast'"),
        ("CartPole-v1", {"max_step": 3}, "options: want some of backend, max_episode_steps.*given 'max_step'"),
        ("CartPole-v1", {"max_episode_steps": 0}, "max_episode_steps: want a whole number >= 1, given 0"),
        ("CartPole-v1", {"max_episode_steps": True}, "want a whole number >= 1, given True"),
        ("CartPole-v1", {"arguments": {"gravity": 3}}, "CartPole-v1: could not be made"),
        ("counting:Counting", {"restart": "state"}, "restart: want 'replay' or 'fresh', given 'state'"),
        ("counting:Counting", {"frame_stack": 4}, r"frame_stack: want images uint8\[H, W\]"),
        ("counting:Pictures", {"frame_stack": 4}, "or set grayscale"),
        ("counting:Counting", {"grayscale": True}, r"grayscale: want images uint8\[H, W, 3\]"),
        ("counting:Counting", {"resize": (84,)}, "resize: want .height, width."),
        ("counting:Counting", {"render_mode": "human"}, "render_mode: want 'rgb_array'"),
        ("counting:Counting", {"arguments": 3}, "arguments: want a dict"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        made(name, **options)


@pytest.mark.parametrize("lanes", [range(0), range(0, 4, 2), [0, 1], range(-1, 2)])
def test_wrong_lanes_are_refused(lanes):
    with pytest.raises(InputError, match="want a range of consecutive lanes"):
        make_env("CartPole-v1", lanes=lanes, seed=0)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("ALE/Pong-v5", "ale_py", "atari"), ("envpool:Pong-v5", "envpool", "envpool"), ("Hopper-v5", "mujoco", "mujoco")],
)
def test_a_missing_extra_is_named(monkeypatch, name, package, extra):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda given, *rest: None if given == package else find_spec(given)
    )
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.mujoco.mujoco_env", raising=False)
    with pytest.raises(InputError, match=rf"{name}: .*pip install 'hpcrl\[{extra}\]'"):
        describe_env(name)


def test_names_of_your_own():
    assert made("counting:make_counting", arguments={"longest": 1}).observations[:, 0].tolist() == [1, 1]
    assert type(made("counting:CountingNextStep-v0")).__name__ == "ScalarEnvs"
    assert type(made("gymnasium:CartPole-v1")).__name__ == "CartPoleEnvs"


def test_errors_inside_an_environment_say_where():
    env = made("counting:Crashing")
    with pytest.raises(ZeroDivisionError, match="the physics broke") as caught:
        env.step(np.zeros(2, np.int64))
    assert any("lane 0, episode 0, step 0" in note for note in caught.value.__notes__)
    with pytest.raises(InputError, match=r"WrongShape: observation: want shape \[3\].*given \[2\]"):
        made("counting:WrongShape").step(np.zeros(2, np.int64))


def test_send_and_receive_are_a_step_in_two():
    one, two = made("CartPole-v1"), made("CartPole-v1")
    for actions in random_actions(one, 30):
        two.send(actions)
        assert np.array_equal(one.step(actions).observations, two.receive().observations)
    with pytest.raises(RuntimeError, match="without send"):
        two.receive()


def test_describe():
    description = describe_env("CartPole-v1", {"max_episode_steps": 77})
    assert description.observation_space == Space("box", (4,), "float32")
    assert description.action_space == Space("discrete", n=2)
    assert (description.frame_stack, description.restart, description.max_episode_steps) == (1, "state", 77)
    assert describe_env("Pendulum-v1").max_episode_steps == 200


def test_render():
    assert made().render() is None
    env = made(render_mode="rgb_array", arguments={"longest": 50})
    play(env, random_actions(env, 3))
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((4, 6, 3), np.uint8)
    assert (picture == env.observations[0, 2]).all()
    assert made("CartPole-v1").render() is None


def test_cartpole_renders_or_says_what_is_missing():
    env = made("CartPole-v1", render_mode="rgb_array")
    if "pygame" in sys.modules or __import__("importlib.util").util.find_spec("pygame"):
        assert env.render().shape == (400, 600, 3)
    else:
        with pytest.raises(InputError, match=r"render: want a machine that can draw it.*pygame"):
            env.render()
