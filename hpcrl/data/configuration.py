"""Configuration dataclasses to plain JSON values and back, and what differs between two of them."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from hpcrl.errors import InputError

_TYPE = "type"


def to_plain(value: object) -> Any:
    """A configuration as JSON values; a dataclass becomes its fields plus its import path under "type".

    Raises: InputError for a value that JSON cannot hold.
    Example:
        >>> from hpcrl.data import Mesh
        >>> to_plain(Mesh(dp=2))["dp"], to_plain((1, "a"))
        (2, [1, 'a'])
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_TYPE: f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(
        f"configuration: want numbers, text, lists, mappings or dataclasses, given {type(value).__name__} ({value!r})"
    )


def from_plain(plain: Any) -> Any:
    """The configuration that `to_plain` wrote; lists come back as tuples.

    Raises: InputError when a class is gone or refuses a field.
    """
    if isinstance(plain, Mapping):
        fields = {key: from_plain(item) for key, item in plain.items() if key != _TYPE}
        return _load_class(plain[_TYPE])(**fields) if _TYPE in plain else fields
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return tuple(from_plain(item) for item in plain)
    return plain


def _load_class(path: str) -> type:
    module_name, _, qualified_name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in qualified_name.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"configuration: want the class {path}, which cannot be imported here ({error})") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise InputError(f"configuration: want a dataclass, given {path}")
    return found


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) wherever two plain configurations differ.

    Example:
        >>> differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [1]})
        {'a.b': (1, 2)}
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = {}
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            found |= differences(one, other, f"{path}[{index}]")
        return found
    return {} if old == new else {path: (old, new)}


def near_names(given: str, names: Sequence[str]) -> str:
    """ "; did you mean 'x'?" where a known name is close, else the list of names."""
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(name) for name in close)}?"
    return f"known: {', '.join(names)}"
