"""A run's jobs in words: a table for a terminal, and the counts that stand in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from hpcrl.report.jobs import GUARD, Element, Jobs, JobTry
from hpcrl.report.queue import IN_QUEUE, State
from hpcrl.report.wording import count_text, plural, seconds_text

HEAD: Final = ("unit", "try", "job", "waited", "ran", "state")
"""Columns of the table; `waited` is the time in the queue, once all that a job depends on had ended."""

_WORDS: dict[State, str] = {
    "waiting": "ended: its input was not there",
    "ended": "ended without a word",
    "unsubmitted": "not submitted",
}
"""States that say more in several words."""
_BADLY: Final[frozenset[State]] = frozenset({"failed", "refused", "ended", "unsubmitted", "lost"})
_ORDER: tuple[State, ...] = (
    "running", "suspended", "queued", "requeued", "held", "submitting",
    "done", "waiting", "failed", "refused", "ended", "unsubmitted", "lost",
)  # fmt: skip


def counts_text(jobs: Jobs, *, in_queue: bool) -> str:
    """How many jobs are in each state: "3 running, 2 queued"; empty where there are none.

    Args: in_queue: only those that may still do their work.
    """
    counts = jobs.counts()
    return ", ".join(
        f"{count_text(counts[state])} {state}"
        for state in _ORDER
        if counts[state] and (state in IN_QUEUE or not in_queue)
    )


def job_table(jobs: Jobs, first: int, now: float) -> list[str]:
    """The tries worth a look, a line each below a head, columns aligned; empty where there are none.

    Args:
        first: the oldest iteration that is shown even if nothing of it is in the queue.
        now: seconds since 1970.
    """
    rows = job_rows(shown_tries(jobs, first), now)
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [HEAD, *rows]
    ]


def job_rows(tries: Iterable[JobTry], now: float) -> list[tuple[str, ...]]:
    """The table's cells, a row for each try.

    Args: now: seconds since 1970.
    """
    return [
        (
            entry.unit.name,
            str(entry.number),
            entry.job or "none yet",
            waited_text(entry, now),
            ran_text(entry, now),
            state_text(entry),
        )
        for entry in tries
    ]


def shown_tries(jobs: Jobs, first: int) -> list[JobTry]:
    """What is in the queue, all tries from an iteration on, and of units that play all iterations the newest begun.

    Of a loop those that ended badly too; of what was not submitted only a unit's last try.
    """
    newest = {entry.unit: entry for entry in jobs.tries if entry.unit.iteration is None and entry.started is not None}
    last = {entry.unit: entry for entry in jobs.tries}

    def is_shown(entry: JobTry) -> bool:
        if entry.is_in_queue or newest.get(entry.unit) is entry:
            return True
        if entry.counts()["unsubmitted"] and last[entry.unit] is not entry:
            return False
        if entry.unit.iteration is not None:
            return entry.unit.iteration >= first
        return entry.unit.segment != GUARD and not _BADLY.isdisjoint(entry.counts())

    return [entry for entry in jobs.tries if is_shown(entry)]


def waited_text(entry: JobTry, now: float) -> str:
    """How long it was in the queue before its first job began; a dash while it waits for jobs before it."""
    if entry.started is not None:
        return seconds_text(max(0.0, entry.started - entry.eligible))
    if not entry.is_in_queue or any(element.waits_for_others for element in entry.elements):
        return "–"
    return f"{seconds_text(max(0.0, now - entry.eligible))} so far"


def ran_text(entry: JobTry, now: float) -> str:
    """From its first start to its last end, requeues between them included; a dash before it began."""
    if entry.started is None:
        return "–"
    signs = [span.ended for element in entry.elements for span in element.spans if span.ended is not None]
    running = any(element.state == "running" for element in entry.elements)
    seconds = (now if running else max([entry.started, *signs])) - entry.started
    return f"{seconds_text(seconds)}{' so far' if running else ''}" if seconds > 0 else "–"


def state_text(entry: JobTry) -> str:
    """How it stands, what to type where something is to be typed, and how often it began anew."""
    text = _array_state(entry) if entry.is_array else _state(entry.elements[0], entry.job)
    if entry.requeues:
        text += f", requeued {plural(entry.requeues, 'time')}"
    return text


def _state(element: Element, job: str) -> str:
    if element.state == "held":
        by = f" {element.detail}" if element.detail else ""
        return f"held{by}: scontrol release {job}"
    word = _WORDS.get(element.state, element.state)
    return f"{word}: {element.detail}" if element.detail and element.state != "waiting" else word


def _array_state(entry: JobTry) -> str:
    """An array's elements counted: "12 of 64 done, 8 running, 44 queued (waits for free nodes)"."""
    counts: Counter[State] = entry.counts()
    parts = [f"{count_text(counts['done'])} of {count_text(len(entry.elements))} done"]
    for state in _ORDER:
        if state != "done" and counts[state]:
            mine = [element for element in entry.elements if element.state == state]
            remark = f"scontrol release {entry.job}" if state == "held" else _common_detail(mine)
            parts.append(f"{count_text(counts[state])} {state}" + (f" ({remark})" if remark else ""))
    return ", ".join(parts)


def _common_detail(elements: Sequence[Element]) -> str:
    """What most of them give as reason."""
    details = Counter(element.detail for element in elements if element.detail)
    return details.most_common(1)[0][0] if details else ""
