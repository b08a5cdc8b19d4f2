"""A task whose problems are the lines of a JSONL file."""

from __future__ import annotations

import array
import bisect
import dataclasses
import functools
import itertools
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hpcrl.envs.text.lines import LineFile
from hpcrl.envs.text.task import Conversation, Message, Problem, check_index, place_in_pass
from hpcrl.errors import InputError

Row = Mapping[str, Any]
_NUM_EXAMPLES = 5


class RowError(ValueError):
    """A line that cannot be used; the message says why, without file and line.

    `skipped_by` is the option under which such lines are counted and skipped.
    """

    def __init__(self, message: str, skipped_by: Literal["skip_bad", "skip_equal"] = "skip_bad") -> None:
        super().__init__(message)
        self.skipped_by = skipped_by


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Lines that were left out: how many, and the first few as "line 7: why"."""

    count: int
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FileTask(ABC):
    """Problems from the lines of a file, `.jsonl` or `.jsonl.gz`; the path is taken from the working folder.

    Every line is checked when the first problem is asked for. A plain file stays on disk and is read by position; a
    compressed one is held in memory.
    Raises: InputError for an option out of range; from `problem`, with file and line, for one that cannot be used.
    """

    path: str
    _: dataclasses.KW_ONLY
    seed: int = 0
    """Of the order of each pass."""
    shuffle: bool = True
    """False: the file's order on every pass."""
    start: int = 0
    """First line that is used, counted from 0: ranges of lines make a held-out set."""
    stop: int | None = None
    """The line before which to stop; None: the file's end."""
    skip_bad: bool = False
    """Count, report and skip lines that cannot be used; else the first is an error."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.path, str) or not self.path.endswith((".jsonl", ".jsonl.gz")):
            raise InputError(f"{name}: path: want the name of a .jsonl or .jsonl.gz file, given {self.path!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise InputError(f"{name}: seed: want a whole number in [0, 2**64), given {self.seed!r}")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise InputError(f"{name}: want 0 <= start < stop, given start={self.start}, stop={self.stop}")

    @abstractmethod
    def _problems(self, row: Row) -> list[Problem]:
        """What a line holds. Raises: RowError."""

    @functools.cached_property
    def _opened(self) -> _Opened:
        return _open(self)

    def __getstate__(self) -> dict[str, object]:
        # An opened file does not travel to another process.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def size(self) -> int:
        """Problems in one pass over the file.

        Raises: InputError, with file and line, for a line that cannot be used.
        """
        return self._opened.bounds[-1]

    @property
    def skipped(self) -> Skipped:
        """What `skip_bad` and its like left out."""
        return self._opened.skipped

    def problem(self, index: int) -> Problem:
        """The problem at an index in [0, 2**32); each pass over the file has an order of its own.

        Raises: InputError for an index out of range, and, with file and line, for a line that cannot be used.
        """
        check_index(index)
        opened = self._opened
        place = place_in_pass(self.seed, opened.bounds[-1], index, self.shuffle)
        kept = bisect.bisect_right(opened.bounds, place) - 1
        problems = self._problems(_parse(opened.file[opened.lines[kept]]))
        return problems[place - opened.bounds[kept]]

    def steps(self, response: str) -> list[tuple[int, int]]:
        """[]: a file says nothing about steps."""
        return []


@dataclasses.dataclass(frozen=True)
class _Opened:
    """`lines` are the places of the lines that are used; line k holds the problems bounds[k] to bounds[k + 1] - 1."""

    file: LineFile
    lines: Sequence[int]
    bounds: Sequence[int]
    skipped: Skipped


def _open(task: FileTask) -> _Opened:
    file = LineFile(task.path)
    if task.start >= len(file) or (task.stop or 0) > len(file):
        raise InputError(
            f"{task.path}: want start < stop <= {len(file)}, its number of lines, given start={task.start}, "
            f"stop={task.stop}" + ("; the file is empty" if len(file) == 0 else "")
        )
    # Arrays, not lists: a file may have many millions of lines.
    lines, counts = array.array("q"), array.array("q")
    examples: list[str] = []
    num_skipped = 0
    used = range(task.start, len(file) if task.stop is None else task.stop)
    for place in used:
        try:
            counts.append(len(task._problems(_parse(file[place]))))
            lines.append(place)
        except RowError as error:
            if not getattr(task, error.skipped_by, False):
                raise InputError(
                    f"{task.path}, line {place + 1}: {error}; correct or remove the line, or count and skip its like "
                    f"with {error.skipped_by}=True"
                ) from None
            num_skipped += 1
            if len(examples) < _NUM_EXAMPLES:
                examples.append(f"line {place + 1}: {error}")
    if num_skipped:
        warnings.warn(f"{task.path}: skipped {num_skipped} of {len(used)} lines: {'; '.join(examples)}", stacklevel=2)
    if not lines:
        raise InputError(f"{task.path}: want a line that can be used, all {len(used)} were skipped: {examples[0]}")
    skipped = Skipped(num_skipped, tuple(examples))
    one_each = counts.count(1) == len(counts)
    bounds = range(len(lines) + 1) if one_each else array.array("q", [0, *itertools.accumulate(counts)])
    return _Opened(file, lines if num_skipped else used, bounds, skipped)


def _parse(line: bytes) -> Row:
    if not line.strip():
        raise RowError("want a JSON object, given an empty line")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"want a JSON object: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"want a JSON object, given {_kind(row)}")
    return row


_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def text_of(row: Row, key: str) -> str:
    """A key's text.

    Raises: RowError when the key is missing, or its value is no text, is empty or is no valid Unicode.
    """
    if key not in row:
        raise RowError(f"want the key {key!r}, given {', '.join(map(repr, row)) or 'none'}")
    return _text(row[key], key)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what}: want text, given {_kind(value)}")
    if not value:
        raise RowError(f"{what}: want text, given an empty one")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"{what}: want Unicode text, given half of a surrogate pair") from None
    return value


def conversation_of(row: Row, key: str) -> Conversation:
    """A key's messages [{"role": ..., "content": ...}, ...].

    Raises: RowError when there is none, or one has other keys or empty text.
    """
    messages = row[key]
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{key}: want a list of messages, given {_kind(messages)}")
    found = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            given = ", ".join(message) if isinstance(message, dict) else _kind(message)
            raise RowError(f"{key}: message {place}: want the keys role and content, given {given}")
        role = _text(message["role"], f"{key}: message {place}: role")
        found.append(Message(role, _text(message["content"], f"{key}: message {place}: content")))
    return tuple(found)
