"""pipelines/ppo_cartpole.py with another evaluation: the same training, bit for bit, evaluated when wanted."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

from hpcrl import Evaluate, Pipeline, Reached

_MEASURED = Path(__file__).resolve().parents[2] / "pipelines" / "ppo_cartpole.py"


def cartpole(evaluate_every: int, times: int, seed: int = 1) -> Pipeline:
    """The pipeline that is measured.

    Args:
        evaluate_every: iterations between evaluations.
        times: evaluations in a row that must reach the target.
        seed: key of all randomness.
    """
    given: Pipeline = runpy.run_path(str(_MEASURED))["ppo_cartpole"](seed=seed)
    stages = [
        dataclasses.replace(stage, every=evaluate_every, stop_when=Reached("return", 475, times=times))
        if isinstance(stage, Evaluate)
        else stage
        for stage in given.stages
    ]
    return dataclasses.replace(given, stages=stages)
