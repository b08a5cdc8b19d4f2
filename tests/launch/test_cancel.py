"""`hpcrl cancel`: the run is halted first, then its jobs go, also one that was just being submitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcrl.cli import main
from hpcrl.errors import InputError
from hpcrl.launch.cancel import SUBMISSION_SECONDS, cancel_run, print_cancel
from hpcrl.launch.papers import Papers
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.site import Site
from hpcrl.store.ledger import now
from tests.report.job_run import JobRun, slurm_job
from tests.report.tiny_run import copy_of, digests, finished_run


class Cluster:
    """A queue whose jobs go when they are cancelled; it notes whether the run was halted before it was asked."""

    def __init__(self, run: JobRun, *jobs: Job, missing: Sequence[str] = (), error: Exception | None = None) -> None:
        self.run, self.jobs, self.missing, self.error = run, list(jobs), list(missing), error
        self.cancelled: list[str] = []
        self.was_halted: list[bool] = []

    def missing_commands(self) -> list[str]:
        return self.missing

    def queue(self) -> list[Job]:
        self.was_halted.append(self.run.ledger.halted() is not None)
        if self.error is not None:
            raise self.error
        return list(self.jobs)

    def cancel(self, ids: Sequence[str], /) -> None:
        self.cancelled += ids
        self.jobs = [
            dataclasses.replace(job, state="CANCELLED") if {job.id, job.array_id} & set(ids) else job
            for job in self.jobs
        ]


@pytest.fixture
def played(tmp_path: Path) -> JobRun:
    run = JobRun(tmp_path / "run", iterations=2)
    run.submit("rollout", 0, "1", -300.0)
    run.submit("rollout", 1, "3", -200.0, elements=(0, 1, 2))
    run.submit("generate", 1, "4", -200.0, after=["3"])
    return run


def in_queue() -> list[Job]:
    return [
        slurm_job("1", "COMPLETED"),
        slurm_job("3_0", "RUNNING"),
        slurm_job("3_1", "PENDING"),
        slurm_job("3_2", "PENDING"),
        slurm_job("4", "PENDING", "Dependency"),
        slurm_job("77", "RUNNING"),  # somebody else's
    ]


def test_jobs_in_the_queue_are_cancelled_after_the_run_was_halted(
    played: JobRun, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(played, *in_queue())
    assert print_cancel(played.path, cluster) == 0
    assert cluster.cancelled == ["3", "4"]
    assert cluster.was_halted == [True]
    assert str(played.ledger.halted()).endswith(" with hpcrl cancel")
    assert capsys.readouterr().out.splitlines() == [
        "nothing more is submitted",
        "cancelled 3 (rollout-000001: 2 pending, 1 running)",
        "cancelled 4 (generate-000001: pending)",
        f"what is published stays; go on with: hpcrl run PIPELINE --on slurm --run {played.path}",
    ]


def test_a_job_whose_submission_is_under_way_is_waited_for(played: JobRun) -> None:
    """It was claimed before the run was halted; sbatch answers a moment later, its id is never written down."""
    unit = played.submit("rollout", 2, None, -1.0)
    token = played.ledger.tries(unit)[0].claim.token
    cluster = Cluster(played)
    sleeps = 0

    def sleep(_: float) -> None:
        nonlocal sleeps
        sleeps += 1
        assert sleeps < 100
        if sleeps == 2:
            cluster.jobs.append(dataclasses.replace(slurm_job("9", "PENDING"), comment=f"hpcrl rollout {token}"))
        if sleeps == 3:
            played.ledger.record_job(unit, 1, "9")

    said: list[str] = []
    assert cancel_run(played.path, cluster, say=said.append, sleep=sleep) == ["9"]
    assert said[-1] == "cancelled 9 (rollout-000002: pending)"
    assert sleeps == 3  # no claim is open any more


def test_a_claim_that_comes_to_nothing_is_not_waited_for_for_ever(
    played: JobRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.submit("rollout", 2, None, -1.0)
    moments = iter(float(number) for number in range(1000))
    monkeypatch.setattr("hpcrl.launch.cancel.time.monotonic", lambda: next(moments))
    sleeps: list[float] = []
    assert cancel_run(played.path, Cluster(played), sleep=sleeps.append) == []
    assert len(sleeps) == SUBMISSION_SECONDS


def test_of_a_run_that_is_over_waiting_jobs_go_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped by its evaluation does not end up as halted by a person."""
    run = JobRun.at(copy_of(finished_run(), tmp_path))
    unit = run.submit("guard", None, "5", -300.0)
    before = digests(run.path)
    cluster = Cluster(run, slurm_job("5", "PENDING", "BeginTime"))
    assert print_cancel(run.path, cluster) == 0
    assert digests(run.path) == before
    assert run.ledger.halted() is None
    assert capsys.readouterr().out.splitlines() == [
        "the run is over, nothing more is submitted",
        f"cancelled 5 ({unit.name}: pending)",
        f"the run had reached its end: hpcrl report {run.path}",
    ]


@pytest.mark.parametrize("file", ["pipeline.json", "jobs/jobs.json"])
def test_a_damaged_document_keeps_no_job_alive(played: JobRun, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    Papers("sbatch", (), "/", "hpcrl run x.py --on sbatch", now()).write(played.path, Site())
    (played.path / file).write_text("{")
    cluster = Cluster(played, *in_queue())
    assert print_cancel(played.path, cluster) == 0
    assert cluster.cancelled == ["3", "4"]
    assert played.ledger.halted() is not None
    assert "go on with: hpcrl run " in capsys.readouterr().out


def test_cancelling_twice_says_why_it_was_halted(played: JobRun, capsys: pytest.CaptureFixture[str]) -> None:
    played.ledger.halt("rollout-000001: failed 3 times")
    assert print_cancel(played.path, Cluster(played)) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "nothing more was submitted already: rollout-000001: failed 3 times",
        "no job of it was in the queue",
    ]


def test_a_silent_controller_leaves_a_halted_run(played: JobRun, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(played, error=SchedulerUnavailableError("squeue: no answer; go on with the same command"))
    assert print_cancel(played.path, cluster) == 1
    assert played.ledger.halted() is not None
    printed = capsys.readouterr()
    assert printed.err == (
        "hpcrl cancel: jobs in the queue are left there, and submit nothing more: squeue: no answer; go on with the "
        "same command\n"
    )


def test_without_commands_nothing_is_done(played: JobRun) -> None:
    before = digests(played.path)
    with pytest.raises(InputError, match=r"want SLURM's commands, found no scancel; run this on a login node"):
        cancel_run(played.path, Cluster(played, missing=["scancel"]))
    assert digests(played.path) == before


def test_a_run_that_was_never_submitted_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = JobRun(tmp_path / "run", loop=True)
    run.ledger.path.rmdir()
    assert main(["cancel", str(run.path)]) == 2
    assert capsys.readouterr().err == (
        f"hpcrl cancel: {run.path}: want a run that was submitted, given one that was not; end it with Ctrl-C where it "
        "runs\n"
    )
    assert not run.ledger.path.exists()
