"""Advantages of whole responses, compared with the other responses to the same prompt."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.models.checks import check_member
from hpcrl.stages.stage import Phase, Stage, StageContext

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Kind = Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
KINDS: tuple[Kind, ...] = ("grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline")
EPSILON = 1e-4
"""Added to the deviation that scores are divided by, as in TRL."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupAdvantage(Stage):
    """Writes `advantages`, f32 per step, one number for all tokens of a response.

        s: scores; m, d: mean and deviation (of a sample) of the responses to the prompt; n: how many they are
        grpo                  (s - m) / (d + 1e-4)          Shao et al. 2024, arXiv:2402.03300, section 4.1.2
        dr_grpo               s - m                         Liu et al. 2025, arXiv:2503.20783, section 3.2
        rloo                  (s - m) n / (n - 1)           Ahmadian et al. 2024, arXiv:2402.14740, eq. 7
        reinforce++           s, then whitened              Hu 2025, arXiv:2501.03262, eq. 8, over the whole batch
        reinforce++_baseline  s - m, then whitened          the same, section 3.3

    A group of one has deviation 0, and advantage 0 with every kind but reinforce++.
    """

    kind: Kind = "grpo"
    """Which of them."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "advantage"
    """Names its folder; once in a pipeline."""

    by_block: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_member("GroupAdvantage.kind", self.kind, KINDS)

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("actions", "scores", "prompt_index")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("advantages",)

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        blocks = {block: context.inputs(block) for block in context.owned}
        advantages = {
            block: group_advantages(trajectories["scores"].astype(np.float64), trajectories["prompt_index"], self.kind)
            for block, trajectories in blocks.items()
        }
        if self.kind.startswith("reinforce++"):
            # Every rank joins, whatever it has published before: the tree asks all.
            leaves = [np.array([len(part), part.sum(), np.square(part).sum()]) for part in advantages.values()]
            count, total, squares = (float(number) for number in context.tree.sum(leaves))
            mean = total / max(count, 1.0)
            deviation = math.sqrt(max(squares - count * mean * mean, 0.0) / max(count - 1.0, 1.0))
            advantages = {block: (part - mean) / (deviation + EPSILON) for block, part in advantages.items()}
        num_steps = 0
        for block, trajectories in blocks.items():
            num_steps += trajectories.num_steps
            if block not in context.output.finished_blocks():
                per_step = np.repeat(advantages[block].astype(np.float32), trajectories.lengths)
                context.output.emit(block, Trajectories(trajectories.offsets, {"advantages": per_step}))
        context.output.log({"steps": num_steps, "seconds": time.perf_counter() - started})


def group_advantages(scores: Float64, groups: Int64, kind: Kind) -> Float64:
    """Advantages f64[n] of scores f64[n]; responses to one prompt have one number in `groups` and are neighbours.

    Of the whitened kinds: before whitening.
    Example:
        >>> group_advantages(np.array([1.0, 0.0, 0.0]), np.array([7, 7, 7]), "rloo").tolist()
        [1.0, -0.5, -0.5]
    """
    if kind == "reinforce++":
        return scores.copy()
    advantages = np.zeros_like(scores)
    borders = [0, *(np.flatnonzero(np.diff(groups)) + 1), len(groups)]
    for start, stop in itertools.pairwise(borders):
        group = scores[start:stop]
        if len(group) < 2:
            continue
        centred = group - group.mean()
        if kind == "grpo":
            centred = centred / (group.std(ddof=1) + EPSILON)
        if kind == "rloo":
            centred = centred * (len(group) / (len(group) - 1))
        advantages[start:stop] = centred
    return advantages
