"""The arithmetic tasks' own graders as rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from hpcrl.envs.text import ArithmeticTask, Problem
from hpcrl.rewards.interface import Columns, Verifier, column_of


@dataclasses.dataclass(frozen=True)
class TaskReward(Verifier):
    """Right answers to an arithmetic task, and scores of their steps; reads the columns the task made.

    Outcomes: right, wrong, no_answer (the response has no answer mark).
    Example:
        >>> from hpcrl.envs.text import ModularSums
        >>> reward = TaskReward(ModularSums())
        >>> columns = {"answer": ["1"], "solution": ["b1;c2;d1;#1"]}
        >>> reward.verify(["3516="], ["b1;b1;#1"], columns), reward.score_steps(["3516="], ["b1;b1;#1"], columns)
        (['right'], [[1.0, 0.0, 0.0]])
    """

    task: ArithmeticTask
    _: dataclasses.KW_ONLY
    right_step: float = 1.0
    """Score of a step that is the next one of the solution."""
    wrong_step: float = 0.0
    """Score of any other step."""
    step_noise: float = 0.0
    """Standard deviation of a normal number added to each step's score."""
    repeats_are_right: bool = False
    """Whether a right step repeated is right again: the flaw of arXiv:2410.15115."""

    def _problems(self, prompts: Sequence[str], columns: Columns) -> Iterator[Problem]:
        names = ("answer", "solution")
        rows = zip(prompts, *(column_of(columns, name, "TaskReward") for name in names), strict=True)
        return (Problem(prompt, dict(zip(names, values, strict=True))) for prompt, *values in rows)

    def verify(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[str]:
        """An outcome for each response."""
        return [
            "no_answer"
            if self.task.answer_mark not in response
            else "right"
            if self.task.grade(problem, response)
            else "wrong"
            for problem, response in zip(self._problems(prompts, columns), responses, strict=True)
        ]

    def score_steps(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[list[float]]:
        """For each response a score for each span of `task.steps(response)`."""
        return [
            self.task.grade_steps(
                problem,
                response,
                right=self.right_step,
                wrong=self.wrong_step,
                noise=self.step_noise,
                repeats_are_right=self.repeats_are_right,
            )
            for problem, response in zip(self._problems(prompts, columns), responses, strict=True)
        ]
