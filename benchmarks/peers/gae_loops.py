"""GAE as others compute it: step loops over padded tensors, and a numba loop over packed arrays.

Written for this repository from the known algorithms. Padding, masks and compilation are done beforehand and not timed.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch

Float32 = npt.NDArray[np.float32]
Outputs = tuple[torch.Tensor, torch.Tensor]


def pad(packed: Float32, offsets: npt.NDArray[np.int64]) -> torch.Tensor:
    """Packed steps as f32[num_trajectories, longest], zeros behind each trajectory's end."""
    lengths = np.diff(offsets)
    padded = np.zeros((len(lengths), int(lengths.max())), np.float32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = packed
    return torch.from_numpy(padded)


def trl_loop(rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float) -> Outputs:
    """The step loop of TRL's and OpenRLHF's PPO: columns of [B, T], from the last; values behind the end are 0."""
    columns, following = [], torch.zeros(rewards.shape[0])
    length = rewards.shape[1]
    for t in reversed(range(length)):
        next_values = values[:, t + 1] if t < length - 1 else 0.0
        deltas = rewards[:, t] + gamma * next_values - values[:, t]
        following = deltas + gamma * gae_lambda * following
        columns.append(following)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def verl_loop(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> Outputs:
    """The step loop of verl: masked steps hand on what comes after them."""
    columns, next_values, following = [], torch.zeros(rewards.shape[0]), torch.zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        deltas = rewards[:, t] + gamma * next_values - values[:, t]
        candidates = deltas + gamma * gae_lambda * following
        next_values = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_values
        following = candidates * mask[:, t] + (1 - mask[:, t]) * following
        columns.append(following)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


@numba.njit(fastmath=True, boundscheck=False)  # type: ignore[untyped-decorator]
def numba_loop(
    rewards: Float32,
    values: Float32,
    bootstrap_values: Float32,
    offsets: npt.NDArray[np.int64],
    gamma: np.float32,
    gae_lambda: np.float32,
    advantages: Float32,
    returns: Float32,
) -> None:
    """A loop over each packed trajectory, in float32 throughout, writing into given arrays."""
    decay = gamma * gae_lambda
    for i in range(len(offsets) - 1):
        following, next_value = np.float32(0), bootstrap_values[i]
        for t in range(offsets[i + 1] - 1, offsets[i] - 1, -1):
            value = values[t]
            following = rewards[t] + gamma * next_value - value + decay * following
            advantages[t] = following
            returns[t] = following + value
            next_value = value


def same_as(wanted: Float32, given: Float32) -> bool:
    """Whether two ways to compute agree to rounding."""
    return bool(np.linalg.norm(given - wanted) <= 1e-5 * np.linalg.norm(wanted))
