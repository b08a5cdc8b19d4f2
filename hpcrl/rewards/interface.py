"""What a reward is, and the door through which its numbers come in."""

from __future__ import annotations

import collections
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpcrl.errors import InputError

FloatArray = npt.NDArray[np.float64]
Columns = Mapping[str, Sequence[object]]
"""Column name -> a value for each row: `answer`, `test`, or whatever else the task's problems hold."""


class RewardError(InputError):
    """A reward raised, or gave something else than one finite number for each response; names function, row, value."""


class Reward(Protocol):
    """Scores responses. An implementation is a frozen dataclass of plain values: it is its own configuration."""

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> npt.ArrayLike:
        """One finite number for each response, [n].

        Args:
            prompts, responses: text, n each.
            columns: n values each.
        """


@dataclasses.dataclass(frozen=True)
class Verifier(ABC):
    """A reward that tells right from not right, and why not."""

    _: dataclasses.KW_ONLY
    right: float = 1.0
    """Score of a response with the outcome "right"."""
    wrong: float = 0.0
    """Score of any other."""

    @abstractmethod
    def verify(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> list[str]:
        """An outcome for each response: "right", "wrong", "no_answer", "timed_out", ..."""

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> FloatArray:
        """f64[n], `right` or `wrong`.

        Raises: RewardError for a column that is missing or holds something else than it should.
        """
        return self.values(self.verify(prompts, responses, columns))

    def values(self, outcomes: Sequence[str]) -> FloatArray:
        """f64[n]: `right` where an outcome is "right", else `wrong`."""
        return np.array([self.right if outcome == "right" else self.wrong for outcome in outcomes], np.float64)


@dataclasses.dataclass(frozen=True)
class Scores:
    """`values` f64[n]; `outcomes`: how many responses ended how, where the reward tells."""

    values: FloatArray
    outcomes: Mapping[str, int]


def checked_scores(
    reward: Reward, prompts: Sequence[str], responses: Sequence[str], columns: Columns, *, first_row: int = 0
) -> Scores:
    """A reward's scores, looked at before anything is made of them.

    Args:
        reward: any Reward.
        prompts, responses, columns: n rows.
        first_row: the number by which errors call the first row.
    Raises:
        RewardError: the reward raised; its answer is no array of numbers, has another length than n, or one that is not
            finite. InputError: lengths of prompts, responses and columns differ.
    Example:
        >>> from hpcrl.rewards import NumericAnswer
        >>> scores = checked_scores(NumericAnswer(), ["6*7?", "6*7?"], ["#### 42", "#### 41"], {"answer": ["42", "42"]})
        >>> scores.values.tolist(), dict(scores.outcomes)
        ([1.0, 0.0], {'right': 1, 'wrong': 1})
    """
    num_rows = len(responses)
    for name, column in {"prompts": prompts, **{f"column {name}": column for name, column in columns.items()}}.items():
        if len(column) != num_rows:
            raise InputError(f"{name}: want length {num_rows} (= len(responses)), given {len(column)}")
    name = name_of(reward)
    rows = f"rows {first_row} to {first_row + num_rows - 1}"
    try:
        if isinstance(reward, Verifier):
            outcomes = reward.verify(prompts, responses, columns)
            answer: npt.ArrayLike = reward.values(outcomes)
        else:
            outcomes, answer = [], reward.score(prompts, responses, columns)
    except InputError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name}: raised {type(error).__name__}: {error} on {rows}") from error
    return Scores(_checked(name, answer, num_rows, first_row), collections.Counter(outcomes))


def name_of(reward: Reward) -> str:
    """What errors call a reward."""
    return getattr(reward, "name", type(reward).__name__)


def _checked(name: str, answer: npt.ArrayLike, num_rows: int, first_row: int) -> FloatArray:
    try:
        values = np.asarray(answer, np.float64)
    except (TypeError, ValueError) as error:
        place, value = _first_odd(answer)
        where = "" if place is None else f" in row {first_row + place}"
        raise RewardError(
            f"reward {name}: want one number for each response, given {value!r}{where} ({error})"
        ) from None
    if values.shape != (num_rows,):
        raise RewardError(
            f"reward {name}: want {num_rows} numbers, one for each response, given shape {list(values.shape)}"
        )
    odd = np.flatnonzero(~np.isfinite(values))
    if odd.size:
        row = int(odd[0])
        raise RewardError(
            f"reward {name}: want finite numbers, given {values[row]} in row {first_row + row} "
            f"({odd.size} such of {num_rows})"
        )
    return values


def _first_odd(answer: object) -> tuple[int | None, object]:
    """Where in an answer the first thing stands that is no number."""
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        for place, value in enumerate(answer):
            try:
                float(value)
            except (TypeError, ValueError):
                return place, value
    return None, answer


def column_of(columns: Columns, column: str, reward: str) -> Sequence[object]:
    """A column that a reward needs.

    Raises: RewardError when the problems have none of that name.
    """
    if column not in columns:
        known = ", ".join(map(repr, columns)) or "none"
        raise RewardError(
            f"reward {reward}: want the column {column!r}, given {known}; the task's problems must hold it"
        )
    return columns[column]
