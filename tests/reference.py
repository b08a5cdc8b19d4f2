"""The equations once more, in float64 NumPy and as the papers write them: the oracle of the kernels, on purpose independent.

Plain loops, one trajectory at a time; nothing here is imported from hpcrl. rewards[t] follows actions[t].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Array64 = npt.NDArray[np.float64]


def relative_difference(given: npt.ArrayLike, wanted: npt.ArrayLike) -> float:
    """norm(given - wanted) / norm(wanted); the norm of the difference where wanted is 0."""
    given64, wanted64 = np.asarray(given, np.float64), np.asarray(wanted, np.float64)
    assert given64.shape == wanted64.shape
    return float(np.linalg.norm(given64 - wanted64) / (np.linalg.norm(wanted64) or 1.0))


def trajectories(offsets: npt.ArrayLike) -> Iterator[tuple[int, slice]]:
    """The number and the steps of each trajectory that has steps."""
    bounds = np.asarray(offsets)
    for i, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if stop > start:
            yield i, slice(int(start), int(stop))


def _wide(array: npt.ArrayLike) -> Array64:
    return np.asarray(array, np.float64)


def _per_trajectory(
    one: Callable[..., tuple[Array64, ...]], steps: tuple[npt.ArrayLike, ...], bootstrap: npt.ArrayLike, offsets: npt.ArrayLike
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


def gae(rewards, values, bootstrap_values, offsets, *, gamma, gae_lambda) -> tuple[Array64, ...]:  # type: ignore[no-untyped-def]
    """(advantages, returns); Schulman et al. 2016, eq. 16."""

    def one(r: Array64, v: Array64, last: float) -> tuple[Array64, ...]:
        deltas = r + gamma * np.append(v[1:], last) - v
        advantages = discounted_sums(deltas, np.full(len(r), gamma * gae_lambda))
        return advantages, advantages + v

    return _per_trajectory(one, (rewards, values), bootstrap_values, offsets)


def td_lambda(rewards, values, bootstrap_values, offsets, *, gamma, td_lambda) -> tuple[Array64, ...]:  # type: ignore[no-untyped-def]
    """(returns,): (1 - lambda) sum lambda^(n-1) G_n + lambda^(T-1) G_T over the n-step returns; Sutton & Barto, eq. 12.3."""

    def one(r: Array64, v: Array64, last: float) -> tuple[Array64, ...]:
        following = np.append(v[1:], last)
        mixed = r + gamma * (1 - td_lambda) * following
        mixed[-1] = r[-1] + gamma * last  # all remaining weight rests on the full return
        return (discounted_sums(mixed, np.full(len(r), gamma * td_lambda)),)

    return _per_trajectory(one, (rewards, values), bootstrap_values, offsets)


def reward_to_go(rewards, bootstrap_values, offsets, *, gamma) -> tuple[Array64, ...]:  # type: ignore[no-untyped-def]
    """(returns,); Sutton & Barto 2018, eq. 3.9."""

    def one(r: Array64, last: float) -> tuple[Array64, ...]:
        return (discounted_sums(r, np.full(len(r), gamma), last),)

    return _per_trajectory(one, (rewards,), bootstrap_values, offsets)


def vtrace(  # type: ignore[no-untyped-def]
    rewards, values, bootstrap_values, offsets, ratios, *, gamma, trace_lambda=1.0, rho_clip=1.0, c_clip=1.0
) -> tuple[Array64, ...]:
    """(advantages, v); Espeholt et al. 2018, remark 1: v(s) by recursion on v(s) - V(s)."""

    def one(r: Array64, v: Array64, ratio: Array64, last: float) -> tuple[Array64, ...]:
        following = np.append(v[1:], last)
        rho, c = np.minimum(rho_clip, ratio), trace_lambda * np.minimum(c_clip, ratio)
        target = v + discounted_sums(rho * (r + gamma * following - v), gamma * c)
        return rho * (r + gamma * np.append(target[1:], last) - v), target

    return _per_trajectory(one, (rewards, values, ratios), bootstrap_values, offsets)


def retrace(  # type: ignore[no-untyped-def]
    rewards, values, bootstrap_values, offsets, action_values, ratios, *, gamma, trace_lambda=1.0
) -> tuple[Array64, ...]:
    """(advantages, Q_ret); Munos et al. 2016, eq. 3: the trace is that of the following step."""

    def one(r: Array64, v: Array64, q: Array64, ratio: Array64, last: float) -> tuple[Array64, ...]:
        following_trace = np.append(trace_lambda * np.minimum(1.0, ratio[1:]), 0.0)
        target = q + discounted_sums(r + gamma * np.append(v[1:], last) - q, gamma * following_trace)
        return target - v, target

    return _per_trajectory(one, (rewards, values, action_values, ratios), bootstrap_values, offsets)
