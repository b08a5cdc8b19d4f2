"""PPO's losses per step with their derivatives by hand, in NumPy: hpcrl.ops.losses gives the equations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
_HALF = np.float32(0.5)


def policy_slopes(
    ratios: Float32, advantages: Float32, *, clip_range: float, dual_clip: float | None
) -> tuple[Float32, Float32]:
    """Losses of `clipped_policy_loss` and their derivatives by log r, both f32[n].

    d/d(log r) of -r A is -r A; where a bound holds, the loss does not move.
    """
    gains = ratios * advantages
    bounded = np.minimum(np.maximum(ratios, np.float32(1.0 - clip_range)), np.float32(1.0 + clip_range)) * advantages
    moves = gains <= bounded
    surrogate = np.minimum(gains, bounded)
    if dual_clip is not None:
        floor = np.float32(dual_clip) * advantages
        is_floored = (advantages < 0.0) & (surrogate < floor)
        surrogate = np.where(is_floored, floor, surrogate)
        moves &= ~is_floored
    return -surrogate, -gains * moves


def _error_slopes(errors: Float32, huber_delta: float | None) -> tuple[Float32, Float32]:
    if huber_delta is None:
        losses: Float32 = np.square(errors) * _HALF
        return losses, errors
    slopes: Float32 = np.minimum(np.maximum(errors, np.float32(-huber_delta)), np.float32(huber_delta))
    losses = slopes * (errors - slopes * _HALF)
    return losses, slopes


def value_slopes(
    new_values: Float32,
    values: Float32,
    returns: Float32,
    *,
    value_clip_range: float | None,
    huber_delta: float | None,
) -> tuple[Float32, Float32]:
    """Losses of `value_loss` and their derivatives by the new values, both f32[n]."""
    losses, slopes = _error_slopes(new_values - returns, huber_delta)
    if value_clip_range is None:
        return losses, slopes
    bound = np.float32(value_clip_range)
    moves = new_values - values
    clipped_moves = np.minimum(np.maximum(moves, -bound), bound)
    clipped_losses, _ = _error_slopes(values + clipped_moves - returns, huber_delta)
    # Where the clipped loss is the larger one, the prediction lies beyond the bound and the loss does not move.
    is_clipped = (clipped_losses > losses) & (clipped_moves != moves)
    return np.maximum(losses, clipped_losses), slopes * ~is_clipped
