"""Distributions over actions: sampling in NumPy while acting, log-probabilities with gradients while learning."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcrl.errors import InputError

if TYPE_CHECKING:
    from hpcrl.envs import Space

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class ActionDistribution(nn.Module, ABC):
    """What a policy head's outputs f32[n, num_outputs] mean."""

    num_outputs: int
    random_kind: Literal["uniform", "normal"]
    """Which counted random numbers `sample` takes."""
    random_numbers_per_action: int

    @abstractmethod
    def sample(self, outputs: Float32, random_numbers: Array, *, greedy: bool) -> tuple[Array, Float32]:
        """Actions and their log-probabilities f32[n]; `greedy` takes the mode and no random number.

        random_numbers: [n, random_numbers_per_action], uniform in [0, 1) or standard normal, by `random_kind`.
        Raises FloatingPointError where the outputs are not finite.
        """

    @abstractmethod
    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a|s) and H(pi(.|s)), each f32[n], differentiable in the outputs."""


def _refuse_non_finite(total: float) -> None:
    if not math.isfinite(total):
        raise FloatingPointError(
            "policy outputs: want finite numbers, given NaN or infinity; "
            "look at the observations and at the last update's losses and gradient norm"
        )


class _LogitRows:
    """Row indices, remembered: making them anew costs a tenth of a draw."""

    def __init__(self) -> None:
        self.rows: Int64 = np.arange(64)

    def first(self, count: int) -> Int64:
        if count > len(self.rows):
            self.rows = np.arange(2 * count)
        return self.rows[:count]


def draw_categorical(
    logits: npt.NDArray[np.float64], uniforms: npt.NDArray[Any], rows: Int64, *, greedy: bool
) -> tuple[Int64, npt.NDArray[np.float64]]:
    """Inverse of the cumulative distribution in index order, one uniform a row, in float64.

    The action is the smallest index whose cumulative probability exceeds the uniform.

    Args:
        logits: f64[n, k]; uniforms: f64[n] in [0, 1); rows: arange(n).
        greedy: the first largest logit instead.
    Returns:
        Actions i64[n] and log-probabilities f64[n].
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    cumulative = np.exp(shifted).cumsum(axis=1)
    totals = cumulative[:, -1]
    _refuse_non_finite(float(totals.sum()))
    if greedy:
        actions: Int64 = shifted.argmax(axis=1)
    else:
        actions = (cumulative[:, :-1] <= (uniforms * totals)[:, None]).sum(axis=1)
    return actions, shifted[rows, actions] - np.log(totals)


class Categorical(ActionDistribution):
    """pi(a|s) = softmax(outputs)[a]; actions i64[n] in [0, num_actions)."""

    random_kind = "uniform"
    random_numbers_per_action = 1

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_outputs = num_actions
        self._rows = _LogitRows()

    def sample(self, outputs: Float32, random_numbers: Array, *, greedy: bool) -> tuple[Array, Float32]:
        actions, log_probs = draw_categorical(
            outputs.astype(np.float64), random_numbers[:, 0], self._rows.first(len(outputs)), greedy=greedy
        )
        return actions, log_probs.astype(np.float32)

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        all_log_probs = torch.log_softmax(outputs, dim=1)
        log_probs = all_log_probs.gather(1, actions.unsqueeze(1)).squeeze(1)
        return log_probs, -(all_log_probs.exp() * all_log_probs).sum(dim=1)


class MultiDiscrete(ActionDistribution):
    """Independent categoricals, one per component; actions i64[n, num_components]."""

    random_kind = "uniform"

    def __init__(self, nvec: tuple[int, ...]) -> None:
        super().__init__()
        self.nvec = nvec
        self.num_outputs = sum(nvec)
        self.random_numbers_per_action = len(nvec)
        self._rows = _LogitRows()

    def sample(self, outputs: Float32, random_numbers: Array, *, greedy: bool) -> tuple[Array, Float32]:
        logits, rows = outputs.astype(np.float64), self._rows.first(len(outputs))
        actions = np.empty((len(outputs), len(self.nvec)), np.int64)
        log_probs = np.zeros(len(outputs))
        start = 0
        for component, num_actions in enumerate(self.nvec):
            part = logits[:, start : start + num_actions]
            uniforms = random_numbers[:, component]
            actions[:, component], component_log_probs = draw_categorical(part, uniforms, rows, greedy=greedy)
            log_probs += component_log_probs
            start += num_actions
        return actions, log_probs.astype(np.float32)

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, entropies = outputs.new_zeros(len(outputs)), outputs.new_zeros(len(outputs))
        for component, part in enumerate(torch.split(outputs, list(self.nvec), dim=1)):
            all_log_probs = torch.log_softmax(part, dim=1)
            log_probs = log_probs + all_log_probs.gather(1, actions[:, component : component + 1]).squeeze(1)
            entropies = entropies - (all_log_probs.exp() * all_log_probs).sum(dim=1)
        return log_probs, entropies


class Gaussian(ActionDistribution):
    """Independent normals: mean = outputs, std = exp(log_std), one parameter per component whatever the state.

    action = mean + std * normal, f32[n, *action_shape]; not squashed and not clipped: an environment clips to its box,
    and the log-probability is that of the action before clipping.
    """

    random_kind = "normal"

    def __init__(self, action_shape: tuple[int, ...], initial_log_std: float = 0.0) -> None:
        super().__init__()
        self.action_shape = action_shape
        self.num_outputs = self.random_numbers_per_action = math.prod(action_shape)
        self.log_std = nn.Parameter(torch.full((self.num_outputs,), initial_log_std))

    def sample(self, outputs: Float32, random_numbers: Array, *, greedy: bool) -> tuple[Array, Float32]:
        log_std: Float32 = self.log_std.detach().numpy()
        std = np.exp(log_std)
        actions = outputs.copy() if greedy else outputs + std * random_numbers.astype(np.float32, copy=False)
        deviations = (actions - outputs) / std
        log_probs: Float32 = -0.5 * np.square(deviations).sum(axis=1) - (
            log_std.sum() + np.float32(self.num_outputs * _HALF_LOG_TWO_PI)
        )
        _refuse_non_finite(float(log_probs.sum()))
        return actions.reshape(-1, *self.action_shape), log_probs

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_deviations((actions.reshape(outputs.shape) - outputs) * torch.exp(-self.log_std))

    def of_deviations(self, deviations: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies from (action - mean) / std, f32[n, num_outputs]."""
        constant = self.log_std.sum() + self.num_outputs * _HALF_LOG_TWO_PI
        log_probs = -0.5 * deviations.square().sum(dim=1) - constant
        return log_probs, (constant + 0.5 * self.num_outputs).expand(len(deviations))


def action_distribution(space: Space, *, initial_log_std: float) -> ActionDistribution:
    """The distribution that fits an action space: categorical, multi-discrete or Gaussian."""
    if space.kind == "discrete" and space.n is not None:
        return Categorical(space.n)
    if space.kind == "multi_discrete" and space.nvec is not None:
        return MultiDiscrete(tuple(int(count) for count in space.nvec))
    if space.kind == "box":
        return Gaussian(tuple(int(extent) for extent in space.shape), initial_log_std)
    raise InputError(f"action space: want box, discrete (n) or multi_discrete (nvec), given {space}")
