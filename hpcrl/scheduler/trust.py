"""Trust: what is executed or unpickled was written by this user (or root), and nobody else could have changed it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

from hpcrl.errors import InputError

_ACCESS_LIST = "system.posix_acl_access"


def refuse_foreign(path: Path) -> None:
    """Refuses a file that another user could have written.

    The rule: it is a regular file, its owner is this user or root, and nobody else may write to it: not others, and not
    its group, unless that is the user's private group (named as the user, no further members, no access list), which
    systems with umask 002 give to every file. Who may write to the folder is not asked: somebody else's file in its
    place would have another owner. Symbolic links are followed; access lists of NFS version 4 cannot be seen.

    To read a file after this check, use `read_own`, which leaves no moment in between.

    Raises: InputError that names the file and says how to mend it; FileNotFoundError.
    """
    _check(path, os.stat(path), path)


def refuse_foreign_if_there(path: Path) -> None:
    """`refuse_foreign`, where there is a file at all. Raises: InputError."""
    with contextlib.suppress(FileNotFoundError):
        refuse_foreign(path)


def read_own(path: Path) -> bytes:
    """The content of a file that only this user or root could have written: the very file that was checked.

    Raises: InputError (see refuse_foreign), also when it cannot be read; FileNotFoundError.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that somebody put there would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise InputError(f"{path}: want a file that you may read, given one you may not ({error.strerror})") from error
    try:
        _check(path, os.fstat(descriptor), descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check(path: Path, found: os.stat_result, opened: Path | int) -> None:
    wanted = f"{path}: want a file that only you or root can have written, because what it says is executed; given"
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: want a file, given {_kind(found.st_mode)}; name a regular file")
    user = os.geteuid()
    if found.st_uid not in (user, 0):
        raise InputError(
            f"{wanted} one owned by {_user_name(found.st_uid)}; read it, then use a copy of your own (cp makes one)"
        )
    if found.st_mode & stat.S_IWOTH:
        raise InputError(f"{wanted} one that everybody may write to; read it, then: chmod go-w {path}")
    if found.st_mode & stat.S_IWGRP and not _is_private_group(found, opened):
        raise InputError(f"{wanted} one that its group may write to; read it, then: chmod g-w {path}")


def _is_private_group(found: os.stat_result, opened: Path | int) -> bool:
    """Whether a file's group has its owner as only member, by the convention of user private groups."""
    try:
        user, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    is_private = user.pw_gid == group.gr_gid and group.gr_name == user.pw_name
    return is_private and set(group.gr_mem) <= {user.pw_name} and not _has_access_list(opened)


def _has_access_list(opened: Path | int) -> bool:
    """Whether a POSIX access list may let further users in; the mode's group bits are then its mask."""
    try:
        return _ACCESS_LIST in os.listxattr(opened)
    except OSError:
        return False  # a file system without access lists


def _user_name(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"user {user}"


def _kind(mode: int) -> str:
    for test, name in ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")):
        if test(mode):
            return name
    return "a device"
