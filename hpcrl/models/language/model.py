"""A language model as a pipeline names it: from nothing, or from a Hugging Face folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from hpcrl.errors import InputError
from hpcrl.models.checks import check_build, check_member
from hpcrl.models.language.architecture import Architecture
from hpcrl.models.language.tokenizer import CharacterTokenizer, HuggingFaceTokenizer, Tokenizer

if TYPE_CHECKING:
    from hpcrl.envs import Space
    from hpcrl.models.language.decoder import Decoder, Head

HEADS = (("language",), ("language", "value"), ("value",))


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal decoder with a language head, a value head or both: from nothing, or from a Hugging Face folder.

    Raises: InputError for heads that do not exist, an architecture whose vocabulary is smaller than the tokenizer's, or
    both beginnings at once.
    Example:
        >>> tokenizer = CharacterTokenizer("0123456789+=")
        >>> model = LanguageModel(architecture=Architecture.llama(tokenizer.vocab_size), tokenizer=tokenizer)
        >>> model.heads
        ('language',)
    """

    architecture: Architecture | None = None
    """Its shape; weights are drawn from the run's seed."""
    tokenizer: CharacterTokenizer | None = None
    """Text to tokens and back."""
    folder: str | None = None
    """A Hugging Face folder instead: its architecture, weights and tokenizer. A value head that it lacks begins at
    zero."""
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
        if self.folder is not None:
            object.__setattr__(self, "folder", str(self.folder))
            if self.architecture is not None or self.tokenizer is not None:
                raise InputError("LanguageModel.folder: want no architecture and no tokenizer beside it, given one")
            return
        if self.architecture is None or self.tokenizer is None:
            raise InputError(
                "LanguageModel: want folder=..., or architecture=... and tokenizer=..., given neither whole; for "
                "example architecture=Architecture.llama(tokenizer.vocab_size)"
            )
        if self.architecture.vocab_size < self.tokenizer.vocab_size:
            raise InputError(
                f"LanguageModel.architecture: want a vocabulary of {self.tokenizer.vocab_size} (the tokenizer's), "
                f"given {self.architecture.vocab_size}; make it with vocab_size=tokenizer.vocab_size"
            )

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer, the folder's where it begins with one.

        Raises: InputError for a folder without one, or the library `tokenizers` missing.
        """
        if self.folder is not None:
            return HuggingFaceTokenizer(self.folder)
        assert self.tokenizer is not None  # __post_init__
        return self.tokenizer

    def build(self, observation_space: Space | None, action_space: Space | None, *, seed: int) -> Decoder:
        """A decoder with weights of its own; its bits depend on the arguments alone.

        Raises: InputError in a pipeline that plays an environment.
        """
        import torch

        from hpcrl.models.language.decoder import Decoder

        check_build(seed)
        if observation_space is not None or action_space is not None:
            raise InputError("LanguageModel: want a pipeline of text, given a Rollout; use Mlp(...) or Cnn(...)")
        heads, dtype = cast("tuple[Head, ...]", self.heads), getattr(torch, self.precision)
        if self.folder is not None:
            from hpcrl.models.language.hugging_face import load_decoder

            decoder = load_decoder(self.folder, heads=heads, dtype=dtype, new_value_head=True)
        else:
            assert self.architecture is not None  # __post_init__
            decoder = Decoder(self.architecture, heads=heads, dtype=dtype)
            std = 1.0 / math.sqrt(self.architecture.hidden_size) if self.initial_std is None else self.initial_std
            decoder.initialize(torch.Generator().manual_seed(seed), std=std, scale_residual=True)
        decoder.checkpoint_activations = self.checkpoint_activations
        decoder.excluded_ids = excluded_ids(self.open_tokenizer(), decoder.architecture.vocab_size)
        return decoder


def excluded_ids(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """Ids that are never sampled: the tokenizer's reserved ones, and columns that it has no token for."""
    return tuple(sorted({*tokenizer.reserved_ids, *range(tokenizer.vocab_size, vocab_size)}))
