"""Supervised fine-tuning: imitate the responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.text_rule import TextRule, TextTotals, named

if TYPE_CHECKING:
    from hpcrl.data import Trajectories
    from hpcrl.models.language.decoder import Decoder
    from hpcrl.models.language.packing import TextPart

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SFT(TextRule):
    """Negative log-likelihood of the response tokens; prompts are context and cost nothing.

    loss = - sum_i w_i log p(token_i | everything before it),  w by `aggregation`
    """

    statistics: ClassVar[tuple[str, ...]] = ("negative_log_likelihood", "entropy", "confident_tokens", "tokens")

    min_score: float | None = None
    """Imitate only responses with `scores` of at least this: the best of a run's own. None: all."""

    @property
    def fields(self) -> tuple[str, ...]:
        """See TextRule.fields."""
        return () if self.min_score is None else ("scores",)

    def chosen(self, trajectories: Trajectories) -> npt.NDArray[np.bool_] | None:
        """See TextRule.chosen."""
        return None if self.min_score is None else trajectories["scores"] >= self.min_score

    def part_gradient(self, model: Decoder, part: TextPart, totals: TextTotals, *, progress: float = 0.0) -> Float64:
        """See TextRule.part_gradient."""
        import torch

        from hpcrl.models.language.log_probs import token_log_probs

        model.flat.zero_gradients()
        if len(part.targets) == 0:
            return np.zeros(self.num_statistics)
        hidden = model(part.tokens, part.offsets)[part.rows]
        log_probs, entropies = token_log_probs(model, hidden, part.targets)
        loss = -(log_probs * self.token_weights(part, totals)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            # A token whose probability exceeds one half is the most likely one.
            sums = (
                -float(log_probs.double().sum()),
                float(entropies.double().sum()),
                float((log_probs > np.log(0.5)).sum()),
                float(len(log_probs)),
            )
        statistics = np.array(sums)
        if not np.isfinite(statistics).all():
            raise FloatingPointError(f"SFT loss: want finite numbers, given {sums}; lower learning_rate")
        return statistics

    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """Per token: `loss` (negative log-likelihood), `entropy`, `confident_fraction` (of tokens with p > 1/2)."""
        total = named(self.statistics, sums)
        count = max(total["tokens"], 1.0)
        return {
            "loss": total["negative_log_likelihood"] / count,
            "entropy": total["entropy"] / count,
            "confident_fraction": total["confident_tokens"] / count,
        }
