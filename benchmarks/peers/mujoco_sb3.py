"""Stable-Baselines3's PPO on a MuJoCo task with RL Baselines3 Zoo's tuned settings (`hyperparams/ppo.yml`).

    python benchmarks/peers/mujoco_sb3.py --env HalfCheetah-v5 --seed 0 --out docs/curves/mujoco_sb3.json

The Zoo tuned HalfCheetah-v3/v4 and Hopper-v3/v4; here they play v5 (same task, later MuJoCo).  The learning curve
is the mean return of the training episodes that ended in each window of steps, unnormalised, as `Monitor` sees
them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from curves import Curve, add_curve
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

_NETWORK = {
    "log_std_init": -2.0,
    "ortho_init": False,
    "activation_fn": nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
ZOO_SETTINGS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {
        "batch_size": 64,
        "n_steps": 512,
        "gamma": 0.98,
        "learning_rate": 2.0633e-05,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
    },
    "Hopper-v5": {
        "batch_size": 32,
        "n_steps": 512,
        "gamma": 0.999,
        "learning_rate": 9.80828e-05,
        "ent_coef": 0.00229519,
        "clip_range": 0.2,
        "n_epochs": 5,
        "gae_lambda": 0.99,
        "max_grad_norm": 0.7,
        "vf_coef": 0.835671,
    },
}


class Recorder(BaseCallback):
    """Collects the returns of ended episodes into a curve."""

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self._curve = curve
        self._began = 0.0

    def _on_training_start(self) -> None:
        self._began = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._curve.add(self.num_timesteps, float(info["episode"]["r"]), time.perf_counter() - self._began)
        return True


def train(env: str, *, steps: int, seed: int, window: int) -> Curve:
    """Trains from scratch for `steps` environment steps."""
    settings = ZOO_SETTINGS[env]
    envs = VecNormalize(make_vec_env(env, n_envs=1, seed=seed), gamma=settings["gamma"])
    model = PPO("MlpPolicy", envs, policy_kwargs=_NETWORK, seed=seed, device="cpu", **settings)
    curve = Curve(tool="stable-baselines3", env=env, seed=seed, window=window)
    began = time.perf_counter()
    model.learn(steps, callback=Recorder(curve))
    curve.close(steps, time.perf_counter() - began)
    return curve


def main() -> None:
    """Trains one seed and adds its curve to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=sorted(ZOO_SETTINGS), default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=int, default=20_000, help="steps that one point of the curve covers")
    parser.add_argument("--torch-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON file that the curve is added to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.torch_threads)
    curve = train(arguments.env, steps=arguments.steps, seed=arguments.seed, window=arguments.window)
    add_curve(curve, arguments.out)
    print(f"{arguments.env} seed {arguments.seed}: {curve.points[-1]['mean_return']:.0f} after {arguments.steps} steps")


if __name__ == "__main__":
    main()
