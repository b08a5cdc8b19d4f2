"""Verifiers and reward functions: (prompts, responses, columns) to one number for each response."""

from hpcrl.rewards.code_execution import CodeExecution, ExecutionLimits
from hpcrl.rewards.function import FunctionReward
from hpcrl.rewards.graded import TaskReward
from hpcrl.rewards.interface import Reward, RewardError, Scores, Verifier, checked_scores
from hpcrl.rewards.math_verify import MathVerify
from hpcrl.rewards.numeric import BoxedAnswer, NumericAnswer

__all__ = [
    "BoxedAnswer",
    "CodeExecution",
    "ExecutionLimits",
    "FunctionReward",
    "MathVerify",
    "NumericAnswer",
    "Reward",
    "RewardError",
    "Scores",
    "TaskReward",
    "Verifier",
    "checked_scores",
]
