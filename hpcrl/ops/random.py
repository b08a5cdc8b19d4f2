"""Counted random numbers: Philox4x32-10 keyed by the run's seed, counted by (trajectory, step, iteration, draw).

Nothing is drawn from a state: a number depends on its coordinates alone, so any number of ranks and any restart see the
same ones. Salmon et al. 2011, doi:10.1145/2063384.2063405. All bits, those of `normals` included, are the same on every
CPU and on CUDA devices: logarithm and sine are made of correctly rounded operations (kernels/random.h), not taken from
libm.
"""

from __future__ import annotations

from enum import IntEnum
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from hpcrl import _kernels
from hpcrl.errors import InputError

WordArray = npt.NDArray[np.uint32]
Count = SupportsIndex | npt.NDArray[np.integer]
"""A coordinate of a draw: one integer or an integer array, each in [0, 2**32)."""

_WORD = 2**32


class Draw(IntEnum):
    """What a number is drawn for. Two purposes never share a value, so their numbers are independent.

    Values are part of every run's bits: new ones are added with a new number, in [1, 256), none is ever renumbered.
    """

    RESET = 1
    """Seed of an episode in a training lane; (lane, episode)."""
    ACTION = 2
    """Actions of a rollout."""
    SHUFFLE = 3
    """Order of a block's steps in an epoch."""
    INITIALIZE = 4
    """Initial parameters of a model."""
    EVALUATE_RESET = 5
    """Seed of an evaluation episode."""
    EVALUATE_ACTION = 6
    """Actions of an evaluation."""
    TOKEN = 7
    """Tokens of a language model's responses; (trajectory, token of the response)."""
    PROMPT = 8
    """Problems of a text task, its demonstrations, and the order of its file in each pass."""


def philox(seed: int, counters: npt.ArrayLike) -> WordArray:
    """Philox4x32-10: four words for each counter.

    Args:
        seed: key, in [0, 2**64); its low word is the key's first.
        counters: u32[n, 4].
    Returns:
        Words, u32[n, 4].
    Raises:
        InputError: seed out of range; counters of another shape or dtype.
    Example:
        >>> [hex(word) for word in philox(0, np.zeros((1, 4), np.uint32))[0]]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    key = _seed(seed)
    try:
        return _kernels.philox(key, np.ascontiguousarray(counters))
    except ValueError as error:
        raise InputError(str(error)) from None


def uniforms(
    seed: int, trajectories: Count, *, step: Count, iteration: Count, draw: Draw, count: int = 1
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits.

    Args:
        seed: the run's seed, in [0, 2**64).
        trajectories: [n] or one integer (n = 1): lanes, trajectories or whatever the caller counts, in [0, 2**32).
        step: int or [n], in [0, 2**32).
        iteration: int or [n], in [0, 2**32).
        draw: what the numbers are for.
        count: numbers for each trajectory; the first k of them do not depend on count.
    Returns:
        f64[n, count].
    Raises:
        InputError: a coordinate out of range, of another shape or not an integer.
    Example:
        >>> uniforms(7, np.arange(2), step=0, iteration=0, draw=Draw.ACTION).shape
        (2, 1)
    """
    return _kernels.uniforms(_seed(seed), _counters(trajectories, step, iteration, draw), _count(count))


def normals(
    seed: int, trajectories: Count, *, step: Count, iteration: Count, draw: Draw, count: int = 1
) -> npt.NDArray[np.float32]:
    """Standard normal numbers, by Box & Muller 1958 (doi:10.1214/aoms/1177706645) from pairs of uniform numbers.

    Args: as `uniforms`.
    Returns:
        f32[n, count]; magnitudes up to 8.57.
    Raises:
        InputError: a coordinate out of range, of another shape or not an integer.
    Example:
        >>> draws = normals(7, np.arange(10_000), step=0, iteration=0, draw=Draw.ACTION, count=2)
        >>> bool(abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02)
        True
    """
    return _kernels.normals(_seed(seed), _counters(trajectories, step, iteration, draw), _count(count))


def permutation(seed: int, n: int, *, trajectory: int, step: int, iteration: int, draw: Draw) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1: Fisher and Yates' walk from the end, each exchange drawn from 64 counted bits.

    Args:
        seed: the run's seed, in [0, 2**64).
        n: length, in [0, 2**25]. The bias of one exchange is below n / 2**64.
        trajectory, step, iteration: coordinates, each in [0, 2**32).
        draw: what the permutation is for.
    Returns:
        i64[n].
    Raises:
        InputError: n or a coordinate out of range.
    Example:
        >>> permutation(7, 5, trajectory=0, step=0, iteration=0, draw=Draw.SHUFFLE)
        array([2, 0, 4, 1, 3])
    """
    counter = _counters(trajectory, step, iteration, draw)
    if len(counter) != 1:
        raise InputError(f"trajectory, step, iteration: want one integer each, got {len(counter)} rows")
    try:
        return _kernels.permutation(_seed(seed), counter, n)
    except ValueError as error:
        raise InputError(str(error)) from None


def episode_seed(seed: int, lane: int, episode: int, draw: Draw = Draw.RESET) -> int:
    """The seed with which an environment starts one episode of one lane, in [0, 2**31).

    Args:
        seed: the run's seed, in [0, 2**64).
        lane: global lane, in [0, 2**32).
        episode: number of the episode in its lane, in [0, 2**32).
        draw: Draw.RESET, or Draw.EVALUATE_RESET for evaluation episodes.
    Raises:
        InputError: a coordinate out of range.
    """
    words = _kernels.philox(_seed(seed), _counters(lane, episode, 0, draw))
    return int(words[0, 0]) >> 1


def _seed(seed: int) -> int:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise InputError(f"seed: want an integer in [0, 2**64), got {seed!r}")
    return int(seed)


def _count(count: int) -> int:
    if not isinstance(count, int | np.integer) or not 0 <= count <= 2**25:
        raise InputError(f"count: want an integer in [0, 2**25], got {count!r}")
    return int(count)


def _coordinate(name: str, value: Count) -> npt.NDArray[np.integer]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise InputError(f"{name}: want an integer or a one-dimensional integer array, got {array.dtype} {array.shape}")
    if array.dtype != np.uint32 and array.size and (array.min() < 0 or array.max() >= _WORD):
        raise InputError(f"{name}: want integers in [0, 2**32), got {array.min()} to {array.max()}")
    return array


def _counters(trajectories: Count, step: Count, iteration: Count, draw: Draw) -> WordArray:
    if not 0 < int(draw) < 256:
        raise InputError(f"draw: want a Draw with a value in [1, 256), got {draw!r}")
    rows = _coordinate("trajectories", trajectories)
    counters = np.empty((rows.size, 4), np.uint32)
    counters[:, 0] = rows
    for column, (name, value) in enumerate((("step", step), ("iteration", iteration)), start=1):
        coordinate = _coordinate(name, value)
        if coordinate.ndim == 1 and coordinate.size not in (1, rows.size):
            raise InputError(
                f"{name}: want one integer or length {rows.size} (= len(trajectories)), got length {coordinate.size}"
            )
        counters[:, column] = coordinate
    counters[:, 3] = int(draw)
    return counters
