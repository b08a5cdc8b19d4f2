"""Pong with the numbers that the benchmark chooses: whole PPO iterations, or the rollout alone."""

from __future__ import annotations

from typing import Literal

from hpcrl import PPO, Advantage, Cnn, Pipeline, Rollout, Update
from hpcrl.stages import Stage

_AS_THE_PEER = {"repeat_action_probability": 0.0}
"""The game without sticky actions, as ale-py's vector environment is by default."""


def pong(
    num_envs: int = 32,
    num_steps: int = 64,
    num_iterations: int = 3,
    num_epochs: int = 4,
    num_minibatches: int = 8,
    bf16: bool = False,
    collect_with: Literal["nothing", "model", "random"] = "nothing",
) -> Pipeline:
    """The pipeline that is measured.

    Args:
        num_envs: environments stepped in parallel, over all blocks.
        num_steps: steps per environment and iteration.
        num_iterations: iterations, the warming up included.
        num_epochs: passes over an iteration's steps.
        num_minibatches: optimiser steps per pass.
        bf16: matrix products in bfloat16, acting and training.
        collect_with: play only, with this policy, and train nothing; "nothing": whole iterations.
    """
    policy = "random" if collect_with == "random" else "model"
    rollout = Rollout(
        env="ALE/Pong-v5", num_envs=num_envs, num_steps=num_steps, policy=policy, env_options=_AS_THE_PEER
    )
    stages: list[Stage] = [rollout]
    if collect_with == "nothing":
        knobs = PPO(
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
            learning_rate=2.5e-4,
            clip_range=0.1,
            value_clip_range=0.1,
            entropy_coef=0.01,
            autocast="bf16" if bf16 else None,
        )
        stages += [Advantage(gamma=0.99, gae_lambda=0.95), Update(knobs)]
    return Pipeline(
        name="pong-timed",
        num_iterations=num_iterations,
        models={"actor": Cnn(inference_autocast="bf16" if bf16 else None)},
        stages=stages,
    )
