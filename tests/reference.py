"""The equations once more, in float64 NumPy and as the papers write them: the kernels' oracle, on purpose independent.

Plain loops, one trajectory at a time; nothing here is imported from hpcrl. rewards[t] follows actions[t].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

Array64 = npt.NDArray[np.float64]


def relative_difference(given: ArrayLike, wanted: ArrayLike) -> float:
    """norm(given - wanted) / norm(wanted); the norm of the difference where wanted is 0."""
    given64, wanted64 = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    assert given64.shape == wanted64.shape
    return float(np.linalg.norm(given64 - wanted64) / (np.linalg.norm(wanted64) or 1.0))


def trajectories(offsets: ArrayLike) -> Iterator[tuple[int, slice]]:
    """The number and the steps of each trajectory that has steps."""
    bounds = np.asarray(offsets)
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop > start:
            yield i, slice(int(start), int(stop))


def _wide(array: ArrayLike) -> Array64:
    return np.asarray(array, np.float64)


def _per_trajectory(
    one: Callable[..., tuple[Array64, ...]],
    steps: tuple[ArrayLike, ...],
    bootstrap: ArrayLike,
    offsets: ArrayLike,
) -> tuple[Array64, ...]:
    fields = [_wide(field) for field in steps]
    outputs: list[Array64] = []
    for i, part in trajectories(offsets):
        results = one(*(field[part] for field in fields), float(_wide(bootstrap)[i]))
        if not outputs:
            outputs = [np.full(len(fields[0]), np.nan) for _ in results]
        for output, result in zip(outputs, results, strict=True):
            output[part] = result
    return tuple(outputs) or (np.empty(0), np.empty(0))


def discounted_sums(terms: Array64, discounts: Array64, last: float = 0.0) -> Array64:
    """y[t] = terms[t] + discounts[t] * y[t + 1], where y after the last step is `last`."""
    sums, following = np.empty(len(terms)), last
    for t in reversed(range(len(terms))):
        following = terms[t] + discounts[t] * following
        sums[t] = following
    return sums


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_values: ArrayLike,
    offsets: ArrayLike,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Array64, ...]:
    """(advantages, returns); Schulman et al. 2016, eq. 16."""

    def one(r: Array64, v: Array64, last: float) -> tuple[Array64, ...]:
        deltas = r + gamma * np.append(v[1:], last) - v
        advantages = discounted_sums(deltas, np.full(len(r), gamma * gae_lambda))
        return advantages, advantages + v

    return _per_trajectory(one, (rewards, values), bootstrap_values, offsets)


def td_lambda(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_values: ArrayLike,
    offsets: ArrayLike,
    *,
    gamma: float,
    td_lambda: float,
) -> tuple[Array64, ...]:
    """(returns,): (1 - lambda) lambda^(n-1) of each n-step return, the rest of the full one; Sutton & Barto 12.3."""

    def one(r: Array64, v: Array64, last: float) -> tuple[Array64, ...]:
        following = np.append(v[1:], last)
        mixed = r + gamma * (1 - td_lambda) * following
        mixed[-1] = r[-1] + gamma * last  # all remaining weight rests on the full return
        return (discounted_sums(mixed, np.full(len(r), gamma * td_lambda)),)

    return _per_trajectory(one, (rewards, values), bootstrap_values, offsets)


def reward_to_go(
    rewards: ArrayLike, bootstrap_values: ArrayLike, offsets: ArrayLike, *, gamma: float
) -> tuple[Array64, ...]:
    """(returns,); Sutton & Barto 2018, eq. 3.9."""

    def one(r: Array64, last: float) -> tuple[Array64, ...]:
        return (discounted_sums(r, np.full(len(r), gamma), last),)

    return _per_trajectory(one, (rewards,), bootstrap_values, offsets)


def vtrace(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_values: ArrayLike,
    offsets: ArrayLike,
    ratios: ArrayLike,
    *,
    gamma: float,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> tuple[Array64, ...]:
    """(advantages, v); Espeholt et al. 2018, remark 1: v(s) by recursion on v(s) - V(s)."""

    def one(r: Array64, v: Array64, ratio: Array64, last: float) -> tuple[Array64, ...]:
        following = np.append(v[1:], last)
        rho, c = np.minimum(rho_clip, ratio), trace_lambda * np.minimum(c_clip, ratio)
        target = v + discounted_sums(rho * (r + gamma * following - v), gamma * c)
        return rho * (r + gamma * np.append(target[1:], last) - v), target

    return _per_trajectory(one, (rewards, values, ratios), bootstrap_values, offsets)


def retrace(
    rewards: ArrayLike,
    values: ArrayLike,
    bootstrap_values: ArrayLike,
    offsets: ArrayLike,
    action_values: ArrayLike,
    ratios: ArrayLike,
    *,
    gamma: float,
    trace_lambda: float = 1.0,
) -> tuple[Array64, ...]:
    """(advantages, Q_ret); Munos et al. 2016, eq. 3: the trace is that of the following step."""

    def one(r: Array64, v: Array64, q: Array64, ratio: Array64, last: float) -> tuple[Array64, ...]:
        following_trace = np.append(trace_lambda * np.minimum(1.0, ratio[1:]), 0.0)
        target = q + discounted_sums(r + gamma * np.append(v[1:], last) - q, gamma * following_trace)
        return target - v, target

    return _per_trajectory(one, (rewards, values, action_values, ratios), bootstrap_values, offsets)


def philox(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in Python integers; Salmon et al. 2011, section 3.3."""
    mask, key, words = 2**32 - 1, (seed & (2**32 - 1), seed >> 32), counter
    for round_number in range(10):
        left, right = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        low = (key[0] + round_number * 0x9E3779B9) & mask
        high = (key[1] + round_number * 0xBB67AE85) & mask
        words = ((right >> 32) ^ words[1] ^ low, right & mask, (left >> 32) ^ words[3] ^ high, left & mask)
    return words


def counted_words(seed: int, counter: tuple[int, int, int, int], num_words: int) -> list[int]:
    """Words of successive counter blocks: the block's number stands in the upper 24 bits of the counter's last word."""
    first, second, third, draw = counter
    blocks = (philox(seed, (first, second, third, draw | block << 8)) for block in range(-(-num_words // 4)))
    return [word for block in blocks for word in block][:num_words]


def counted_pairs(seed: int, counter: tuple[int, int, int, int], count: int) -> list[int]:
    """The same words as 64-bit integers, the first word of each pair high."""
    words = counted_words(seed, counter, 2 * count)
    return [high << 32 | low for high, low in zip(words[::2], words[1::2], strict=True)]


def permutation(seed: int, counter: tuple[int, int, int, int], n: int) -> list[int]:
    """Fisher and Yates' walk from the end; Durstenfeld 1964."""
    order = list(range(n))
    for i, pair in zip(range(n - 1, 0, -1), counted_pairs(seed, counter, n), strict=False):
        j = pair * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order
