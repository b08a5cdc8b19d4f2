"""A plain PPO loop on Pong, in the style of CleanRL's `ppo_atari.py`, on ale-py's own C++ vector environment.

    python benchmarks/peers/pong_loop.py --torch-threads 2 --num-envs 8 --num-steps 128 --iterations 3

ale-py's vector environment is about twice as fast as Gymnasium's wrappers, and frames are kept as bytes: both in the
loop's favour.  Prints agent steps per second (one agent step is four frames) and how the time divides.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from nature_cnn import Agent
from ppo import Rollout, Settings, advantages_by_steps, update

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Stopwatch:
    """Seconds by part of the loop."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("env", "act", "advantage", "update"), 0.0))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


class Loop:
    """Environments, network and optimiser of one training."""

    def __init__(
        self, settings: Settings, *, seed: int, env_threads: int, autocast: bool, memory_format: torch.memory_format
    ) -> None:
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.settings, self.autocast = settings, autocast
        self.envs = AtariVectorEnv(
            "pong", settings.num_envs, num_threads=env_threads, autoreset_mode=AutoresetMode.SAME_STEP
        )
        self.agent = Agent(int(self.envs.single_action_space.n), memory_format)
        self.parameters = list(self.agent.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, eps=settings.adam_epsilon)
        self.rollout = Rollout.empty(settings, (4, 84, 84), torch.uint8)
        self.observations = torch.from_numpy(self.envs.reset(seed=seed)[0])
        self.dones = torch.zeros(settings.num_envs)
        self.steps = 0

    def iterate(self, stopwatch: Stopwatch) -> None:
        """One iteration: a rollout, its advantages, an update."""
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate_at(self.steps)
        self.collect(stopwatch)
        with stopwatch.part("act"), torch.no_grad(), self._autocast():
            _, next_values = self.agent(self.observations)
        with stopwatch.part("advantage"):
            advantages = advantages_by_steps(self.rollout, next_values, self.dones, self.settings)
        with stopwatch.part("update"):
            update(
                self.agent.evaluate,
                self.parameters,
                self.optimizer,
                self.rollout,
                advantages,
                self.settings,
                autocast=self.autocast,
            )
        self.steps += self.settings.steps_per_iteration

    def collect(self, stopwatch: Stopwatch) -> None:
        """Fills the rollout and leaves the observations it ends with."""
        rollout = self.rollout
        for t in range(self.settings.num_steps):
            with stopwatch.part("act"):
                rollout.observations[t], rollout.dones[t] = self.observations, self.dones
                with torch.no_grad(), self._autocast():
                    rollout.actions[t], rollout.log_probs[t], rollout.values[t] = self.agent.act(self.observations)
            with stopwatch.part("env"):
                after, rewards, terminated, truncated, _ = self.envs.step(rollout.actions[t].numpy())
                rollout.rewards[t] = torch.from_numpy(rewards)
                self.observations = torch.from_numpy(after)
                self.dones = torch.from_numpy(terminated | truncated).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast)


def measure(loop: Loop, iterations: int) -> dict[str, object]:
    """Rate and shares over some iterations, after one that warms up."""
    loop.iterate(Stopwatch())
    stopwatch, began = Stopwatch(), time.perf_counter()
    for _ in range(iterations):
        loop.iterate(stopwatch)
    elapsed = time.perf_counter() - began
    return {
        "steps_per_second": iterations * loop.settings.steps_per_iteration / elapsed,
        "seconds": elapsed,
        **{f"{name}_share": seconds / elapsed for name, seconds in stopwatch.seconds.items()},
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch-threads", type=int, default=1, help="threads of PyTorch and of the environments")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--num-epochs", type=int, default=4)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations, after one that warms up")
    parser.add_argument("--autocast", choices=("bf16",), default=None)
    parser.add_argument("--memory-format", choices=sorted(MEMORY_FORMATS), default="contiguous")
    return parser.parse_args()


def main() -> None:
    """Runs the loop for some iterations and prints the record."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.torch_threads)
    settings = Settings(
        num_envs=arguments.num_envs,
        num_steps=arguments.num_steps,
        num_epochs=arguments.num_epochs,
        num_minibatches=arguments.num_minibatches,
        clip_range=0.1,
        total_steps=10_000_000,
    )
    loop = Loop(
        settings,
        seed=arguments.seed,
        env_threads=arguments.torch_threads,
        autocast=arguments.autocast == "bf16",
        memory_format=MEMORY_FORMATS[arguments.memory_format],
    )
    record = {"tool": "pong_loop", **vars(arguments), **measure(loop, arguments.iterations)}
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
