"""Every way in which SLURM can make a job wait: a repair waits too, tells what a person must do, or replaces the job.

A run here is one loop in jobs of one rank that never play. Their first jobs are made to wait, all at once; then one
repair of each run, from here, says which row of the table it sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcrl.launch.submission import submit
from hpcrl.scheduler import STATES, Action, Job, Resources, Slurm
from tests.pipelines.meshes import meshes
from tests.pipelines.tiny import tiny
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.orders import Orders
from tests.slurm.submitted import Look, job_of, login_node, look, site_for

LATER = "--begin=now+1hour"
"""Keeps a job that only has to wait out of everybody's way."""
ON_N1 = "--nodelist=n1"


@dataclass(frozen=True)
class Wait:
    """What keeps the first job of a run waiting."""

    row: str
    """Of the table; what follows from it is there."""
    shown: str
    """State or reason that squeue shows when it is so."""
    extra: tuple[str, ...] = (LATER,)
    asks: dict[str, Any] = field(default_factory=dict)
    """Further resources."""
    before: str = ""
    """scontrol's words before it is submitted."""
    then: tuple[str, ...] = ()
    """Commands when it is in the queue, or runs; JOB stands for its id."""
    order: str = ""
    """What it does where it has to run first."""
    array: int = 1
    undo: str = ""
    """scontrol's words in the end."""

    def __hash__(self) -> int:
        return hash(self.row)


WAITS = (
    Wait(
        "PENDING (nodes away)",
        "ReqNodeNotAvail",
        ("--nodelist=n3",),
        before="update NodeName=n3 State=DRAIN Reason=test",
        undo="update NodeName=n3 State=RESUME",
    ),
    Wait("RUNNING", "RUNNING", (ON_N1,), order="sleep 300"),
    Wait("STOPPED", "STOPPED", (ON_N1,), order="sleep 300", then=("scancel --signal=STOP JOB",)),
    Wait("SUSPENDED", "SUSPENDED", (), order="sleep 300", then=("scontrol suspend JOB",), undo="resume JOB"),
    Wait("SPECIAL_EXIT", "SPECIAL_EXIT", (), order="sleep 300", then=("scontrol requeuehold State=SpecialExit JOB",)),
    Wait("COMPLETING", "COMPLETING", (), order="hang", then=("scancel JOB",)),
    Wait("PENDING (limit)", "JobArrayTaskLimit", (), order="sleep 300", array=2),
    Wait("PENDING", "Resources", (ON_N1, "--exclusive")),
    Wait("PENDING (BeginTime)", "BeginTime"),
    Wait("PENDING (held by you)", "JobHeldUser", then=("scontrol uhold JOB",)),
    Wait("PENDING (held by an administrator)", "JobHeldAdmin", then=("scontrol hold JOB",)),
    Wait(
        "PENDING (partition away)",
        "PartitionDown",
        (),
        {"partition": "gpu"},
        before="update PartitionName=gpu State=DOWN",
        undo="update PartitionName=gpu State=UP",
    ),
    Wait(
        "PENDING (cannot start)",
        "BadConstraints",
        asks={"constraint": "odd"},
        before="update NodeName=n4 AvailableFeatures=odd ActiveFeatures=odd",
        then=(
            "scontrol update NodeName=n4 AvailableFeatures= ActiveFeatures=",
            "scontrol update JobId=JOB StartTime=now",
        ),
    ),
    Wait(
        "PENDING (DependencyNeverSatisfied)",
        "DependencyNeverSatisfied",
        then=("scontrol update JobId=JOB Dependency=afterok:FAILED",),
    ),
)


class Waiter:
    """A run whose first job waits."""

    def __init__(self, wait: Wait, folder: Path) -> None:
        self.wait, self.run, self.orders = wait, folder / "run", Orders(folder / "orders")
        self.unit = "main-loop" if wait.array == 1 else "rollout-000000"
        self.seen = Look([], [], None)  # type: ignore[arg-type]
        self.afterwards: dict[str, Job] = {}

    @property
    def job(self) -> str:
        """The first job's id."""
        return job_of(self.run, self.unit)

    def submit(self, cluster: DevCluster) -> None:
        """Puts it into the queue."""
        if self.wait.before:
            cluster.output("scontrol", *self.wait.before.split())
        element = None if self.wait.array == 1 else 0
        self.orders.give(self.unit, self.wait.order or "exit 1", element=element)
        pipeline = tiny(num_iterations=1)
        if self.wait.array > 1:
            pipeline = meshes(num_iterations=1, play_world="play", array=self.wait.array)
        resources = Resources(extra=self.wait.extra, **self.wait.asks)
        throttle = 1 if self.wait.array > 1 else 0
        submit(pipeline, site_for(self.orders.python, resources, array_throttle=throttle), run=self.run, door="sbatch")

    def runs(self) -> bool:
        """Whether its first job runs, where it has to."""
        return not self.wait.order or self.orders.has_begun(self.unit, element=None if self.wait.array == 1 else 0)

    def is_seen_waiting(self, cluster: DevCluster) -> bool:
        """Whether squeue shows what it should."""
        shown = cluster.output("squeue", "--noheader", "--array", f"--jobs={self.job}", "--format=%T %r")
        return self.wait.shown in shown


@pytest.fixture(scope="module")
def waiters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Waiter]]:
    """All runs, seen by one repair each; then they are ended."""
    # Not by name: the cluster is tidied once, not after each test that only looks at what has been.
    cluster = request.getfixturevalue("cluster")
    folder = tmp_path_factory.mktemp("waits")
    found = [Waiter(wait, folder / f"{index}") for index, wait in enumerate(WAITS)]
    with login_node(cluster):
        failed = cluster.submit("exit 1")
        try:
            for one in found:
                one.submit(cluster)
                cluster.wait_for(one.runs, 60, f"{one.wait.row}: its first job")
            make_wait(cluster, found, failed)
        finally:
            for one in found:
                if one.wait.undo:
                    cluster.run("scontrol", *one.wait.undo.replace("JOB", one.job).split())
    yield {one.wait.row: one for one in found}
    cluster.tidy()


def make_wait(cluster: DevCluster, found: list[Waiter], failed: str) -> None:
    """Brings each first job to where it should wait, and has a repair look at it."""
    for one in found:
        for command in one.wait.then:
            cluster.output(*command.replace("JOB", one.job).replace("FAILED", failed).split())
        if one.wait.row == "COMPLETING":
            see(cluster, one)  # this lasts for five seconds
    for one in found:
        if one.wait.row != "COMPLETING":
            see(cluster, one)


def see(cluster: DevCluster, one: Waiter) -> None:
    cluster.wait_for(lambda: one.is_seen_waiting(cluster), 30, one.wait.row)
    one.seen = look(one.run)
    time.sleep(0.1)
    one.afterwards = Slurm().look([one.job])


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.row)
def test_what_a_repair_does_about_a_job_that_waits(wait: Wait, waiters: dict[str, Waiter]) -> None:
    one = waiters[wait.row]
    row, seen = STATES[wait.row], one.seen
    told = [line for line in seen.done.reports if line.startswith(f"job {one.job}")]
    if wait.array == 1:
        assert seen.rows == [wait.row, "PENDING (Dependency)"]
    else:
        assert seen.rows == ["RUNNING", wait.row, "PENDING (Dependency)"]
    assert seen.standings[0].failures == []
    assert told == ([f"job {one.job}: {row.words}"] if row.action is Action.REPORT else [])
    if row.action is Action.REPLACE:
        assert one.afterwards[one.job].state == "CANCELLED"
        assert [(request.number, request.dependency) for request in seen.done.submitted] == [
            (3, (job_of(one.run, one.unit, 2),))
        ]
    else:
        assert seen.done.submitted == []
