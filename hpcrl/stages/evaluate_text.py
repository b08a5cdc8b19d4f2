"""The evaluation of a text model: answers to held-out problems, scored."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from hpcrl.data import Blocks
from hpcrl.envs.text.task import TextTask
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.rewards import Reward
from hpcrl.stages.demonstrate import check_count, prompt_tokens
from hpcrl.stages.evaluate import Evaluation, Reached
from hpcrl.stages.score import check_reward, score_responses
from hpcrl.stages.stage import Phase, StageContext, StageInterruptedError

FIRST_TRAJECTORY = 2**31
"""Trajectories of evaluations are counted from here: their tokens draw other numbers than those of training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateText(Evaluation):
    """Answers the first `num_prompts` problems of a task by sampling and greedily, every `every` iterations.

    `return_mean` is the mean score of the sampled responses, which the stopping rule reads; `greedy_mean` is beside it.
    Raises: InputError for a count below 1.
    """

    task: TextTask
    """Held-out problems, the same ones at every evaluation."""
    reward: Reward
    """(prompts, responses, columns) to a number for each response."""
    num_prompts: int = 128
    """Problems, over all blocks."""
    every: int = 10
    """Evaluate after every n-th iteration."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    """The distribution that is sampled from."""
    stopping: Stopping = dataclasses.field(default_factory=lambda: Stopping(max_tokens=64))
    """When a response ends."""
    rows: int = 32
    """Rows of every matrix product."""
    stop_when: Reached | None = None
    """Ends the run when it holds."""
    model: str = "actor"
    """The role that answers."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""

    def __post_init__(self) -> None:
        for field in ("num_prompts", "every", "rows"):
            check_count(f"EvaluateText.{field}", getattr(self, field))

    @property
    def is_text(self) -> bool:
        return True

    @property
    def role(self) -> str | None:
        return self.model

    def check(self) -> None:
        check_reward(self.reward, self.task)

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        sampled = self._answer(context, self.sampling)
        greedy = sampled if self.sampling.is_greedy else self._answer(context, Sampling(temperature=0))
        # A rank that was interrupted still joins the gathering.
        everyone = context.comm.all_gather(None if sampled is None or greedy is None else (sampled, greedy))
        if any(part is None for part in everyone):
            raise StageInterruptedError
        parts = [part for part in everyone if part is not None]
        returns = [score for part in parts for score in part[0][0]]
        lengths = [length for part in parts for length in part[0][1]]
        greedy_scores = [score for part in parts for score in part[1][0]]
        facts: dict[str, object] = {
            "returns": returns,
            "lengths": lengths,
            "return_mean": float(np.mean(returns)),
            "length_mean": float(np.mean(lengths)),
            "greedy_mean": float(np.mean(greedy_scores)),
            "seconds": time.perf_counter() - started,
        }
        facts["stop"] = self.stops(context, facts)
        context.output.log({key: value for key, value in facts.items() if key not in ("returns", "lengths")})
        context.output.emit_facts(facts)

    def _answer(self, context: StageContext, sampling: Sampling) -> tuple[list[float], list[int]] | None:
        """Scores and lengths of this rank's share; None where the run was asked to stop."""
        from hpcrl.models.language.decoding import Generator, TokenNumbers

        tokenizer = context.residents.tokenizer(self.model)
        per_block = -(-self.num_prompts // context.num_blocks)
        slots = Blocks(context.num_blocks, per_block * context.num_blocks)
        mine = np.array(
            [slot for block in context.owned for slot in slots.lanes(block) if slot < self.num_prompts], np.int64
        )
        if not len(mine):
            return [], []
        prompts = [prompt_tokens(tokenizer, self.task.problem(int(index))) for index in mine]
        responses = Generator(context.residents.get(self.model).decoder, tokenizer, rows=self.rows).generate(
            prompts,
            TokenNumbers(seed=context.seed, iteration=context.iteration, trajectories=FIRST_TRAJECTORY + mine),
            sampling=sampling,
            stopping=self.stopping,
            progress=lambda done, total: context.tick("evaluate", done, total),
            stop_requested=context.stop_requested,
        )
        if responses is None:
            return None
        texts = [tokenizer.decode(tokens) for tokens in responses.tokens]
        scores = score_responses(self.reward, self.task, tokenizer, mine, texts)
        return scores.values.tolist(), [len(tokens) for tokens in responses.tokens]
