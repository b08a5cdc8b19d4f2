"""What a text task is: problems counted by index, and where the steps of a response end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError
from hpcrl.ops.random import Draw, permutation, uniforms

MAX_INDEX = 2**32
"""Problems a task can count: an index is a coordinate of counted numbers."""

# What a number of Draw.PROMPT is for: the coordinate `iteration` of hpcrl.ops.random. Never renumbered.
PROBLEM = 0
DEMONSTRATION = 1
PASS = 2
STEP_NOISE = 3


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation; the role is `system`, `user`, `assistant` or whatever the chat template knows."""

    role: str
    content: str


Conversation = tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt, as text or as a conversation, and what is known about it.

    Columns by convention: `answer` (gold), `solution` (worked out, right), `completion` (a demonstration to imitate),
    `chosen` and `rejected`; a file's further keys keep their names.
    """

    prompt: str | Conversation
    columns: Mapping[str, object] = dataclasses.field(default_factory=dict)


def columns_of(problems: Sequence[Problem]) -> dict[str, list[object]]:
    """The problems' columns, a value for each problem; None where one of them lacks a column that another has.

    Example:
        >>> columns_of([Problem("6*7=", {"answer": "42"}), Problem("6*8=", {"answer": "48", "level": 2})])
        {'answer': ['42', '48'], 'level': [None, 2]}
    """
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    return {name: [problem.columns.get(name) for problem in problems] for name in names}


class TextTask(Protocol):
    """Problems counted by index, the same anywhere: on any rank, after any restart, in any order.

    An implementation is a frozen dataclass of plain values, so that it is its own configuration.
    """

    @property
    def size(self) -> int | None:
        """Problems in one pass over the data; None: endless."""

    def problem(self, index: int) -> Problem:
        """The problem at an index in [0, 2**32); a file's indices wrap around, in a new order on each pass.

        Raises: InputError for an index out of range.
        """

    def steps(self, response: str) -> list[tuple[int, int]]:
        """Spans (start, end) of the finished steps in a response, in characters, end exclusive; [] without steps."""


class CountedNumbers:
    """Random numbers for one problem, in the order they are asked for.

    Args:
        seed: the task's seed, in [0, 2**64).
        index: the problem's, in [0, 2**32).
        purpose: PROBLEM, DEMONSTRATION, ...
        attempt: in [0, 2**32); another attempt, other numbers.
    Example:
        >>> one, again = CountedNumbers(1, 2, PROBLEM), CountedNumbers(1, 2, PROBLEM)
        >>> [one.below(10) for _ in range(3)] == [again.below(10) for _ in range(3)]
        True
    """

    def __init__(self, seed: int, index: int, purpose: int, attempt: int = 0) -> None:
        self._at = (seed, index, purpose, attempt)
        self._drawn: list[float] = []
        self._next = 0

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        if self._next == len(self._drawn):
            # The first numbers do not depend on how many are drawn.
            seed, index, purpose, attempt = self._at
            count = max(16, 4 * len(self._drawn))
            drawn = uniforms(seed, index, step=attempt, iteration=purpose, draw=Draw.PROMPT, count=count)
            self._drawn = drawn[0].tolist()
        self._next += 1
        return self._drawn[self._next - 1]

    def below(self, bound: int) -> int:
        """The next whole number in [0, bound), bound in [1, 2**32]; its bias is below bound / 2**53."""
        return int(self.uniform() * bound)


def check_index(index: int) -> None:
    """Refuses an index that no task can count.

    Raises: InputError unless 0 <= index < 2**32.
    """
    if not isinstance(index, int | np.integer) or not 0 <= index < MAX_INDEX:
        raise InputError(f"problem: want an index, a whole number in [0, 2**32), given {index!r}")


@functools.lru_cache(maxsize=4)
def _pass_order(seed: int, size: int, number: int) -> npt.NDArray[np.int64]:
    return permutation(seed, size, trajectory=number, step=0, iteration=PASS, draw=Draw.PROMPT)


def place_in_pass(seed: int, size: int, index: int, shuffle: bool) -> int:
    """The row that an index means: pass index // size shuffles all rows anew, by a counted permutation.

    Args:
        seed: the task's, in [0, 2**64).
        size: rows, in [1, 2**25] when they are shuffled.
        index: in [0, 2**32).
        shuffle: False: the file's order, over and over.
    Raises:
        InputError: an index or a size out of range.
    Example:
        >>> sorted(place_in_pass(7, 4, index, True) for index in range(4, 8))
        [0, 1, 2, 3]
    """
    check_index(index)
    number, place = divmod(int(index), size)
    return int(_pass_order(seed, size, number)[place]) if shuffle else place
