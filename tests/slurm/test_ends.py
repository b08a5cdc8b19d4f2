"""Every way in which SLURM can make a job end: the run it belongs to goes on, and ends with the bits it should have.

A run here is one loop in jobs of one rank. Its first job suffers what it was ordered to, or what the cluster does to
it; its second is held until a repair from here has told which row of the table it sees. All runs play side by side.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hpcrl.launch.submission import submit
from hpcrl.pipeline import Pipeline
from hpcrl.scheduler import STATES, Resources
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.tiny import tiny
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.orders import Orders, Pause
from tests.slurm.submitted import Bits, Look, finish, job_of, jobs_of, login_node, look, reference_bits, site_for, tries

UNIT = "main-loop"
FAULTY = "tests.pipelines.faulty:make"
SOME_DONE = 'HPCRL_KILL_AT=manifest.after_link:1 play; touch "$orders/$job.halfway"'
"""Plays until something is published, and is killed."""
NO_REQUEUE = ("--no-requeue",)
ON_N3, ON_N4 = "--nodelist=n3", "--nodelist=n4"
"""Where what befalls a node befalls nobody else: the others stay on the first two."""


@dataclass(frozen=True)
class Fate:
    """What becomes of the first job of a run."""

    row: str
    """Of the table; what follows from it is there."""
    order: str = "hang"
    event: str = ""
    """What the cluster does to it."""
    extra: tuple[str, ...] = ()
    env: str = "CartPole-v1"
    grown: str | None = None
    """The row where the site allows more time for another try."""

    @property
    def name(self) -> str:
        return f"{self.row}{f' ({self.event})' if self.event else ''}"

    @property
    def pipeline(self) -> Pipeline:
        return tiny(env=self.env, num_steps=self.num_steps, num_iterations=1)

    @property
    def num_steps(self) -> int:
        return 160 if self.env == FAULTY else 24  # it breaks at its 150th step


# Those that take long come first.
FATES = (
    Fate("TIMEOUT", f"{SOME_DONE}; hang", "time limit"),
    Fate("TIMEOUT, no progress", "hang", "time limit", grown="TIMEOUT, no progress, time may grow"),
    Fate("NODE_FAIL", f"{SOME_DONE}; hang", "crash of n3", (*NO_REQUEUE, ON_N3)),
    Fate("NODE_FAIL, no progress", "hang", "crash of n3", (*NO_REQUEUE, ON_N3)),
    Fate("PREEMPTED", "hang", "urgent job on n4", (*NO_REQUEUE, ON_N4)),
    Fate("CANCELLED (by you)", "hang", "scancel"),
    Fate("FAILED", "kill -KILL $$"),
    Fate("COMPLETED, manifest missing", "exit 0"),
    Fate("job says: failed", "export HPCRL_TEST_FAULT=raise", env=FAULTY),
    Fate("job says: stopped", f"{SOME_DONE}; exit 85", extra=NO_REQUEUE),
    Fate(
        "job says: stopped, no progress",
        "exit 85",
        extra=NO_REQUEUE,
        grown="job says: stopped, no progress, time may grow",
    ),
)


@dataclass(frozen=True)
class Return:
    """What makes the first job of a run start once more."""

    event: str
    extra: tuple[str, ...] = ()
    lead_seconds: int = 30

    @property
    def name(self) -> str:
        return f"comes back after {self.event}"

    @property
    def pipeline(self) -> Pipeline:
        return tiny(num_iterations=1)


RETURNS = (
    Return("warning before the time limit", lead_seconds=90),
    Return("urgent job on n4", (ON_N4,)),
    Return("scontrol requeue"),
)
"""They wait in the middle of playing, with something published, until they are asked to stop."""


@dataclass
class Sufferer:
    """A run on its way."""

    fate: Fate | Return
    run: Path
    orders: Orders
    pause: Pause | None = None
    seen: list[Look] = field(default_factory=list)
    bits: Bits = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    """Minutes that each job was given, in the end."""

    def submit(self, cluster: DevCluster) -> None:
        """Submits it; its second job is held before the first can have ended."""
        fate, begin = self.fate, self.orders.folder / "begin"
        if isinstance(fate, Fate):
            self.orders.give(UNIT, f"meet {begin}\n{fate.order}")
            limits = {"time_growth": 2.0 if fate.grown else 1.0}
        else:
            self.orders.give(UNIT, f"meet {begin}")
            self.pause = self.orders.pause(UNIT, "optimizer.after_step:1")
            limits = {"signal_lead_seconds": fate.lead_seconds}
        partition = "debug" if set(fate.extra) & {ON_N3, ON_N4} else "cpu"
        site = site_for(self.orders.python, Resources(partition=partition, extra=fate.extra), **limits)
        submit(fate.pipeline, site, run=self.run, door="sbatch")
        cluster.output("scontrol", "uhold", job_of(self.run, UNIT, 2))
        begin.touch()

    def suffers(self) -> bool:
        """Whether its first job is where the cluster may do something to it."""
        if self.pause is not None:
            return self.pause.is_reached()
        if isinstance(self.fate, Fate) and SOME_DONE in self.fate.order:
            return (self.orders.folder / f"{UNIT}-01.halfway").exists()
        return self.orders.has_begun(UNIT)

    def has_been_hit(self, cluster: DevCluster) -> bool:
        """Whether its first job has ended, or has been put back into the queue."""
        job = job_of(self.run, UNIT)
        state = cluster.job_state(job)
        if isinstance(self.fate, Return) and state in ("PENDING", "RUNNING"):
            return cluster.job_field(job, "Restarts") == "1"
        return state not in ("PENDING", "RUNNING", "COMPLETING")

    def look(self, cluster: DevCluster) -> None:
        """Has a repair tell what it sees, then lets the second job go."""
        self.seen.append(look(self.run))
        if isinstance(self.fate, Fate) and self.fate.grown:
            self.seen.append(look(self.run, time_growth=1.0))
        if isinstance(self.fate, Return):
            # Where its end was moved, the second start would be warned as well.
            cluster.output("scontrol", "update", f"JobId={job_of(self.run, UNIT)}", "TimeLimit=60")
        cluster.output("scontrol", "release", job_of(self.run, UNIT, 2))


@pytest.fixture(scope="module")
def sufferers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Sufferer]]:
    """All runs, from their submission to their end."""
    # Not by name: the cluster is tidied once, not after each test that only looks at what has been.
    cluster = request.getfixturevalue("cluster")
    folder = tmp_path_factory.mktemp("ends")
    found = [
        Sufferer(fate, folder / f"run-{index}", Orders(folder / f"orders-{index}"))
        for index, fate in enumerate((*FATES[:6], *RETURNS, *FATES[6:]))
    ]
    with login_node(cluster):
        for one in found:
            one.submit(cluster)
        attend(cluster, found)
        for one in found:
            one.bits = finish(cluster, one.run)
            jobs = ",".join(jobs_of(one.run, UNIT))
            one.limits = cluster.output("sacct", "-XnPj", jobs, "--format=TimelimitRaw").split()
    yield {one.fate.name: one for one in found}
    cluster.tidy()


def befall(cluster: DevCluster, event: str, jobs: list[str]) -> None:
    """Does something to first jobs, which are all where it can."""
    if event == "urgent job on n4":
        cluster.submit("sleep 1", "--partition=urgent", "--nodelist=n4", "--exclusive", "--time=1")
    elif event == "crash of n3":
        cluster.crash_node(3, whole=True)
    elif event == "scancel":
        cluster.output("scancel", *jobs)
    elif event == "scontrol requeue":
        cluster.output("scontrol", "requeue", *jobs)
    else:
        # SLURM looks at time limits every half minute, and warns that much too early rather than too late.
        seconds = 1 if event == "time limit" else 100
        for job in jobs:
            cluster.output("scontrol", "update", f"JobId={job}", f"EndTime={in_seconds(seconds)}")


def in_seconds(count: int) -> str:
    """A moment as scontrol takes it, in the cluster's own time zone."""
    return (datetime.datetime.now() + datetime.timedelta(seconds=count)).strftime("%Y-%m-%dT%H:%M:%S")


def attend(cluster: DevCluster, found: list[Sufferer]) -> None:
    """Lets events befall first jobs, and looks at each run when its first job has ended or is back in the queue."""
    to_come = {event: [one for one in found if one.fate.event == event] for event in {one.fate.event for one in found}}
    del to_come[""]
    unseen, deadline = list(found), time.monotonic() + 150
    while unseen:
        assert time.monotonic() < deadline, f"{[one.fate.name for one in unseen]}:\n{cluster.output('squeue')}"
        for event, befallen in list(to_come.items()):
            if all(one.suffers() for one in befallen):
                befall(cluster, event, [job_of(one.run, UNIT) for one in befallen])
                del to_come[event]
        for one in [one for one in unseen if one.fate.event not in to_come and one.has_been_hit(cluster)]:
            one.look(cluster)
            unseen.remove(one)
            if one.fate.event == "crash of n3" and not any(other.fate.event == one.fate.event for other in unseen):
                cluster.start_node(3)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bits]:
    """Environment -> what an undisturbed run in it publishes."""
    found = {}
    for fate in FATES:
        if fate.env not in found:
            words = ("--num-iterations", 1, "--env", fate.env, "--num-steps", fate.num_steps)
            found[fate.env] = reference_bits(tmp_path_factory.mktemp("undisturbed"), "tests/pipelines/tiny.py", *words)
    return found


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
def test_a_lost_job_is_submitted_again(
    fate: Fate, sufferers: dict[str, Sufferer], undisturbed: dict[str, Bits]
) -> None:
    one = sufferers[fate.name]
    seen = one.seen[-1]
    row = STATES[fate.row]
    assert seen.rows[0] == fate.row
    (standing,) = seen.standings
    assert [line.endswith(row.words) for line in standing.failures] == [True] * row.counts_as_failure
    assert standing.stop is None
    # The held one was still to come, and behind it a third was submitted.
    assert seen.rows[1] == "PENDING (held by you)"
    assert [request.number for request in one.seen[0].done.submitted] == [3]
    assert [job.id for job in one.seen[0].standings[0].active] == [job_of(one.run, UNIT, 2)]
    assert one.bits == undisturbed[fate.env]
    assert tries(one.run, UNIT)[1].ends[None].outcome == "done"


@pytest.mark.parametrize("fate", [fate for fate in FATES if fate.grown], ids=lambda fate: fate.name)
def test_a_job_that_got_nothing_done_gets_more_time_where_the_site_allows(
    fate: Fate, sufferers: dict[str, Sufferer]
) -> None:
    one = sufferers[fate.name]
    assert one.seen[0].rows[0] == fate.grown
    assert [request.resources.time_minutes for request in one.seen[0].done.submitted] == [120]
    assert one.limits[1:] == ["60", "120"]


@pytest.mark.parametrize("fate", RETURNS, ids=lambda fate: fate.name)
def test_a_requeued_job_goes_on_from_what_it_published(
    fate: Return, sufferers: dict[str, Sufferer], undisturbed: dict[str, Bits]
) -> None:
    one = sufferers[fate.name]
    # Nothing was submitted: the job comes back, and another is behind it.
    assert one.seen[0].rows == ["PENDING (BeginTime)", "PENDING (held by you)"]
    assert one.seen[0].done.submitted == []
    assert one.seen[0].standings[0].failures == []
    assert one.bits == undisturbed["CartPole-v1"]
    first = tries(one.run, UNIT)[0]
    assert (first.ends[None].outcome, first.ends[None].restart_count) == ("done", 1)
    # What the first start had published was not played again.
    run = RunFolder(one.run)
    attempts = {stage: run.stage(0, stage).manifest().attempts for stage in ("rollout", "update")}  # type: ignore[union-attr]
    assert attempts == {"rollout": {"attempt-0001"}, "update": {"attempt-0002"}}
