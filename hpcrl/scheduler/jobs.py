"""One job as the scheduler tells it, and the texts in which SLURM's commands tell it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

FIELD_END: Final = "\x1f"
"""Ends a field: a control character that no name, comment or reason holds."""
RECORD_END: Final = "\x1e"
"""Ends a record of squeue, before the line's end: a job's name may hold line breaks."""

QUEUE_FIELDS: Final = (
    *("JobArrayID", "Name", "UserName", "State", "Reason", "Partition", "SubmitTime", "StartTime", "EndTime"),
    *("NodeList", "Comment", "exit_code", "TimeLimit", "RestartCnt", "Dependency"),
)
"""What is asked of squeue --Format, in this order. Width 0 cuts nothing and fills nothing up."""
ACCOUNTING_FIELDS: Final = (
    *("JobID", "JobName", "User", "State", "Reason", "Partition", "Submit", "Start", "End"),
    *("NodeList", "Comment", "ExitCode", "Timelimit"),
)
"""What is asked of sacct --format: what squeue tells too, in squeue's order."""
_SUBMIT = ACCOUNTING_FIELDS.index("Submit")

ENDED: Final = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"}
)
"""States from which a job does not come back by itself."""
_NOT_STARTED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
"""In these the start that SLURM tells is what it expects."""

_NOTHING = ("", "N/A", "n/a", "NA", "None", "NONE", "none", "(null)", "Unknown", "None assigned", "Invalid")
_ID = re.compile(r"(\d+)(?:_(?:(\d+)|\[([0-9,:\-]+)(?:%\d+)?\]))?(?:\+\d+)?")
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?(?:\.\d+)?")


@dataclass(frozen=True)
class Job:
    """A job, or one element of an array."""

    id: str
    """As SLURM's commands take it: "12", or "12_3" for element 3 of array 12."""
    array_id: str | None
    """Id of the array it belongs to; None: no array."""
    element: int | None
    """Index in the array; None: no array."""
    name: str
    user: str
    state: str
    """SLURM's word in full: "PENDING", "RUNNING", "COMPLETED", ..."""
    reason: str
    """Why it is pending, or why it ended; "" when SLURM gives none."""
    partition: str
    submitted: float | None
    """Seconds since 1970, as the three below."""
    started: float | None
    """None: it has not started."""
    ended: float | None
    """None: it has not ended."""
    expected_start: float | None
    """When SLURM expects a pending job to start; None: it does not say."""
    nodes: str
    """SLURM's list of nodes, "" while there is none."""
    comment: str
    exit_code: int | None
    """Of its script; None: it has not ended, or a signal ended it."""
    signal: int | None
    """The signal that ended its script, if one did."""
    restarts: int
    """How often SLURM had requeued it."""
    dependency: str
    """What it still waits for, in sbatch's words; "": nothing, or not known."""
    time_limit: float | None
    """Seconds; None: none, or not known."""
    cancelled_by: int | None = None
    """User id of whoever cancelled it, where accounting tells."""

    @property
    def waits(self) -> bool:
        """Whether it has not started, or was put back into the queue."""
        return self.state in _NOT_STARTED

    @property
    def is_over(self) -> bool:
        """Whether it does not come back by itself."""
        return self.state in ENDED


def queue_format() -> str:
    """squeue's --Format option: every field in full length, each closed by FIELD_END, the last by RECORD_END too."""
    fields = [f"{name}:0{FIELD_END}" for name in QUEUE_FIELDS]
    return ",".join(fields) + RECORD_END


def parse_queue(text: str) -> Iterator[Job]:
    """The jobs that squeue tells; an array's pending elements that stand in one record become one job each."""
    for record in text.split(f"{FIELD_END}{RECORD_END}"):
        fields = record.removeprefix("\n").split(FIELD_END)
        if len(fields) == len(QUEUE_FIELDS):
            restarts, dependency = fields[len(ACCOUNTING_FIELDS) :]
            yield from _jobs(
                fields[: len(ACCOUNTING_FIELDS)],
                restarts=int(restarts) if restarts.isdecimal() else 0,
                dependency=_word(dependency),
            )
        elif record.strip():
            raise ValueError(f"squeue told {len(fields)} fields for a job, not {len(QUEUE_FIELDS)}: {record.strip()!r}")


def parse_accounting(text: str) -> Iterator[Job]:
    """The jobs that sacct tells, one for each id: of a requeued job the newest record; the others are its restarts."""
    records: dict[str, list[Sequence[str]]] = {}
    for line in text.split("\n"):
        fields = line.split(FIELD_END)
        # Another job's name may hold a line break; our own hold none, so whatever is torn is not ours.
        if len(fields) == len(ACCOUNTING_FIELDS) and _ID.fullmatch(fields[0]):
            records.setdefault(fields[0], []).append(fields)
    for found in records.values():
        newest = max(reversed(found), key=lambda fields: seconds_since_1970(fields[_SUBMIT]) or 0.0)
        yield from _jobs(newest, restarts=len(found) - 1, dependency="")


def _jobs(shared: Sequence[str], *, restarts: int, dependency: str) -> Iterator[Job]:
    """The jobs of one record, from the fields that squeue and sacct both tell."""
    ids, name, user, told, reason, partition, submitted, started, ended, nodes, comment, code, limit = shared
    state, _, by = told.partition(" by ")
    is_over, has_started = state in ENDED, state not in _NOT_STARTED
    start = seconds_since_1970(started)
    exit_code, signal = _exit(code) if is_over else (None, None)
    for one, array, element in expand_ids(ids):
        yield Job(
            id=one,
            array_id=array,
            element=element,
            name=name,
            user=user,
            state=state,
            reason=_word(reason),
            partition=partition,
            submitted=seconds_since_1970(submitted),
            started=start if has_started else None,
            ended=seconds_since_1970(ended) if is_over else None,
            expected_start=None if has_started else start,
            nodes=_word(nodes),
            comment=_word(comment),
            exit_code=exit_code,
            signal=signal,
            restarts=restarts,
            dependency=dependency,
            time_limit=duration(limit),
            cancelled_by=int(by) if by.isdecimal() else None,
        )


def expand_ids(text: str) -> Iterator[tuple[str, str | None, int | None]]:
    """(id, array id, element) of each job that an id stands for; a heterogeneous job's components go by its id.

    Raises: ValueError for what is no id.
    Example:
        >>> [one for one, _, _ in expand_ids("12_[0-4:2,9%2]")], list(expand_ids("7"))
        (['12_0', '12_2', '12_4', '12_9'], [('7', None, None)])
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError(f"SLURM told the job id {text!r}, which is none")
    job, element, ranges = match.groups()
    if ranges is not None:
        for index in _indices(ranges):
            yield f"{job}_{index}", job, index
    elif element is not None:
        yield f"{job}_{element}", job, int(element)
    else:
        yield job, None, None


def _indices(ranges: str) -> Iterator[int]:
    for part in ranges.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def array_text(elements: Sequence[int]) -> str:
    """Array elements as sbatch's --array takes them, ascending, neighbours joined.

    Example:
        >>> array_text([5, 0, 1, 2, 9, 10])
        '0-2,5,9-10'
    """
    spans: list[list[int]] = []
    for index in sorted(set(elements)):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def duration(text: str) -> float | None:
    """SLURM's [days-]hours:minutes:seconds in seconds; None for UNLIMITED, Partition_Limit and the like.

    Example:
        >>> duration("1-02:03:04"), duration("30:00"), duration("UNLIMITED")
        (93784.0, 1800.0, None)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:  # minutes, minutes:seconds or hours:minutes:seconds
        hours, minutes, seconds = ([0, *parts, 0] if len(parts) == 1 else [0, *parts])[-3:]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def seconds_since_1970(text: str) -> float | None:
    """A time of squeue or sacct; None while there is none. Asked for in seconds, but some releases tell local time."""
    if text in _NOTHING:
        return None
    if text.isdecimal():
        return float(text) or None
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _exit(text: str) -> tuple[int | None, int | None]:
    """Exit code and signal: sacct says "code:signal", squeue the number that wait(2) gives."""
    if text.isdecimal():
        status = int(text)
        code, signal = status >> 8, status & 0x7F
    else:
        told_code, _, told_signal = text.partition(":")
        if not told_code.isdecimal():
            return None, None
        code, signal = int(told_code), int(told_signal or 0)
    return (None, signal) if signal else (code, None)


def _word(text: str) -> str:
    return "" if text in _NOTHING else text
