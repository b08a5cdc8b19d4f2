"""Policy gradients of text: clipped surrogate over response tokens, with or without a critic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.checks import check_number
from hpcrl.algorithms.text_rule import TextRule, TextTotals, named
from hpcrl.models.checks import check_member

if TYPE_CHECKING:
    from torch import Tensor

    from hpcrl.models.language.decoder import Decoder
    from hpcrl.models.language.packing import TextPart

Float64 = npt.NDArray[np.float64]
KlEstimator = Literal["k1", "k2", "k3", "absolute"]
KL_ESTIMATORS: tuple[KlEstimator, ...] = ("k1", "k2", "k3", "absolute")
TARGET_KL_MARGIN = 1.5
ADVANTAGE_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class LanguagePPO(TextRule):
    """Proximal policy optimisation over tokens, Schulman et al. 2017 (arXiv:1707.06347), eq. 7.

        r = pi(token) / pi_old(token)
        loss = sum_i w_i [policy loss + value_coef value loss - entropy_coef entropy + kl_coef KL estimate]

    w by `aggregation`. The group rules (GRPO, RLOO, ...) are this loss with advantages of their own and no critic.
    """

    statistics: ClassVar[tuple[str, ...]] = (
        "policy_loss", "value_loss", "entropy", "approximate_kl", "reference_kl", "clipped", "squared_ratio_changes",
        "returns", "squared_returns", "residuals", "squared_residuals", "tokens",
    )  # fmt: skip

    clip_range: float = 0.2
    """The probability ratio gains nothing below 1 - clip_range; > 0."""
    clip_range_high: float | None = None
    """Nor above 1 + this; None: as clip_range. Larger: DAPO's clip-higher (arXiv:2503.14476)."""
    dual_clip: float | None = None
    """Bound on the ratio where the advantage is negative, > 1; None: no bound (Ye et al. 2020, arXiv:1912.09729)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, >= 0."""
    value_coef: float = 0.0
    """Weight of the value loss of a shared trunk's value head, >= 0; 0: the role has no value head or none to train."""
    value_clip_range: float | None = None
    """A value prediction gains nothing beyond +- this from that at collection; None: no clip."""
    kl_coef: float = 0.0
    """Weight of a KL penalty to the reference in the loss, >= 0; GRPO's beta. (PPO's penalty is a reward: Refine.)"""
    kl_estimator: KlEstimator = "k3"
    """How that divergence is estimated from the sampled token."""
    normalize_advantages: bool = True
    """Subtract the mean and divide by the deviation of the minibatch's tokens, over all ranks."""
    temperature: float = 1.0
    """The one that was sampled with, > 0."""
    target_kl: float | None = None
    """The update ends before a step whose minibatch shows approximate_kl > 1.5 target_kl; None: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        for field in ("clip_range", "temperature"):
            check_number(f"{name}.{field}", getattr(self, field), above=0.0)
        for field in ("clip_range_high", "value_clip_range", "target_kl"):
            check_number(f"{name}.{field}", getattr(self, field), above=0.0, optional=True)
        for field in ("entropy_coef", "value_coef", "kl_coef"):
            check_number(f"{name}.{field}", getattr(self, field), at_least=0.0)
        check_number(f"{name}.dual_clip", self.dual_clip, above=1.0, optional=True)
        check_member(f"{name}.kl_estimator", self.kl_estimator, KL_ESTIMATORS)

    @property
    def fields(self) -> tuple[str, ...]:
        """See TextRule.fields."""
        critic = ("values", "returns") if self.value_coef > 0 else ()
        reference = ("reference_log_probs",) if self.kl_coef > 0 else ()
        return ("log_probs", "advantages", *critic, *reference)

    def part_gradient(self, model: Decoder, part: TextPart, totals: TextTotals, *, progress: float = 0.0) -> Float64:
        """See TextRule.part_gradient."""
        model.flat.zero_gradients()
        if len(part.targets) == 0:
            return np.zeros(self.num_statistics)
        loss, statistics = self._loss(model, part, totals)
        if not np.isfinite(statistics).all():
            bad = [name for name, total in named(self.statistics, statistics).items() if not math.isfinite(total)]
            raise FloatingPointError(
                f"{type(self).__name__} loss: want finite numbers, given sums that are not: {', '.join(bad)}; lower "
                "learning_rate, or look at the rewards of this iteration"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return statistics

    def _loss(self, model: Decoder, part: TextPart, totals: TextTotals) -> tuple[Tensor, Float64]:
        import torch

        from hpcrl.models.language.log_probs import token_log_probs
        from hpcrl.ops.losses import approximate_kl, clipped_policy_loss, kl_estimate, value_loss

        hidden = model(part.tokens, part.offsets)[part.rows]
        log_probs, entropies = token_log_probs(model, hidden, part.targets, temperature=self.temperature)
        advantages = part.fields["advantages"]
        if self.normalize_advantages:
            advantages = (advantages - totals.advantage_mean) / (totals.advantage_std + ADVANTAGE_EPSILON)
        log_ratios = log_probs - part.fields["log_probs"]
        ratios = log_ratios.exp()
        policy_losses = clipped_policy_loss(
            ratios,
            advantages,
            clip_range=self.clip_range,
            clip_range_high=self.clip_range_high,
            dual_clip=self.dual_clip,
        )
        losses = policy_losses - self.entropy_coef * entropies
        zeros = torch.zeros_like(policy_losses)
        reference_kl = value_losses = residuals = returns = zeros
        if self.kl_coef > 0:
            reference_kl = kl_estimate(log_probs, part.fields["reference_log_probs"], self.kl_estimator)
            losses = losses + self.kl_coef * reference_kl
        if self.value_coef > 0:
            returns = part.fields["returns"]
            value_losses = value_loss(
                model.values(hidden),
                part.fields["values"],
                returns,
                value_clip_range=self.value_clip_range,
                huber_delta=None,
            )
            losses = losses + self.value_coef * value_losses
            residuals = returns - part.fields["values"]
        with torch.no_grad():
            high = self.clip_range if self.clip_range_high is None else self.clip_range_high
            rows = (
                policy_losses, value_losses, entropies, approximate_kl(log_ratios), reference_kl,
                ((ratios < 1.0 - self.clip_range) | (ratios > 1.0 + high)).to(ratios.dtype), (ratios - 1.0).square(),
                returns, returns.square(), residuals, residuals.square(), torch.ones_like(ratios),
            )  # fmt: skip
            statistics: Float64 = torch.stack(rows).sum(dim=1, dtype=torch.float64).cpu().numpy()
        return (losses * self.token_weights(part, totals)).sum(), statistics

    def stops_at(self, approximate_kl: float) -> bool:
        """Whether the update ends before the step of the minibatch that showed this divergence."""
        return self.target_kl is not None and approximate_kl > TARGET_KL_MARGIN * self.target_kl

    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """Means per token: `policy_loss`, `entropy`, `approximate_kl`, `clip_fraction`, `ratio_deviation`.

        With a critic also `value_loss` and `explained_variance`; with kl_coef `reference_kl`.
        """
        total = named(self.statistics, sums)
        mean = {name: value / max(total["tokens"], 1.0) for name, value in total.items()}
        finished = {name: mean[name] for name in ("policy_loss", "entropy", "approximate_kl")}
        finished["clip_fraction"] = mean["clipped"]
        finished["ratio_deviation"] = math.sqrt(mean["squared_ratio_changes"])
        if self.kl_coef > 0:
            finished["reference_kl"] = mean["reference_kl"]
        if self.value_coef > 0:
            finished["value_loss"] = mean["value_loss"]
            variance = mean["squared_returns"] - mean["returns"] ** 2
            residual_variance = mean["squared_residuals"] - mean["residuals"] ** 2
            finished["explained_variance"] = 1.0 - residual_variance / variance if variance > 0.0 else math.nan
        return finished


@dataclass(frozen=True, kw_only=True)
class ValueRegression(TextRule):
    """A critic's squared error against returns, with PPO's optional bound on how far a prediction gains by moving.

    See ops.losses.value_loss for the equation and its sources.
    """

    statistics: ClassVar[tuple[str, ...]] = (
        "value_loss", "returns", "squared_returns", "residuals", "squared_residuals", "tokens",
    )  # fmt: skip

    value_clip_range: float | None = None
    """A prediction gains nothing beyond +- this from that at collection, > 0; None: no clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ValueRegression.value_clip_range", self.value_clip_range, above=0.0, optional=True)

    @property
    def fields(self) -> tuple[str, ...]:
        """See TextRule.fields."""
        return ("values", "returns")

    def part_gradient(self, model: Decoder, part: TextPart, totals: TextTotals, *, progress: float = 0.0) -> Float64:
        """See TextRule.part_gradient."""
        import torch

        from hpcrl.ops.losses import value_loss

        model.flat.zero_gradients()
        if len(part.targets) == 0:
            return np.zeros(self.num_statistics)
        returns, old_values = part.fields["returns"], part.fields["values"]
        values = model.values(model(part.tokens, part.offsets)[part.rows])
        losses = value_loss(values, old_values, returns, value_clip_range=self.value_clip_range, huber_delta=None)
        (losses * self.token_weights(part, totals)).sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            residuals = returns - old_values
            rows = (losses, returns, returns.square(), residuals, residuals.square(), torch.ones_like(losses))
            statistics: Float64 = torch.stack(rows).sum(dim=1, dtype=torch.float64).cpu().numpy()
        if not np.isfinite(statistics).all():
            raise FloatingPointError("value loss: want finite numbers, given none; lower learning_rate")
        return statistics

    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """`value_loss` per token; `explained_variance` of the values at collection."""
        total = named(self.statistics, sums)
        mean = {name: value / max(total["tokens"], 1.0) for name, value in total.items()}
        variance = mean["squared_returns"] - mean["returns"] ** 2
        residual_variance = mean["squared_residuals"] - mean["residuals"] ** 2
        explained = 1.0 - residual_variance / variance if variance > 0.0 else math.nan
        return {"value_loss": mean["value_loss"], "explained_variance": explained}
