"""How responses are sampled and when they end, as a pipeline names it. Imports no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcrl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """softmax(logits / temperature), cut to the top_k most probable tokens, then to the fewest of them with mass top_p.

    Of equally probable tokens the smaller ids stay. Temperature 0 is greedy: the most probable token, the smallest id
    of several. top_p: Holtzman et al. 2020, arXiv:1904.09751; the token that reaches the mass stays.
    Raises:
        InputError: a value out of range; top_k or top_p with temperature 0.
    Example:
        >>> Sampling(temperature=0.7, top_k=50, top_p=0.95).is_greedy
        False
    """

    temperature: float = 1.0
    """>= 0."""
    top_k: int | None = None
    """>= 1; None: all."""
    top_p: float = 1.0
    """In (0, 1]."""

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and 0 <= self.temperature < math.inf):
            raise InputError(f"temperature: want a number >= 0 (0: greedy), given {self.temperature!r}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise InputError(f"top_k: want an integer >= 1, or None for all tokens, given {self.top_k!r}")
        if not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise InputError(f"top_p: want a number in (0, 1], given {self.top_p!r}")
        if self.is_greedy and (self.top_k is not None or self.top_p < 1):
            raise InputError(
                f"temperature 0 (greedy): want top_k=None and top_p=1, given top_k={self.top_k}, top_p={self.top_p}"
            )

    @property
    def is_greedy(self) -> bool:
        """The most probable token is taken; nothing is drawn."""
        return self.temperature == 0

    @property
    def keeps_tokens(self) -> bool:
        """Whether the kept ids of each step are stored: with top_k, which bounds them."""
        return self.top_k is not None

    def check_trainable(self) -> None:
        """Refuses what an update could not apply again: top_p alone keeps any number of ids.

        Raises InputError.
        """
        if self.top_p < 1 and self.top_k is None:
            raise InputError(
                f"top_p: want 1 for training without top_k, given {self.top_p}; the ids that top_p keeps are stored "
                "for the update and may be the whole vocabulary at each step: add top_k, for example 64"
            )


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When a response ends: an EOS id or a stop string terminates it, a length truncates it.

    Raises:
        InputError: a value out of range.
    """

    max_tokens: int
    """Tokens of a response, the EOS included; >= 1. A full context truncates it earlier."""
    min_tokens: int = 0
    """EOS ids are excluded from the first `min_tokens` tokens; a stop string completed before them is passed over."""
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise InputError(f"max_tokens: want an integer >= 1, given {self.max_tokens!r}")
        if not isinstance(self.min_tokens, int) or not 0 <= self.min_tokens <= self.max_tokens:
            raise InputError(f"min_tokens: want 0 to max_tokens (= {self.max_tokens}), given {self.min_tokens!r}")
        if "" in self.stop_strings:
            raise InputError(f"stop_strings: want strings of at least one character, given {self.stop_strings!r}")
