"""Proximal policy optimisation: the knobs and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.checks import check_integer, check_number
from hpcrl.algorithms.schedule import SCHEDULES, Schedule, scheduled_share
from hpcrl.errors import InputError
from hpcrl.models.checks import check_member

if TYPE_CHECKING:
    from torch import Tensor

    from hpcrl.algorithms.adam import FlatAdam
    from hpcrl.models import Model
    from hpcrl.models.actor_critic import ActorCritic

Float64 = npt.NDArray[np.float64]

ADVANTAGE_EPSILON = 1e-8
"""Added to the deviation that advantages are divided by, as in Stable-Baselines3 and CleanRL."""
TARGET_KL_MARGIN = 1.5
"""An update stops above 1.5 target_kl, as in Spinning Up and Stable-Baselines3."""


@dataclass(frozen=True)
class Totals:
    """What one block's part must know of the whole minibatch."""

    num_steps: int
    """Steps of the minibatch over all blocks: the denominator of every mean."""
    advantage_mean: float
    advantage_std: float
    """Of a sample (n - 1), as in Stable-Baselines3."""

    @classmethod
    def of(cls, num_steps: int, advantage_sums: Float64) -> Totals:
        """From (n, sum, sum of squares) f64[3] of the advantages over all blocks, of the minibatch or of the batch.

        Fewer than two advantages have mean 0 and deviation 1: normalising changes nothing.

        >>> Totals.of(3, np.array([3.0, 6.0, 14.0]))
        Totals(num_steps=3, advantage_mean=2.0, advantage_std=1.0)
        """
        count, total, squares = (float(entry) for entry in advantage_sums)
        if count < 2.0:
            return cls(num_steps, 0.0, 1.0)
        mean = total / count
        return cls(num_steps, mean, math.sqrt(max(squares - count * mean * mean, 0.0) / (count - 1.0)))


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Clipped-surrogate PPO, Schulman et al. 2017 (arXiv:1707.06347); docs/ppo.md has each knob's equation and source.

        loss = mean(policy loss) + value_coef mean(value loss) - entropy_coef mean(entropy)

    Steps, not trajectories, are averaged, each with weight 1 / (steps of the minibatch over all blocks).
    """

    num_epochs: int = 4
    """Passes over the iteration's steps, >= 1."""
    num_minibatches: int = 4
    """Optimiser steps per pass, >= 1."""
    learning_rate: float = 2.5e-4
    """Adam's step size at the first iteration, > 0."""
    learning_rate_schedule: Schedule = "linear"
    """How learning_rate moves with progress: constant, linear or cosine, the latter two to 0."""
    clip_range: float = 0.2
    """The probability ratio gains nothing beyond 1 +- clip_range; > 0."""
    clip_range_schedule: Schedule = "constant"
    """How clip_range moves with progress."""
    dual_clip: float | None = None
    """Bound on the ratio where the advantage is negative, > 1; None: no bound."""
    value_clip_range: float | None = None
    """A value prediction gains nothing beyond +- this from that at collection, in the loss's scale; None: no clip."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, >= 0."""
    value_coef: float = 0.5
    """Weight of the value loss (half the squared error), >= 0."""
    value_loss: Literal["squared", "huber"] = "squared"
    """Half the squared error, or Huber's loss with huber_delta."""
    huber_delta: float = 1.0
    """Error where Huber's loss turns from squared to linear, in the loss's scale; > 0."""
    target_kl: float | None = None
    """The update ends before a step whose minibatch shows approximate_kl > 1.5 target_kl; None: never."""
    max_grad_norm: float | None = 0.5
    """Gradients of a larger global norm are scaled down to it; None: never."""
    normalize_advantages: Literal["minibatch", "batch"] | None = "minibatch"
    """Subtract the mean and divide by the deviation over all ranks, of each minibatch or of the iteration's batch."""
    normalize_values: Literal["running", "popart"] | None = None
    """The value head predicts returns in running units; popart also rescales the head so that predictions stay."""
    value_statistics_step: float | None = None
    """Share of the newest batch in the value statistics, in (0, 1]; None: every return so far counts alike."""
    autocast: Literal["bf16"] | None = None
    """Matrix products of the update's forward and backward in bfloat16; parameters and sums stay fp32."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments, each in [0, 1)."""
    adam_epsilon: float = 1e-5
    """Added to Adam's denominator, > 0; 1e-5 as in OpenAI Baselines."""
    weight_decay: float = 0.0
    """Decoupled weight decay per unit of learning rate (AdamW), >= 0."""

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_minibatches"):
            check_integer(f"PPO.{name}", getattr(self, name), minimum=1)
        for name in ("learning_rate", "clip_range", "huber_delta", "adam_epsilon"):
            check_number(f"PPO.{name}", getattr(self, name), above=0.0)
        for name in ("entropy_coef", "value_coef", "weight_decay"):
            check_number(f"PPO.{name}", getattr(self, name), at_least=0.0)
        for name in ("value_clip_range", "target_kl", "max_grad_norm"):
            check_number(f"PPO.{name}", getattr(self, name), above=0.0, optional=True)
        check_number("PPO.dual_clip", self.dual_clip, above=1.0, optional=True)
        check_number("PPO.value_statistics_step", self.value_statistics_step, above=0.0, at_most=1.0, optional=True)
        if len(self.adam_betas) != 2:
            raise InputError(f"PPO.adam_betas: want two numbers, given {self.adam_betas!r}; for example (0.9, 0.999)")
        for beta in self.adam_betas:
            check_number("PPO.adam_betas", beta, at_least=0.0, below=1.0)
        for name, wanted in _CHOICES.items():
            check_member(f"PPO.{name}", getattr(self, name), wanted)

    def learning_rate_at(self, progress: float) -> float:
        """Adam's step size after a share `progress` in [0, 1] of the run."""
        return self.learning_rate * scheduled_share(self.learning_rate_schedule, progress)

    def clip_range_at(self, progress: float) -> float:
        """The clip range after a share `progress` in [0, 1] of the run."""
        return self.clip_range * scheduled_share(self.clip_range_schedule, progress)

    def build_optimizer(self, model: Model) -> FlatAdam:
        """Adam over the model's flat buffer; a model moved to another device or copied needs a new one."""
        from hpcrl.algorithms.adam import FlatAdam

        return FlatAdam(model.flat, betas=self.adam_betas, epsilon=self.adam_epsilon, weight_decay=self.weight_decay)

    def advance_value_statistics(self, model: ActorCritic, return_sums: Float64) -> None:
        """Once per iteration, before the first epoch: (n, sum, sum of squares) f64[3] of the returns of all blocks."""
        if self.normalize_values is not None:
            popart = self.normalize_values == "popart"
            model.advance_value_statistics(return_sums, popart=popart, step=self.value_statistics_step)

    def totals(self, num_steps: int, advantage_sums: Float64) -> Totals:
        """What `loss` must know of a minibatch of `num_steps` steps over all blocks.

        advantage_sums: (n, sum, sum of squares) f64[3] over all blocks of the minibatch's advantages, or of the
        batch's, by `normalize_advantages`.
        """
        return Totals.of(num_steps, advantage_sums)

    def loss(
        self, model: ActorCritic, part: Mapping[str, Tensor], totals: Totals, *, progress: float = 0.0
    ) -> tuple[Tensor, Float64]:
        """One block's part of a minibatch's loss, and statistics.

        Gradients of the parts of all blocks add up to the minibatch's gradient, and so do the statistics, which
        `finish_statistics` names.  An empty part gives zeros.

        Args:
            part: `observations` (raw), `actions`, and f32[n] `log_probs`, `values` (both at collection), `advantages`,
                `returns`.
            totals: of the whole minibatch.
            progress: share of the run that is done, for clip_range_schedule.
        Returns:
            The scalar to call backward on, and f64[num_statistics].
        Raises:
            FloatingPointError: a loss is not finite; says which and which inputs are not.
        """
        from hpcrl.algorithms.ppo_loss import part_loss

        return part_loss(self, model, part, totals, self.clip_range_at(progress))

    def part_gradient(
        self, model: ActorCritic, part: Mapping[str, Tensor], totals: Totals, *, progress: float = 0.0
    ) -> Float64:
        """Writes the gradient of `loss` over what `model.flat.gradients` held, and gives its statistics.

        Arguments and errors as in `loss`.  Multi-layer perceptrons with tanh or relu go a shorter way than autograd,
        to the same numbers up to rounding; which way is taken depends on the configuration alone.
        """
        from hpcrl.algorithms.ppo_gradient import part_gradient

        return part_gradient(self, model, part, totals, self.clip_range_at(progress))

    def stops_at(self, approximate_kl: float) -> bool:
        """Whether the update ends before the step of the minibatch that showed this divergence."""
        return self.target_kl is not None and approximate_kl > TARGET_KL_MARGIN * self.target_kl

    @property
    def num_statistics(self) -> int:
        """Length of the vector that `loss` gives."""
        return len(STATISTICS)

    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """Means of a sum of statistics vectors, by name.

        `policy_loss`, `value_loss`, `entropy`, `approximate_kl`, `clip_fraction`; `loss`, their weighted sum;
        `ratio_deviation` = sqrt(mean (r - 1)^2); `explained_variance` = 1 - Var(returns - values) / Var(returns) of the
        values at collection, NaN where the returns do not vary.
        """
        total = dict(zip(STATISTICS, sums.tolist(), strict=True))
        count = max(total["num_steps"], 1.0)
        mean = {name: value / count for name, value in total.items()}
        finished = {name: mean[name] for name in _MEANS}
        finished["loss"] = (
            mean["policy_loss"] + self.value_coef * mean["value_loss"] - self.entropy_coef * mean["entropy"]
        )
        finished["ratio_deviation"] = math.sqrt(mean["squared_ratio_changes"])
        variance = mean["squared_returns"] - mean["returns"] ** 2
        residual_variance = mean["squared_residuals"] - mean["residuals"] ** 2
        finished["explained_variance"] = 1.0 - residual_variance / variance if variance > 0.0 else math.nan
        return finished


_MEANS = ("policy_loss", "value_loss", "entropy", "approximate_kl", "clip_fraction")
STATISTICS = (
    *_MEANS,
    "squared_ratio_changes",
    "returns",
    "squared_returns",
    "residuals",
    "squared_residuals",
    "num_steps",
)
"""Sums over steps, in the order of the vector that `PPO.loss` gives."""

_CHOICES: dict[str, tuple[object, ...]] = {
    "learning_rate_schedule": SCHEDULES,
    "clip_range_schedule": SCHEDULES,
    "value_loss": ("squared", "huber"),
    "normalize_advantages": ("minibatch", "batch", None),
    "normalize_values": ("running", "popart", None),
    "autocast": ("bf16", None),
}
