"""`hpcrl logs`: what a run's jobs printed. One file for each job or array element, appended over its requeues."""

from __future__ import annotations

import codecs
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from hpcrl.data.configuration import from_plain
from hpcrl.errors import InputError
from hpcrl.launch.papers import is_played_as_jobs
from hpcrl.launch.request import GUARD
from hpcrl.report.queue import end_of
from hpcrl.report.wording import bytes_text, path_text, seconds_text
from hpcrl.segments import ONLY, segment_of
from hpcrl.store.ledger import LOOP, Ledger, Try, Unit
from hpcrl.store.run_folder import RunFolder

FOLDER: Final = "logs"
"""Where they lie in a run's folder: SEGMENT_JOB.out, SEGMENT_JOB_INDEX.out."""

_NAME = re.compile(r"(.+?)_(\d+)(?:_(\d+))?\.out")
_UNIT = re.compile(rf"(.+)-(\d{{6,}}|{LOOP})")
_BLOCK_BYTES = 1 << 16
_POLL_SECONDS = 0.5
_POLLS_PER_LOOK = 4
"""The ledger is asked less often than the file whether the job is over."""


@dataclasses.dataclass(frozen=True)
class Log:
    """The log of one job, or of one element of an array."""

    path: Path
    segment: str
    job: str
    """SLURM job id; of an array the array's."""
    index: int | None
    """SLURM's index in the array; None: no array."""
    bytes: int
    written: float
    """When something was last written, seconds since 1970."""

    @property
    def job_id(self) -> str:
        """As SLURM's commands take it: "12" or "12_3"."""
        return self.job if self.index is None else f"{self.job}_{self.index}"


def print_logs(
    path: Path, what: str | None = None, *, lines: int = 50, follow: bool = False, list_files: bool = False
) -> int:
    """Prints the end of a log, or which there are; returns 0.

    Args:
        what: see `find_log`.
        follow: go on printing what is appended, until the job has ended or Ctrl-C.
        list_files: print the files instead, the newest first; with `what` only those.
    Raises: InputError when there is no such log, or `lines` is below 1.
    """
    if list_files:
        print(list_text(Path(path), what))
        return 0
    log = find_log(Path(path), what)
    text, position = read_end(log.path, _checked(lines))
    print(f"==> {log.path} <==\n{text}", end="", flush=True)
    if follow:
        try:
            for piece in follow_log(log.path, position, _end_of(Path(path), log), time.sleep):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print()  # the person has seen enough
    return 0


def log_text(path: Path, what: str | None = None, *, lines: int = 50) -> str:
    """The end of a log: its last `lines` lines. Raises: InputError (see print_logs)."""
    return read_end(find_log(Path(path), what).path, _checked(lines))[0]


def list_text(path: Path, what: str | None = None) -> str:
    """The log files, a line each: name, size, when something was last written; the newest first.

    Raises: InputError when there are none.
    """
    now = time.time()
    rows = [
        (str(log.path), bytes_text(log.bytes), f"{seconds_text(max(0.0, now - log.written))} ago")
        for log in _chosen(Path(path), what)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def find_log(path: Path, what: str | None) -> Log:
    """The log that was written to last.

    Args:
        path: the run's folder.
        what: a segment, a stage, a unit ("rollout-000017"), a job ("4711") or an element ("4711_3"); None: any but the
            guard's, unless there are no others.
    Raises: InputError when there is none.
    """
    return _chosen(path, what)[0]


def read_end(path: Path, lines: int) -> tuple[str, int]:
    """The last lines of a file, and how many bytes of it were read; a file of any length is read from its end."""
    with path.open("rb") as file:
        end = start = file.seek(0, os.SEEK_END)
        tail = b""
        # One line break more than lines: the one before the first of them.
        while start > 0 and tail.count(b"\n") <= lines:
            start = max(0, start - _BLOCK_BYTES)
            file.seek(start)
            tail = file.read(end - start)
    text = b"".join(tail.splitlines(keepends=True)[-lines:]).decode(errors="replace")
    return text if text.endswith("\n") or not text else text + "\n", end


def follow_log(path: Path, position: int, is_over: Callable[[], bool], sleep: Callable[[float], None]) -> Iterator[str]:
    """What is appended from a position on, as it comes, until `is_over` says so and nothing more is there."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with path.open("rb") as file:
        file.seek(position)
        polls = 0
        while True:
            over = polls % _POLLS_PER_LOOK == 0 and is_over()  # asked before reading: what came before it is read
            piece = file.read()
            if piece:
                yield decoder.decode(piece)
            elif over:
                return
            polls += 1
            sleep(_POLL_SECONDS)


def _chosen(path: Path, what: str | None) -> list[Log]:
    """The logs asked for, the newest first. Raises: InputError when there are none."""
    run = RunFolder.open(path)
    logs = _logs(path)
    if not logs and not (Ledger(path).path.is_dir() or is_played_as_jobs(path)):
        raise InputError(
            f"{path}: want a run that was submitted, given one that was not; what it prints stands where it was "
            f"started; how it stands: hpcrl status {path_text(path)}"
        )
    if not logs:
        raise InputError(
            f"{path / FOLDER}: want a log, given none; one appears when a job starts: hpcrl status {path_text(path)} "
            "says what they wait for"
        )
    if what is None:
        return [log for log in logs if log.segment != GUARD.segment] or logs
    return (
        [log for log in logs if what in (log.segment, log.job, log.job_id)]
        or _of_unit(path, logs, what)
        or _of_stage(run, logs, what)
    )


def _logs(path: Path) -> list[Log]:
    """All logs of a run, the newest first."""
    found = []
    try:
        entries = list(os.scandir(path / FOLDER))
    except FileNotFoundError:
        return []
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is not None and entry.is_file():
            status = entry.stat()
            index = None if match[3] is None else int(match[3])
            log = Log(path / FOLDER / entry.name, match[1], match[2], index, status.st_size, status.st_mtime)
            found.append(log)
    return sorted(found, key=lambda log: (log.written, int(log.job), log.index or 0), reverse=True)


def _of_unit(path: Path, logs: Sequence[Log], what: str) -> list[Log]:
    match = _UNIT.fullmatch(what)
    if match is None:
        return []
    unit = Unit(match[1], None if match[2] == LOOP else int(match[2]))
    jobs = {tried.job for tried in Ledger(path).tries(unit)}
    return [log for log in logs if log.job in jobs]


def _of_stage(run: RunFolder, logs: Sequence[Log], what: str) -> list[Log]:
    """The logs of the segment that plays a stage; a loop's jobs play all segments. Raises: InputError."""
    segments = segment_of(from_plain(run.pipeline()["pipeline"]))
    known = sorted({log.segment for log in logs})
    if what not in segments:
        raise InputError(
            f"{run.path / FOLDER}: want a segment, stage, unit or job that has a log, given {what!r}; there are logs "
            f"of {', '.join(known)}, and stages {', '.join(segments)}"
        )
    found = [log for log in logs if log.segment in (segments[what].name, ONLY)]
    if not found:
        raise InputError(
            f"{run.path / FOLDER}: want a log of stage '{what}' (segment '{segments[what].name}'), given none yet; "
            f"there are logs of {', '.join(known)}; hpcrl status {path_text(run.path)} says what it waits for"
        )
    return found


def _end_of(path: Path, log: Log) -> Callable[[], bool]:
    """A question: has this job said that it ended?"""
    ledger = Ledger(path)
    tries = [one for found in ledger.all_tries(f"-{log.segment}-").values() for one in found if one.job == log.job]
    if not tries:
        return lambda: False  # a person submitted it by hand: only they know when to stop looking
    unit, number = tries[0].unit, tries[0].number

    def is_over() -> bool:
        return any(_has_ended(one, log) for one in ledger.tries(unit) if one.number == number)

    return is_over


def _has_ended(tried: Try, log: Log) -> bool:
    element = None if log.index is None or tried.claim.elements is None else log.index + tried.claim.first_element
    return end_of(tried, element) is not None


def _checked(lines: int) -> int:
    if lines < 1:
        raise InputError(f"--lines: want a whole number >= 1, given {lines}")
    return lines
