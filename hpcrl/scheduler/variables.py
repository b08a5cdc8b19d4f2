"""Variables in a site file's texts, expanded as a shell would: $NAME, ${NAME}, ${NAME:-default}; nothing is run."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hpcrl.errors import InputError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMS = "want $NAME, ${NAME} or ${NAME:-default}"


def expand(text: str, environment: Mapping[str, str], where: str) -> str:
    """The text with its variables' values; a default may hold variables of its own.

    Args: where: what the text is, for the message.
    Raises: InputError for a variable that is empty or not set and has no default, and for any other use of a dollar.
    Example:
        >>> expand("${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/hpcrl", {"TMPDIR": "/scratch"}, "launch.scratch")
        '/scratch/hpcrl'
    """
    done: list[str] = []
    while "$" in text:
        before, _, rest = text.partition("$")
        name, default, text = _split_variable(rest, where)
        value = environment.get(name, "")
        if not value and default is None:
            raise InputError(f"{where}: want a value for ${name}, given none; set it, or write ${{{name}:-DEFAULT}}")
        done += [before, value or expand(default or "", environment, where)]
    return "".join([*done, text])


def _split_variable(text: str, where: str) -> tuple[str, str | None, str]:
    """Name, default (None: there is none) and what follows, of text that stood behind a dollar."""
    in_braces = text.startswith("{")
    match = _NAME.match(text, 1 if in_braces else 0)
    if match is None:
        raise InputError(f"{where}: {_FORMS}, given ${text}; no other use of a dollar is expanded")
    rest = text[match.end() :]
    if not in_braces:
        return match[0], None, rest
    end = _closing_brace(rest)
    if end is None or not (end == 0 or rest.startswith(":-")):
        raise InputError(f"{where}: {_FORMS}, given ${text}; no other use of a dollar is expanded")
    return match[0], rest[2:end] if end else None, rest[end + 1 :]


def _closing_brace(text: str) -> int | None:
    """Where the brace closes that was opened before the text."""
    depth = 0
    for index, letter in enumerate(text):
        if letter == "}":
            if depth == 0:
                return index
            depth -= 1
        depth += text.startswith("${", index)
    return None
