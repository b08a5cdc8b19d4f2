"""The gradient of one part of a minibatch: by hand for multi-layer perceptrons, else by autograd.

By hand is the same mathematics in a third of the calls.  For the small networks of vector environments, calls are what
an update's time goes into; tests hold both ways together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.algorithms.ppo import ADVANTAGE_EPSILON, STATISTICS, Totals
from hpcrl.algorithms.ppo_loss import part_loss, refuse_non_finite
from hpcrl.algorithms.ppo_slopes import policy_slopes, value_slopes
from hpcrl.models.actor_critic import ActorCritic
from hpcrl.models.slopes import Slopes, slopes_of
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
    if len(part["advantages"]) > 0 and network is not None and ppo.autocast is None:
        with torch.inference_mode():
            encoded = model.encoder(part["observations"])
            activations = network.hidden(encoded)
            policy_outputs, values = network.heads(activations[-1])
            policy = slopes_of(model.distribution, policy_outputs, part["actions"])
            if policy is not None:
                losses = _PartSlopes(ppo, model, part, totals, clip_range)
                statistics = losses.statistics(policy, values)
                d_policy = policy.pull_back(losses.d_log_probs, losses.d_entropy)
                network.backward(encoded, activations, d_policy, losses.d_values)
                return statistics
    model.flat.zero_gradients()
    loss, statistics = part_loss(ppo, model, part, totals, clip_range)
    loss.backward()
    return statistics
