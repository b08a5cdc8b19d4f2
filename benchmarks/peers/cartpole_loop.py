"""A plain PPO loop on CartPole, in the style and with the default settings of CleanRL's `ppo.py`.

python benchmarks/peers/cartpole_loop.py --seed 3 --torch-threads 1
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ppo import Rollout, Settings, advantages_by_steps, linear, update
from target import Trial
from torch import nn
from torch.distributions import Categorical


class Agent(nn.Module):
    """Separate policy and value networks, tanh 64 x 64."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(linear(4, 64), nn.Tanh(), linear(64, 64), nn.Tanh(), linear(64, 1, 1.0))
        self.actor = nn.Sequential(linear(4, 64), nn.Tanh(), linear(64, 64), nn.Tanh(), linear(64, 2, 0.01))

    def act(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution = Categorical(logits=self.actor(observations))
        actions = distribution.sample()
        return actions, distribution.log_prob(actions), self.critic(observations).flatten()

    def evaluate(
        self, observations: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution = Categorical(logits=self.actor(observations))
        return distribution.log_prob(actions), distribution.entropy(), self.critic(observations).flatten()

    @torch.no_grad()
    def greedy(self, observations: np.ndarray) -> np.ndarray:
        return self.actor(torch.from_numpy(observations)).argmax(1).numpy()


def train(seed: int, settings: Settings) -> Trial:
    """Trains from scratch until the target is reached or given up."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    makers = [lambda: gym.make("CartPole-v1")] * settings.num_envs
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = Agent()
    parameters = list(agent.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, eps=settings.adam_epsilon)
    rollout = Rollout.empty(settings, (4,), torch.float32)
    observations = torch.from_numpy(envs.reset(seed=seed)[0])
    dones = torch.zeros(settings.num_envs)
    trial, steps, finished = Trial("cartpole_loop", seed), 0, False
    trial.start()
    while not finished:
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(steps)
        observations, dones = collect(envs, agent, rollout, observations, dones)
        with torch.no_grad():
            next_values = agent.critic(observations).flatten()
            advantages = advantages_by_steps(rollout, next_values, dones, settings)
        update(agent.evaluate, parameters, optimizer, rollout, advantages, settings)
        steps += settings.steps_per_iteration
        finished = trial.after_iteration(steps, agent.greedy)
    envs.close()
    return trial


def collect(
    envs: SyncVectorEnv, agent: Agent, rollout: Rollout, observations: torch.Tensor, dones: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills `rollout`; returns the observations and the dones it ends with."""
    for t in range(len(rollout.rewards)):
        rollout.observations[t], rollout.dones[t] = observations, dones
        with torch.no_grad():
            rollout.actions[t], rollout.log_probs[t], rollout.values[t] = agent.act(observations)
        after, rewards, terminated, truncated, _ = envs.step(rollout.actions[t].numpy())
        rollout.rewards[t] = torch.from_numpy(rewards)
        observations, dones = torch.from_numpy(after), torch.from_numpy(terminated | truncated).float()
    return observations, dones


def main() -> None:
    """Runs one seed and prints its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--torch-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.torch_threads)
    trial = train(arguments.seed, Settings())
    trial.print_record(torch_threads=arguments.torch_threads)


if __name__ == "__main__":
    main()
