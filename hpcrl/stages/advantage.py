"""The advantage stage: adds `advantages` and `returns` to what a rollout recorded."""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.errors import InputError
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError

Float32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advantage(Stage):
    """Adds `advantages` and `returns`: GAE, or V-trace when the policy has moved on since the rollout.

    GAE: A(t) = delta(t) + gamma * lambda * A(t+1); returns = A + V.
    Schulman et al. 2016, arXiv:1506.02438, eqs. 11 and 16.
    V-trace: Espeholt et al. 2018, arXiv:1802.01561, eq. 1; needs current log-probabilities, so only inside an update
    (`Update(..., advantage=Advantage(estimator="vtrace", recompute="epoch"))`).
    Raises: InputError for a value out of range.
    """

    name: ClassVar[str] = "advantage"
    by_block: ClassVar[bool] = True

    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    gae_lambda: float = 0.95
    """0: one-step TD error (low variance). 1: Monte Carlo return (low bias)."""
    estimator: Literal["gae", "vtrace"] = "gae"
    """How advantages are estimated."""
    recompute: Literal["epoch"] | None = None
    """Inside an update: "epoch" estimates again from current values before every epoch. None: as a stage, once."""
    rho_clip: float = 1.0
    """V-trace's rho-bar, > 0."""
    c_clip: float = 1.0
    """V-trace's c-bar, > 0."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""

    def __post_init__(self) -> None:
        for field in ("gamma", "gae_lambda"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"Advantage.{field}: want a number in [0, 1], given {value}")
        for field in ("rho_clip", "c_clip"):
            value = getattr(self, field)
            if not value > 0.0:
                raise InputError(f"Advantage.{field}: want a number > 0, given {value}")
        if self.estimator not in ("gae", "vtrace"):
            raise InputError(f"Advantage.estimator: want 'gae' or 'vtrace', given {self.estimator!r}")
        if self.recompute not in (None, "epoch"):
            raise InputError(f"Advantage.recompute: want None or 'epoch', given {self.recompute!r}")
        if self.estimator == "vtrace" and self.recompute is None:
            raise InputError(
                "Advantage.recompute: V-trace weighs stored log-probabilities against current ones, so it wants "
                "recompute='epoch' inside an update, given None; write Update(PPO(...), advantage=Advantage("
                "estimator='vtrace', recompute='epoch'))"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        return ("rewards", "values", "bootstrap_values")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("advantages", "returns")

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        num_steps = 0
        for block in context.owned:
            if block in context.output.finished_blocks():
                continue
            if context.stop_requested():
                raise StageInterruptedError
            batch = context.inputs(block)
            advantages, returns = self.estimate(batch)
            num_steps += batch.num_steps
            context.output.emit(block, Trajectories(batch.offsets, {"advantages": advantages, "returns": returns}))
        context.output.log({"steps": num_steps, "seconds": time.perf_counter() - started})

    def estimate(
        self,
        batch: Trajectories,
        *,
        values: Float32 | None = None,
        bootstrap_values: Float32 | None = None,
        new_log_probs: Float32 | None = None,
    ) -> tuple[Float32, Float32]:
        """Advantages and returns of one block, f32[num_steps] each; current values replace stored ones where given."""
        # Imported here so that configurations load without the compiled kernels (show, status on a login node).
        from hpcrl.ops.recurrence import gae, vtrace

        rewards = batch["rewards"]
        values = batch["values"] if values is None else values
        bootstrap = batch["bootstrap_values"] if bootstrap_values is None else bootstrap_values
        if self.estimator == "vtrace":
            if new_log_probs is None:
                raise InputError("V-trace: want current log-probabilities, given none; use recompute='epoch'")
            ratios = np.exp(new_log_probs - batch["log_probs"])
            return vtrace(
                rewards, values, bootstrap, batch.offsets, ratios,
                gamma=self.gamma, trace_lambda=self.gae_lambda, rho_clip=self.rho_clip, c_clip=self.c_clip,
            )  # fmt: skip
        return gae(rewards, values, bootstrap, batch.offsets, gamma=self.gamma, gae_lambda=self.gae_lambda)
