"""What status tells a person to type: the command that plays the run where it was played."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hpcrl.launch.papers import Papers
from hpcrl.report.launches import launch_numbers, read_launches
from hpcrl.report.resume import resume_command
from hpcrl.report.status import status_text
from hpcrl.scheduler.site import Site
from tests.report.job_run import COMMAND, JobRun
from tests.report.tiny_run import copy_of, finished_run, unpublish

SUBMISSION = "hpcrl run large.py --on slurm --num-iterations 9"


def write_papers(run: Path, command: str = SUBMISSION, *, hours: float = 0.0) -> None:
    """As a submission so many hours from now does."""
    moment = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="milliseconds")
    Papers("slurm", (), "/", command, moment).write(run, Site())


def command_of(run: Path) -> str:
    return resume_command(run, read_launches(run, launch_numbers(run)))


def next_of(run: Path) -> str:
    return next(line.split(maxsplit=1)[1] for line in status_text(run).splitlines() if line.startswith("next "))


def test_a_submitted_run_that_was_halted_before_its_first_launch(tmp_path: Path) -> None:
    """Without --on the command would play the run on the login node."""
    run = JobRun(tmp_path / "run", iterations=1)
    write_papers(run.path)
    run.ledger.halt("a reason")
    assert next_of(run.path) == SUBMISSION
    assert f"; go on with: {SUBMISSION}" in status_text(run.path)


def test_a_submission_from_python_names_its_door(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "my run", iterations=1)
    write_papers(run.path, "")
    run.ledger.halt("a reason")
    assert next_of(run.path) == f"hpcrl run PIPELINE --on slurm --run '{run.path}'"
    unit = run.submit("rollout", 0, "11", -100.0)
    run.launch(unit, "11", -90.0)
    facts = json.loads((run.path / "launches/launch-0001.json").read_text())
    (run.path / "launches/launch-0001.json").write_text(json.dumps({**facts, "command": ""}))
    assert next_of(run.path) == f"hpcrl run PIPELINE --on slurm --run '{run.path}'"


def test_the_newest_submission_counts_not_the_one_that_a_job_was_started_by(tmp_path: Path) -> None:
    run = JobRun(tmp_path / "run", iterations=1)
    run.launch(run.submit("rollout", 0, "11", -100.0), "11", -90.0)
    assert command_of(run.path) == COMMAND
    write_papers(run.path)
    assert command_of(run.path) == SUBMISSION


def test_a_launch_of_the_whole_run_after_a_submission(tmp_path: Path) -> None:
    path = copy_of(finished_run(), tmp_path)
    command = json.loads((path / "launches/launch-0001.json").read_text())["command"]
    assert command_of(path) == command
    write_papers(path, hours=-1000.0)
    assert command_of(path) == command
    write_papers(path, hours=1.0)
    assert command_of(path) == SUBMISSION


def test_a_run_of_which_nothing_tells_a_command(tmp_path: Path) -> None:
    path = copy_of(finished_run(), tmp_path / "it's $HOME")
    unpublish(path, 2, "update")
    (path / "launches/launch-0001.json").unlink()
    quoted = f"'{tmp_path}/it'\"'\"'s $HOME/run'"
    assert next_of(path) == f"hpcrl run PIPELINE --run {quoted}"


def test_a_finished_runs_path_is_quoted_for_a_shell(tmp_path: Path) -> None:
    path = copy_of(finished_run(), tmp_path / 'a "run";x')
    assert next_of(path) == f"hpcrl report '{path}'"
