"""The loss of one part of a minibatch, with autograd."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.algorithms.ppo import ADVANTAGE_EPSILON, STATISTICS, Totals
from hpcrl.models.actor_critic import ActorCritic
from hpcrl.ops.losses import approximate_kl, clipped, clipped_policy_loss, value_loss

if TYPE_CHECKING:
    from hpcrl.algorithms.ppo import PPO

Float64 = npt.NDArray[np.float64]


def part_loss(
    ppo: PPO, model: ActorCritic, part: Mapping[str, Tensor], totals: Totals, clip_range: float
) -> tuple[Tensor, Float64]:
    """See PPO.loss."""
    if len(part["advantages"]) == 0:
        return torch.zeros((), requires_grad=True), np.zeros(len(STATISTICS))
    autocast = torch.autocast(part["advantages"].device.type, torch.bfloat16) if ppo.autocast else nullcontext()
    with autocast:
        log_probs, entropies, values = model.evaluate(part["observations"], part["actions"], normalized_values=True)
    advantages = part["advantages"]
    if ppo.normalize_advantages is not None:
        advantages = (advantages - totals.advantage_mean) / (totals.advantage_std + ADVANTAGE_EPSILON)
    log_ratios = log_probs - part["log_probs"]
    ratios = log_ratios.exp()
    policy_losses = clipped_policy_loss(ratios, advantages, clip_range=clip_range, dual_clip=ppo.dual_clip)
    scale = model.value_statistics
    value_losses = value_loss(
        values,
        scale.normalize(part["values"]),
        scale.normalize(part["returns"]),
        value_clip_range=ppo.value_clip_range,
        huber_delta=ppo.huber_delta if ppo.value_loss == "huber" else None,
    )
    weighted = policy_losses + ppo.value_coef * value_losses - ppo.entropy_coef * entropies
    with torch.no_grad():
        residuals = part["returns"] - part["values"]
        rows = (
            policy_losses,
            value_losses,
            entropies,
            approximate_kl(log_ratios),
            clipped(ratios, clip_range),
            (ratios - 1.0).square(),
            part["returns"],
            part["returns"].square(),
            residuals,
            residuals.square(),
            torch.ones_like(residuals),
        )
        statistics: Float64 = torch.stack(rows).sum(dim=1, dtype=torch.float64).cpu().numpy()
    refuse_non_finite(statistics, part)
    return weighted.sum() / totals.num_steps, statistics


def refuse_non_finite(statistics: Float64, part: Mapping[str, Tensor]) -> None:
    """Raises FloatingPointError where a sum is not finite, naming it and the inputs to blame."""
    if np.isfinite(statistics).all():
        return
    bad = [f"{name} {total}" for name, total in zip(STATISTICS, statistics, strict=True) if not np.isfinite(total)]
    inputs = [name for name, tensor in part.items() if not bool(torch.isfinite(tensor).all())]
    cause = f"not finite in the input: {', '.join(inputs)}" if inputs else "the input is finite, the network is not"
    raise FloatingPointError(
        f"PPO loss: want finite numbers, given sums {', '.join(bad)}; {cause}; "
        "lower learning_rate, or look at the rewards of this iteration"
    )
