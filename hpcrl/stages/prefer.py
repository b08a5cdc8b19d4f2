"""Stages that make preferences: from scored responses, from a file of pairs; and scores from a learned reward model."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.data import Blocks, Trajectories
from hpcrl.envs.text.task import TextTask
from hpcrl.stages.demonstrate import check_count, pack_responses, problem_indices, text_column
from hpcrl.stages.read_model import passes, unfinished
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefer(Stage):
    """Writes `preference`, i8 per trajectory: 1 for the best response to a prompt, -1 for the worst, 0 for the others.

    Of equal scores the first response is taken; a prompt whose responses all score alike gives no pair.
    """

    by_block: ClassVar[bool] = True

    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "prefer"
    """Names its folder; once in a pipeline."""

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("actions", "scores", "prompt_index")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("preference",)

    def run(self, context: StageContext) -> None:
        started, pairs = time.perf_counter(), 0
        for block, trajectories in unfinished(context):
            preference = best_and_worst(trajectories["scores"], trajectories["prompt_index"])
            pairs += int((preference > 0).sum())
            context.output.emit(block, Trajectories(trajectories.offsets, {}, {"preference": preference}))
        context.output.log({"pairs": pairs, "seconds": time.perf_counter() - started})


def best_and_worst(scores: Float32, prompts: Int64) -> Int8:
    """1 for the highest score of each prompt, -1 for the lowest, 0 elsewhere; responses to a prompt are neighbours.

    Example:
        >>> best_and_worst(np.array([0, 1, 0, 5, 5], np.float32), np.array([3, 3, 3, 4, 4])).tolist()
        [-1, 1, 0, 0, 0]
    """
    preference = np.zeros(len(scores), np.int8)
    borders = [0, *(np.flatnonzero(np.diff(prompts)) + 1), len(prompts)]
    for start, stop in itertools.pairwise(borders):
        group = scores[start:stop]
        if len(group) and group.max() > group.min():
            preference[start + int(group.argmax())] = 1
            preference[start + int(group.argmin())] = -1
    return preference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences(Stage):
    """Writes the pairs of a task's problems: for each the chosen response, then the rejected one.

    Iteration i reads the problems i n, ..., i n + n - 1 with n = num_prompts.
    Raises: InputError for a count below 1; while it runs, for a problem without the columns.
    """

    by_block: ClassVar[bool] = True

    task: TextTask
    """Problems with the columns `chosen` and `rejected`."""
    num_prompts: int = 64
    """Pairs in each iteration, over all blocks; divisible by the pipeline's num_blocks."""
    model: str = "actor"
    """The role whose tokenizer reads them."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "preferences"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        check_count("Preferences.num_prompts", self.num_prompts)

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ("actions", "prompt_tokens", "prompt_index", "ending", "preference")

    def check(self) -> None:
        for column in ("chosen", "rejected"):
            text_column(self.task.problem(0), column)

    def run(self, context: StageContext) -> None:
        started, num_tokens = time.perf_counter(), 0
        tokenizer = context.residents.tokenizer(self.model)
        blocks = Blocks(context.num_blocks, self.num_prompts)
        for block in context.owned:
            if block in context.output.finished_blocks():
                continue
            if context.stop_requested():
                raise StageInterruptedError
            indices = np.repeat(problem_indices(context.iteration, self.num_prompts, blocks.lanes(block)), 2)
            problems = [self.task.problem(int(index)) for index in indices]
            responses = [
                np.append(tokenizer.encode(text_column(problem, column)), tokenizer.eos_ids[0])
                for problem, column in zip(problems, itertools.cycle(("chosen", "rejected")), strict=False)
            ]
            packed = pack_responses(tokenizer, problems, responses, indices)
            preference = np.tile(np.array([1, -1], np.int8), len(indices) // 2)
            num_tokens += packed.num_steps
            context.output.emit(block, packed.with_fields(per_trajectory={"preference": preference}))
        context.output.log({"steps": num_tokens, "seconds": time.perf_counter() - started})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreByModel(Stage):
    """Writes `scores`, f32 per trajectory: a learned reward model's output behind each response's last token."""

    by_block: ClassVar[bool] = True

    model: str = "reward"
    """The role that is asked; it has a value head."""
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
        return ("actions", "prompt_tokens")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("scores",)

    @property
    def role(self) -> str | None:
        return self.model

    def run(self, context: StageContext) -> None:
        import torch

        from hpcrl.algorithms.preference import last_values

        started = time.perf_counter()
        decoder = context.residents.get(self.model).decoder
        total, count = 0.0, 0
        for block, trajectories in unfinished(context):
            with torch.inference_mode():
                parts = [last_values(decoder, part).float().numpy() for part in passes(trajectories)]
            scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            total, count = total + float(scores.sum(dtype=np.float64)), count + len(scores)
            context.output.emit(
                block,
                Trajectories(trajectories.offsets, {}, {"scores": scores}),
                facts={"episode_returns": scores.tolist(), "episode_lengths": trajectories.lengths.tolist()},
            )
        seconds = time.perf_counter() - started
        context.output.log({"responses": count, "score_mean": total / count if count else None, "seconds": seconds})
