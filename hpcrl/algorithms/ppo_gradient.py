"""The gradient of one part of a minibatch: by hand for multi-layer perceptrons, else by autograd.

By hand is the same mathematics in a third of the calls.  For the small networks of vector environments, calls are what
an update's time goes into; tests hold both ways together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.algorithms.ppo import ADVANTAGE_EPSILON, STATISTICS, Totals
from hpcrl.algorithms.ppo_loss import part_loss, refuse_non_finite
from hpcrl.algorithms.ppo_slopes import policy_slopes, value_slopes
from hpcrl.models.actor_critic import ActorCritic
from hpcrl.models.slopes import has_slopes, slopes_of
from hpcrl.models.stacked_mlp import StackedMlp

if TYPE_CHECKING:
    from hpcrl.algorithms.ppo import PPO

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def part_gradient(
    ppo: PPO, model: ActorCritic, part: Mapping[str, Tensor], totals: Totals, clip_range: float
) -> Float64:
    """See PPO.part_gradient."""
    network = model.stacked_mlp
    is_known = network is not None and network.has_backward and has_slopes(model.distribution)
    is_plain = ppo.autocast is None and part["advantages"].device.type == "cpu"
    if network is not None and is_known and is_plain and len(part["advantages"]) > 0:
        with torch.inference_mode():
            return _gradient_by_hand(ppo, model, network, part, totals, clip_range)
    model.flat.zero_gradients()
    loss, statistics = part_loss(ppo, model, part, totals, clip_range)
    loss.backward()  # type: ignore[no-untyped-call]
    return statistics


def _gradient_by_hand(
    ppo: PPO, model: ActorCritic, network: StackedMlp, part: Mapping[str, Tensor], totals: Totals, clip_range: float
) -> Float64:
    encoded = model.encoder(part["observations"])
    activations = network.hidden(encoded)
    policy_outputs, values = network.heads(activations[-1])
    policy = slopes_of(model.distribution, policy_outputs, part["actions"])
    log_probs, entropies = policy.log_probs.numpy(), policy.entropies.numpy()

    log_ratios = log_probs - part["log_probs"].numpy()
    ratios = np.exp(log_ratios)
    policy_losses, d_log_probs = policy_slopes(
        ratios, _advantages(ppo, part, totals), clip_range=clip_range, dual_clip=ppo.dual_clip
    )
    scale = model.value_statistics
    value_losses, d_values = value_slopes(
        values.numpy(),
        scale.normalize(part["values"]).numpy(),
        scale.normalize(part["returns"]).numpy(),
        value_clip_range=ppo.value_clip_range,
        huber_delta=ppo.huber_delta if ppo.value_loss == "huber" else None,
    )
    statistics = _statistics(part, policy_losses, value_losses, entropies, log_ratios, ratios, clip_range)
    refuse_non_finite(statistics, part)

    share = np.float32(1.0 / totals.num_steps)
    d_policy = policy.pull_back(torch.from_numpy(d_log_probs * share), -ppo.entropy_coef / totals.num_steps)
    network.backward(encoded, activations, d_policy, torch.from_numpy(d_values * (share * np.float32(ppo.value_coef))))
    return statistics


def _advantages(ppo: PPO, part: Mapping[str, Tensor], totals: Totals) -> Float32:
    advantages: Float32 = part["advantages"].numpy()
    if ppo.normalize_advantages is None:
        return advantages
    return (advantages - np.float32(totals.advantage_mean)) / np.float32(totals.advantage_std + ADVANTAGE_EPSILON)


def _statistics(
    part: Mapping[str, Tensor],
    policy_losses: Float32,
    value_losses: Float32,
    entropies: Float32,
    log_ratios: Float32,
    ratios: Float32,
    clip_range: float,
) -> Float64:
    """Sums over the part's steps, in the order of STATISTICS."""
    returns = part["returns"].numpy()
    changes = ratios - np.float32(1.0)
    table = np.empty((len(STATISTICS), len(ratios)), np.float32)
    table[0], table[1], table[2] = policy_losses, value_losses, entropies
    np.subtract(changes, log_ratios, out=table[3])
    table[4] = np.abs(changes) > clip_range
    np.square(changes, out=table[5])
    table[6] = returns
    np.square(returns, out=table[7])
    np.subtract(returns, part["values"].numpy(), out=table[8])
    np.square(table[8], out=table[9])
    table[10] = 1.0
    sums: Float64 = table.sum(axis=1, dtype=np.float64)
    return sums
