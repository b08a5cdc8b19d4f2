"""`hpcrl status` of runs that play as SLURM jobs: with SLURM's answer, and from files alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from hpcrl.cli import main
from hpcrl.report.outcome import outcome_of
from hpcrl.report.record import RunRecord
from hpcrl.report.status import status_text
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.store.ledger import Unit
from tests.report.job_run import COMMAND, FakeSlurm, JobRun, slurm_job
from tests.report.tiny_run import digests


@pytest.fixture
def played(tmp_path: Path) -> JobRun:
    """Two iterations done; of the third the first of four elements played, and the second plays."""
    run = JobRun(tmp_path / "run")
    for iteration, (at, jobs) in enumerate(((-200.0, ("11", "12")), (-136.0, ("13", "14")))):
        before = ["12"] if iteration else []
        rollout = run.submit("rollout", iteration, jobs[0], at - 30.0, elements=range(4), after=before)
        update = run.submit("generate", iteration, jobs[1], at - 30.0, after=[jobs[0]])
        for element in range(4):
            run.launch(rollout, f"9{iteration}{element}", at + 5.0, element=element)
            run.end(rollout, at + 20.0 + element, element=element)
        run.launch(update, jobs[1], at + 30.0)
        run.end(update, at + 60.0)
    rollout = run.submit("rollout", 2, "15", -100.0, elements=range(4), after=["14"])
    run.submit("generate", 2, "16", -100.0, after=["15"])
    run.submit("guard", None, "17", -50.0, after=["16"])
    for element in range(2):
        run.launch(rollout, f"92{element}", -70.0, element=element)
    run.end(rollout, -60.0, element=0)
    run.hold(rollout, "921", element=1)
    return run


def answers(*others: tuple[str, str, str]) -> FakeSlurm:
    """SLURM's view of it; `others` replace (id, state, reason)."""
    jobs = {
        "15_1": ("RUNNING", ""),
        "15_2": ("PENDING", "JobArrayTaskLimit"),
        "15_3": ("PENDING", "JobArrayTaskLimit"),
        "16": ("PENDING", "Dependency"),
        "17": ("PENDING", "Dependency"),
    }
    jobs |= {id_: (state, reason) for id_, state, reason in others}
    return FakeSlurm(*(slurm_job(id_, state, reason) for id_, (state, reason) in jobs.items()))


def lines_of(path: Path, slurm: FakeSlurm | None) -> dict[str, str]:
    """Label -> text; lines without a label belong to the one above."""
    found: dict[str, str] = {}
    label, text = "", status_text(path, slurm)
    column = text.index("large")  # the pipeline's name, in the first line
    for line in text.splitlines():
        label = line[:column].strip() or label
        found[label] = f"{found[label]}\n{line[column:]}" if label in found else line[column:]
    return found


def job_rows(path: Path, slurm: FakeSlurm | None) -> dict[tuple[str, str], tuple[str, ...]]:
    """(unit, try) -> (job, waited, ran, state)."""
    head, *rows = lines_of(path, slurm)["jobs"].splitlines()
    starts = [head.index(name) for name in ("unit", "try", "job", "waited", "ran", "state")]
    stops = [*starts[1:], None]
    cells = [
        [row[start:stop].strip() for start, stop in zip(starts, stops, strict=True)] for row in rows if row[0] != "("
    ]
    return {(unit, number): tuple(rest) for unit, number, *rest in cells}


def test_jobs_as_the_scheduler_sees_them(played: JobRun) -> None:
    slurm = answers(("17", "PENDING", "JobHeldUser"))
    before = digests(played.path)
    lines, rows = lines_of(played.path, slurm), job_rows(played.path, slurm)
    assert digests(played.path) == before
    assert lines["state"] == "running as SLURM jobs: 1 running, 3 queued, 1 held"
    assert list(rows) == [
        (unit, "1") for unit in ("rollout-000001", "generate-000001", "rollout-000002", "generate-000002", "guard-loop")
    ]
    # Job 13 depended on 12, which ended 141 s ago; its first element began 131 s ago.
    assert rows["rollout-000001", "1"] == ("13", "9.0 s", "18.0 s", "4 of 4 done")
    assert rows["generate-000001", "1"] == ("14", "7.0 s", "30.0 s", "done")
    job, waited, ran, state = rows["rollout-000002", "1"]
    assert (job, waited) == ("15", "6.0 s")
    assert ran.endswith(" so far")
    assert state == "1 of 4 done, 1 running, 2 queued (waits for other elements of its array)"
    assert rows["generate-000002", "1"] == ("16", "–", "–", "queued: waits for the jobs before it")
    assert rows["guard-loop", "1"][3] == "held: scontrol release 17"
    assert lines["next"] == "scontrol release 17"
    assert lines["lease"].startswith("rollout-000002_1: pid ")
    assert "on node-7, job 921" in lines["lease"]


def test_only_jobs_that_have_not_ended_are_asked_for(played: JobRun) -> None:
    slurm = answers()
    status_text(played.path, slurm)
    assert sorted(slurm.asked) == ["15_1", "15_2", "15_3", "16", "17"]


def test_stages_stand_as_the_jobs_of_their_segments(played: JobRun) -> None:
    for name in ("manifest.json", "attempt-0001/metrics.jsonl"):
        (played.path / "iteration-000002/rollout" / name).unlink()
    lines = lines_of(played.path, answers())
    assert lines["iteration"] == "3 of 3"
    assert lines["rollout"] == "running (attempt 1)"
    assert lines["advantage"] == "queued (attempt 1, 1 of 4 blocks published)"
    assert lines["update"] == "waiting"


def test_several_iterations_are_worked_on_at_once(played: JobRun) -> None:
    (played.path / "iteration-000001/evaluate/manifest.json").unlink()
    text = status_text(played.path, answers())
    assert [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("iteration")] == [
        "2 of 3",
        "3 of 3",
    ]


def test_from_files_alone(played: JobRun) -> None:
    """No SLURM on this machine: leases say who runs, the ledger what was submitted."""
    lines, rows = lines_of(played.path, None), job_rows(played.path, None)
    assert lines["state"] == "running as SLURM jobs: 1 running, 4 queued"
    assert rows["rollout-000002", "1"][3] == "1 of 4 done, 1 running, 2 queued"
    assert rows["generate-000002", "1"] == ("16", "–", "–", "queued: waits for the jobs before it")
    assert lines["jobs"].endswith("\n(from files alone: SLURM's commands are not on this machine)")
    assert lines["next"] == f"hpcrl logs {played.path}"


def test_a_lease_without_heartbeat_is_no_sign_of_life(played: JobRun) -> None:
    lease = played.path / "leases/rollout-000002_1/lease"
    os.utime(lease, (0, 0))
    lines = lines_of(played.path, None)
    assert lines["state"].startswith(
        "in SLURM's queue as far as its files say, after iteration 2 of 3: 4 queued, 1 requeued"
    )
    assert "last heartbeat" in lines["lease"]


def test_a_silent_controller_is_told(played: JobRun) -> None:
    slurm = FakeSlurm(error=SchedulerUnavailableError("squeue: no answer in 5 s"))
    lines = lines_of(played.path, slurm)
    assert lines["jobs"].endswith("(from files alone: squeue: no answer in 5 s)")
    assert lines["state"] == "running as SLURM jobs: 1 running, 4 queued"


def test_jobs_that_nobody_knows_are_lost(played: JobRun) -> None:
    os.utime(played.path / "leases/rollout-000002_1/lease", (0, 0))
    slurm = FakeSlurm(slurm_job("15_1", "NODE_FAIL"), slurm_job("15_2", "CANCELLED"))
    lines, rows = lines_of(played.path, slurm), job_rows(played.path, slurm)
    assert lines["state"] == (
        f"cut off after iteration 2 of 3: none of its jobs is in the queue any more; go on with: {COMMAND}"
    )
    assert rows["rollout-000002", "1"][3] == ("1 of 4 done, 2 ended (NODE_FAIL), 1 lost (SLURM knows nothing of it)")
    assert rows["generate-000002", "1"][3] == "lost: SLURM knows nothing of it"
    assert lines["next"] == COMMAND
    assert "ends" not in lines


def test_jobs_cancelled_in_the_queue_never_started(played: JobRun) -> None:
    """As SLURM tells it: the reason is still the one for which it was pending, the start is the end."""
    cancelled = dataclasses.replace(slurm_job("16", "CANCELLED", "JobHeldUser"), started=played.now, ended=played.now)
    rows = job_rows(played.path, FakeSlurm(cancelled))
    assert rows["generate-000002", "1"] == ("16", "–", "–", "ended without a word: CANCELLED")


def test_a_job_that_runs_but_has_not_reached_python(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    run.submit("rollout", 0, "1", -30.0)
    slurm = FakeSlurm(slurm_job("1", "RUNNING", started=run.now - 10.0))
    assert lines_of(run.path, slurm)["state"] == "running as SLURM jobs: 1 running"
    job, waited, ran, state = job_rows(run.path, slurm)["rollout-000000", "1"]
    assert (job, waited, state) == ("1", "20.0 s", "running")
    assert ran.endswith(" s so far")


def test_a_halted_run_says_why_and_what_to_type(played: JobRun) -> None:
    os.utime(played.path / "leases/rollout-000002_1/lease", (0, 0))
    played.ledger.halt("rollout-000002: failed 3 times (limits.retries = 2)")
    lines = lines_of(played.path, FakeSlurm(slurm_job("16", "PENDING", "Priority")))
    assert lines["state"] == (
        "halted after iteration 2 of 3: rollout-000002: failed 3 times (limits.retries = 2); still there: 1 queued; "
        f"go on with: {COMMAND}"
    )
    assert lines["halted"] == "rollout-000002: failed 3 times (limits.retries = 2)"
    assert lines["next"] == COMMAND


def test_a_halted_run_whose_jobs_still_run(played: JobRun) -> None:
    played.ledger.halt("cancelled by anna with hpcrl cancel")
    lines = lines_of(played.path, answers())
    assert lines["state"].endswith("; nothing more is submitted: cancelled by anna with hpcrl cancel")
    assert "ends" not in lines


def test_a_run_that_waits_in_the_queue(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    run.submit("rollout", 0, "1", -30.0, elements=range(4))
    slurm = FakeSlurm(*(slurm_job(f"1_{element}", "PENDING", "Resources") for element in range(4)))
    lines, rows = lines_of(run.path, slurm), job_rows(run.path, slurm)
    assert lines["state"] == "in SLURM's queue, before its first of 1 iterations was done: 4 queued"
    job, waited, ran, state = rows["rollout-000000", "1"]
    assert (job, ran, state) == ("1", "–", "0 of 4 done, 4 queued (waits for free nodes)")
    assert waited.startswith("30.")
    assert waited.endswith(" s so far")
    assert lines["next"] == "nothing to do: its jobs start by themselves"


def test_a_requeued_job_and_a_second_try(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    unit = run.submit("rollout", 0, "1", -300.0)
    run.launch(unit, "1", -290.0)
    run.launch(unit, "1", -200.0, restarts=1)
    run.end(unit, -150.0, "failed", reason="OSError: no space left")
    run.submit("rollout", 0, "2", -140.0, number=2)
    run.launch(unit, "2", -130.0)
    rows = job_rows(run.path, FakeSlurm(slurm_job("2", "PENDING", "BeginTime", restarts=1)))
    assert rows["rollout-000000", "1"] == (
        "1", "10.0 s", "2 min 20 s", "failed: OSError: no space left, requeued 1 time",
    )  # fmt: skip
    assert rows["rollout-000000", "2"] == ("2", "10.0 s", "–", "requeued: starts again shortly")


def test_a_claim_without_a_job(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    run.submit("rollout", 0, None, -300.0)
    run.submit("generate", 0, None, -1.0)
    rows = job_rows(run.path, FakeSlurm())
    assert rows["rollout-000000", "1"] == ("none yet", "–", "–", "lost: never submitted")
    assert rows["generate-000000", "1"][3] == "submitting"


def test_a_long_array_comes_in_several_jobs(tmp_path: Path) -> None:
    """SLURM counts each from 0; the ledger goes on counting."""
    run = JobRun(tmp_path / "run", iterations=1)
    run.submit("rollout", 0, "1", -30.0, elements=(0, 1))
    unit = run.submit("rollout", 0, "2", -30.0, number=2, elements=(2, 3), first_element=2)
    run.launch(unit, "901", -20.0, element=1)
    slurm = FakeSlurm(
        slurm_job("1_0", "PENDING", "Priority"),
        slurm_job("1_1", "RUNNING"),
        slurm_job("2_0", "PENDING", "JobHeldAdmin"),
        slurm_job("2_1", "PENDING", "Priority"),
    )
    rows = job_rows(run.path, slurm)
    assert slurm.asked == ["1_0", "1_1", "2_0", "2_1"]
    assert rows["rollout-000000", "1"][:2] == ("1", "10.0 s")
    assert rows["rollout-000000", "1"][3] == "0 of 2 done, 1 running, 1 queued (waits behind other jobs)"
    assert rows["rollout-000000", "2"][3] == (
        "0 of 2 done, 1 queued (waits behind other jobs), 1 held (scontrol release 2)"
    )


def test_a_refused_array_speaks_for_all_its_elements(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    unit = run.submit("rollout", 0, "1", -30.0, elements=range(4))
    run.end(unit, -10.0, "refused", reason="want hpcrl 1, given 2")
    rows = job_rows(run.path, FakeSlurm())
    assert rows["rollout-000000", "1"][3] == "0 of 4 done, 4 refused (want hpcrl 1, given 2)"


def test_a_loop_holds_the_runs_own_lease(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", loop=True)
    loop = run.submit("main", None, "5", -500.0)
    run.submit("main", None, "6", -500.0, number=2, after=["5"])
    run.launch(loop, "5", -480.0)
    run.hold(loop, "5")
    for slurm in (None, FakeSlurm(slurm_job("5", "RUNNING"), slurm_job("6", "PENDING", "Dependency"))):
        lines, rows = lines_of(run.path, slurm), job_rows(run.path, slurm)
        assert lines["state"] == "running as SLURM jobs: 1 running, 1 queued"
        assert rows["main-loop", "1"][:2] == ("5", "20.0 s")
        assert rows["main-loop", "1"][3] == "running"
        assert rows["main-loop", "2"] == ("6", "–", "–", "queued: waits for the jobs before it")
        assert lines["advantage"].startswith("running (attempt 1")


def test_the_expected_end_comes_from_the_newest_iterations(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=8)
    unit = run.submit("generate", 7, "1", -40.0)
    run.launch(unit, "1", -30.0)
    run.hold(unit, "1")
    lines = lines_of(run.path, FakeSlurm(slurm_job("1", "RUNNING")))
    assert lines["ends"].startswith("about ")
    assert "(1 min an iteration over the newest 6, 1 iteration left)" in lines["ends"]


def test_a_finished_run_is_done_whatever_its_guard_does(played: JobRun) -> None:
    (played.path / "leases/rollout-000002_1/lease").unlink()
    for stage in ("advantage", "update", "redistribute", "evaluate"):
        source = played.path / f"iteration-000001/{stage}"
        target = played.path / f"iteration-000002/{stage}"
        target.mkdir(exist_ok=True)
        (target / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    record = RunRecord.read(played.path, newest=24, scheduler=answers())
    assert (outcome_of(record).state, outcome_of(record).sentence) == ("done", "all 3 iterations are done")


def test_the_command_asks_a_cluster_only_where_jobs_were_submitted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a run without a ledger asks nobody")

    monkeypatch.setattr("hpcrl.scheduler.slurm.Slurm.look", refuse)
    assert main(["status", str(run)]) == 0
    assert "jobs" not in [line[:4] for line in capsys.readouterr().out.splitlines()]


def test_units_of_old_iterations_are_not_read(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=5)
    for iteration in range(7):  # two iterations are submitted ahead of the one that plays
        run.submit("rollout", iteration, str(iteration), -100.0)
    run.submit("rollout", 8, "8", -100.0)  # not behind the others
    (run.path / "ledger/claim-rollout-000001-01.json").write_text("damaged, and of no interest")
    record = RunRecord.read(run.path, newest=24, scheduler=FakeSlurm())
    assert record.jobs is not None
    assert [entry.unit for entry in record.jobs.tries] == [Unit("rollout", number) for number in (2, 3, 4, 5, 6)]


def test_a_loop_whose_jobs_died_at_once_says_so(tmp_path: Path) -> None:
    """SLURM starts and ends them in the same second; nothing of them was ever in Python."""
    run = JobRun(tmp_path / "run", loop=True)
    run.submit("main", None, "5", -30.0)
    run.submit("main", None, "6", -30.0, number=2, after=["5"])
    run.submit("guard", None, "7", -30.0, after=["5", "6"])
    dead = [
        dataclasses.replace(slurm_job(id_, "FAILED"), started=run.now - 20.0, ended=run.now - 20.0, exit_code=127)
        for id_ in ("5", "6")
    ]
    rows = job_rows(run.path, FakeSlurm(*dead, slurm_job("7", "PENDING", "Resources")))
    assert rows["main-loop", "1"] == ("5", "10.0 s", "–", "ended without a word: FAILED (exit code 127)")
    assert rows["main-loop", "2"][3] == "ended without a word: FAILED (exit code 127)"
    assert ("guard-loop", "1") in rows


def test_what_was_not_submitted_is_told_once_and_shortly(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    words = (
        "not submitted: RUN/jobs/rollout.sbatch: SLURM refused the job: QOSMaxSubmitJobPerUserLimit; Batch job; wait"
    )
    for number in (1, 2, 3):
        unit = run.submit("rollout", 0, None, -100.0 + number, number=number, elements=range(4))
        run.end(unit, -90.0 + number, "waiting", reason=words, number=number)
    unit = run.submit("generate", 0, None, -90.0)
    run.end(unit, -80.0, "refused", reason="not submitted: rollout.sbatch: SLURM refused the job: invalid qos; mend it")
    rows = job_rows(run.path, FakeSlurm())
    assert list(rows) == [("rollout-000000", "3"), ("generate-000000", "1")]
    assert rows["rollout-000000", "3"][3] == "0 of 4 done, 4 unsubmitted (QOSMaxSubmitJobPerUserLimit)"
    assert rows["generate-000000", "1"][3] == "not submitted: invalid qos"


def test_an_array_that_was_cancelled_before_it_could_start_is_one_job(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    run.submit("rollout", 0, "1", -30.0, elements=range(4))
    slurm = FakeSlurm(slurm_job("1", "CANCELLED", "Dependency"))
    assert job_rows(run.path, slurm)["rollout-000000", "1"][3] == "0 of 4 done, 4 ended (CANCELLED)"


def test_a_job_that_stays_to_repair_is_still_there(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    unit = run.submit("rollout", 0, "1", -30.0, elements=range(2))
    for element in range(2):
        run.end(unit, -10.0, element=element)
    run.ledger.record_stay(unit, 1, 1)
    slurm = FakeSlurm(slurm_job("1_1", "PENDING", "BeginTime", restarts=1))
    assert job_rows(run.path, slurm)["rollout-000000", "1"][3] == (
        "1 of 2 done, 1 requeued (its work is done; it repairs what did not fit the queue)"
    )
    assert slurm.asked == ["1_1"]
    assert lines_of(run.path, slurm)["state"].startswith("in SLURM's queue")
    # It has left since.
    assert job_rows(run.path, FakeSlurm(slurm_job("1_1", "COMPLETED")))["rollout-000000", "1"][3] == "2 of 2 done"
