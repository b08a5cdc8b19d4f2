"""A published name appears once and whole, whoever races; a sealed document notices every flipped bit."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
from stored_samples import flipped_bit

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store import publish as publish_module
from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.documents import read_document, seal
from hpcrl.store.publish import make_folder, publish, publish_all, replace, temporaries


def test_the_first_publisher_wins(tmp_path: Path) -> None:
    assert publish(tmp_path / "part-00000.json", b"first")
    assert not publish(tmp_path / "part-00000.json", b"second")
    assert (tmp_path / "part-00000.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.json"]


def test_several_files_are_published_one_by_one(tmp_path: Path) -> None:
    publish(tmp_path / "part-00001.json", b"mine")
    published = publish_all(tmp_path, {"part-00000.json": b"a", "part-00001.json": b"b"})
    assert published == {"part-00000.json": True, "part-00001.json": False}
    assert (tmp_path / "part-00001.json").read_bytes() == b"mine"


def _race(path: Path, payload: bytes, start: object, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    results.put((publish(path, payload), payload))  # type: ignore[attr-defined]


def test_eight_processes_race_and_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        path = tmp_path / f"manifest-{turn}.json"
        start, results = context.Barrier(8), context.SimpleQueue()
        payloads = [bytes([65 + index]) * 5000 for index in range(8)]
        workers = [context.Process(target=_race, args=(path, payload, start, results)) for payload in payloads]
        for worker in workers:
            worker.start()
        outcomes = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        winners = [payload for is_first, payload in outcomes if is_first]
        assert winners == [path.read_bytes()]
    assert len(list(tmp_path.iterdir())) == 5


def test_a_repeated_link_on_nfs_is_our_own_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server links, its answer is lost, the client asks again and hears that the name is taken."""
    link = os.link

    def link_and_forget(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", str(target))

    monkeypatch.setattr(publish_module.os, "link", link_and_forget)
    assert publish(tmp_path / "part-00000.json", b"mine")


def test_a_cleaned_up_temporary_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, calls = os.link, []

    def link_late(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            for temporary in temporaries(tmp_path):
                temporary.unlink()
        link(source, target)

    monkeypatch.setattr(publish_module.os, "link", link_late)
    assert publish(tmp_path / "part-00000.json", b"mine")
    assert len(calls) == 2


def test_replacing_leaves_old_or_new(tmp_path: Path) -> None:
    replace(tmp_path / "pipeline.json", b"old")
    replace(tmp_path / "pipeline.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("pipeline.json", b"new")]


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b/c")
    make_folder(tmp_path / "a/b/c")
    assert (tmp_path / "a/b/c").is_dir()


BODY = {"rows": 7, "extra": {"loss": 0.1, "none": None, "text": "naïve"}, "list": [1, 2, {"a": 1e-300}]}


def test_a_document_comes_back_as_it_was(tmp_path: Path) -> None:
    publish(tmp_path / "part-00000.json", seal("part", BODY))
    assert read_document(tmp_path / "part-00000.json", "part") == BODY


def test_every_flipped_bit_of_a_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.json"
    publish(path, seal("part", BODY))
    for place in range(path.stat().st_size):
        for bit in range(8):
            with flipped_bit(path, place, bit), pytest.raises(CorruptFileError, match=r"part-00000\.json"):
                read_document(path, "part")
    assert read_document(path, "part") == BODY


def test_truncated_and_foreign_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.json"
    whole = seal("part", BODY)
    for size in range(len(whole)):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match=r"part-00000\.json"):
            read_document(path, "part")
    for text in (b"{}", b'{"rows": 3}', b"\x00" * 500, whole + b"\n"):
        path.write_bytes(text)
        with pytest.raises(CorruptFileError, match=r"part-00000\.json"):
            read_document(path, "part")
    path.write_bytes(seal("manifest", BODY))
    with pytest.raises(CorruptFileError, match="want a document of format hpcrl-part, given hpcrl-manifest"):
        read_document(path, "part")


def test_a_newer_format_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("hpcrl.store.documents.FORMAT_VERSION", 2)
        publish(tmp_path / "part-00000.json", seal("part", BODY))
    with pytest.raises(InputError, match="want format_version <= 1, given 2; install a newer hpcrl"):
        read_document(tmp_path / "part-00000.json", "part")


def test_values_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match="part: want numbers, text"):
        seal("part", {"value": object()})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk full while writing there; .*free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk quota exceeded while writing there"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only file system while writing there"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission while writing there"),
        (OSError("Can't write data (file write failed: errno = 28, error message = ...)"), "disk full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk full"),
    ],
)
def test_write_errors_say_what_to_do(error: Exception, message: str) -> None:
    with pytest.raises(InputError, match=message), explain_write_errors("there"):
        raise error


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(FileNotFoundError), explain_write_errors("there"):
        raise FileNotFoundError(errno.ENOENT, "No such file")
    with pytest.raises(ZeroDivisionError), explain_write_errors("there"):
        raise ZeroDivisionError


def test_a_folder_where_there_can_be_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, words in (
        (Path("/proc/x/run"), "/proc/x: want a file system that takes new folders; choose another folder"),
        (tmp_path / "file", "want a folder, given something else of that name"),
        (tmp_path / "file" / "run", "want a folder, given something else of that name"),
    ):
        with pytest.raises(InputError, match=words):
            make_folder(path)


def test_a_folder_whose_parent_is_removed_meanwhile_is_no_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who races for a lease's folder tries again."""
    mkdir = Path.mkdir

    def mkdir_too_late(path: Path, **options: bool) -> None:
        path.parent.rmdir()
        mkdir(path, **options)

    (tmp_path / "leases").mkdir()
    monkeypatch.setattr(Path, "mkdir", mkdir_too_late)
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "leases" / "one")
