"""Learning from preferences between two responses to one prompt: DPO and its relatives, reward models."""

from __future__ import annotations

import itertools
from abc import abstractmethod
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
Int64 = npt.NDArray[np.int64]


class PairRule(TextRule):
    """A loss over pairs: the responses to a prompt stay in one minibatch, and are weighed by the number of pairs."""

    by_group: ClassVar[bool] = True
    statistics: ClassVar[tuple[str, ...]] = ("loss", "right_pairs", "margin", "pairs")

    def part_gradient(self, model: Decoder, part: TextPart, totals: TextTotals, *, progress: float = 0.0) -> Float64:
        """See TextRule.part_gradient."""
        import torch

        model.flat.zero_gradients()
        chosen, rejected = pairs_of(part)
        if len(chosen) == 0:
            return np.zeros(self.num_statistics)
        margins = self._margins(model, part, torch.from_numpy(chosen), torch.from_numpy(rejected))
        losses = self._losses(margins)
        (losses.sum() / max(totals.num_pairs, 1)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            sums = [losses.double().sum(), (margins > 0).double().sum(), margins.double().sum()]
        statistics = np.array([*map(float, sums), float(len(chosen))])
        if not np.isfinite(statistics).all():
            raise FloatingPointError(
                f"{type(self).__name__} loss: want finite numbers, given {statistics.tolist()}; lower learning_rate"
            )
        return statistics

    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """Per pair: `loss`, `accuracy` (chosen before rejected), `margin`."""
        total = named(self.statistics, sums)
        count = max(total["pairs"], 1.0)
        return {
            "loss": total["loss"] / count,
            "accuracy": total["right_pairs"] / count,
            "margin": total["margin"] / count,
        }

    @abstractmethod
    def _margins(self, model: Decoder, part: TextPart, chosen: Tensor, rejected: Tensor) -> Tensor:
        """How much better the chosen response is than the rejected one, [pairs]."""

    @abstractmethod
    def _losses(self, margins: Tensor) -> Tensor:
        """[pairs], of margins [pairs]."""


@dataclass(frozen=True, kw_only=True)
class DPO(PairRule):
    """Direct preference optimisation: the policy itself is the reward model.

        margin = beta [(log pi - log reference)(chosen) - (log pi - log reference)(rejected)]
        sigmoid   -(1 - e) log s(margin) - e log s(-margin)     e = label_smoothing
        ipo       (margin / beta - 1 / (2 beta))^2

    sigmoid: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; with e > 0 conservative DPO (Mitchell 2023). ipo: Azar et
    al. 2023 (arXiv:2310.12036), eq. 17, on summed log-probabilities.
    """

    beta: float = 0.1
    """Weight of staying near the reference, > 0."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """Which of them."""
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round, in [0, 0.5); sigmoid only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("DPO.beta", self.beta, above=0.0)
        check_number("DPO.label_smoothing", self.label_smoothing, at_least=0.0, below=0.5)
        check_member("DPO.loss", self.loss, ("sigmoid", "ipo"))

    @property
    def fields(self) -> tuple[str, ...]:
        """See TextRule.fields."""
        return ("prompt_index", "preference", "reference_log_probs")

    def _margins(self, model: Decoder, part: TextPart, chosen: Tensor, rejected: Tensor) -> Tensor:
        from hpcrl.models.language.log_probs import token_log_probs

        hidden = model(part.tokens, part.offsets)[part.rows]
        log_probs, _ = token_log_probs(model, hidden, part.targets)
        gains = sums_by_response(log_probs - part.fields["reference_log_probs"], part)
        return self.beta * (gains[chosen] - gains[rejected])

    def _losses(self, margins: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        if self.loss == "ipo":
            return (margins / self.beta - 1.0 / (2.0 * self.beta)).square()
        smoothing = self.label_smoothing
        return -(1.0 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


@dataclass(frozen=True, kw_only=True)
class PairwiseReward(PairRule):
    """A reward model learned from preferences: Bradley and Terry 1952, doi:10.2307/2334029.

        loss = -log s(r(chosen) - r(rejected))

    r is the value head's output behind a response's last token. Ouyang et al. 2022 (arXiv:2203.02155), eq. 1.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """See TextRule.fields."""
        return ("prompt_index", "preference")

    def _margins(self, model: Decoder, part: TextPart, chosen: Tensor, rejected: Tensor) -> Tensor:
        rewards = last_values(model, part)
        return rewards[chosen] - rewards[rejected]

    def _losses(self, margins: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(margins)


@dataclass(frozen=True, kw_only=True)
class OutcomeReward(TextRule):
    """An outcome reward model: is the response right? The value head's output at its last token is the log-odds.

        loss = -[y log s(r) + (1 - y) log(1 - s(r))],  y = scores in [0, 1]

    Cobbe et al. 2021 (arXiv:2110.14168), section 4 (there at every token); Uesato et al. 2022 (arXiv:2211.14275).
    """

    statistics: ClassVar[tuple[str, ...]] = ("loss", "right", "responses")

    @property
    def fields(self) -> tuple[str, ...]:
        """See TextRule.fields."""
        return ("scores",)

    def part_gradient(self, model: Decoder, part: TextPart, totals: TextTotals, *, progress: float = 0.0) -> Float64:
        """See TextRule.part_gradient."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        model.flat.zero_gradients()
        if part.num_sequences == 0:
            return np.zeros(self.num_statistics)
        logits, labels = last_values(model, part), part.fields["scores"]
        losses = binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        (losses.sum() / totals.num_sequences).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            right = ((logits > 0) == (labels > 0.5)).double().sum()
        statistics = np.array([float(losses.detach().double().sum()), float(right), float(len(losses))])
        if not np.isfinite(statistics).all():
            raise FloatingPointError("OutcomeReward loss: want finite numbers, given none; lower learning_rate")
        return statistics

    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """Per response: `loss`, `accuracy` at even odds."""
        total = named(self.statistics, sums)
        count = max(total["responses"], 1.0)
        return {"loss": total["loss"] / count, "accuracy": total["right"] / count}


def last_values(model: Decoder, part: TextPart) -> Tensor:
    """The value head's output behind each response's last token, [S]."""
    import torch

    ends = torch.tensor(part.offsets.offsets[1:], dtype=torch.int64) - 1
    return model.values(model(part.tokens, part.offsets)[ends])


def sums_by_response(per_token: Tensor, part: TextPart) -> Tensor:
    """Sums of token numbers [N] over each response, [S]."""
    import torch

    owner = torch.from_numpy(np.repeat(np.arange(part.num_sequences), part.response_lengths))
    return torch.zeros(part.num_sequences, dtype=per_token.dtype).index_add(0, owner, per_token)


def pairs_of(part: TextPart) -> tuple[Int64, Int64]:
    """Rows of the chosen and of the rejected responses, i64[pairs] each; neighbours of one prompt make a pair.

    A group's k-th chosen response is compared with its k-th rejected one; what is left over counts for nothing.
    """
    preference, prompt = part.fields["preference"].numpy(), part.fields["prompt_index"].numpy()
    return pair_rows(preference, prompt)


def pair_rows(preference: npt.NDArray[np.int8], prompt: Int64) -> tuple[Int64, Int64]:
    """See pairs_of.

    Example:
        >>> pair_rows(np.array([0, 1, -1, 1, -1]), np.array([7, 7, 7, 8, 8]))
        (array([1, 3]), array([2, 4]))
    """
    chosen, rejected = [], []
    borders = [0, *(np.flatnonzero(np.diff(prompt)) + 1), len(prompt)]
    for start, stop in itertools.pairwise(borders):
        group = preference[start:stop]
        for one, other in zip(np.flatnonzero(group > 0), np.flatnonzero(group < 0), strict=False):
            chosen.append(start + one)
            rejected.append(start + other)
    return np.array(chosen, np.int64), np.array(rejected, np.int64)
