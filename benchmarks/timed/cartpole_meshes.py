"""pipelines/ppo_cartpole.py without evaluations, on one mesh or with its rollouts on a mesh of their own."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

from hpcrl import Evaluate, Mesh, Pipeline, Rollout

_MEASURED = Path(__file__).resolve().parents[2] / "pipelines" / "ppo_cartpole.py"


def cartpole_meshes(apart: bool = False, policy_lag: int = 0, num_iterations: int = 40) -> Pipeline:
    """The pipeline that is measured.

    Args:
        apart: rollouts on a mesh of one rank, updates on another; else one mesh has all ranks.
        policy_lag: how many updates late a rollout acts.
        num_iterations: iterations.
    """
    given: Pipeline = runpy.run_path(str(_MEASURED))["ppo_cartpole"](num_iterations=num_iterations)
    stages = [
        dataclasses.replace(stage, mesh="play") if apart and isinstance(stage, Rollout) else stage
        for stage in given.stages
        if not isinstance(stage, Evaluate)
    ]
    return dataclasses.replace(given, stages=stages, meshes={"play": Mesh()}, policy_lag=policy_lag)
