"""What an environment's observations and actions look like; and the one gate each passes on its way in or out."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Space:
    """The shape of one observation or one action, without the lane axis.

    kind "box": `shape`, `dtype`, and bounds `low`, `high` float64[shape] (infinite where there is none; two spaces
    compare equal whatever their bounds); "discrete": 0 .. n - 1, shape (); "multi_discrete": entry i below nvec[i].
    Example:
        >>> Space("discrete", n=2)
        Space(kind='discrete', shape=(), dtype='int64', n=2, nvec=None)
    """

    kind: Literal["box", "discrete", "multi_discrete"]
    shape: tuple[int, ...] = ()
    dtype: str = "int64"
    n: int | None = None
    nvec: tuple[int, ...] | None = None
    low: Array | None = dataclasses.field(default=None, compare=False, repr=False)
    high: Array | None = dataclasses.field(default=None, compare=False, repr=False)


def observation_space_of(space: object, env: str) -> Space:
    """The observation space of a Gymnasium space: Box (float64 becomes float32) or Discrete.

    Raises: InputError for any other space, naming the options that turn it into one of these.
    """
    converted = _convert(space, env, "observation", "Box or Discrete")
    if converted.kind == "multi_discrete":
        raise _unsupported(space, env, "observation", "Box or Discrete")
    return converted


def action_space_of(space: object, env: str) -> Space:
    """The action space of a Gymnasium space: Discrete, MultiDiscrete of one axis, or Box of one axis.

    Raises: InputError for any other space.
    """
    wanted = "Discrete, MultiDiscrete of one axis, or Box of one axis"
    converted = _convert(space, env, "action", wanted)
    if converted.kind != "discrete" and len(converted.shape) != 1:
        raise _unsupported(space, env, "action", wanted)
    return converted


def _convert(space: object, env: str, role: str, wanted: str) -> Space:
    # By name, so that a Gymnasium space, and EnvPool's copy of one, need no import here.
    kind, given = type(space).__name__, cast(Any, space)
    if kind == "Discrete":
        return Space("discrete", n=int(given.n))
    if kind == "MultiDiscrete":
        nvec = np.asarray(given.nvec)
        return Space("multi_discrete", shape=nvec.shape, nvec=tuple(int(n) for n in nvec.reshape(-1)))
    if kind == "Box":
        dtype = np.dtype(given.dtype)
        dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
        low, high = np.asarray(given.low, np.float64), np.asarray(given.high, np.float64)
        return Space("box", tuple(int(n) for n in given.shape), dtype.name, low=low, high=high)
    raise _unsupported(space, env, role, wanted)


def _unsupported(space: object, env: str, role: str, wanted: str) -> InputError:
    advice = "; Dict and Tuple observations become a Box with the option flatten=True" if role == "observation" else ""
    return InputError(f"{env}: {role} space: want {wanted}, given {space}; wrap the environment{advice}")


def start_of(space: object) -> Array | int:
    """What a Gymnasium space counts from: `start` of Discrete and MultiDiscrete, 0 for a Box."""
    start = getattr(space, "start", 0)
    return np.asarray(start, np.int64) if np.any(start) else 0


class ObservationGate:
    """Observations on their way in: float64 becomes float32, Discrete counts from 0, shapes are checked."""

    def __init__(self, space: Space, start: Array | int, env: str) -> None:
        self.env, self.shape, self.dtype, self.start = env, space.shape, np.dtype(space.dtype), start

    def batch(self, observations: object, num_lanes: int) -> Array:
        """[lanes, *shape] in the space's dtype, in memory of its own."""
        array = np.asarray(observations)
        if array.shape != (num_lanes, *self.shape):
            raise self._wrong_shape(array.shape, (num_lanes, *self.shape))
        return np.array(array if isinstance(self.start, int) else array - self.start, dtype=self.dtype)

    def one(self, observation: object) -> Array:
        """One lane's observation, [*shape]; the caller copies it into a batch."""
        array = np.asarray(observation)
        if array.shape != self.shape:
            raise self._wrong_shape(array.shape, self.shape)
        return array if isinstance(self.start, int) else np.asarray(array - self.start)

    def _wrong_shape(self, given: tuple[int, ...], wanted: tuple[int, ...]) -> InputError:
        return InputError(
            f"{self.env}: observation: want shape {list(wanted)}, as its observation_space says, given {list(given)}; "
            "correct reset() and step() or the space"
        )


class ActionGate:
    """Actions on their way out: shape, dtype and range checked; boxes clipped to their bounds just before the engine.

    Shapes: discrete int[lanes]; multi-discrete int[lanes, k]; box float[lanes, d].
    Raises: InputError for another shape or dtype, a number outside 0 .. n - 1, or a number that is not finite.
    """

    def __init__(self, space: Space, start: Array | int, num_lanes: int, env: str, dtype: object = None) -> None:
        self.env, self.space, self.start = env, space, start
        self.shape = (num_lanes, *space.shape)
        self.dtype = np.dtype(cast(Any, dtype)) if dtype is not None else np.dtype(space.dtype)
        self._limits = np.asarray(space.n if space.kind == "discrete" else (space.nvec or 0), np.uint64)
        self._top = int(self._limits.max()) if self._limits.size else 0
        if space.low is not None and space.high is not None:
            self._low, self._high = space.low.astype(self.dtype), space.high.astype(self.dtype)

    def __call__(self, actions: Array) -> Array:
        """The same actions as the engine wants them."""
        if not isinstance(actions, np.ndarray) or actions.shape != self.shape:
            given = list(actions.shape) if isinstance(actions, np.ndarray) else type(actions).__name__
            raise InputError(f"{self.env}: actions: want shape {list(self.shape)} (lanes first), given {given}")
        if self.space.kind == "box":
            return self._box(actions)
        if actions.dtype.kind not in "iu":
            raise InputError(f"{self.env}: actions: want whole numbers (int64), given dtype {actions.dtype}")
        whole = actions.astype(np.int64, copy=False)
        # Seen as unsigned, a negative number is a huge one: one comparison checks both ends.
        unsigned = whole.view(np.uint64)
        if np.count_nonzero(unsigned >= self._top) or (self.space.kind == "multi_discrete" and self._outside(unsigned)):
            self._refuse(whole, unsigned)
        return whole if isinstance(self.start, int) else np.asarray(whole + self.start)

    def _outside(self, unsigned: Array) -> bool:
        return bool((unsigned >= self._limits).any())

    def _refuse(self, whole: Array, unsigned: Array) -> None:
        row = tuple(int(i) for i in np.argwhere(unsigned >= self._limits)[0])
        limit = int(np.broadcast_to(self._limits, self.shape)[row])
        where = f"row {row[0]}" + (f", entry {row[1]}" if len(row) > 1 else "")
        raise InputError(f"{self.env}: actions: want 0 .. {limit - 1}, given {int(whole[row])} in {where}")

    def _box(self, actions: Array) -> Array:
        if actions.dtype.kind != "f":
            raise InputError(f"{self.env}: actions: want real numbers (float32), given dtype {actions.dtype}")
        if not np.isfinite(actions).all():
            row = int(np.argwhere(~np.isfinite(actions))[0][0])
            raise InputError(
                f"{self.env}: actions: want finite numbers, given {actions[row].tolist()} in row {row}; "
                "the policy has diverged: look at its losses, lower learning_rate or max_grad_norm"
            )
        clipped: Array = np.clip(actions.astype(self.dtype, copy=False), self._low, self._high)
        return clipped
