"""What follows from each thing that SLURM does to a job: one table."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypedDict, Unpack

from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SchedulerUnavailableError, SubmissionRefusedError

DOCUMENT_BEGINS: Final = "<!-- states: made from hpcrl/scheduler/states.py -->"
DOCUMENT_ENDS: Final = "<!-- end of states -->"
"""Between these two docs/slurm_states.md holds `states_table()`."""


class Action(enum.Enum):
    """What repair does about a unit (one job or array) whose manifests are not all there."""

    GO_ON = "go on"
    """It ended well, or nothing is missing: look at the manifests, submit what comes next."""
    WAIT = "wait"
    """It is on its way."""
    RETRY = "try again"
    """Submit it anew; of an array only the elements whose parts are missing."""
    RETRY_WITH_MORE_MEMORY = "try again with more memory"
    RETRY_WITH_MORE_TIME = "try again with more time"
    REPLACE = "cancel and submit anew"
    """It would stay in the queue for ever."""
    STOP = "halt the run"
    """Nothing more is submitted; the reason is written down."""
    REPORT = "tell, and wait"
    """Only a person can help; the rest goes on meanwhile."""


@dataclass(frozen=True)
class Reaction:
    """What is done, whether it counts towards `limits.retries`, and what to tell a person."""

    action: Action
    counts_as_failure: bool
    words: str


def _row(action: Action, words: str, *, counts: bool = False) -> Reaction:
    return Reaction(action, counts, words)


_JOB_SAYS: Final[Mapping[str, Reaction]] = {
    "manifest published": _row(Action.GO_ON, "the unit's manifests are there, whatever became of its job"),
    "job says: done": _row(
        Action.RETRY, "it says it is done, but a manifest is missing: what it wrote is gone", counts=True
    ),
    "job says: waiting": _row(Action.RETRY, "its input was not there yet; it is submitted behind what it needs"),
    "job says: stopped": _row(
        Action.RETRY, "asked to stop, it published what it had (exit code 85); goes on from there"
    ),
    "job says: stopped, no progress": _row(
        Action.RETRY,
        "asked to stop before it had got anything done; lengthen resources.time_minutes, or allow limits.time_growth",
        counts=True,
    ),
    "job says: stopped, no progress, time may grow": _row(
        Action.RETRY_WITH_MORE_TIME, "asked to stop before it had got anything done", counts=True
    ),
    "job says: refused": _row(
        Action.STOP, "bad input (exit code 2): its log says what is wrong; trying again cannot help", counts=True
    ),
    "job says: failed": _row(Action.RETRY, "an error (exit code 1): its log has it", counts=True),
}
"""By the job's own word, which counts more than SLURM's."""

_ENDED: Final[Mapping[str, Reaction]] = {
    "COMPLETED": _row(Action.GO_ON, "ended with exit code 0, and the unit's manifests are there"),
    "COMPLETED, manifest missing": _row(
        Action.RETRY, "ended with exit code 0, yet a manifest is missing: look at its log", counts=True
    ),
    "FAILED": _row(
        Action.RETRY, "ended with another exit code or by a signal, without a word: its log has it", counts=True
    ),
    "TIMEOUT": _row(Action.RETRY, "reached its time limit and had published something; goes on from there"),
    "TIMEOUT, no progress": _row(
        Action.RETRY,
        "reached its time limit before it had published anything; lengthen resources.time_minutes or "
        "limits.signal_lead_seconds, or allow limits.time_growth",
        counts=True,
    ),
    "TIMEOUT, no progress, time may grow": _row(
        Action.RETRY_WITH_MORE_TIME, "reached its time limit before it had published anything", counts=True
    ),
    "OUT_OF_MEMORY": _row(
        Action.RETRY,
        "took more memory than asked for; raise resources.memory_gb_per_rank, or allow limits.memory_growth",
        counts=True,
    ),
    "OUT_OF_MEMORY, memory may grow": _row(
        Action.RETRY_WITH_MORE_MEMORY, "took more memory than asked for", counts=True
    ),
    "PREEMPTED": _row(Action.RETRY, "made room for a more urgent job and was not requeued by SLURM"),
    "NODE_FAIL": _row(Action.RETRY, "its node failed and SLURM did not requeue it; it had published something"),
    "NODE_FAIL, no progress": _row(
        Action.RETRY, "its node failed before it had published anything and SLURM did not requeue it", counts=True
    ),
    "BOOT_FAIL": _row(Action.RETRY, "its node did not start up", counts=True),
    "LAUNCH_FAILED": _row(Action.RETRY, "its node could not start it", counts=True),
    "DEADLINE": _row(
        Action.STOP, "it could not end before the --deadline of resources.extra; take that out or move it", counts=True
    ),
    "CANCELLED (by you)": _row(
        Action.RETRY, "cancelled with scancel; to end the run, use hpcrl cancel, which also stops resubmission"
    ),
    "CANCELLED (by somebody else)": _row(
        Action.RETRY, "cancelled by an administrator or operator: ask why before it happens again", counts=True
    ),
    "CANCELLED (by whom is not known)": _row(
        Action.RETRY, "cancelled; to end the run, use hpcrl cancel, which also stops resubmission", counts=True
    ),
    "REVOKED": _row(Action.REPORT, "another cluster of the federation started it; hpcrl knows this cluster only"),
}
"""By the state in which SLURM says that the job ended."""

_PENDING: Final[Mapping[str, Reaction]] = {
    "PENDING": _row(Action.WAIT, "waits its turn"),
    "PENDING (BeginTime)": _row(Action.WAIT, "requeued a moment ago, or asked to start later"),
    "PENDING (Dependency)": _row(Action.WAIT, "waits for the jobs before it"),
    "PENDING (limit)": _row(
        Action.WAIT, "you or your account have as much running as allowed; it starts when some has ended"
    ),
    "PENDING (nodes away)": _row(Action.WAIT, "the nodes it needs are down, drained or reserved"),
    "PENDING (partition away)": _row(
        Action.REPORT, "its partition is down or takes no jobs now; an administrator opens it again"
    ),
    "PENDING (held by you)": _row(Action.REPORT, "held; let it go on with: scontrol release JOB"),
    "PENDING (held by an administrator)": _row(
        Action.REPORT, "held by an administrator: ask why; only they can release it"
    ),
    "PENDING (held after failed starts)": _row(
        Action.REPLACE, "SLURM could not start it several times and holds it", counts=True
    ),
    "PENDING (DependencyNeverSatisfied)": _row(Action.REPLACE, "waits for something that cannot happen any more"),
    "PENDING (cannot start)": _row(
        Action.REPORT,
        "asks for more than its partition, account or QOS allows, so it never starts: correct the site file, "
        "then cancel it with scancel; it is submitted anew",
    ),
}
"""By the reason that SLURM gives for a job that waits."""

_LIVE: Final[Mapping[str, Reaction]] = {
    "CONFIGURING": _row(Action.WAIT, "its nodes are being made ready"),
    "RUNNING": _row(Action.WAIT, "runs"),
    "COMPLETING": _row(Action.WAIT, "has ended; its nodes are being cleared"),
    "RESIZING": _row(Action.WAIT, "its size is being changed"),
    "SIGNALING": _row(Action.WAIT, "is being sent a signal"),
    "STAGE_OUT": _row(Action.WAIT, "its files are being copied from a burst buffer"),
    "SUSPENDED": _row(Action.REPORT, "suspended; whoever did it lets it go on with: scontrol resume JOB"),
    "STOPPED": _row(Action.REPORT, "stopped with SIGSTOP, and keeps its nodes; go on with: scancel --signal=CONT JOB"),
    "REQUEUED": _row(Action.WAIT, "SLURM puts it back into the queue (node failure, preemption, its own wish)"),
    "REQUEUE_FED": _row(Action.WAIT, "SLURM puts it back into the federation's queue"),
    "REQUEUE_HOLD": _row(Action.REPORT, "requeued and held; let it go on with: scontrol release JOB"),
    "RESV_DEL_HOLD": _row(
        Action.REPORT, "held, because its reservation was deleted; scontrol release JOB, or scancel JOB"
    ),
    "SPECIAL_EXIT": _row(
        Action.REPORT, "requeued and held for a special exit code; let it go on with: scontrol release JOB"
    ),
    "another state": _row(Action.REPORT, "a state that hpcrl does not know: see the manual page of squeue"),
}
"""By the state of a job that has not ended."""

_BESIDE: Final[Mapping[str, Reaction]] = {
    "submission refused": _row(Action.STOP, "sbatch would not take it, and says why", counts=True),
    "submission refused (submit limit)": _row(
        Action.WAIT, "you have as many jobs in the queue as allowed; the next repair tries again"
    ),
    "submission refused (dependency)": _row(
        Action.RETRY, "a job it should wait for has left SLURM's memory; submitted again behind those still known"
    ),
    "controller down": _row(
        Action.WAIT, "SLURM does not answer: asked again with growing pauses; a job goes on with its own work meanwhile"
    ),
    "unknown job": _row(
        Action.RETRY,
        "neither squeue nor sacct knows it, and it left no word: lost, or an array element cancelled before its start",
        counts=True,
    ),
    "unknown job, progress": _row(
        Action.RETRY, "neither squeue nor sacct knows it, but it had published something; goes on from there"
    ),
    "unknown job, accounting off": _row(
        Action.RETRY, "squeue has forgotten it, sacct cannot tell, and it left no word", counts=True
    ),
}
"""When there is no state at all."""

STATES: Final[Mapping[str, Reaction]] = {**_JOB_SAYS, **_ENDED, **_PENDING, **_LIVE, **_BESIDE}
"""Situation -> what follows. The one place; docs/slurm_states.md is made from it."""

_GROUPS = (
    ("What the job says of itself, and what lies on disk", _JOB_SAYS),
    ("How SLURM says it ended", _ENDED),
    ("Why it waits", _PENDING),
    ("While it is there", _LIVE),
    ("When SLURM has no state to tell", _BESIDE),
)

_REASONS: Final = (
    ("PENDING (DependencyNeverSatisfied)", r"DependencyNeverSatisfied"),
    ("PENDING (held by you)", r"JobHeldUser|requeued.in.held"),
    ("PENDING (held by an administrator)", r"JobHeldAdmin"),
    ("PENDING (held after failed starts)", r"JobHoldMaxRequeue|launch.failed.requeued.held"),
    ("PENDING (BeginTime)", r"BeginTime"),
    ("PENDING (Dependency)", r"Dependency"),
    ("PENDING (nodes away)", r"ReqNodeNotAvail|Nodes.required|NodeDown|Reservation"),
    ("PENDING (partition away)", r"PartitionDown|PartitionInactive"),
    (
        "PENDING (cannot start)",
        r"PartitionTimeLimit|PartitionNodeLimit|BadConstraints|NotAllowed|InvalidAccount|InvalidQOS|AccountingPolicy|"
        r"PerJob|MaxWall|\w*Min\w*(Cpu|Node|GRES|TRES|Mem)|DeadLine|Grp\w*Minutes|Grp\w*RunMins|AssocGrpBilling",
    ),
    ("PENDING (limit)", r"^(QOS|Assoc)|JobArrayTaskLimit|Licenses"),
)
"""Situation, what SLURM's reason matches; the first counts."""

_OUTCOMES = ("done", "waiting", "stopped", "refused", "failed")
_BY_EXIT_CODE = {2: "refused", 85: "stopped"}


class Known(TypedDict, total=False):
    """What is known of a job beside SLURM's word; see `situation`."""

    outcome: str | None
    is_published: bool
    has_progressed: bool
    memory_may_grow: bool
    time_may_grow: bool
    accounting_is_off: bool
    user: int | None


def reaction(job: Job | None, **known: Unpack[Known]) -> Reaction:
    """What to do about a unit, from what is known of its newest job (or of one element of its array).

    Args: see `situation`.
    Example:
        >>> reaction(None, outcome="failed").action
        <Action.RETRY: 'try again'>
    """
    return STATES[situation(job, **known)]


def reaction_to_error(error: SubmissionRefusedError | SchedulerUnavailableError) -> Reaction:
    """What to do when a job could not be submitted, or SLURM could not be asked.

    Example:
        >>> reaction_to_error(SubmissionRefusedError("...", "limit")).action
        <Action.WAIT: 'wait'>
    """
    if isinstance(error, SchedulerUnavailableError):
        return STATES["controller down"]
    if error.is_temporary:
        return STATES["submission refused (submit limit)"]
    return STATES["submission refused (dependency)" if error.kind == "dependency" else "submission refused"]


def situation(
    job: Job | None,
    *,
    outcome: str | None = None,
    is_published: bool = False,
    has_progressed: bool = False,
    memory_may_grow: bool = False,
    time_may_grow: bool = False,
    accounting_is_off: bool = False,
    user: int | None = None,
) -> str:
    """The row of the table that applies.

    Args:
        job: as SLURM tells it; None when SLURM knows no such job. One submitted less than a minute ago may be unknown
            only because its accounting is late: ask again.
        outcome: the job's own last word: done, waiting, stopped, refused, failed; None: it left none.
        is_published: whether all manifests of the unit are there.
        has_progressed: whether anything was published since this job began.
        memory_may_grow, time_may_grow: whether the site allows more than this job had (Site.more_memory, more_time).
        accounting_is_off: whether sacct could not be asked.
        user: id of the run's user, to know whose a cancellation was; None: this process's.
    Raises: ValueError for an outcome that is none.
    Example:
        >>> situation(None, accounting_is_off=True)
        'unknown job, accounting off'
    """
    if outcome is not None and outcome not in _OUTCOMES:
        raise ValueError(f"outcome: want one of {', '.join(_OUTCOMES)}, given {outcome!r}")
    if is_published:
        return "COMPLETED" if job is not None and job.state == "COMPLETED" else "manifest published"
    if outcome is None and job is not None and job.state == "FAILED" and job.exit_code is not None:
        outcome = _BY_EXIT_CODE.get(job.exit_code)  # it could not write its word down, but its code is one
    if outcome is not None:
        was_driven_out = job is not None and job.state in (
            "PREEMPTED",
            "CANCELLED",
        )  # it had no chance to get anything done
        return _of_outcome(outcome, has_progressed or was_driven_out, time_may_grow)
    if job is None:
        if has_progressed:
            return "unknown job, progress"
        return "unknown job, accounting off" if accounting_is_off else "unknown job"
    if job.state == "PENDING":
        return _of_reason(job.reason)
    return _of_state(job, has_progressed, memory_may_grow, time_may_grow, os.geteuid() if user is None else user)


def _of_outcome(outcome: str, has_progressed: bool, time_may_grow: bool) -> str:
    if outcome == "stopped" and not has_progressed:
        return f"job says: stopped, no progress{', time may grow' if time_may_grow else ''}"
    return f"job says: {outcome}"


def _of_reason(reason: str) -> str:
    for name, pattern in _REASONS:
        if re.search(pattern, reason):
            return name
    return "PENDING"


def _of_state(job: Job, has_progressed: bool, memory_may_grow: bool, time_may_grow: bool, user: int) -> str:
    state = job.state
    if state == "CANCELLED":
        if job.cancelled_by is None:
            return "CANCELLED (by whom is not known)"
        return "CANCELLED (by you)" if job.cancelled_by == user else "CANCELLED (by somebody else)"
    if state == "COMPLETED":
        return "COMPLETED, manifest missing"
    if state == "OUT_OF_MEMORY" and memory_may_grow:
        return "OUT_OF_MEMORY, memory may grow"
    if state in ("TIMEOUT", "NODE_FAIL") and not has_progressed:
        return f"{state}, no progress{', time may grow' if state == 'TIMEOUT' and time_may_grow else ''}"
    if state == "RECONFIG_FAIL":
        return "BOOT_FAIL"
    return state if state in _ENDED or state in _LIVE else "another state"


def states_table() -> str:
    """The table as Markdown."""
    lines: list[str] = []
    for title, rows in _GROUPS:
        lines += [f"## {title}", "", "| situation | what is done | a failure? | what it means |", "|---|---|---|---|"]
        for name, row in rows.items():
            lines.append(f"| {name} | {row.action.value} | {'yes' if row.counts_as_failure else 'no'} | {row.words} |")
        lines.append("")
    return "\n".join(lines)
