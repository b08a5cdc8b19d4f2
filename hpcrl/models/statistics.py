"""Running mean and variance that a model carries: of its observations and of its value targets."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcrl.errors import InputError

Float64 = npt.NDArray[np.float64]

OBSERVATION_EPSILON = 1e-8
"""Added to the variance of an observation, so that a constant feature maps to 0."""
OBSERVATION_CLIP = 10.0
"""Normalised observations lie in [-10, 10], as in OpenAI Baselines' VecNormalize."""
MIN_VALUE_STD, MAX_VALUE_STD = 1e-4, 1e6
"""Bounds of the value scale: Hessel et al. 2018 (arXiv:1809.04474), appendix."""


def moments(rows: npt.ArrayLike) -> Float64:
    """(n, sum, sum of squares) of rows[n, ...]: f64[1 + 2 d], where d is the size of one row.

    They add over blocks, so the reduction tree can sum them; this is what `advance` takes.

    >>> moments([[1.0, 2.0], [3.0, 4.0]])
    array([ 2.,  4.,  6., 10., 20.])
    >>> moments([1.0, 2.0])
    array([2., 3., 5.])
    """
    exact = np.asarray(rows, np.float64)
    flat = exact.reshape(len(exact), math.prod(exact.shape[1:]))
    return np.concatenate(([len(flat)], flat.sum(axis=0), np.square(flat).sum(axis=0)))


def _refresh(module: RunningStatistics, keys: object) -> None:
    module.refresh()


class RunningStatistics(nn.Module):
    """Mean and variance f64[size] of everything seen, as buffers `mean`, `variance`, `weight`.

    A batch with mean m and variance s moves them by the share r of the weight it brings (Chan et al. 1979):

        mean'     = mean + r (m - mean)
        variance' = (1 - r) variance + r s + r (1 - r) (m - mean)^2

    With `step=None` every row counts alike, r = n / (all rows so far).  With `step` in (0, 1] this is an exponential
    moving average without the pull of its start: r = step / w, where w' = (1 - step) w + step.
    Before the first batch mean = 0, variance = 1, weight = 0: normalising changes nothing.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(1, dtype=torch.float64))
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]

    def advance(self, sums: Float64, *, step: float | None = None) -> None:
        """Takes in one batch, given as `moments` summed over all blocks; no rows change nothing.

        Args:
            sums: f64[1 + 2 size]: n, sums, sums of squares.
            step: None: all rows count alike; in (0, 1]: share of the newest batch in the long run.
        Raises:
            InputError: another length. FloatingPointError: numbers that are not finite.
        """
        if sums.shape != (1 + 2 * self.size,):
            raise InputError(f"moments: want f64[{1 + 2 * self.size}] (n, sums, sums of squares), given {sums.shape}")
        if not np.isfinite(sums).all():
            raise FloatingPointError(
                "moments: want finite numbers, given NaN or infinity; look at the data they were made from"
            )
        count = float(sums[0])
        if count == 0.0:
            return
        batch_mean = torch.from_numpy(sums[1 : 1 + self.size] / count)
        batch_variance = torch.from_numpy(sums[1 + self.size :] / count) - batch_mean.square()
        if step is None:
            self.weight += count
            share = count / float(self.weight)
        else:
            self.weight.mul_(1.0 - step).add_(step)
            share = step / float(self.weight)
        delta = batch_mean - self.mean
        self.mean += share * delta
        self.variance.mul_(1.0 - share).add_(share * batch_variance.clamp_min_(0.0))
        self.variance.add_(share * (1.0 - share) * delta.square())
        self.refresh()

    def refresh(self) -> None:
        """Recomputes what derives from the buffers; called whenever they move."""


class ObservationStatistics(RunningStatistics):
    """Normalises observations: clip((x - mean) / sqrt(variance + 1e-8), -10, 10), f32.

    Frozen while a model acts or is evaluated.  Advance it once per update, after the last optimiser step, so that the
    log-probabilities of a rollout and those of its update see the same numbers.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("shift", torch.zeros(size), persistent=False)
        self.register_buffer("scale", torch.ones(size), persistent=False)

    def refresh(self) -> None:
        self.shift = self.mean.float()
        self.scale = (self.variance + OBSERVATION_EPSILON).rsqrt().float()

    def forward(self, observations: Tensor) -> Tensor:
        """f32[n, size] to f32[n, size]."""
        centred: Tensor = observations - self.shift
        return centred.mul_(self.scale).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)


class ValueStatistics(RunningStatistics):
    """The scale of value targets: a network predicts (V - mean) / std, callers see V.

    `is_identity` holds until the first batch, so a model that never normalises pays nothing.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.refresh()

    def refresh(self) -> None:
        self.shift = float(self.mean)
        self.scale = min(max(math.sqrt(float(self.variance)), MIN_VALUE_STD), MAX_VALUE_STD)
        self.is_identity = self.shift == 0.0 and self.scale == 1.0

    def normalize(self, values: Tensor) -> Tensor:
        """(V - mean) / std, f32."""
        return values if self.is_identity else (values - self.shift) / self.scale

    def denormalize(self, outputs: Tensor) -> Tensor:
        """std * output + mean, f32."""
        return outputs if self.is_identity else outputs * self.scale + self.shift
