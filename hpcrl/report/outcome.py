"""How a run stands: going on, done, stopped, or cut off."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hpcrl.pipeline import evaluation
from hpcrl.report.holdings import holdings_text, is_any_held
from hpcrl.report.job_lines import counts_text
from hpcrl.report.record import RunRecord
from hpcrl.report.wording import number_text


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One word for a badge, one sentence for people."""

    state: Literal["running", "queued", "done", "stopped", "interrupted"]
    sentence: str


def outcome_of(record: RunRecord) -> Outcome:
    """What the manifests, the leases, the ledger and the scheduler say together."""
    if is_held(record):
        return Outcome("running", _running(record))
    done = _done(record)
    if done is not None:
        return Outcome("done", done)
    total = record.pipeline.num_iterations
    finished = record.finished_iterations()
    count = finished[-1] + 1 if finished else 0
    where = f"after iteration {count} of {total}" if count else f"before its first of {total} iterations was done"
    go_on = f"; go on with: {record.resume_command}" if record.resume_command else ""
    if record.jobs is not None:
        return _as_jobs(record, where, go_on)
    if record.holdings:
        return Outcome("interrupted", f"cut off {where}: {holder_text(record)}{go_on}")
    return Outcome("stopped", f"stopped {where}{go_on}")


def _running(record: RunRecord) -> str:
    if record.jobs is None:
        return f"running: {holder_text(record)}"
    halted = f"; nothing more is submitted: {record.jobs.halted}" if record.jobs.halted is not None else ""
    in_queue = counts_text(record.jobs, in_queue=True)
    return f"running as SLURM jobs: {in_queue or holder_text(record)}{halted}"


def _done(record: RunRecord) -> str | None:
    """How the run reached its end; None when it has not."""
    stopping = evaluation(record.pipeline)
    if stopping is not None and stopping.stop_when is not None:
        newest = record.of_stage(stopping.name)
        if newest and newest[-1].facts.get("stop"):
            rule = stopping.stop_when
            times = f" in {rule.times} evaluations in a row" if rule.times > 1 else ""
            rest = f"mean {rule.metric} reached {number_text(rule.threshold)}{times}"
            return f"stopped by its evaluation after iteration {newest[-1].iteration + 1}: {rest}"
    finished = record.finished_iterations()
    total = record.pipeline.num_iterations
    return f"all {total} iterations are done" if finished and finished[-1] + 1 >= total else None


def _as_jobs(record: RunRecord, where: str, go_on: str) -> Outcome:
    """A run without a living holder that was played as jobs and is not done."""
    assert record.jobs is not None  # asked only of such runs
    counts = record.jobs.counts()
    in_queue = counts_text(record.jobs, in_queue=True)
    if counts["running"]:  # on its nodes, but not yet in Python
        return Outcome("running", _running(record))
    if record.jobs.halted is not None:
        left = f"; still there: {in_queue}" if in_queue else ""
        return Outcome("stopped", f"halted {where}: {record.jobs.halted}{left}{go_on}")
    if in_queue:
        hedge = " as far as its files say" if record.jobs.silence else ""
        return Outcome("queued", f"in SLURM's queue{hedge}, {where}: {in_queue}")
    return Outcome("interrupted", f"cut off {where}: none of its jobs is in the queue any more{go_on}")


def is_held(record: RunRecord) -> bool | None:
    """Whether somebody works on the run: yes, no, or None where only another host could tell and its lease is stale."""
    return is_any_held(record.holdings)


def holder_text(record: RunRecord) -> str:
    """Who holds the run's lease, or those of its jobs, since when, and whether they live."""
    return holdings_text(record.holdings)
