"""The network of Mnih et al. 2015 (Nature 518, 529-533) with a policy and a value head."""

from __future__ import annotations

import torch
from ppo import linear, orthogonal
from torch import nn
from torch.distributions import Categorical


class Agent(nn.Module):
    """Four stacked 84 x 84 frames (uint8) -> action logits and value; both heads share the trunk.

    `memory_format`: how images lie in memory inside the network; plain loops leave it `torch.contiguous_format`.
    """

    def __init__(self, num_actions: int, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        self.memory_format = memory_format
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
        self.to(memory_format=memory_format)

    def hidden(self, frames: torch.Tensor) -> torch.Tensor:
        return self.trunk(frames.to(torch.float32, memory_format=self.memory_format) / 255.0)

    def forward(self, frames: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        hidden = self.hidden(frames)
        return Categorical(logits=self.actor(hidden).float()), self.critic(hidden).float().flatten()

    def act(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, values = self(frames)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions), values

    def evaluate(self, frames: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution, values = self(frames)
        return distribution.log_prob(actions), distribution.entropy(), values
