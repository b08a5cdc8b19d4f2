"""The generate stage: responses of a policy to a task's problems, a token a step."""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar

import numpy as np

from hpcrl.data import Blocks, Ragged, Trajectories
from hpcrl.envs.text.task import TextTask
from hpcrl.errors import InputError
from hpcrl.models.language.settings import Sampling, Stopping
from hpcrl.stages.demonstrate import check_count, offsets_of, problem_indices, prompt_tokens
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError

GENERATED = ("actions", "log_probs", "prompt_tokens", "ending", "prompt_index", "sample_index")
"""Fields of a generated response."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """Answers `num_prompts` problems, each `samples_per_prompt` times; every sampled token is a step.

    Iteration i reads the problems i n, ..., i n + n - 1 with n = num_prompts. The samples of a prompt are neighbours in
    one block. A token depends on its prompt, the weights and its own counted random numbers alone: on no other
    response, and on no number of ranks.
    Writes actions, log_probs (of the distribution sampled from), prompt_tokens, ending, prompt_index, sample_index,
    policy_version.
    Raises: InputError for a count below 1, or a sampling that an update could not compute again.
    """

    by_block: ClassVar[bool] = True
    acts: ClassVar[bool] = True

    task: TextTask
    """Where problems come from."""
    num_prompts: int = 64
    """Problems in each iteration, over all blocks; divisible by the pipeline's num_blocks."""
    samples_per_prompt: int = 1
    """Responses to each; group rules compare them."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    """The distribution that is sampled from."""
    stopping: Stopping = dataclasses.field(default_factory=lambda: Stopping(max_tokens=64))
    """When a response ends."""
    rows: int = 32
    """Rows of every matrix product; another number gives other bits."""
    model: str = "actor"
    """The role that answers."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "generate"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        for field in ("num_prompts", "samples_per_prompt", "rows"):
            check_count(f"Generate.{field}", getattr(self, field))
        if self.sampling.is_greedy or self.sampling.top_k is not None or self.sampling.top_p < 1:
            raise InputError(
                f"Generate.sampling: want a temperature > 0 without top_k and top_p, whose log-probabilities an update "
                f"computes again, given {self.sampling}; evaluations may sample otherwise"
            )
        if self.stopping.min_tokens:
            raise InputError(
                f"Generate.stopping: want min_tokens=0, since an update does not know that the end was excluded, given "
                f"{self.stopping.min_tokens}"
            )

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return GENERATED

    @property
    def role(self) -> str | None:
        return self.model

    def run(self, context: StageContext) -> None:
        from hpcrl.models.language.decoding import Generator, TokenNumbers

        started = time.perf_counter()
        resident, tokenizer = context.residents.get(self.model), context.residents.tokenizer(self.model)
        blocks, samples = Blocks(context.num_blocks, self.num_prompts), self.samples_per_prompt
        todo = [block for block in context.owned if block not in context.output.finished_blocks()]
        lanes = np.array([lane for block in todo for lane in blocks.lanes(block)], np.int64)
        indices = {block: problem_indices(context.iteration, self.num_prompts, blocks.lanes(block)) for block in todo}
        prompts = {
            int(index): prompt_tokens(tokenizer, self.task.problem(int(index)))
            for block in todo
            for index in indices[block]
        }
        # All of this rank's blocks together, so that fewer rows idle behind the last responses.
        numbers = TokenNumbers(
            seed=context.seed,
            iteration=context.iteration,
            trajectories=(lanes[:, None] * samples + np.arange(samples)).reshape(-1),
        )
        responses = Generator(resident.decoder, tokenizer, rows=self.rows).generate(
            [prompts[int(index)] for block in todo for index in np.repeat(indices[block], samples)],
            numbers,
            sampling=self.sampling,
            stopping=self.stopping,
            progress=lambda done, total: context.tick("generate", done, total),
            stop_requested=context.stop_requested,
        )
        if responses is None:
            raise StageInterruptedError
        first = 0
        for block in todo:
            count = len(indices[block]) * samples
            bounds = responses.tokens.offsets[first : first + count + 1]
            rows = slice(int(bounds[0]), int(bounds[-1]))
            index = np.repeat(indices[block], samples)
            contexts = [prompts[int(each)] for each in index]
            context.output.emit(
                block,
                Trajectories(
                    bounds - bounds[0],
                    {
                        "actions": responses.tokens.values[rows].copy(),
                        "log_probs": responses.log_probs[rows].astype(np.float32),
                    },
                    {
                        "ending": responses.ending[first : first + count].copy(),
                        "prompt_index": index,
                        "sample_index": np.tile(np.arange(samples), len(indices[block])),
                        "policy_version": np.full(count, resident.version, np.int64),
                    },
                    {
                        "prompt_tokens": Ragged(
                            np.concatenate(contexts), offsets_of([len(prompt) for prompt in contexts])
                        )
                    },
                ),
            )
            first += count
        seconds = time.perf_counter() - started
        num_tokens = len(responses.tokens.values)
        context.output.log(
            {
                "steps": num_tokens,
                "responses": len(responses.ending),
                "seconds": seconds,
                "steps_per_second": num_tokens / seconds if seconds > 0 else 0.0,
            }
        )
