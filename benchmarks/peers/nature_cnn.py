"""The network of Mnih et al. 2015 ("Human-level control through deep reinforcement learning") with a policy and a value head."""

from __future__ import annotations

import torch
from ppo import linear, orthogonal
from torch import nn
from torch.distributions import Categorical


class Agent(nn.Module):
    """Four stacked 84 x 84 frames (uint8) -> action logits and value; both heads share the trunk."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            orthogonal(nn.Conv2d(4, 32, 8, stride=4)),
            nn.ReLU(),
            orthogonal(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            orthogonal(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
            linear(64 * 7 * 7, 512),
            nn.ReLU(),
        )
        self.actor = linear(512, num_actions, 0.01)
        self.critic = linear(512, 1, 1.0)

    def forward(self, frames: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        hidden = self.trunk(frames.float() / 255.0)
        return Categorical(logits=self.actor(hidden).float()), self.critic(hidden).float().flatten()

    def act(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, values = self(frames)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions), values

    def evaluate(
        self, frames: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, values = self(frames)
        return distribution.log_prob(actions), distribution.entropy(), values
