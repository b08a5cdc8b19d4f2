"""The stages of a pipeline. Each is a frozen dataclass that is its own configuration."""

from hpcrl.stages.advantage import Advantage
from hpcrl.stages.demonstrate import Demonstrate
from hpcrl.stages.evaluate import Evaluate, Evaluation, Reached
from hpcrl.stages.rollout import Rollout
from hpcrl.stages.stage import Environments, Output, Phase, Stage, StageContext, StageInterruptedError
from hpcrl.stages.update import Update

__all__ = [
    "Advantage",
    "Demonstrate",
    "Environments",
    "Evaluate",
    "Evaluation",
    "Output",
    "Phase",
    "Reached",
    "Rollout",
    "Stage",
    "StageContext",
    "StageInterruptedError",
    "Update",
]
