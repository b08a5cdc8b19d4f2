"""Text tasks: problems counted by index, from generators and files."""

from hpcrl.envs.text.arithmetic import (
    ArithmeticTask,
    ModularSums,
    MultiDigitAddition,
    MultiDigitMultiplication,
    WordProblems,
)
from hpcrl.envs.text.task import Conversation, Message, Problem, TextTask

__all__ = [
    "ArithmeticTask",
    "Conversation",
    "Message",
    "ModularSums",
    "MultiDigitAddition",
    "MultiDigitMultiplication",
    "Problem",
    "TextTask",
    "WordProblems",
]
