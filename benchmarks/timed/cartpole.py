"""pipelines/ppo_cartpole.py with another evaluation: same training bit for bit, evaluated when the benchmark says."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

from hpcrl import Evaluate, Pipeline, Reached

_PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "ppo_cartpole.py"


def cartpole(seed: int, evaluate_every: int, times: int) -> Pipeline:
    """The pipeline that is measured.

    Args:
        seed: key of all randomness.
        evaluate_every: iterations between evaluations.
        times: evaluations in a row that must reach the target.
    """
    given: Pipeline = _module().ppo_cartpole(seed=seed)
    stages = [
        dataclasses.replace(stage, every=evaluate_every, stop_when=Reached("return", 475, times=times))
        if isinstance(stage, Evaluate)
        else stage
        for stage in given.stages
    ]
    return dataclasses.replace(given, stages=stages)


def _module():  # noqa: ANN202
    specification = importlib.util.spec_from_file_location("ppo_cartpole", _PIPELINE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
