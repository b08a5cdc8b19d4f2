"""The table of states: complete, reachable, documented, and right for a run whose truth is manifests."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from hpcrl.scheduler import STATES, Action, Job, SchedulerUnavailableError, SubmissionRefusedError, reaction, situation
from hpcrl.scheduler.jobs import ENDED, parse_accounting, parse_queue
from hpcrl.scheduler.states import DOCUMENT_BEGINS, DOCUMENT_ENDS, reaction_to_error, states_table
from tests.scheduler.fakes import recorded, recorded_jobs

PAGE = Path(__file__).parents[2] / "docs" / "slurm_states.md"
ME, ROOT = 1000, 0
ID = recorded_jobs()

QUEUE = {job.id: job for job in parse_queue(recorded("squeue_early")[0] + recorded("squeue_late")[0])}
EARLY = {job.id: job for job in parse_queue(recorded("squeue_early")[0])}
ACCOUNTING = {job.id: job for job in parse_accounting(recorded("sacct")[0])}
TEMPLATE = QUEUE[ID["failed"]]


def job(state: str, reason: str = "", **changes: object) -> Job:
    """A job as SLURM would tell it, made up where the cluster cannot produce it."""
    empty = {"exit_code": None, "signal": None, "cancelled_by": None, "restarts": 0}
    return dataclasses.replace(TEMPLATE, state=state, reason=reason, **{**empty, **changes})


def test_the_page_holds_the_table_of_the_code() -> None:
    text = PAGE.read_text()
    _, begins, rest = text.partition(DOCUMENT_BEGINS + "\n")
    table, ends, _ = rest.partition(DOCUMENT_ENDS)
    assert begins
    assert ends
    assert table == states_table()


def test_every_row_is_in_the_table_once() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in states_table().splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "situation"] == list(STATES)


@pytest.mark.parametrize(
    ("told", "name", "action", "counts"),
    [
        (EARLY[ID["held_by_user"]], "PENDING (held by you)", Action.REPORT, False),
        (EARLY[ID["held_by_admin"]], "PENDING (held by an administrator)", Action.REPORT, False),
        (EARLY[ID["begin"]], "PENDING (BeginTime)", Action.WAIT, False),
        (EARLY[f"{ID['array']}_6"], "PENDING (limit)", Action.WAIT, False),
        (EARLY[ID["never"]], "PENDING (DependencyNeverSatisfied)", Action.REPLACE, False),
        (EARLY[ID["dependency"]], "PENDING (Dependency)", Action.WAIT, False),
        (EARLY[ID["timeout"]], "RUNNING", Action.WAIT, False),
        (EARLY[ID["suspended"]], "SUSPENDED", Action.REPORT, False),
        (EARLY[ID["requeued"]], "PENDING (BeginTime)", Action.WAIT, False),  # requeued
        (QUEUE[ID["timeout"]], "TIMEOUT, no progress", Action.RETRY, True),
        (QUEUE[ID["failed"]], "FAILED", Action.RETRY, True),
        (QUEUE[ID["refused"]], "job says: refused", Action.STOP, True),  # exit code 2, and no time to write it down
        (QUEUE[ID["deadline"]], "DEADLINE", Action.STOP, True),
        (QUEUE[ID["cancelled"]], "CANCELLED (by whom is not known)", Action.RETRY, True),
        (QUEUE[ID["node_fail"]], "NODE_FAIL, no progress", Action.RETRY, True),
        (QUEUE[ID["preempted"]], "PREEMPTED", Action.RETRY, False),
        (QUEUE[ID["dependency"]], "COMPLETED, manifest missing", Action.RETRY, True),
        (ACCOUNTING[ID["cancelled"]], "CANCELLED (by somebody else)", Action.RETRY, True),
    ],
)
def test_recorded_jobs(told: Job, name: str, action: Action, counts: bool) -> None:
    assert situation(told, user=ME) == name
    assert (reaction(told, user=ME).action, reaction(told, user=ME).counts_as_failure) == (action, counts)


@pytest.mark.parametrize(
    ("told", "name", "action", "counts"),
    [
        (job("PENDING", "Resources"), "PENDING", Action.WAIT, False),
        (job("PENDING", "Priority"), "PENDING", Action.WAIT, False),
        (job("PENDING", ""), "PENDING", Action.WAIT, False),
        (job("PENDING", "QOSMaxJobsPerUserLimit"), "PENDING (limit)", Action.WAIT, False),
        (job("PENDING", "AssocGrpCpuLimit"), "PENDING (limit)", Action.WAIT, False),
        (job("PENDING", "AssocGrpCPUMinutesLimit"), "PENDING (cannot start)", Action.REPORT, False),
        (job("PENDING", "QOSMaxCpuPerJobLimit"), "PENDING (cannot start)", Action.REPORT, False),
        (job("PENDING", "PartitionTimeLimit"), "PENDING (cannot start)", Action.REPORT, False),
        (job("PENDING", "BadConstraints"), "PENDING (cannot start)", Action.REPORT, False),
        (job("PENDING", "AccountNotAllowed"), "PENDING (cannot start)", Action.REPORT, False),
        (job("PENDING", "PartitionDown"), "PENDING (partition away)", Action.REPORT, False),
        (job("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1"), "PENDING (nodes away)", Action.WAIT, False),
        (
            job(
                "PENDING", "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions"
            ),
            *("PENDING (nodes away)", Action.WAIT, False),
        ),
        (job("PENDING", "JobHoldMaxRequeue"), "PENDING (held after failed starts)", Action.REPLACE, True),
        (job("PENDING", "launch_failed_requeued_held"), "PENDING (held after failed starts)", Action.REPLACE, True),
        (job("PENDING", "job_requeued_in_held_state"), "PENDING (held by you)", Action.REPORT, False),
        (job("CONFIGURING"), "CONFIGURING", Action.WAIT, False),
        (job("COMPLETING"), "COMPLETING", Action.WAIT, False),
        (job("RESIZING"), "RESIZING", Action.WAIT, False),
        (job("SIGNALING"), "SIGNALING", Action.WAIT, False),
        (job("STAGE_OUT"), "STAGE_OUT", Action.WAIT, False),
        (job("STOPPED"), "STOPPED", Action.REPORT, False),
        (job("REQUEUED"), "REQUEUED", Action.WAIT, False),
        (job("REQUEUE_FED"), "REQUEUE_FED", Action.WAIT, False),
        (job("REQUEUE_HOLD"), "REQUEUE_HOLD", Action.REPORT, False),
        (job("RESV_DEL_HOLD"), "RESV_DEL_HOLD", Action.REPORT, False),
        (job("SPECIAL_EXIT"), "SPECIAL_EXIT", Action.REPORT, False),
        (job("A_STATE_OF_2031"), "another state", Action.REPORT, False),
        (job("BOOT_FAIL"), "BOOT_FAIL", Action.RETRY, True),
        (job("RECONFIG_FAIL"), "BOOT_FAIL", Action.RETRY, True),
        (job("LAUNCH_FAILED"), "LAUNCH_FAILED", Action.RETRY, True),
        (job("OUT_OF_MEMORY"), "OUT_OF_MEMORY", Action.RETRY, True),
        (job("REVOKED"), "REVOKED", Action.REPORT, False),
        (job("CANCELLED", cancelled_by=ME), "CANCELLED (by you)", Action.RETRY, False),
        (job("FAILED", exit_code=85), "job says: stopped, no progress", Action.RETRY, True),
        (job("FAILED", signal=9), "FAILED", Action.RETRY, True),
        (None, "unknown job", Action.RETRY, True),
    ],
)
def test_jobs_that_the_cluster_cannot_produce(told: Job | None, name: str, action: Action, counts: bool) -> None:
    assert situation(told, user=ME) == name
    assert (reaction(told, user=ME).action, reaction(told, user=ME).counts_as_failure) == (action, counts)


def test_a_published_unit_is_done_whatever_became_of_its_job() -> None:
    for state in [*ENDED, "PENDING", "RUNNING"]:
        assert reaction(job(state), is_published=True, outcome="failed").action is Action.GO_ON
    assert reaction(None, is_published=True).action is Action.GO_ON


@pytest.mark.parametrize(
    ("outcome", "action", "counts"),
    [
        ("done", Action.RETRY, True),
        ("waiting", Action.RETRY, False),
        ("stopped", Action.RETRY, False),
        ("refused", Action.STOP, True),
        ("failed", Action.RETRY, True),
    ],
)
def test_the_jobs_own_word_counts_more_than_slurms(outcome: str, action: Action, counts: bool) -> None:
    for told in (None, job("COMPLETED"), job("FAILED", exit_code=7), job("RUNNING"), job("TIMEOUT")):
        found = reaction(told, outcome=outcome, has_progressed=True)
        assert (found.action, found.counts_as_failure) == (action, counts)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="outcome: want one of done, waiting, stopped, refused, failed, given 'fine'"):
        reaction(None, outcome="fine")


@pytest.mark.parametrize("state", ["TIMEOUT", "NODE_FAIL"])
def test_progress_is_no_failure(state: str) -> None:
    assert not reaction(job(state), has_progressed=True).counts_as_failure
    assert reaction(job(state)).counts_as_failure
    assert not reaction(None, has_progressed=True).counts_as_failure
    assert not reaction(None, outcome="stopped", has_progressed=True).counts_as_failure
    assert reaction(None, outcome="stopped").counts_as_failure


def test_a_job_that_was_driven_out_at_once_has_not_failed() -> None:
    for state in ("PREEMPTED", "CANCELLED"):
        assert not reaction(job(state), outcome="stopped").counts_as_failure


def test_more_memory_and_more_time_only_where_the_site_allows_them() -> None:
    assert reaction(job("OUT_OF_MEMORY"), memory_may_grow=True).action is Action.RETRY_WITH_MORE_MEMORY
    assert reaction(job("OUT_OF_MEMORY"), time_may_grow=True).action is Action.RETRY
    for told, outcome in ((job("TIMEOUT"), None), (None, "stopped")):
        assert reaction(told, outcome=outcome, time_may_grow=True).action is Action.RETRY_WITH_MORE_TIME
        assert reaction(told, outcome=outcome, time_may_grow=True, has_progressed=True).action is Action.RETRY


def test_a_lost_job_is_told_apart_from_one_that_accounting_could_explain() -> None:
    assert situation(None, accounting_is_off=True) == "unknown job, accounting off"


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (SubmissionRefusedError("...", "partition"), Action.STOP),
        (SubmissionRefusedError("..."), Action.STOP),
        (SubmissionRefusedError("...", "limit"), Action.WAIT),
        (SubmissionRefusedError("...", "dependency"), Action.RETRY),
        (SchedulerUnavailableError("..."), Action.WAIT),
    ],
)
def test_errors_of_the_scheduler(error: SubmissionRefusedError | SchedulerUnavailableError, action: Action) -> None:
    assert reaction_to_error(error).action is action


def test_every_row_can_be_reached() -> None:
    jobs: list[Job | None] = [None, *QUEUE.values(), *EARLY.values(), *ACCOUNTING.values()]
    jobs += [job(state) for state in [*ENDED, *STATES]]
    jobs += [
        job("PENDING", reason)
        for reason in ("", "PartitionDown", "BadConstraints", "ReqNodeNotAvail", "JobHoldMaxRequeue")
    ]
    jobs += [job("CANCELLED", cancelled_by=who) for who in (ME, ROOT)]
    outcomes = (None, "done", "waiting", "stopped", "refused", "failed")
    reached = {
        situation(told, outcome=outcome, is_published=a, has_progressed=b, memory_may_grow=c, time_may_grow=c,
                  accounting_is_off=d, user=ME)
        for told, outcome, a, b, c, d in itertools.product(jobs, outcomes, *[(False, True)] * 4)
    }  # fmt: skip
    errors = {
        "submission refused",
        "submission refused (submit limit)",
        "submission refused (dependency)",
        "controller down",
    }
    assert reached | errors == set(STATES)


def test_only_what_leaves_the_queue_or_never_starts_is_submitted_anew() -> None:
    """A retry beside a job that is still there would do the work twice."""
    for told in [
        *QUEUE.values(),
        *EARLY.values(),
        *(job(state) for state in STATES if state.replace("_", "").isalpha()),
    ]:
        if reaction(told, user=ME).action in (Action.RETRY, Action.RETRY_WITH_MORE_MEMORY, Action.RETRY_WITH_MORE_TIME):
            assert told.is_over
