"""Pong with the numbers that the benchmark chooses: whole PPO iterations, or the rollout alone."""

from __future__ import annotations

from typing import Literal

from hpcrl import PPO, Advantage, Cnn, Pipeline, Rollout, Update


def pong(
    num_envs: int,
    num_steps: int,
    num_iterations: int,
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
    if collect_with != "nothing":
        stages = [Rollout(env="ALE/Pong-v5", num_envs=num_envs, num_steps=num_steps, policy=collect_with)]
    else:
        knobs = PPO(
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
            learning_rate=2.5e-4,
            clip_range=0.1,
            value_clip_range=0.1,
            entropy_coef=0.01,
            autocast="bf16" if bf16 else None,
        )
        stages = [
            Rollout(env="ALE/Pong-v5", num_envs=num_envs, num_steps=num_steps),
            Advantage(gamma=0.99, gae_lambda=0.95),
            Update(knobs),
        ]
    return Pipeline(
        name="pong-timed",
        num_iterations=num_iterations,
        models={"actor": Cnn(inference_autocast="bf16" if bf16 else None)},
        stages=stages,
    )
