"""The options an environment's back end takes, checked by name, type and range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from hpcrl.errors import InputError

OptionsT = TypeVar("OptionsT", bound="EnvOptions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """Options every back end of Gymnasium's takes.

    A wrong name, type or range is an InputError that names the environment and the option.
    """

    backend: Literal["scalar", "native", "ale"] | None = None
    """Which adapter plays; None: the best there is for this environment."""
    max_episode_steps: int | None = None
    """Time limit in steps; None: the environment's own."""
    render_mode: Literal["rgb_array"] | None = None
    """"rgb_array" makes `render` answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarOptions(EnvOptions):
    """Options of scalar environments; all but the first two are Gymnasium's wrappers, applied in this order."""

    arguments: Mapping[str, object] | None = None
    """Keyword arguments of the environment itself."""
    restart: Literal["replay", "fresh"] = "replay"
    """"fresh" drops open episodes at a restart, for environments that do not repeat themselves."""
    frame_skip: int = 1
    """Repeat each action so often, maximum over the last two images (MaxAndSkipObservation)."""
    grayscale: bool = False
    """Colour images to uint8[H, W] (GrayscaleObservation)."""
    resize: tuple[int, int] | None = None
    """Images to (height, width) (ResizeObservation; needs opencv-python)."""
    flatten: bool = False
    """Dict and Tuple observations to one Box (FlattenObservation)."""
    frame_stack: int = 1
    """The last k images as one observation uint8[k, H, W] (FrameStackObservation, zeros before the first)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeOptions(EnvOptions):
    """Options of Gymnasium's vector environments."""

    arguments: Mapping[str, object] | None = None
    """Keyword arguments of the environment itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariOptions(EnvOptions):
    """Options of ale-py's vector environment: Machado et al. 2018 (arXiv:1709.06009), Mnih et al. 2015."""

    restart: Literal["replay", "fresh"] = "replay"
    """"fresh" drops open episodes at a restart."""
    reseed_after: int = 8192
    """A lane is seeded anew at the first ending so many steps after the last; 1: at every episode. A restart replays as
    many steps and an episode; a seeding costs as much as 300 steps."""
    frame_stack: int = 4
    """Frames in an observation; zeros before an episode's first."""
    frame_skip: int = 4
    """Emulator frames per action."""
    resize: tuple[int, int] = (84, 84)
    """Height and width of a frame."""
    maxpool: bool = True
    """Maximum over the last two emulator frames, against flicker."""
    noop_max: int = 30
    """An episode begins with 0 to noop_max - 1 actions that do nothing."""
    use_fire_reset: bool = True
    """Press FIRE at the start of an episode where the game has that action."""
    episodic_life: bool = False
    """A lost life ends the episode, and the game starts anew."""
    reward_clipping: bool = False
    """Rewards to -1, 0, 1 in the engine. Off: shards hold raw rewards; Refine clips."""
    full_action_space: bool = False
    """All 18 actions instead of the game's own."""
    repeat_action_probability: float | None = None
    """Sticky actions; None: what the id is registered with (0.25 for v5)."""


def read_options(kind: type[OptionsT], env: str, options: Mapping[str, object]) -> OptionsT:
    """The options as a checked dataclass of that kind.

    Raises: InputError for an unknown name, or a value of another type or out of range.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in options.items():
        if name not in defaults:
            raise InputError(f"{env}: options: want some of {', '.join(defaults)}, given {name!r}")
        wanted, is_good = _RULES[name]
        if not is_good(value) and not (value is None and defaults[name] is None):
            raise InputError(f"{env}: option {name}: want {wanted}, given {value!r}")
    return kind(**options)  # type: ignore[arg-type]  # every value was seen to fit


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_size(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_whole(side, 1) for side in value)


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_arguments(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


_Rule = tuple[str, Callable[[object], bool]]
_SWITCH: _Rule = ("True or False", lambda value: isinstance(value, bool))
_COUNT: _Rule = ("a whole number >= 1", lambda value: _is_whole(value, 1))
_RULES: dict[str, _Rule] = {
    "backend": ("scalar, native, ale or envpool", lambda value: value in ("scalar", "native", "ale", "envpool")),
    "max_episode_steps": _COUNT,
    "render_mode": ("'rgb_array'", lambda value: value == "rgb_array"),
    "arguments": ("a dict of keyword arguments", _is_arguments),
    "restart": ("'replay' or 'fresh'", lambda value: value in ("replay", "fresh")),
    "frame_skip": _COUNT,
    "frame_stack": _COUNT,
    "grayscale": _SWITCH,
    "resize": ("(height, width), whole numbers >= 1", _is_size),
    "flatten": _SWITCH,
    "reseed_after": _COUNT,
    "maxpool": _SWITCH,
    "noop_max": ("a whole number >= 0", lambda value: _is_whole(value, 0)),
    "use_fire_reset": _SWITCH,
    "episodic_life": _SWITCH,
    "reward_clipping": _SWITCH,
    "full_action_space": _SWITCH,
    "repeat_action_probability": ("a number in [0, 1]", _is_probability),
}
