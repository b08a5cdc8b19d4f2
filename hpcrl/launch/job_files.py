"""Files from which jobs are started: in folders that nobody else may write to, each there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from hpcrl.errors import InputError
from hpcrl.scheduler.trust import read_own
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.publish import make_folder, temporary_beside

_CHECKSUM: Final = "# hpcrl-checksum: "
_LINE = re.compile(rf"^{_CHECKSUM}([0-9a-f]+)\n", re.MULTILINE)

Written = Literal["new", "same", "edited", "replaced"]
"""What became of a script: it was written; it was there; it was there with a person's edits; those were set aside."""


def make_own_folder(path: Path, *, is_private: bool = False) -> None:
    """Makes a folder in which only this user (and root) can put a file in another's place.

    Args: is_private: nobody else may read there either.
    Raises: InputError when it belongs to somebody else, or the disk is full or read-only.
    """
    make_folder(path)
    with explain_write_errors(path):
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise InputError(
                f"{path}: want a folder of yours (user {os.geteuid()}), because what lies there is executed; given one "
                f"of user {found.st_uid}; submit as that user, or use another run folder"
            )
        forbidden = 0o077 if is_private else 0o022
        if found.st_mode & forbidden:
            path.chmod(found.st_mode & 0o7777 & ~forbidden)


def refuse_open_folder(path: Path) -> None:
    """Refuses a folder in which somebody else could have put a file in another's place.

    Raises: InputError.
    """
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise InputError(
            f"{path}: want a folder that only you may write to, because what lies there is executed; given mode "
            f"{found.st_mode & 0o777:o} of user {found.st_uid}; look who wrote there, then: chmod go-w {path}"
        )


def write_file(path: Path, payload: bytes, *, mode: int) -> None:
    """Puts a file in place, whole or not at all. `mode`: permissions, less the process's umask.

    Raises: InputError when the disk is full or read-only.
    """
    temporary = temporary_beside(path)
    with explain_write_errors(path):
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_script(path: Path, text: str) -> Written:
    """Puts a script in place, unless one made from the same text is there: what a person changed in that one stays.

    The script carries the checksum of the text it was made from. One that was edited and has to give way to another
    text is kept beside it, as NAME.edited, NAME.edited-2, ...
    Args: text: the script; its first line is the one that names the shell.
    Raises: InputError when somebody else could have written the one that is there, and when the disk is full.
    """
    checksum = _checksum(text)
    try:
        there = read_own(path).decode("utf-8", errors="replace")
    except FileNotFoundError:
        there = None
    if there is not None:
        match = _LINE.search(there)
        made_from = match[1] if match else None
        is_edited = _checksum(_LINE.sub("", there)) != made_from
        if made_from == checksum:
            return "edited" if is_edited else "same"
        if is_edited:
            _set_aside(path)
    first, _, rest = text.partition("\n")
    write_file(path, f"{first}\n{_CHECKSUM}{checksum}\n{rest}".encode(), mode=0o755)
    return "new" if there is None or not is_edited else "replaced"


def put_script(path: Path, text: str, say: Callable[[str], None]) -> None:
    """`write_script`, and one line about a person's edits where there are any."""
    written = write_script(path, text)
    if written == "edited":
        say(f"{path}: used with your edits")
    if written == "replaced":
        say(f"{path}: written anew, because site or pipeline ask for something else; yours is kept beside it")


def tell_on_stderr(line: str) -> None:
    """A line for whoever reads a terminal or a job's log."""
    print(f"hpcrl: {line}", file=sys.stderr, flush=True)


def _set_aside(path: Path) -> None:
    """A second name for a file that is about to be replaced."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.edited{f'-{number}' if number > 1 else ''}")
        try:
            os.link(path, aside)
        except FileExistsError:
            number += 1
        else:
            return


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
