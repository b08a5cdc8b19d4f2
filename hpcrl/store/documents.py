"""Sealed JSON: a document that carries the checksum of its own bytes, so that one flipped bit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.checksums import checksum

FORMAT_VERSION = 1
"""Version of everything hpcrl writes to a run folder; docs/formats.md lists what each version means."""

_HEAD = b'{"checksum": "'
_DIGITS = 32
_NEXT = "; restore it from a copy, or move it away to have it made again"


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """The document as bytes: JSON whose first entry is the XXH3-128 of all bytes, taken with that entry's digits as 0.

    Raises: InputError for a value that JSON cannot hold.
    Example:
        >>> unseal(seal("part", {"rows": 3}), "part", "part-00000.json")
        {'rows': 3}
    """
    document = {"checksum": "0" * _DIGITS, "format": f"hpcrl-{kind}", "format_version": FORMAT_VERSION, **body}
    try:
        text = json.dumps(document).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind}: want numbers, text, lists and mappings, given something else ({error})") from error
    return _HEAD + checksum(text).encode() + text[len(_HEAD) + _DIGITS :]


def unseal(text: bytes, kind: str, name: str | Path) -> dict[str, Any]:
    """The body of a sealed document.

    Raises: CorruptFileError, naming the file, when it is damaged or not a document of this kind; InputError when a
    newer hpcrl wrote it.
    """
    start, stop = len(_HEAD), len(_HEAD) + _DIGITS
    if not text.startswith(_HEAD) or len(text) < stop:
        raise CorruptFileError(f"{name}: not a document that hpcrl wrote, or its beginning is damaged{_NEXT}")
    if checksum(text[:start] + b"0" * _DIGITS + text[stop:]).encode() != text[start:stop]:
        raise CorruptFileError(f"{name}: its content does not match its checksum; truncated, damaged or edited{_NEXT}")
    body: dict[str, Any] = json.loads(text)
    found_kind, version = body.pop("format"), body.pop("format_version")
    del body["checksum"]
    if found_kind != f"hpcrl-{kind}":
        raise CorruptFileError(f"{name}: want a document of format hpcrl-{kind}, given {found_kind}{_NEXT}")
    if version > FORMAT_VERSION:
        raise InputError(f"{name}: want format_version <= {FORMAT_VERSION}, given {version}; install a newer hpcrl")
    return body


def read_document(path: Path, kind: str) -> dict[str, Any]:
    """The body of a sealed document on disk. Raises: FileNotFoundError, CorruptFileError, InputError (see unseal)."""
    return unseal(path.read_bytes(), kind, path)
