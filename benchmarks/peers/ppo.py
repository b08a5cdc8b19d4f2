"""The parts that the plain PPO loops share: a step loop for the advantages and the epochs of clipped updates.

Schulman et al. 2017, arXiv:1707.06347, in the form that single-file implementations give it (Huang et al. 2022, "The 37
implementation details of proximal policy optimization"): minibatches normalise their advantages, the value loss is
clipped, one Adam, one gradient norm over all parameters.  An episode cut by the time limit counts as ended, as there.
Diagnostics (approximate KL, clip fractions) are left out, in the peer's favour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers of a PPO loop; the defaults are those of CleanRL's `ppo.py`."""

    num_envs: int = 4
    num_steps: int = 128
    learning_rate: float = 2.5e-4
    total_steps: int = 500_000
    """Environment steps over which the learning rate falls linearly to zero."""
    num_epochs: int = 4
    num_minibatches: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    clip_value_loss: bool = True
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    adam_epsilon: float = 1e-5

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def learning_rate_at(self, steps: int) -> float:
        """Learning rate of the iteration that begins after `steps` environment steps."""
        return self.learning_rate * max(1.0 - steps / self.total_steps, 0.0)


@dataclass(frozen=True)
class Rollout:
    """Time-major tensors of one iteration, [num_steps, num_envs, ...]; `dones[t]`: observation t opens an episode."""

    observations: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor
    rewards: torch.Tensor
    dones: torch.Tensor
    values: torch.Tensor

    @classmethod
    def empty(cls, settings: Settings, observation_shape: tuple[int, ...], dtype: torch.dtype) -> Rollout:
        shape = (settings.num_steps, settings.num_envs)
        floats = [torch.zeros(shape) for _ in range(4)]
        actions = torch.zeros(shape, dtype=torch.int64)
        return cls(torch.zeros(shape + observation_shape, dtype=dtype), actions, *floats)


Evaluate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""(observations, actions) -> (log_probs, entropies, values)."""


def linear(num_inputs: int, num_outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias."""
    return orthogonal(nn.Linear(num_inputs, num_outputs), gain)


def orthogonal(layer: nn.Linear, gain: float = 2**0.5) -> nn.Linear:
    """Gives a layer orthogonal weights and zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def advantages_by_steps(
    rollout: Rollout, next_values: torch.Tensor, next_dones: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Generalised advantage estimation, one vector operation per time step from the end (arXiv:1506.02438, eq. 16)."""
    advantages = torch.zeros_like(rollout.rewards)
    following = torch.zeros_like(next_values)
    for t in reversed(range(settings.num_steps)):
        last = t == settings.num_steps - 1
        goes_on = 1.0 - (next_dones if last else rollout.dones[t + 1])
        after = next_values if last else rollout.values[t + 1]
        delta = rollout.rewards[t] + settings.gamma * after * goes_on - rollout.values[t]
        following = delta + settings.gamma * settings.gae_lambda * goes_on * following
        advantages[t] = following
    return advantages


def update(
    evaluate: Evaluate,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: torch.Tensor,
    settings: Settings,
    *,
    autocast: bool = False,
) -> None:
    """All epochs of one iteration.  `autocast`: forward and loss in bfloat16 where PyTorch's autocast says so."""
    observations = rollout.observations.flatten(0, 1)
    actions, log_probs, values = (field.flatten() for field in (rollout.actions, rollout.log_probs, rollout.values))
    flat_advantages, returns = advantages.flatten(), (advantages + rollout.values).flatten()
    size = settings.steps_per_iteration // settings.num_minibatches
    order = np.arange(settings.steps_per_iteration)
    for _ in range(settings.num_epochs):
        np.random.shuffle(order)
        for start in range(0, len(order), size):
            chosen = torch.from_numpy(order[start : start + size])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                new_log_probs, entropies, new_values = evaluate(observations[chosen], actions[chosen])
            ratio = (new_log_probs.float() - log_probs[chosen]).exp()
            policy = policy_loss(ratio, flat_advantages[chosen], settings)
            value = value_loss(new_values.float(), values[chosen], returns[chosen], settings)
            loss = policy - settings.entropy_coef * entropies.float().mean() + settings.value_coef * value
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()


def policy_loss(ratio: torch.Tensor, advantages: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The clipped surrogate (arXiv:1707.06347, eq. 7), with the minibatch's advantages normalised."""
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    return torch.max(-advantages * ratio, -advantages * clipped).mean()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Half the squared error, clipped around the old values if the settings say so."""
    squared = (values - returns) ** 2
    if settings.clip_value_loss:
        near = old_values + (values - old_values).clamp(-settings.clip_range, settings.clip_range)
        squared = torch.max(squared, (near - returns) ** 2)
    return 0.5 * squared.mean()
