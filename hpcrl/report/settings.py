"""The resolved configuration as rows, and what of it differs from the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

Origin = Literal["default", "chosen", "required"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value of the configuration."""

    path: str
    """Where it stands: stages.update.algorithm.clip_range."""
    value: str
    default: str
    """What it would be if nobody had chosen; empty where there is no default."""
    origin: Origin


def settings_of(configuration: Any) -> list[Setting]:
    """All values of a configuration dataclass, nested ones against the defaults of their own class.

    Example:
        >>> from hpcrl.data import Mesh
        >>> [(row.path, row.value, row.origin) for row in settings_of(Mesh(dp=2))][:2]
        [('world', "'main'", 'default'), ('dp', '2', 'chosen')]
    """
    return list(_walk(configuration, ""))


def _walk(configuration: Any, prefix: str) -> Iterator[Setting]:
    for field in dataclasses.fields(configuration):
        yield from _rows(f"{prefix}{field.name}", getattr(configuration, field.name), _default(field))


def _rows(path: str, value: Any, default: Any) -> Iterator[Setting]:
    if _is_configuration(value):
        yield Setting(path, type(value).__name__, *_compared_types(value, default))
        yield from _walk(value, f"{path}.")
    elif isinstance(value, Mapping) and any(_is_configuration(item) for item in value.values()):
        for name, item in value.items():
            yield from _rows(f"{path}.{name}", item, dataclasses.MISSING)
    elif isinstance(value, (list, tuple)) and any(_is_configuration(item) for item in value):
        for index, item in enumerate(value):
            yield from _rows(f"{path}.{getattr(item, 'name', index)}", item, dataclasses.MISSING)
    else:
        origin: Origin = "default" if _same(value, default) else "chosen"
        missing = default is dataclasses.MISSING
        yield Setting(path, repr(value), "" if missing else repr(default), "required" if missing else origin)


def _compared_types(value: Any, default: Any) -> tuple[str, Origin]:
    if default is dataclasses.MISSING:
        return "", "required"
    same = type(value) is type(default)
    return type(default).__name__ if _is_configuration(default) else repr(default), "default" if same else "chosen"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _same(value: Any, default: Any) -> bool:
    """Lists come back from JSON as tuples, so sequences are compared by what they hold."""
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return bool(type(value) is type(default) and value == default) or (value is default)


def _is_configuration(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
