"""Text to tokens and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError

Int64 = npt.NDArray[np.int64]


class Tokenizer(Protocol):
    """What stages ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 to vocab_size - 1."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a response; the first is written behind demonstrations."""

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled: padding, the beginning of a text, whatever has no text."""

    def encode(self, text: str) -> Int64:
        """i64[n], without special tokens but those spelt out in the text.

        Raises: InputError for text that has no tokens.
        """

    def encode_prompt(self, text: str) -> Int64:
        """i64[n], n >= 1, with the token that opens a text where the vocabulary has one."""

    def decode(self, tokens: Sequence[int] | Int64) -> str:
        """The text; special tokens have none."""

    def character_ends(self, tokens: Sequence[int] | Int64) -> Int64:
        """i64[n]: how many characters of `decode(tokens)` the first 1, 2, ..., n tokens make."""


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
    """One token for each character of an alphabet, behind the reserved ids 0 (padding), 1 (end) and 2 (beginning).

    Raises: InputError for an alphabet that is empty or holds a character twice.
    Example:
        >>> tokenizer = CharacterTokenizer("0123456789+=")
        >>> tokenizer.encode("1+1=").tolist(), tokenizer.decode([4, 13, 1])
        ([4, 13, 4, 14], '1+')
    """

    alphabet: str
    """Its characters, in the order of their ids."""

    PAD: ClassVar[int] = 0
    EOS: ClassVar[int] = 1
    BOS: ClassVar[int] = 2
    NUM_RESERVED: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            raise InputError(f"CharacterTokenizer.alphabet: want each character once, given {self.alphabet!r}")

    @property
    def vocab_size(self) -> int:
        return self.NUM_RESERVED + len(self.alphabet)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.EOS,)

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        return (self.PAD, self.BOS)

    def encode(self, text: str) -> Int64:
        places = [self.alphabet.find(character) for character in text]
        if -1 in places:
            character = text[places.index(-1)]
            raise InputError(
                f"CharacterTokenizer: want characters of {self.alphabet!r}, given {character!r} in {text[:40]!r}"
            )
        return np.array(places, np.int64) + self.NUM_RESERVED

    def encode_prompt(self, text: str) -> Int64:
        return np.concatenate([np.array([self.BOS], np.int64), self.encode(text)])

    def decode(self, tokens: Sequence[int] | Int64) -> str:
        return "".join(self.alphabet[int(token) - self.NUM_RESERVED] for token in tokens if token >= self.NUM_RESERVED)

    def character_ends(self, tokens: Sequence[int] | Int64) -> Int64:
        return np.cumsum(np.asarray(tokens, np.int64) >= self.NUM_RESERVED)
