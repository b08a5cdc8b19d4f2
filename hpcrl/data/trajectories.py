"""The one data shape: packed steps of many episodes plus offsets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class Ending(IntEnum):
    """How a trajectory ends; all but TERMINATED bootstrap."""

    TERMINATED = 1
    """The environment reached a terminal state: the value after it is 0."""
    TRUNCATED = 2
    """A time or length limit ended the episode: the value after it is V(final observation)."""
    CUT = 3
    """The rollout ended; the episode goes on in the lane's next trajectory."""


def _check_offsets(name: str, offsets: Array, count: int | None, total: int | None) -> None:
    """Offsets are int64, start at 0, never fall and end at `total`."""
    if offsets.ndim != 1 or offsets.dtype != np.int64:
        raise InputError(
            f"{name}: want int64[n + 1], given {offsets.dtype}{list(offsets.shape)}; convert with .astype(np.int64)"
        )
    if offsets.size == 0 or offsets[0] != 0:
        raise InputError(
            f"{name}: want a first entry 0, given {offsets[0] if offsets.size else 'an empty array'}; prepend 0"
        )
    if count is not None and offsets.size != count + 1:
        raise InputError(f"{name}: want length {count + 1} (num_trajectories + 1), given {offsets.size}")
    if offsets.size > 1 and bool((offsets[1:] < offsets[:-1]).any()):
        where = int(np.argmax(offsets[1:] < offsets[:-1]))
        raise InputError(
            f"{name}: want non-decreasing entries, given {offsets[where]} then {offsets[where + 1]} at {where + 1}"
        )
    if total is not None and offsets[-1] != total:
        raise InputError(f"{name}: want a last entry {total}, given {offsets[-1]}")


def _check_array(name: str, array: object, length: int, unit: str) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name}: want a NumPy array, given {type(array).__name__}; convert with np.asarray")
    if array.dtype == object:
        raise InputError(f"{name}: want numbers, given dtype object; give the array a numeric dtype")
    if array.ndim == 0 or len(array) != length:
        given = "a scalar" if array.ndim == 0 else str(len(array))
        raise InputError(f"{name}: want length {length} ({unit}), given {given}")
    if not array.flags.c_contiguous:
        raise InputError(f"{name}: want C-contiguous memory, given strides {array.strides}; use np.ascontiguousarray")


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A field with its own number of rows per trajectory: row i is `values[offsets[i]:offsets[i + 1]]`.

    Shapes: values [total, ...] of any dtype; offsets int64[num_trajectories + 1].
    Raises: InputError when offsets do not start at 0, fall, or do not end at len(values).
    """

    values: Array
    offsets: Int64

    def __post_init__(self) -> None:
        if not isinstance(self.values, np.ndarray) or self.values.ndim == 0:
            raise InputError(f"ragged values: want an array with rows, given {type(self.values).__name__}")
        _check_array("ragged values", self.values, len(self.values), "rows")
        _check_offsets("ragged offsets", self.offsets, None, len(self.values))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Array:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))


def _gather_rows(offsets: Int64, indices: Int64) -> tuple[Int64, Int64]:
    """Row numbers of the chosen trajectories, in their order, and the new offsets."""
    lengths = (offsets[1:] - offsets[:-1])[indices]
    new_offsets = np.zeros(len(indices) + 1, dtype=np.int64)
    np.cumsum(lengths, out=new_offsets[1:])
    shift = np.repeat(offsets[:-1][indices] - new_offsets[:-1], lengths)
    return np.arange(new_offsets[-1], dtype=np.int64) + shift, new_offsets


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Packed steps of many episodes; a trajectory never crosses an episode's end.

    Shapes: offsets int64[num_trajectories + 1]; `steps` fields [num_steps, ...]; `per_trajectory` fields
    [num_trajectories, ...]; `ragged` fields with rows of their own per trajectory. `rewards[t]` follows `actions[t]`.
    Invariants are checked here, once; nothing below checks them again.
    Raises: InputError naming the field, what is wanted and what was given.
    Example:
        >>> t = Trajectories(np.array([0, 2, 3]), {"rewards": np.ones(3, np.float32)})
        >>> t.num_steps, t.num_trajectories, t.lengths.tolist()
        (3, 2, [2, 1])
        >>> t.select([1])["rewards"]
        array([1.], dtype=float32)
    """

    offsets: Int64
    steps: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    per_trajectory: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    ragged: Mapping[str, Ragged] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.offsets, np.ndarray):
            raise InputError(f"offsets: want a NumPy int64 array, given {type(self.offsets).__name__}")
        _check_offsets("offsets", self.offsets, None, None)
        names = [*self.steps, *self.per_trajectory, *self.ragged]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise InputError(f"fields: want every name once, given twice: {', '.join(doubled)}")
        for name, array in self.steps.items():
            _check_array(name, array, self.num_steps, "num_steps")
        for name, array in self.per_trajectory.items():
            _check_array(name, array, self.num_trajectories, "num_trajectories")
        for name, ragged in self.ragged.items():
            if not isinstance(ragged, Ragged):
                raise InputError(f"{name}: want a Ragged field, given {type(ragged).__name__}")
            _check_offsets(f"{name} offsets", ragged.offsets, self.num_trajectories, None)

    @property
    def num_trajectories(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> Int64:
        """Steps of each trajectory, int64[num_trajectories]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def num_bytes(self) -> int:
        """Bytes of all fields and offsets."""
        arrays = [self.offsets, *self.steps.values(), *self.per_trajectory.values()]
        arrays += [part for ragged in self.ragged.values() for part in (ragged.values, ragged.offsets)]
        return sum(int(array.nbytes) for array in arrays)

    def fields(self) -> tuple[str, ...]:
        """Names of all fields: steps, per trajectory, ragged."""
        return (*self.steps, *self.per_trajectory, *self.ragged)

    def __contains__(self, name: object) -> bool:
        return name in self.steps or name in self.per_trajectory or name in self.ragged

    def __getitem__(self, name: str) -> Array:
        """A packed field (steps or per trajectory); ragged fields are read from `.ragged`."""
        if name in self.steps:
            return self.steps[name]
        if name in self.per_trajectory:
            return self.per_trajectory[name]
        where = "it is ragged: read .ragged[...]" if name in self.ragged else f"fields here: {', '.join(self.fields())}"
        raise KeyError(f"{name}: want a packed field; {where}")

    def with_fields(
        self,
        *,
        steps: Mapping[str, Array] | None = None,
        per_trajectory: Mapping[str, Array] | None = None,
        ragged: Mapping[str, Ragged] | None = None,
    ) -> Trajectories:
        """The same trajectories with fields added or replaced; shares memory."""
        return Trajectories(
            self.offsets,
            {**self.steps, **(steps or {})},
            {**self.per_trajectory, **(per_trajectory or {})},
            {**self.ragged, **(ragged or {})},
        )

    def only(self, names: Sequence[str]) -> Trajectories:
        """The same trajectories with just these fields; shares memory."""
        missing = [name for name in names if name not in self]
        if missing:
            raise InputError(f"fields: want {', '.join(missing)}, given {', '.join(self.fields()) or 'none'}")
        return Trajectories(
            self.offsets,
            {name: array for name, array in self.steps.items() if name in names},
            {name: array for name, array in self.per_trajectory.items() if name in names},
            {name: array for name, array in self.ragged.items() if name in names},
        )

    def without(self, names: Sequence[str]) -> Trajectories:
        """The same trajectories less these fields; shares memory."""
        return self.only([name for name in self.fields() if name not in names])

    def select(self, indices: Sequence[int] | Int64) -> Trajectories:
        """The chosen trajectories, in the order given (repeats allowed); copies."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.num_trajectories):
            raise InputError(
                f"indices: want 0 <= index < {self.num_trajectories} (num_trajectories), "
                f"given {chosen.min()}..{chosen.max()}"
            )
        rows, offsets = _gather_rows(self.offsets, chosen)
        ragged = {}
        for name, field in self.ragged.items():
            ragged_rows, ragged_offsets = _gather_rows(field.offsets, chosen)
            ragged[name] = Ragged(np.ascontiguousarray(field.values[ragged_rows]), ragged_offsets)
        return Trajectories(
            offsets,
            {name: np.ascontiguousarray(array[rows]) for name, array in self.steps.items()},
            {name: np.ascontiguousarray(array[chosen]) for name, array in self.per_trajectory.items()},
            ragged,
        )

    def slice(self, start: int, stop: int) -> Trajectories:
        """Trajectories start .. stop - 1; shares memory with this one.

        Raises: InputError unless 0 <= start <= stop <= num_trajectories.
        """
        if not 0 <= start <= stop <= self.num_trajectories:
            raise InputError(
                f"slice: want 0 <= start <= stop <= {self.num_trajectories} (num_trajectories), "
                f"given start={start}, stop={stop}"
            )
        rows = slice(int(self.offsets[start]), int(self.offsets[stop]))
        ragged = {}
        for name, field in self.ragged.items():
            part = field.offsets[start : stop + 1]
            ragged[name] = Ragged(field.values[part[0] : part[-1]], part - part[0])
        return Trajectories(
            self.offsets[start : stop + 1] - self.offsets[start],
            {name: array[rows] for name, array in self.steps.items()},
            {name: array[start:stop] for name, array in self.per_trajectory.items()},
            ragged,
        )


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """All trajectories of the parts, in order; copies unless there is one part.

    Raises: InputError when there is no part, or the parts differ in fields, dtypes or trailing shapes.
    Example:
        >>> t = Trajectories(np.array([0, 2]), {"rewards": np.ones(2, np.float32)})
        >>> concatenate([t, t]).offsets.tolist()
        [0, 2, 4]
    """
    if not parts:
        raise InputError("concatenate: want at least one part, given none")
    first = parts[0]
    if len(parts) == 1:
        return first
    for index, part in enumerate(parts[1:], start=1):
        _check_same_fields(first, part, index)
    return Trajectories(
        _join_offsets([part.offsets for part in parts]),
        {name: np.concatenate([part.steps[name] for part in parts]) for name in first.steps},
        {name: np.concatenate([part.per_trajectory[name] for part in parts]) for name in first.per_trajectory},
        {
            name: Ragged(
                np.concatenate([part.ragged[name].values for part in parts]),
                _join_offsets([part.ragged[name].offsets for part in parts]),
            )
            for name in first.ragged
        },
    )


def _join_offsets(offsets: Sequence[Int64]) -> Int64:
    lengths = np.concatenate([part[1:] - part[:-1] for part in offsets])
    joined = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=joined[1:])
    return joined


def _check_same_fields(first: Trajectories, part: Trajectories, index: int) -> None:
    for group in ("steps", "per_trajectory", "ragged"):
        wanted, given = getattr(first, group), getattr(part, group)
        if set(wanted) != set(given):
            raise InputError(
                f"concatenate: want the {group} fields {sorted(wanted)} in every part, part {index} has {sorted(given)}"
            )
        for name in wanted:
            one, other = wanted[name], given[name]
            one, other = (one.values, other.values) if isinstance(one, Ragged) else (one, other)
            if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
                raise InputError(
                    f"concatenate: {name}: want {one.dtype}{list(one.shape[1:])} per row in every part, "
                    f"part {index} has {other.dtype}{list(other.shape[1:])}"
                )
