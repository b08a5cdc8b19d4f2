"""The demonstrate stage: a task's worked solutions as trajectories, for learning by imitation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.data import Blocks, Ending, Ragged, Trajectories
from hpcrl.envs.text.task import Problem, TextTask
from hpcrl.errors import InputError
from hpcrl.models.language.tokenizer import HuggingFaceTokenizer, Tokenizer
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstrate(Stage):
    """Writes demonstrations of a task's problems: the prompt as context, the completion and an end as steps.

    Iteration i reads the problems i n, ..., i n + n - 1 with n = num_prompts.
    Raises: InputError for a count below 1; while it runs, for a problem without the column.
    """

    by_block: ClassVar[bool] = True

    task: TextTask
    """Where problems come from."""
    num_prompts: int = 64
    """Problems in each iteration, over all blocks; divisible by the pipeline's num_blocks."""
    column: str = "completion"
    """The problem's column that holds the demonstration."""
    model: str = "actor"
    """The role whose tokenizer reads them."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "demonstrate"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        check_count("Demonstrate.num_prompts", self.num_prompts)

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ("actions", "prompt_tokens", "prompt_index", "ending")

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        tokenizer = context.residents.tokenizer(self.model)
        blocks, num_tokens = Blocks(context.num_blocks, self.num_prompts), 0
        for block in context.owned:
            if block in context.output.finished_blocks():
                continue
            if context.stop_requested():
                raise StageInterruptedError
            indices = problem_indices(context.iteration, self.num_prompts, blocks.lanes(block))
            problems = [self.task.problem(int(index)) for index in indices]
            responses = [
                np.append(tokenizer.encode(text_column(problem, self.column)), tokenizer.eos_ids[0])
                for problem in problems
            ]
            trajectories = pack_responses(tokenizer, problems, responses, indices)
            num_tokens += trajectories.num_steps
            context.output.emit(block, trajectories)
        context.output.log({"steps": num_tokens, "seconds": time.perf_counter() - started})


def problem_indices(iteration: int, num_prompts: int, lanes: range) -> Int64:
    """The problems of some prompt slots in an iteration, i64[len(lanes)]."""
    return iteration * num_prompts + np.arange(lanes.start, lanes.stop, dtype=np.int64)


def prompt_tokens(tokenizer: Tokenizer, problem: Problem) -> Int64:
    """What a model reads: the prompt's text, or a conversation through the tokenizer's chat template; i64[n].

    Raises: InputError for a conversation where the tokenizer has no template.
    """
    if isinstance(problem.prompt, str):
        return tokenizer.encode_prompt(problem.prompt)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise InputError("prompt: want text, given a conversation; use a tokenizer that has a chat template")
    # The template writes the special tokens that open a text itself.
    return tokenizer.encode(tokenizer.render([dataclasses.asdict(message) for message in problem.prompt]))


def prompt_text(problem: Problem) -> str:
    """What a reward is told: the prompt's text, of a conversation the last message's."""
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content


def text_column(problem: Problem, column: str) -> str:
    """A column that holds text.

    Raises: InputError when there is none.
    """
    value = problem.columns.get(column)
    if not isinstance(value, str):
        known = ", ".join(problem.columns) or "none"
        raise InputError(f"problem: want text in column '{column}', given {value!r}; columns: {known}")
    return value


def pack_responses(
    tokenizer: Tokenizer, problems: Sequence[Problem], responses: Sequence[Int64], indices: Int64
) -> Trajectories:
    """Trajectories of whole responses, one for each problem."""
    prompts = [prompt_tokens(tokenizer, problem) for problem in problems]
    offsets = offsets_of([len(response) for response in responses])
    return Trajectories(
        offsets,
        {"actions": joined(responses)},
        {
            "ending": np.full(len(responses), Ending.TERMINATED, np.uint8),
            "prompt_index": indices,
        },
        {"prompt_tokens": Ragged(joined(prompts), offsets_of([len(prompt) for prompt in prompts]))},
    )


def offsets_of(lengths: Sequence[int]) -> Int64:
    """i64[n + 1] of n lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def joined(parts: Sequence[Int64]) -> Int64:
    """One behind the other, i64[total]."""
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def check_count(name: str, value: object) -> None:
    """Raises: InputError unless it is a whole number >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: want a whole number >= 1, given {value!r}")
