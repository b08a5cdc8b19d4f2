"""Stages that ask a model about given responses: log-probabilities of a reference, values of a critic."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.checks import check_number
from hpcrl.data import Ending, Trajectories
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError

if TYPE_CHECKING:
    from hpcrl.models.language.decoder import Decoder
    from hpcrl.models.language.packing import TextPart

Float32 = npt.NDArray[np.float32]
MAX_TOKENS = 8192
"""Of one forward pass, at least one trajectory: the passes of a block depend on the block alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogProbs(Stage):
    """Writes `reference_log_probs`, f32 per step: log p of each response token under a model that does not act."""

    by_block: ClassVar[bool] = True

    model: str = "reference"
    """The role that is asked."""
    temperature: float = 1.0
    """The one that was sampled with, > 0."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "log_probs"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        check_number("LogProbs.temperature", self.temperature, above=0.0)

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("actions", "prompt_tokens")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("reference_log_probs",)

    @property
    def role(self) -> str | None:
        return self.model

    def run(self, context: StageContext) -> None:
        started, num_steps = time.perf_counter(), 0
        decoder = context.residents.get(self.model).decoder
        for block, trajectories in unfinished(context):
            num_steps += trajectories.num_steps
            log_probs = self.of(decoder, trajectories)
            context.output.emit(block, Trajectories(trajectories.offsets, {"reference_log_probs": log_probs}))
        context.output.log({"steps": num_steps, "seconds": time.perf_counter() - started})

    def of(self, decoder: Decoder, trajectories: Trajectories) -> Float32:
        """Log-probabilities of one block's response tokens, f32[num_steps]."""
        import torch

        from hpcrl.models.language.log_probs import token_log_probs

        found = []
        with torch.inference_mode():
            for part in passes(trajectories):
                hidden = decoder(part.tokens, part.offsets)[part.rows]
                log_probs, _ = token_log_probs(decoder, hidden, part.targets, temperature=self.temperature)
                found.append(log_probs.float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values(Stage):
    """Writes `values`, f32 per step, and `bootstrap_values`, f32 per trajectory.

    values[t] is the critic's output before token t; a response that was cut off is bootstrapped with the output after
    its last token, one that ended has nothing behind it.
    """

    by_block: ClassVar[bool] = True

    model: str = "critic"
    """The role that is asked; it has a value head."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "values"
    """Names its folder; once in a pipeline."""

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("actions", "prompt_tokens", "ending")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("values", "bootstrap_values")

    @property
    def role(self) -> str | None:
        return self.model

    def run(self, context: StageContext) -> None:
        started, num_steps = time.perf_counter(), 0
        decoder = context.residents.get(self.model).decoder
        for block, trajectories in unfinished(context):
            num_steps += trajectories.num_steps
            values, bootstrap = self.of(decoder, trajectories)
            context.output.emit(
                block, Trajectories(trajectories.offsets, {"values": values}, {"bootstrap_values": bootstrap})
            )
        context.output.log({"steps": num_steps, "seconds": time.perf_counter() - started})

    def of(self, decoder: Decoder, trajectories: Trajectories) -> tuple[Float32, Float32]:
        """Values of one block, f32[num_steps] and f32[num_trajectories]."""
        import torch

        values, last = [], []
        with torch.inference_mode():
            for part in passes(trajectories):
                outputs = decoder.values(decoder(part.tokens, part.offsets)).float().cpu().numpy()
                values.append(outputs[part.rows.numpy()])
                last.append(outputs[np.array(part.offsets.offsets[1:]) - 1])
        if not values:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        bootstrap = np.where(trajectories["ending"] == Ending.TERMINATED, np.float32(0.0), np.concatenate(last))
        return np.concatenate(values), bootstrap.astype(np.float32)


def unfinished(context: StageContext) -> Iterator[tuple[int, Trajectories]]:
    """This rank's blocks that no earlier attempt has published, and what earlier stages wrote of them.

    Raises: StageInterruptedError when the run was asked to stop.
    """
    blocks = [block for block in context.owned if block not in context.output.finished_blocks()]
    for done, block in enumerate(blocks):
        if context.stop_requested():
            raise StageInterruptedError
        context.tick("blocks", done, len(blocks))
        yield block, context.inputs(block)


def passes(trajectories: Trajectories) -> Iterator[TextPart]:
    """A block's trajectories in order, so many at a time as a forward pass takes."""
    from hpcrl.models.language.packing import pack_text

    lengths = trajectories.lengths + (
        trajectories.ragged["prompt_tokens"].offsets[1:] - trajectories.ragged["prompt_tokens"].offsets[:-1]
    )
    start = 0
    while start < len(lengths):
        fitting = int(lengths[start:].cumsum().searchsorted(MAX_TOKENS, side="right"))
        stop = start + max(fitting, 1)
        yield pack_text(trajectories.slice(start, stop))
        start = stop
