"""Text tasks: problems counted by index, from generators and files."""

from hpcrl.envs.text.arithmetic import (
    ArithmeticTask,
    ModularSums,
    MultiDigitAddition,
    MultiDigitMultiplication,
    WordProblems,
)
from hpcrl.envs.text.file_task import FileTask
from hpcrl.envs.text.gsm8k import Gsm8k, Gsm8kSolutions
from hpcrl.envs.text.hh import HhPairs
from hpcrl.envs.text.jsonl import JsonLines
from hpcrl.envs.text.task import Conversation, Message, Problem, TextTask, columns_of

__all__ = [
    "ArithmeticTask",
    "Conversation",
    "FileTask",
    "Gsm8k",
    "Gsm8kSolutions",
    "HhPairs",
    "JsonLines",
    "Message",
    "ModularSums",
    "MultiDigitAddition",
    "MultiDigitMultiplication",
    "Problem",
    "TextTask",
    "WordProblems",
    "columns_of",
]
