"""Whether a folder is shared between hosts, and whether link(2) and O_EXCL mean the same on each of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hpcrl.store.publish import fsync_folder

_TEXT, _LINK, _EXCLUSIVE = ".txt", ".link", ".exclusive"


def leave(folder: Path, who: str, token: str) -> list[str]:
    """Writes this host's three files: a text, a link to it, one made with O_EXCL; and tries each name a second time.

    Returns: what went wrong, a line each; empty when all is well.
    """
    text, link, exclusive = (folder / f"{who}{suffix}" for suffix in (_TEXT, _LINK, _EXCLUSIVE))
    troubles: list[str] = []
    try:
        with open(text, "x", encoding="utf-8") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
        os.link(text, link)
        if not os.path.samefile(text, link):
            troubles.append("a hard link is another file than the one it was made of")
        _make_exclusively(exclusive)
        fsync_folder(folder)
    except OSError as error:
        return [f"{_step(error)} failed: {error.strerror}"]
    return troubles + _taken(lambda: os.link(text, link), lambda: _make_exclusively(exclusive), "its own")


def meet(folder: Path, other: str, token: str) -> list[str]:
    """Reads what another host left, and tries to take its names, which must fail.

    Returns: what went wrong, a line each; empty when all is well.
    """
    try:
        seen = (folder / f"{other}{_TEXT}").read_text(encoding="utf-8")
    except OSError as error:
        return [f"the other host's file is not seen: {error.strerror}"]
    troubles = [] if seen == token else ["the other host's file is seen with another content"]
    mine = folder / f".meets-{other}"
    try:
        mine.touch()
        link, exclusive = folder / f"{other}{_LINK}", folder / f"{other}{_EXCLUSIVE}"
        return troubles + _taken(lambda: os.link(mine, link), lambda: _make_exclusively(exclusive), "another host's")
    except OSError as error:
        return [*troubles, f"{_step(error)} failed: {error.strerror}"]
    finally:
        mine.unlink(missing_ok=True)


def _taken(link: Callable[[], None], make: Callable[[], None], whose: str) -> list[str]:
    """Complains of names that could be taken although they are."""
    troubles = []
    for attempt, call in ((link, "link(2)"), (make, "O_EXCL")):
        try:
            attempt()
        except FileExistsError:
            continue
        troubles.append(f"{call} takes a name that is there ({whose})")
    return troubles


def _make_exclusively(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _step(error: OSError) -> str:
    return "link(2)" if error.filename2 is not None else f"writing {Path(str(error.filename or '')).name or 'a file'}"
