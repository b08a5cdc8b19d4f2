"""The score stage: one number for each response, from a verifier, a function or a task's own grader."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.data import Ending, Trajectories
from hpcrl.envs.text.task import TextTask, columns_of
from hpcrl.models.language.tokenizer import Tokenizer
from hpcrl.rewards import FunctionReward, Reward, Scores, checked_scores
from hpcrl.stages.demonstrate import prompt_text
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Stage):
    """Asks a reward about each response; writes `scores`, f32 per trajectory.

    Raises: while it runs, RewardError for a reward that raises, or gives anything but one finite number a response.
    """

    by_block: ClassVar[bool] = True

    task: TextTask
    """Whose problems were answered: the reward is told their columns."""
    reward: Reward
    """(prompts, responses, columns) to a number for each response."""
    model: str = "actor"
    """The role whose tokenizer wrote the responses."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "score"
    """Names its folder; once in a pipeline."""

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("actions", "prompt_index", "ending")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("scores",)

    def check(self) -> None:
        check_reward(self.reward, self.task)

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        tokenizer = context.residents.tokenizer(self.model)
        scored: list[tuple[Trajectories, Scores]] = []
        for block in context.owned:
            if block in context.output.finished_blocks():
                continue
            if context.stop_requested():
                raise StageInterruptedError
            trajectories = context.inputs(block)
            scores = score_responses(
                self.reward, self.task, tokenizer, trajectories["prompt_index"], responses_of(trajectories, tokenizer)
            )
            scored.append((trajectories, scores))
            context.output.emit(
                block,
                Trajectories(trajectories.offsets, {}, {"scores": scores.values.astype(np.float32)}),
                facts={"episode_returns": scores.values.tolist(), "episode_lengths": trajectories.lengths.tolist()},
            )
        context.output.log({**summary(scored), "seconds": time.perf_counter() - started})


def check_reward(reward: Reward, task: TextTask) -> None:
    """Looks whether the task's first problem and the reward's function are there.

    Raises: InputError.
    """
    task.problem(0)
    if isinstance(reward, FunctionReward):
        _ = reward.function


def responses_of(trajectories: Trajectories, tokenizer: Tokenizer) -> list[str]:
    """The responses as text."""
    bounds = trajectories.offsets
    actions = trajectories["actions"]
    return [tokenizer.decode(actions[bounds[row] : bounds[row + 1]]) for row in range(trajectories.num_trajectories)]


def score_responses(
    reward: Reward, task: TextTask, tokenizer: Tokenizer, indices: Int64, responses: Sequence[str]
) -> Scores:
    """A reward's scores of responses to some problems of a task, looked at before anything is made of them.

    Raises: RewardError; InputError for problems that hold different columns.
    """
    problems = [task.problem(int(index)) for index in indices]
    texts = [prompt_text(problem) for problem in problems]
    return checked_scores(reward, texts, responses, columns_of(problems))


def summary(scored: Sequence[tuple[Trajectories, Scores]]) -> dict[str, object]:
    """Means over some blocks, for people: nothing is computed from them."""
    values = np.concatenate([scores.values for _, scores in scored]) if scored else np.zeros(0)
    lengths = np.concatenate([trajectories.lengths for trajectories, _ in scored]) if scored else np.zeros(0)
    endings = np.concatenate([trajectories["ending"] for trajectories, _ in scored]) if scored else np.zeros(0)
    outcomes: collections.Counter[str] = collections.Counter()
    for _, scores in scored:
        outcomes.update(scores.outcomes)
    return {
        "responses": len(values),
        "score_mean": float(values.mean()) if len(values) else None,
        "response_length_mean": float(lengths.mean()) if len(lengths) else None,
        "truncated_fraction": float((endings != Ending.TERMINATED).mean()) if len(endings) else None,
        **{f"outcome_{name}": count for name, count in sorted(outcomes.items())},
    }
