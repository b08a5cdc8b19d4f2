"""Trust: a file that another user could have written is refused by name, whatever its disguise."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from hpcrl.errors import InputError
from hpcrl.scheduler import read_own, refuse_foreign, trust

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")
NOBODY = 65534


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_bytes(b"name = 'a'\n")
    path.chmod(0o644)
    return path


def test_our_own_file_is_read(own: Path) -> None:
    refuse_foreign(own)
    assert read_own(own) == b"name = 'a'\n"
    own.chmod(0o400)
    assert read_own(own) == b"name = 'a'\n"


@pytest.mark.parametrize(("mode", "words"), [(0o646, "everybody may write to"), (0o666, "everybody may write to")])
def test_a_file_that_all_may_write_to_is_refused(mode: int, words: str, own: Path) -> None:
    own.chmod(mode)
    for check in (refuse_foreign, read_own):
        with pytest.raises(InputError, match=words) as refused:
            check(own)
        assert str(own) in str(refused.value)
        assert "chmod go-w" in str(refused.value)


@needs_root
def test_a_file_that_its_group_may_write_to_is_refused(own: Path) -> None:
    os.chown(own, 0, NOBODY)
    own.chmod(0o664)
    with pytest.raises(InputError, match=r"its group may write to; read it, then: chmod g-w"):
        read_own(own)
    own.chmod(0o644)
    assert read_own(own)


class Group:
    """A row of the group database."""

    def __init__(self, name: str, number: int, members: tuple[str, ...] = ()) -> None:
        self.gr_name, self.gr_gid, self.gr_mem = name, number, list(members)


@pytest.mark.parametrize(
    ("name", "number", "members", "is_private"),
    [
        ("ME", 7, (), True),
        ("ME", 7, ("ME",), True),
        ("ME", 7, ("ME", "eve"), False),
        ("users", 7, (), False),
        ("ME", 8, (), False),
    ],
)
def test_a_private_group_is_the_user_itself(
    name: str, number: int, members: tuple[str, ...], is_private: bool, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = pwd.getpwuid(os.geteuid())
    row = pwd.struct_passwd((me.pw_name, "x", me.pw_uid, 7, "", me.pw_dir, me.pw_shell))
    group = Group(name.replace("ME", me.pw_name), number, tuple(one.replace("ME", me.pw_name) for one in members))
    monkeypatch.setattr(trust.pwd, "getpwuid", lambda _: row)
    monkeypatch.setattr(trust.grp, "getgrgid", lambda _: group)
    own.chmod(0o664)
    if is_private:
        assert read_own(own)
    else:
        with pytest.raises(InputError, match="its group may write to"):
            read_own(own)
    monkeypatch.setattr(trust.os, "listxattr", _no_access_lists)
    if is_private:
        assert read_own(own)
    monkeypatch.setattr(trust.os, "listxattr", lambda _: ["user.note", "system.posix_acl_access"])
    with pytest.raises(InputError, match="its group may write to"):
        read_own(own)


def _no_access_lists(opened: object) -> list[str]:
    raise OSError(95, "Operation not supported")


def test_a_user_without_a_name_has_no_private_group(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> object:
        raise KeyError(user)

    monkeypatch.setattr(trust.pwd, "getpwuid", unknown)
    own.chmod(0o664)
    with pytest.raises(InputError, match="its group may write to"):
        read_own(own)


@needs_root
def test_a_file_of_somebody_else_is_refused_even_when_only_they_may_write(own: Path) -> None:
    os.chown(own, NOBODY, NOBODY)
    own.chmod(0o444)
    with pytest.raises(InputError, match=r"one owned by user nobody; read it, then use a copy of your own"):
        read_own(own)


@needs_root
def test_another_user_trusts_its_own_files_and_roots_only(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust.os, "geteuid", lambda: NOBODY)
    assert read_own(own)  # root's
    os.chown(own, NOBODY, NOBODY)
    assert read_own(own)
    os.chown(own, 12345, NOBODY)
    with pytest.raises(InputError, match="owned by user 12345"):
        read_own(own)


def test_links_are_judged_by_what_they_lead_to(own: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(own)
    assert read_own(link)
    own.chmod(0o666)
    with pytest.raises(InputError, match="everybody may write to"):
        read_own(link)


def test_what_is_no_file_is_refused_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, kind in ((tmp_path, "a folder"), (pipe, "a pipe"), (Path("/dev/null"), "a device")):
        for check in (refuse_foreign, read_own):
            with pytest.raises(InputError, match=f"want a file, given {kind}"):
                check(path)


def test_a_missing_file_is_the_callers_to_explain(tmp_path: Path) -> None:
    for check in (refuse_foreign, read_own):
        with pytest.raises(FileNotFoundError):
            check(tmp_path / "nothing")


def test_the_file_that_was_checked_is_the_one_that_is_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who may write to the folder puts a file of theirs there, just after the check."""
    check = trust._check

    def check_then_swap(path: Path, found: os.stat_result, opened: Path | int) -> None:
        check(path, found, opened)
        evil = path.with_name("evil")
        evil.write_bytes(b"setup = ['rm -rf ~']\n")
        os.replace(evil, path)

    monkeypatch.setattr(trust, "_check", check_then_swap)
    assert read_own(own) == b"name = 'a'\n"
