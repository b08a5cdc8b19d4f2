"""What all learning rules of text have in common: the optimiser's knobs and how token losses become one number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.checks import check_integer, check_number
from hpcrl.algorithms.schedule import SCHEDULES, Schedule, scheduled_share
from hpcrl.errors import InputError
from hpcrl.models.checks import check_member

if TYPE_CHECKING:
    from torch import Tensor

    from hpcrl.algorithms.adam import FlatAdam
    from hpcrl.data import Trajectories
    from hpcrl.models import Model
    from hpcrl.models.language.decoder import Decoder
    from hpcrl.models.language.packing import TextPart

Float64 = npt.NDArray[np.float64]
Aggregation = Literal["token", "sequence", "constant"]
AGGREGATIONS: tuple[Aggregation, ...] = ("token", "sequence", "constant")


@dataclass(frozen=True)
class TextTotals:
    """What one block's part must know of the whole minibatch, over all blocks and ranks."""

    num_tokens: int
    num_sequences: int
    advantage_mean: float = 0.0
    advantage_std: float = 1.0
    """Of a sample (n - 1); 1 where there are fewer than two."""
    num_pairs: int = 0
    """Preferences between two of its sequences."""


@dataclass(frozen=True, kw_only=True)
class TextRule(ABC):
    """A loss over response tokens and the optimiser that follows its gradient; a base for the rules themselves."""

    statistics: ClassVar[tuple[str, ...]] = ()
    """Names of the sums that `part_gradient` gives."""
    by_group: ClassVar[bool] = False
    """Whether the responses to a prompt must stay in one minibatch."""

    num_epochs: int = 1
    """Passes over the iteration's responses, >= 1."""
    num_minibatches: int = 1
    """Optimiser steps per pass, >= 1."""
    learning_rate: float = 1e-4
    """Adam's step size at the first iteration, > 0."""
    learning_rate_schedule: Schedule = "constant"
    """How learning_rate moves with the run's progress: constant, linear or cosine, the latter two to 0."""
    max_grad_norm: float | None = 1.0
    """Gradients of a larger global norm are scaled down to it; None: never."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments, each in [0, 1)."""
    adam_epsilon: float = 1e-8
    """Added to Adam's denominator, > 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay per unit of learning rate (AdamW), >= 0."""
    aggregation: Aggregation = "token"
    """token: mean over the minibatch's tokens (DAPO, arXiv:2503.14476, eq. 8); sequence: mean over the sequences of
    each one's mean (GRPO, arXiv:2402.03300, eq. 3); constant: sum over a sequence's tokens, divided by `constant`,
    mean over the sequences (Dr. GRPO, arXiv:2503.20783)."""
    constant: float = 1.0
    """The divisor of aggregation="constant", usually the longest response allowed; > 0."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("num_epochs", "num_minibatches"):
            check_integer(f"{name}.{field}", getattr(self, field), minimum=1)
        for field in ("learning_rate", "adam_epsilon", "constant"):
            check_number(f"{name}.{field}", getattr(self, field), above=0.0)
        check_number(f"{name}.weight_decay", self.weight_decay, at_least=0.0)
        check_number(f"{name}.max_grad_norm", self.max_grad_norm, above=0.0, optional=True)
        if len(self.adam_betas) != 2:
            raise InputError(
                f"{name}.adam_betas: want two numbers, given {self.adam_betas!r}; for example (0.9, 0.999)"
            )
        for beta in self.adam_betas:
            check_number(f"{name}.adam_betas", beta, at_least=0.0, below=1.0)
        check_member(f"{name}.aggregation", self.aggregation, AGGREGATIONS)
        check_member(f"{name}.learning_rate_schedule", self.learning_rate_schedule, SCHEDULES)

    def learning_rate_at(self, progress: float) -> float:
        """Adam's step size after a share `progress` in [0, 1] of the run."""
        return self.learning_rate * scheduled_share(self.learning_rate_schedule, progress)

    def build_optimizer(self, model: Model) -> FlatAdam:
        """Adam over the model's flat buffer."""
        from hpcrl.algorithms.adam import FlatAdam

        return FlatAdam(model.flat, betas=self.adam_betas, epsilon=self.adam_epsilon, weight_decay=self.weight_decay)

    @property
    def fields(self) -> tuple[str, ...]:
        """Step and per-trajectory fields that the loss needs beside the tokens."""
        return ()

    @property
    def num_statistics(self) -> int:
        """Length of the vector that `part_gradient` gives."""
        return len(self.statistics)

    @abstractmethod
    def part_gradient(self, model: Decoder, part: TextPart, totals: TextTotals, *, progress: float = 0.0) -> Float64:
        """Writes the gradient of one block's part over what `model.flat.gradients` held; gives its statistics.

        Gradients of the parts of all blocks add up to the minibatch's gradient, and so do the statistics.
        Raises: FloatingPointError: a loss is not finite.
        """

    @abstractmethod
    def finish_statistics(self, sums: Float64) -> dict[str, float]:
        """Means of a sum of statistics vectors, by name."""

    def chosen(self, trajectories: Trajectories) -> npt.NDArray[np.bool_] | None:
        """Which responses of a block it learns from, bool[n]; None: all."""
        return None

    def token_weights(self, part: TextPart, totals: TextTotals) -> Tensor:
        """What each token's loss counts, f32[num_tokens]: its weighted sum over all parts is the minibatch's loss."""
        import torch

        lengths = part.response_lengths
        if self.aggregation == "token":
            return torch.full((int(lengths.sum()),), 1.0 / max(totals.num_tokens, 1))
        divisors = (
            lengths.astype(np.float64) if self.aggregation == "sequence" else np.full(len(lengths), self.constant)
        )
        per_sequence = 1.0 / (
            np.maximum(divisors, 1.0 if self.aggregation == "sequence" else 0.0) * totals.num_sequences
        )
        return torch.from_numpy(np.repeat(per_sequence, lengths).astype(np.float32))


def named(statistics: tuple[str, ...], sums: Float64) -> Mapping[str, float]:
    """Sums by name."""
    return dict(zip(statistics, sums.tolist(), strict=True))
