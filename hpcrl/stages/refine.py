"""The refine stage: scores of responses become rewards of tokens."""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.checks import check_number
from hpcrl.algorithms.language_ppo import KL_ESTIMATORS, KlEstimator
from hpcrl.data import Trajectories
from hpcrl.models.checks import check_member
from hpcrl.stages.read_model import unfinished
from hpcrl.stages.stage import Phase, Stage, StageContext

Float32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine(Stage):
    """Writes `rewards`, f32 per step: the response's score at its last token, a divergence penalty at each.

        r(t) = [t is the last] clip(scale score, -clip, clip) - kl_coef KL estimate(t)

    Stiennon et al. 2020 (arXiv:2009.01325), section 3.4; estimates: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """

    by_block: ClassVar[bool] = True

    score_scale: float = 1.0
    """Factor on scores."""
    score_clip: float | None = None
    """Scaled scores are clipped to +- this, > 0; None: not."""
    kl_coef: float = 0.0
    """Weight of the penalty for leaving the reference, >= 0; above 0 `reference_log_probs` are read."""
    kl_estimator: KlEstimator = "k1"
    """k1: d = log pi - log reference.  k2: d^2 / 2.  k3: exp(-d) - 1 + d.  absolute: |d|."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "refine"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        check_number("Refine.kl_coef", self.kl_coef, at_least=0.0)
        check_number("Refine.score_clip", self.score_clip, above=0.0, optional=True)
        check_member("Refine.kl_estimator", self.kl_estimator, KL_ESTIMATORS)

    @property
    def is_text(self) -> bool:
        return True

    @property
    def reads(self) -> tuple[str, ...]:
        return ("actions", "scores", *(("log_probs", "reference_log_probs") if self.kl_coef > 0 else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        return ("rewards",)

    def run(self, context: StageContext) -> None:
        started, num_steps, penalty = time.perf_counter(), 0, 0.0
        for block, trajectories in unfinished(context):
            rewards, block_penalty = self.rewards(trajectories)
            num_steps, penalty = num_steps + trajectories.num_steps, penalty + block_penalty
            context.output.emit(block, Trajectories(trajectories.offsets, {"rewards": rewards}))
        row: dict[str, object] = {"steps": num_steps, "seconds": time.perf_counter() - started}
        if self.kl_coef > 0:
            row["reference_kl"] = penalty / max(num_steps, 1)
        context.output.log(row)

    def rewards(self, trajectories: Trajectories) -> tuple[Float32, float]:
        """One block's rewards f32[num_steps], and the sum of its divergence estimates."""
        rewards, penalty = np.zeros(trajectories.num_steps, np.float32), 0.0
        if self.kl_coef > 0:
            estimates = kl_estimates(trajectories["log_probs"], trajectories["reference_log_probs"], self.kl_estimator)
            rewards -= np.float32(self.kl_coef) * estimates
            penalty = float(estimates.sum(dtype=np.float64))
        scores = trajectories["scores"] * np.float32(self.score_scale)
        if self.score_clip is not None:
            scores = np.clip(scores, -self.score_clip, self.score_clip).astype(np.float32)
        ended = trajectories.lengths > 0
        rewards[trajectories.offsets[1:][ended] - 1] += scores[ended]
        return rewards, penalty


def kl_estimates(log_probs: Float32, reference_log_probs: Float32, kind: KlEstimator) -> Float32:
    """ops.losses.kl_estimate without gradients, f32[n]: a stage that learns nothing needs no PyTorch.

    Example:
        >>> kl_estimates(np.zeros(1, np.float32), np.full(1, -0.5, np.float32), "k2").tolist()
        [0.125]
    """
    difference: Float32 = log_probs - reference_log_probs
    if kind == "k2":
        difference = np.float32(0.5) * np.square(difference)
    elif kind == "k3":
        difference = np.expm1(-difference) + difference
    elif kind == "absolute":
        difference = np.abs(difference)
    return difference
