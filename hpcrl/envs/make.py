"""From an environment's name and options to a block's environments."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hpcrl.envs.catalog import Entry, find, is_cartpole, require
from hpcrl.envs.interface import Restart, VectorEnv
from hpcrl.envs.options import AtariOptions, EnvOptions, NativeOptions, ScalarOptions, read_options
from hpcrl.envs.spaces import Space
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw


@dataclasses.dataclass(frozen=True)
class EnvDescription:
    """What the rest of a pipeline needs to know of an environment."""

    observation_space: Space
    action_space: Space
    frame_stack: int
    restart: Restart
    max_episode_steps: int | None


def make_env(
    env: str,
    *,
    lanes: range,
    seed: int,
    options: Mapping[str, object] | None = None,
    num_threads: int = 1,
    draw: Draw = Draw.RESET,
) -> VectorEnv:
    """One block's environments, one per lane; call `reset` or `restore` before the first step.

    Args:
        env: a Gymnasium id, `ALE/...`, `envpool:...`, or `module:attribute` of your own.
        lanes: global lane numbers, consecutive; an episode's key is counted from (seed, lane, episode, draw).
        seed: the run's seed.
        options: of the back end: docs/environments.md.
        num_threads: threads of an engine that has its own (ALE, EnvPool); the others use none.
        draw: which random numbers; evaluation takes another than training, and so leaves training's untouched.
    Raises:
        InputError: unknown name, option or space, or a package that is not installed.
    """
    options = options or {}
    if not isinstance(lanes, range) or len(lanes) == 0 or lanes.step != 1 or lanes.start < 0:
        raise InputError(f"{env}: lanes: want a range of consecutive lanes, such as range(0, 8), given {lanes!r}")
    if num_threads < 1:
        raise InputError(f"{env}: num_threads: want a whole number >= 1, given {num_threads}")
    entry = find(env, options)
    if entry.backend == "envpool":
        return _make_envpool(entry, lanes, seed, options, num_threads, draw)
    if entry.backend == "ale":
        return _make_atari(entry, lanes, seed, options, num_threads, draw)
    if entry.backend == "native":
        return _make_native(entry, lanes, seed, options, draw)
    return _make_scalar(entry, lanes, seed, options, draw)


def describe_env(env: str, options: Mapping[str, object] | None = None) -> EnvDescription:
    """Spaces, frame stack, restart level and time limit; makes one environment and closes it.

    Raises: InputError as `make_env` does.
    """
    one = make_env(env, lanes=range(1), seed=0, options=options)
    with contextlib.closing(one):
        return EnvDescription(
            one.observation_space, one.action_space, one.frame_stack, one.restart, one.max_episode_steps
        )


@contextlib.contextmanager
def _explained(entry: Entry) -> Iterator[None]:
    """Gymnasium's complaints about a name or its arguments, as ours."""
    import gymnasium

    try:
        yield
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        spec = gymnasium.registry.get(entry.id)
        entry_point = str(spec.entry_point if spec is not None else "")
        advice = "pip install 'hpcrl[mujoco]'" if ".mujoco" in entry_point else "install what it asks for"
        raise InputError(f"{entry.name}: a package it needs is not installed ({error}); {advice}") from error
    except (gymnasium.error.Error, TypeError) as error:
        if entry.factory is not None:
            raise  # the user's own code: its traceback says more
        raise InputError(f"{entry.name}: could not be made: {error}; see its own documentation") from error


def _make_native(entry: Entry, lanes: range, seed: int, options: Mapping[str, object], draw: Draw) -> VectorEnv:
    import gymnasium

    from hpcrl.envs.cartpole import CartPoleEnvs
    from hpcrl.envs.native import NativeEnvs

    chosen = read_options(NativeOptions, entry.name, options)
    with _explained(entry):
        engine: Any = gymnasium.make_vec(
            entry.id, len(lanes), vectorization_mode="vector_entry_point", **_arguments(chosen, chosen.arguments)
        )
    if is_cartpole(gymnasium.registry[entry.id]):
        return CartPoleEnvs(engine, entry.name, lanes, seed, draw)
    return NativeEnvs(engine, entry.name, lanes, seed, draw)


def _arguments(options: EnvOptions, own: Mapping[str, object] | None) -> dict[str, Any]:
    """Keyword arguments of gymnasium.make: only those given, so that an environment without them can be made."""
    given = {"max_episode_steps": options.max_episode_steps, "render_mode": options.render_mode}
    return {**(own or {}), **{name: value for name, value in given.items() if value is not None}}


def _make_atari(
    entry: Entry, lanes: range, seed: int, options: Mapping[str, object], num_threads: int, draw: Draw
) -> VectorEnv:
    require("ale_py", "atari", entry.name)
    import gymnasium
    from ale_py.vector_env import AtariVectorEnv

    from hpcrl.envs.atari import AtariEnvs

    chosen = read_options(AtariOptions, entry.name, options)
    registered = gymnasium.registry[entry.id].kwargs
    sticky = chosen.repeat_action_probability
    limit = chosen.max_episode_steps
    engine = AtariVectorEnv(
        registered["game"],
        len(lanes),
        num_threads=num_threads,
        # The engine counts emulator frames, we count actions.
        max_num_frames_per_episode=(
            limit * chosen.frame_skip if limit else int(registered["max_num_frames_per_episode"])
        ),
        repeat_action_probability=registered["repeat_action_probability"] if sticky is None else sticky,
        full_action_space=chosen.full_action_space,
        img_height=chosen.resize[0],
        img_width=chosen.resize[1],
        stack_num=chosen.frame_stack,
        frameskip=chosen.frame_skip,
        maxpool=chosen.maxpool,
        noop_max=chosen.noop_max,
        episodic_life=chosen.episodic_life,
        reward_clipping=chosen.reward_clipping,
        use_fire_reset=chosen.use_fire_reset,
    )
    made = AtariEnvs(engine, entry.name, lanes, seed, draw, restart=chosen.restart, reseed_after=chosen.reseed_after)
    made.max_episode_steps = limit or int(registered["max_num_frames_per_episode"]) // chosen.frame_skip
    return made


def _make_envpool(
    entry: Entry, lanes: range, seed: int, options: Mapping[str, object], num_threads: int, draw: Draw
) -> VectorEnv:
    from hpcrl.envs.pool import EnvPoolEnvs, check_options

    # EnvPool calls the stack stack_num; here it has one name in all back ends.
    renamed = {"stack_num" if name == "frame_stack" else name: value for name, value in options.items()}
    renamed.pop("backend", None)
    check_options(entry.id, renamed)
    return EnvPoolEnvs(entry.id, lanes, seed, draw, num_threads=num_threads, options=renamed)


def _make_scalar(entry: Entry, lanes: range, seed: int, options: Mapping[str, object], draw: Draw) -> VectorEnv:
    from hpcrl.envs.scalar import ScalarEnvs
    from hpcrl.envs.wrapping import make_scalar

    chosen = read_options(ScalarOptions, entry.name, options)
    with _explained(entry):
        return ScalarEnvs(
            lambda: make_scalar(entry, chosen),
            entry.name,
            lanes,
            seed,
            draw,
            restart=chosen.restart,
            frame_stack=chosen.frame_stack,
        )
