"""Checks of model configurations, at the door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpcrl.errors import InputError

if TYPE_CHECKING:
    from hpcrl.envs import Space


def check_hidden(name: str, hidden: Sequence[object]) -> None:
    """At least one hidden layer, each of at least one unit."""
    if len(hidden) == 0 or not all(isinstance(units, int) and units >= 1 for units in hidden):
        raise InputError(f"{name}: want one or more layer sizes >= 1, given {tuple(hidden)}; for example (64, 64)")


def check_heads(name: str, heads: Sequence[str]) -> None:
    """An actor-critic has a policy head and a value head."""
    if sorted(heads) != ["policy", "value"]:
        raise InputError(f"{name}: want ('policy', 'value'), given {tuple(heads)}")


def check_member(name: str, given: object, wanted: Sequence[object]) -> None:
    """One of a few words."""
    if given not in wanted:
        raise InputError(f"{name}: want one of {', '.join(map(repr, wanted))}, given {given!r}")


def check_build(seed: object) -> None:
    """A seed that a generator takes."""
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise InputError(f"seed: want an integer in [0, 2**64), given {seed!r}")


def check_spaces(name: str, observation_space: Space | None, action_space: Space | None) -> tuple[Space, Space]:
    """The spaces of an environment, which a pipeline of text does not have."""
    if observation_space is None or action_space is None:
        raise InputError(f"{name}: want an environment to observe, given a pipeline of text; use LanguageModel(...)")
    return observation_space, action_space
