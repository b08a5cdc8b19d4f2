"""Stable-Baselines3's PPO on CartPole with RL Baselines3 Zoo's tuned settings (`hyperparams/ppo.yml`, CartPole-v1).

python benchmarks/peers/cartpole_sb3.py --seed 3 --torch-threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from target import GIVE_UP_STEPS, Trial

TOTAL_STEPS = 100_000


def linear_schedule(first: float) -> Callable[[float], float]:
    """RL-Zoo's `lin_x`: falls from x to 0 over the planned steps; stays at 0 past them."""
    return lambda remaining: max(remaining, 0.0) * first


class UntilTarget(BaseCallback):
    """Starts the clock before the first step, evaluates after each update, ends the training at the target."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self._trial = trial
        self._finished = False

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == 0:
            self._trial.start()
        else:  # the update on the steps so far is done
            self._finished = self._trial.after_iteration(self.num_timesteps, self._greedy)

    def _on_step(self) -> bool:
        return not self._finished

    def _greedy(self, observations: np.ndarray) -> np.ndarray:
        return self.model.predict(observations, deterministic=True)[0]


def train(seed: int) -> Trial:
    """Trains from scratch until the target is reached or given up."""
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=linear_schedule(0.001),
        clip_range=linear_schedule(0.2),
        seed=seed,
        device="cpu",
    )
    trial = Trial("cartpole_sb3", seed)
    model.learn(TOTAL_STEPS, callback=UntilTarget(trial))
    if not trial.evaluations or (not trial.reached and trial.steps < min(TOTAL_STEPS, GIVE_UP_STEPS) - 2_560):
        raise RuntimeError(f"training ended at {trial.steps} steps, before the target and before its planned end")
    return trial


def main() -> None:
    """Runs one seed and prints its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--torch-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.torch_threads)
    trial = train(arguments.seed)
    trial.print_record(torch_threads=arguments.torch_threads)


if __name__ == "__main__":
    main()
