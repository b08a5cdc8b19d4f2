"""One scalar environment, made and wrapped as its options say."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np

from hpcrl.envs.catalog import Entry
from hpcrl.envs.options import ScalarOptions
from hpcrl.errors import InputError


def make_scalar(entry: Entry, options: ScalarOptions) -> Any:
    """The environment of a registered id or of the user's own class, in Gymnasium's wrappers.

    Raises: InputError when the factory returns something else, or a wrapper does not fit the observations.
    """
    import gymnasium

    arguments: dict[str, Any] = dict(options.arguments or {})
    if options.render_mode is not None:
        arguments["render_mode"] = options.render_mode
    if entry.factory is None:
        if ".mujoco" in str(gymnasium.registry[entry.id].entry_point):
            _tell_mujoco_warnings()
        # The passive checker looks at types only, which the gates do; it costs a fifth of a CartPole step.
        made: Any = gymnasium.make(
            entry.id, max_episode_steps=options.max_episode_steps, disable_env_checker=True, **arguments
        )
    else:
        made = entry.factory(**arguments)
        if not isinstance(made, gymnasium.Env):
            raise InputError(
                f"{entry.name}: want a gymnasium.Env from the class or function, given {type(made).__name__}; "
                "derive the class from gymnasium.Env"
            )
        if options.max_episode_steps is not None:
            made = gymnasium.wrappers.TimeLimit(made, options.max_episode_steps)
    return _wrapped(made, entry.name, options)


def _tell_mujoco_warnings() -> None:
    """MuJoCo's warnings as Python's: once each, instead of once a lane and into MUJOCO_LOG.TXT in the user's folder."""
    if importlib.util.find_spec("mujoco") is None:
        return  # gymnasium.make says it better
    import mujoco

    mujoco.set_mju_user_warning(lambda message: warnings.warn(f"MuJoCo: {str(message).strip()}", stacklevel=2))


def _wrapped(env: Any, name: str, options: ScalarOptions) -> Any:
    from gymnasium import wrappers

    if options.frame_skip > 1:
        env = wrappers.MaxAndSkipObservation(env, options.frame_skip)
    if options.grayscale:
        _want_image(env, name, "grayscale", (3,))
        env = wrappers.GrayscaleObservation(env)
    if options.resize is not None:
        _want_image(env, name, "resize", (2, 3))
        env = wrappers.ResizeObservation(env, options.resize)
    if options.flatten:
        env = wrappers.FlattenObservation(env)
    if options.frame_stack > 1:
        _want_image(env, name, "frame_stack", (2,))
        env = wrappers.FrameStackObservation(env, options.frame_stack, padding_type="zero")
    return env


def _want_image(env: Any, name: str, option: str, axes: tuple[int, ...]) -> None:
    space = env.observation_space
    shape = getattr(space, "shape", None) or ()
    if getattr(space, "dtype", None) == np.uint8 and len(shape) in axes:
        return
    wanted = " or ".join("uint8[H, W]" if n == 2 else "uint8[H, W, 3]" for n in axes)
    raise InputError(
        f"{name}: option {option}: want images {wanted}, given {space}; leave {option} out, or set grayscale"
    )
