"""A language model as a pipeline names it: from nothing, or from a Hugging Face folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcrl.errors import InputError
from hpcrl.models.checks import check_build, check_member
from hpcrl.models.language.architecture import Architecture
from hpcrl.models.language.tokenizer import CharacterTokenizer, Tokenizer

if TYPE_CHECKING:
    from hpcrl.envs import Space
    from hpcrl.models.language.decoder import Decoder

HEADS = (("language",), ("language", "value"), ("value",))


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal decoder with a language head, a value head or both.

    Raises: InputError for heads that do not exist, or an architecture whose vocabulary is smaller than the tokenizer's.
    Example:
        >>> tokenizer = CharacterTokenizer("0123456789+=")
        >>> model = LanguageModel(architecture=Architecture.llama(tokenizer.vocab_size), tokenizer=tokenizer)
        >>> model.architecture.vocab_size
        15
    """

    architecture: Architecture
    """Its shape; weights are drawn from the run's seed."""
    tokenizer: CharacterTokenizer
    """Text to tokens and back."""
    heads: tuple[str, ...] = ("language",)
    """language: the next token. value: a number at each token (a critic or a reward model)."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """Of parameters and arithmetic; losses and statistics are float32 at least."""
    initial_std: float | None = None
    """Deviation of the first weights, > 0; None: 1 / sqrt(hidden size), with which small models learn from nothing (at
    0.02, the large ones' habit, a model of 64 units learned nothing in 700 steps). The two projections that write to
    the residual stream get 1 / sqrt(2 layers) of it."""
    checkpoint_activations: bool = False
    """Keep a layer's input alone and compute its inside again on the way back."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        check_member("LanguageModel.heads", self.heads, HEADS)
        check_member("LanguageModel.precision", self.precision, ("float32", "float64", "bfloat16"))
        std = self.initial_std
        if std is not None and not (isinstance(std, int | float) and std > 0):
            raise InputError(f"LanguageModel.initial_std: want a number > 0, given {std!r}")
        if self.architecture.vocab_size < self.tokenizer.vocab_size:
            raise InputError(
                f"LanguageModel.architecture: want a vocabulary of {self.tokenizer.vocab_size} (the tokenizer's), "
                f"given {self.architecture.vocab_size}; make it with vocab_size=tokenizer.vocab_size"
            )

    def build(self, observation_space: Space | None, action_space: Space | None, *, seed: int) -> Decoder:
        """A decoder with weights of its own; its bits depend on the arguments alone.

        Raises: InputError in a pipeline that plays an environment.
        """
        import torch

        from hpcrl.models.language.decoder import Decoder

        check_build(seed)
        if observation_space is not None or action_space is not None:
            raise InputError("LanguageModel: want a pipeline of text, given a Rollout; use Mlp(...) or Cnn(...)")
        decoder = Decoder(self.architecture, heads=self.heads, dtype=getattr(torch, self.precision))  # type: ignore[arg-type]
        std = 1.0 / math.sqrt(self.architecture.hidden_size) if self.initial_std is None else self.initial_std
        decoder.initialize(torch.Generator().manual_seed(seed), std=std, scale_residual=True)
        decoder.checkpoint_activations = self.checkpoint_activations
        decoder.excluded_ids = excluded_ids(self.tokenizer, self.architecture.vocab_size)
        return decoder


def excluded_ids(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """Ids that are never sampled: the tokenizer's reserved ones, and columns that it has no token for."""
    return tuple(sorted({*tokenizer.reserved_ids, *range(tokenizer.vocab_size, vocab_size)}))
