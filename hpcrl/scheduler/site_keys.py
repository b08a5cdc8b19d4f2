"""Keys of a site file: what each may hold, reading them from TOML, writing them back. A key is a dataclass field."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hpcrl.errors import InputError

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_KIND = "kind"


class Kind(Protocol):
    """What a key may hold."""

    def read(self, value: object) -> object:
        """The value as the dataclass keeps it. Raises: ValueError that says what is wanted."""


@dataclass(frozen=True)
class Text:
    """One line of text. It ends up in scripts, so line breaks and other control characters are refused."""

    want: str = "one line of text"
    is_word: bool = False
    """Whether blanks are refused."""
    may_be_missing: bool = False
    """Whether "" stands for "not said", None."""
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> str | None:
        if self.may_be_missing and value in (None, ""):
            return None
        want = f"one of {', '.join(self.choices)}" if self.choices else self.want
        if not isinstance(value, str) or not value.strip() or _CONTROL.search(value):
            raise ValueError(want)
        if (self.is_word and re.search(r"\s", value)) or (self.choices and value not in self.choices):
            raise ValueError(want)
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    minimum: int = 0
    may_be_missing: bool = False
    """Whether 0 stands for "not said", None."""

    def read(self, value: object) -> int | None:
        if self.may_be_missing and value in (None, 0) and not isinstance(value, bool):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < self.minimum:
            raise ValueError(f"a whole number >= {self.minimum}{', or 0 (not said)' if self.may_be_missing else ''}")
        return value


@dataclass(frozen=True)
class Number:
    """A finite number."""

    minimum: float
    may_be_missing: bool = False
    """Whether 0 stands for "not said", None."""

    def read(self, value: object) -> float | None:
        if self.may_be_missing and value in (None, 0) and not isinstance(value, bool):
            return None
        want = f"a number >= {self.minimum:g}{', or 0 (not said)' if self.may_be_missing else ''}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(want)
        if not math.isfinite(value) or value < self.minimum:
            raise ValueError(want)
        return float(value)


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value


@dataclass(frozen=True)
class Lines:
    """A list of lines of text, each by the rule of `line`."""

    line: Text = Text()

    def read(self, value: object) -> tuple[str, ...]:
        want = f'a list like ["...", "..."], each item {self.line.want}'
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(want)
        lines = []
        for item in value:
            try:
                lines.append(str(self.line.read(item)))
            except ValueError as error:
                raise ValueError(want) from error
        return tuple(lines)


def key(kind: Kind, default: object) -> Any:
    """A dataclass field that is a key of a site file."""
    return dataclasses.field(default=default, metadata={_KIND: kind})


def check_fields(instance: Any, table: str) -> None:
    """Checks every key of a dataclass and brings it into the form the dataclass keeps (lists become tuples).

    Raises: InputError for the first key that holds what it may not.
    """
    for field in dataclasses.fields(instance):
        if _KIND in field.metadata:
            value = read_value(field.metadata[_KIND], getattr(instance, field.name), f"{table}.{field.name}")
            object.__setattr__(instance, field.name, value)


def read_value(kind: Kind, value: object, where: str) -> Any:
    """One checked value. Raises: InputError that names the key."""
    try:
        return kind.read(value)
    except ValueError as error:
        raise InputError(f"{where}: want {error}, given {value!r}; correct it") from error


def read_table(base: T, table: object, where: str) -> T:
    """`base` with what a table of a site file says in place of its own keys.

    Raises: InputError for an unknown key, with the nearest known name, and for a value of the wrong kind.
    """
    kinds: dict[str, Kind] = {
        field.name: field.metadata[_KIND]
        for field in dataclasses.fields(base)  # type: ignore[arg-type]
        if _KIND in field.metadata
    }
    entries = read_mapping(table, where)
    refuse_unknown(entries, list(kinds), f"[{where}]")
    values = {name: read_value(kinds[name], value, f"{where}.{name}") for name, value in entries.items()}
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def read_mapping(table: object, where: str) -> Mapping[str, object]:
    """A table of a site file. Raises: InputError when it is none."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: want a table, given {table!r}; write a line [{where}] with its keys below")
    return table


def refuse_unknown(given: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Raises: InputError for the first name that is not known, with the nearest ones."""
    for name in given:
        if name not in known:
            from hpcrl.data.configuration import near_names  # brings NumPy, and an error may take its time

            raise InputError(f"{where}: no key is named {name!r}; {near_names(name, known)}")


def table_text(instance: Any, name: str) -> str:
    """A dataclass's keys as a TOML table; None is written as the "" or 0 it stands for."""
    keys = [field for field in dataclasses.fields(instance) if _KIND in field.metadata]
    lines = [f"{field.name} = {_toml(getattr(instance, field.name), field.metadata[_KIND])}" for field in keys]
    return "\n".join([f"[{name}]", *lines]) + "\n"


def text_value(text: str) -> str:
    """A text as TOML writes it. JSON's escapes are TOML's, and DEL, the one exception, never gets here."""
    return json.dumps(text, ensure_ascii=False)


def _toml(value: Any, kind: Kind) -> str:
    if value is None:
        return '""' if isinstance(kind, Text) else "0"
    if isinstance(value, tuple):
        return "[" + ", ".join(text_value(item) for item in value) + "]"
    return text_value(value) if isinstance(value, str) else json.dumps(value)
