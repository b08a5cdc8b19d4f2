"""How a run stands: going on, done, stopped, or cut off."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

from hpcrl.pipeline import evaluation
from hpcrl.report.record import RunRecord
from hpcrl.report.wording import number_text, seconds_text

HEARTBEAT_STALE_SECONDS = 60.0
"""A holder on another host counts as gone after this, as when a lease is taken over."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One word for a badge, one sentence for people."""

    state: Literal["running", "done", "stopped", "interrupted"]
    sentence: str


def outcome_of(record: RunRecord) -> Outcome:
    """What the manifests and the lease say together."""
    if is_held(record):
        return Outcome("running", f"running: {holder_text(record)}")
    stopping = evaluation(record.pipeline)
    if stopping is not None and stopping.stop_when is not None:
        newest = record.of_stage(stopping.name)
        if newest and newest[-1].facts.get("stop"):
            rule = stopping.stop_when
            times = f" in {rule.times} evaluations in a row" if rule.times > 1 else ""
            rest = f"mean {rule.metric} reached {number_text(rule.threshold)}{times}"
            return Outcome("done", f"stopped by its evaluation after iteration {newest[-1].iteration + 1}: {rest}")
    total = record.pipeline.num_iterations
    finished = record.finished_iterations()
    done = finished[-1] + 1 if finished else 0
    if done >= total:
        return Outcome("done", f"all {total} iterations are done")
    go_on = f"; go on with: {record.resume_command}" if record.resume_command else ""
    where = f"after iteration {done} of {total}" if done else f"before its first of {total} iterations was done"
    if record.holder is not None:
        return Outcome("interrupted", f"cut off {where}: {holder_text(record)}{go_on}")
    return Outcome("stopped", f"stopped {where}{go_on}")


def is_held(record: RunRecord) -> bool | None:
    """Whether somebody works on the run: yes, no, or None where only another host could tell and its lease is stale."""
    if record.holder is None:
        return False
    if record.holder.process.is_local():
        return record.holder.is_alive
    return True if heartbeat_age(record.run.path) < HEARTBEAT_STALE_SECONDS else None


def holder_text(record: RunRecord) -> str:
    """Who holds the lease, since when, and whether it lives."""
    holder = record.holder
    if holder is None:
        return "nobody"
    job = f", job {holder.job}" if holder.job else ""
    alive = {
        True: "alive",
        False: "dead",
        None: f"on another host, last heartbeat {seconds_text(heartbeat_age(record.run.path))} ago",
    }[is_held(record)]
    return f"{holder.process}{job}, since {holder.since}, {alive}"


def heartbeat_age(path: Path) -> float:
    """Seconds since the lease was last touched; 0 when it was given back meanwhile."""
    try:
        return max(0.0, time.time() - (path / "lease").stat().st_mtime)
    except FileNotFoundError:
        return 0.0
