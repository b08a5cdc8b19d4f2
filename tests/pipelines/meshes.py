"""The tiny pipeline with its rollouts on a mesh of their own, and rollouts that lag behind the updates."""

import dataclasses

from hpcrl import Evaluate, Mesh, Pipeline, Reached
from tests.pipelines.tiny import tiny


def meshes(
    play: bool = True,
    policy_lag: int = 0,
    num_iterations: int = 4,
    num_steps: int = 24,
    play_world: str = "main",
    array: int = 1,
    stop: bool = False,
    evaluate_apart: bool = False,
    seed: int = 7,
) -> Pipeline:
    """A tiny PPO on two or three meshes."""
    whole = tiny(num_iterations=num_iterations, num_steps=num_steps, seed=seed)
    rollout, *middle, evaluate = whole.stages
    assert isinstance(evaluate, Evaluate)
    evaluate = dataclasses.replace(
        evaluate,
        every=1 if stop else 2,
        stop_when=Reached("length", 1, times=3) if stop else None,
        mesh="judge" if evaluate_apart else "main",
    )
    return dataclasses.replace(
        whole,
        stages=[dataclasses.replace(rollout, mesh="play" if play else "main"), *middle, evaluate],
        meshes={"play": Mesh(world=play_world, array=array), "judge": Mesh()},
        policy_lag=policy_lag,
    )
