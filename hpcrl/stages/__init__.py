"""The stages of a pipeline. Each is a frozen dataclass that is its own configuration."""

from hpcrl.stages.advantage import Advantage
from hpcrl.stages.copy_weights import CopyWeights
from hpcrl.stages.demonstrate import Demonstrate
from hpcrl.stages.evaluate import Evaluate, Evaluation, Reached
from hpcrl.stages.evaluate_text import EvaluateText
from hpcrl.stages.generate import Generate
from hpcrl.stages.group_advantage import GroupAdvantage
from hpcrl.stages.prefer import Prefer, Preferences, ScoreByModel
from hpcrl.stages.read_model import LogProbs, Values
from hpcrl.stages.refine import Refine
from hpcrl.stages.rollout import Rollout
from hpcrl.stages.score import Score
from hpcrl.stages.stage import Environments, Output, Phase, Stage, StageContext, StageInterruptedError
from hpcrl.stages.update import Update

__all__ = [
    "Advantage",
    "CopyWeights",
    "Demonstrate",
    "Environments",
    "Evaluate",
    "EvaluateText",
    "Evaluation",
    "Generate",
    "GroupAdvantage",
    "LogProbs",
    "Output",
    "Phase",
    "Prefer",
    "Preferences",
    "Reached",
    "Refine",
    "Rollout",
    "Score",
    "ScoreByModel",
    "Stage",
    "StageContext",
    "StageInterruptedError",
    "Update",
    "Values",
]
