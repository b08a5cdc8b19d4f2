"""The picture of a run's jobs: what is drawn, where, and that the page takes it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpcrl.report import job_timeline
from hpcrl.report.history import WorkingTime
from hpcrl.report.jobs import Jobs
from hpcrl.report.record import RunRecord
from hpcrl.report.sections import content_of
from tests.report.job_run import FakeSlurm, JobRun, slurm_job
from tests.report.large_run import make_large_run


@pytest.fixture
def played(tmp_path: Path) -> JobRun:
    """One iteration: an array of two, of which one was requeued after 20 s, then an update that runs."""
    run = JobRun(tmp_path / "run", iterations=1)
    rollout = run.submit("rollout", 0, "1", -100.0, elements=(0, 1))
    for element in range(2):
        run.launch(rollout, f"90{element}", -90.0, element=element)
    run.launch(rollout, "901", -60.0, element=1, restarts=1)
    run.end(rollout, -70.0, element=0)
    run.end(rollout, -40.0, element=1)
    run.launch(run.submit("generate", 0, "2", -100.0, after=["1"]), "2", -30.0)
    run.submit("rollout", 1, "3", -20.0, after=["2"])
    return run


def jobs_of(run: JobRun) -> tuple[Jobs, float]:
    slurm = FakeSlurm(slurm_job("2", "RUNNING"), slurm_job("3", "PENDING", "Dependency"))
    record = RunRecord.read(run.path, scheduler=slurm)
    assert record.jobs is not None
    return record.jobs, run.now


def test_each_stretch_of_a_job_has_its_bar(played: JobRun) -> None:
    jobs, now = jobs_of(played)
    found = [
        (bar.segment, bar.kind, bar.lane, round(bar.began - now), round(bar.ended - now))
        for bar in job_timeline.bars_of(jobs.tries, now)
    ]
    assert sorted(found) == sorted(
        [
            ("rollout", "queue", 0, -100, -90),
            ("rollout", "run", 0, -90, -70),
            ("rollout", "queue", 1, -100, -90),
            # The first launch published nothing, so that nobody knows how long it ran.
            ("rollout", "requeue", 1, -90, -60),
            ("rollout", "run", 1, -60, -40),
            ("generate", "inputs", 0, -100, -40),
            ("generate", "queue", 0, -40, -30),
            ("generate", "run", 0, -30, 0),
            ("rollout", "inputs", 0, -20, 0),
        ]
    )


def test_what_a_requeued_job_published_is_its_last_sign(played: JobRun) -> None:
    """Attempts bear the numbers of launches: a stage that holds one was published by then."""
    unit = played.submit("generate", 1, "4", -300.0)
    played.launches = 0  # launch 1, as the attempts in the folder are named
    played.launch(unit, "4", -200.0)
    played.launches = 9
    played.launch(unit, "4", -5.0, restarts=1)
    record = RunRecord.read(played.path, scheduler=FakeSlurm())
    first = next(launch for launch in record.launches if launch.number == 1)
    published = max(stage.published for stage in record.stages)
    assert first.last_sign == pytest.approx(min(published, played.now - 5.0), abs=0.01)
    assert first.last_sign > first.started


def test_jobs_at_the_same_time_are_working_time_once(played: JobRun) -> None:
    record = RunRecord.read(played.path, scheduler=FakeSlurm())
    # -90 to -70 (element 1's first launch left no sign), -60 to -40; the update left none yet.
    time = WorkingTime(record.launches)
    assert time.total == pytest.approx(40.0, abs=0.01)
    assert time(played.now - 80.0) == pytest.approx(10.0, abs=0.01)
    assert time(played.now - 65.0) == pytest.approx(20.0, abs=0.01)


def test_the_page_shows_the_jobs(played: JobRun) -> None:
    record = RunRecord.read(played.path, scheduler=FakeSlurm(slurm_job("2", "RUNNING")))
    content = content_of(record, "timeline")
    root = ElementTree.fromstring(f"<main>{content}</main>")
    assert re.findall(r'aria-label="([^"]*jobs[^"]*)"', content) == [
        "The jobs of the whole run: waiting, in the queue, running and requeued, by segment"
    ]
    cells = [[cell.text for cell in row] for row in root.iter("tr")]
    assert ["rollout-000000", "1", "1", "10.0 s", "50.0 s", "2 of 2 done, requeued 1 time"] in cells
    assert ["generate-000000", "1", "2", "10.0 s"] in [row[:4] for row in cells]


def test_a_run_without_jobs_has_no_such_picture(run: Path) -> None:
    record = RunRecord.read(run)
    assert record.jobs is None
    assert 'id="jobs' not in content_of(record, "timeline")


def test_a_long_run_is_drawn_as_shares_and_its_newest_jobs_as_bars(tmp_path: Path) -> None:
    path = make_large_run(tmp_path / "run", iterations=60, blocks=4, jobs=True)
    record = RunRecord.read(path, scheduler=FakeSlurm(slurm_job("121", "PENDING", "Dependency")))  # the guard
    assert record.jobs is not None
    assert len(job_timeline.bars_of(record.jobs.tries, record.read_at)) > 400
    whole = ElementTree.fromstring(job_timeline.whole_run(record.jobs, record.read_at))
    newest = ElementTree.fromstring(job_timeline.newest(record.jobs, record.read_at))
    ids = Counter(element.get("id") for picture in (whole, newest) for element in picture.iter() if element.get("id"))
    assert max(ids.values()) == 1
    texts = ["".join(element.itertext()) for element in newest.iter() if element.tag.endswith("text")]
    assert {"59", "50"} <= set(texts)  # iterations
    assert {"rollout", "generate", "guard"} <= set(texts)
