"""The table of states on a real cluster: jobs that end, wait and are driven out in every way it can produce."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.scheduler import Action, SchedulerUnavailableError, Slurm, SubmissionRefusedError, reaction, situation
from hpcrl.scheduler.states import reaction_to_error
from tests.slurm.dev_cluster import DevCluster

ME = os.geteuid()
needs_root = pytest.mark.skipif(ME != 0, reason="only root is an administrator of the cluster it brings up")
NOBODY = 65534


@pytest.fixture
def slurm(cluster: DevCluster) -> Slurm:
    return Slurm(cluster.environment, patience_seconds=0)


class Case:
    """Asks the table about jobs of the cluster."""

    def __init__(self, cluster: DevCluster) -> None:
        self.cluster = cluster
        self.slurm = Slurm(cluster.environment, patience_seconds=0)

    def situation(self, id_: str, user: int = ME) -> str:
        return situation(self.slurm.look([id_]).get(id_), user=user)

    def expect(self, id_: str, name: str, action: Action, seconds: float = 30, user: int = ME) -> None:
        """Waits until a job is in a situation, from which an action follows."""
        what = f"job {id_} to be '{name}'"
        self.cluster.wait_for(lambda: self.situation(id_, user) == name, seconds, what)
        assert reaction(self.slurm.look([id_]).get(id_), user=user).action is action


@pytest.fixture
def case(cluster: DevCluster) -> Case:
    return Case(cluster)


@pytest.fixture
def _partitions(cluster: DevCluster) -> Iterator[None]:
    """Partitions are as they were afterwards."""
    yield
    cluster.output("scontrol", "update", "PartitionName=gpu", "State=UP", "MaxTime=1-00:00:00")


def running(case: Case, *options: object) -> str:
    """A long job that has started."""
    job = case.cluster.submit("sleep 300", *options)
    case.cluster.wait_for_state(job, "RUNNING", 60)
    return job


def test_ends_by_itself(case: Case) -> None:
    submit = case.cluster.submit
    well, failed, refused, stopped, killed = (
        submit(script) for script in ("exit 0", "exit 7", "exit 2", "exit 85", "kill -9 $$")
    )
    case.expect(well, "COMPLETED, manifest missing", Action.RETRY)
    case.expect(failed, "FAILED", Action.RETRY)
    case.expect(refused, "job says: refused", Action.STOP)
    case.expect(stopped, "job says: stopped, no progress", Action.RETRY)
    case.expect(killed, "FAILED", Action.RETRY)
    assert reaction(case.slurm.look([well])[well], is_published=True).action is Action.GO_ON


def test_time_limit_and_deadline(case: Case) -> None:
    late = case.cluster.submit("sleep 300", "--time=1")
    too_late = case.cluster.submit("exit 0", "--time=1", "--begin=now+30", "--deadline=now+1minute")
    case.expect(too_late, "DEADLINE", Action.STOP, seconds=60)
    case.expect(late, "TIMEOUT, no progress", Action.RETRY, seconds=150)
    job = case.slurm.look([late])[late]
    assert not reaction(job, has_progressed=True).counts_as_failure
    assert reaction(job, time_may_grow=True).action is Action.RETRY_WITH_MORE_TIME


def test_a_failed_element_of_an_array(case: Case) -> None:
    job = case.cluster.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-2,7")
    case.expect(f"{job}_7", "FAILED", Action.RETRY)
    case.expect(f"{job}_0", "COMPLETED, manifest missing", Action.RETRY)
    case.expect(f"{job}_2", "job says: refused", Action.STOP)
    assert set(case.slurm.look([job])) == {f"{job}_{element}" for element in (0, 1, 2, 7)}


def test_waiting(case: Case) -> None:
    submit = case.cluster.submit
    first = running(case)
    case.expect(submit("exit 0", f"--dependency=afterany:{first}"), "PENDING (Dependency)", Action.WAIT)
    case.expect(submit("exit 0", "--begin=now+1hour"), "PENDING (BeginTime)", Action.WAIT)
    throttled = submit("sleep 300", "--array=0-3%1")
    case.expect(f"{throttled}_3", "PENDING (limit)", Action.WAIT)
    failed = submit("exit 1")
    case.expect(
        submit("exit 0", f"--dependency=afterok:{failed}"), "PENDING (DependencyNeverSatisfied)", Action.REPLACE
    )
    case.expect(submit("exit 0", "--nodes=4", "--exclusive"), "PENDING", Action.WAIT)


def test_held(case: Case) -> None:
    held = case.cluster.submit("sleep 300", "--hold")
    case.expect(held, "PENDING (held by you)", Action.REPORT)
    case.slurm.release(held)
    case.expect(held, "RUNNING", Action.WAIT)
    case.cluster.output("scontrol", "requeuehold", held)
    case.expect(held, "PENDING (held by you)", Action.REPORT)
    case.slurm.release(held)
    case.expect(held, "RUNNING", Action.WAIT, seconds=60)
    case.cluster.output("scontrol", "requeuehold", "State=SpecialExit", held)
    case.expect(held, "SPECIAL_EXIT", Action.REPORT)


@needs_root
def test_held_by_an_administrator(case: Case) -> None:
    job = case.cluster.submit("exit 0", "--begin=now+1hour")
    case.cluster.output("scontrol", "hold", job)
    case.expect(job, "PENDING (held by an administrator)", Action.REPORT)


@needs_root
@pytest.mark.usefixtures("_partitions")
def test_a_partition_that_closes_or_shrinks(case: Case) -> None:
    cluster = case.cluster
    job = cluster.submit("exit 0", "--partition=gpu", "--time=50", "--begin=now+1hour")
    cluster.output("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    cluster.output("scontrol", "update", f"JobId={job}", "StartTime=now")
    case.expect(job, "PENDING (partition away)", Action.REPORT)
    cluster.output("scontrol", "update", "PartitionName=gpu", "State=UP", "MaxTime=5")
    case.expect(job, "PENDING (cannot start)", Action.REPORT)


def test_suspended(case: Case) -> None:
    job = running(case)
    case.cluster.output("scontrol", "suspend", job)
    case.expect(job, "SUSPENDED", Action.REPORT)
    case.cluster.output("scontrol", "resume", job)
    case.expect(job, "RUNNING", Action.WAIT)


def test_requeued(case: Case) -> None:
    job = running(case)
    case.slurm.requeue(job)
    case.expect(job, "PENDING (BeginTime)", Action.WAIT)
    case.expect(job, "RUNNING", Action.WAIT, seconds=60)
    assert case.slurm.look([job])[job].restarts == 1


def test_cancelled_while_it_waits_and_while_it_runs(case: Case) -> None:
    runs, waits = running(case), case.cluster.submit("exit 0", "--hold")
    array = case.cluster.submit("sleep 300", "--array=0-1")
    case.slurm.cancel([runs, waits, "999999"])
    for id_ in (runs, waits):
        case.expect(id_, "CANCELLED (by you)", Action.RETRY)
    assert case.situation(f"{array}_0") in ("RUNNING", "PENDING")


def test_a_cancelled_element_that_had_not_started_is_forgotten_by_slurm(case: Case) -> None:
    array = case.cluster.submit("sleep 300", "--array=0-2", "--hold")
    case.slurm.cancel([f"{array}_1"])
    case.expect(f"{array}_1", "unknown job", Action.RETRY)
    assert set(case.slurm.look([array])) == {f"{array}_0", f"{array}_2"}


@needs_root
def test_cancelled_by_an_administrator(case: Case) -> None:
    done = case.cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 300", user="nobody")
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    case.cluster.output("scancel", job)
    case.expect(job, "CANCELLED (by somebody else)", Action.RETRY, user=NOBODY)


def test_preempted(case: Case) -> None:
    stays_away = running(case, "--partition=cpu", "--exclusive", "--nodelist=n1", "--no-requeue")
    comes_back = running(case, "--partition=cpu", "--exclusive", "--nodelist=n2")
    for node in ("n1", "n2"):
        case.cluster.submit("sleep 20", "--partition=urgent", "--exclusive", f"--nodelist={node}")
    case.expect(stays_away, "PREEMPTED", Action.RETRY, seconds=60)
    assert not reaction(case.slurm.look([stays_away])[stays_away]).counts_as_failure
    case.cluster.wait_for(lambda: case.slurm.look([comes_back])[comes_back].restarts == 1, 60, "the requeue")
    assert reaction(case.slurm.look([comes_back])[comes_back]).action is Action.WAIT


def test_a_node_that_crashes(case: Case) -> None:
    stays_away = running(case, "--nodelist=n3", "--no-requeue")
    comes_back = running(case, "--nodelist=n4", "--no-kill=off")
    case.cluster.crash_node(3)
    case.cluster.crash_node(4)
    case.expect(stays_away, "NODE_FAIL, no progress", Action.RETRY, seconds=120)
    assert not reaction(case.slurm.look([stays_away])[stays_away], has_progressed=True).counts_as_failure
    case.cluster.wait_for(lambda: case.slurm.look([comes_back])[comes_back].restarts == 1, 120, "the requeue")
    assert reaction(case.slurm.look([comes_back])[comes_back]).action is Action.WAIT


def test_a_job_that_nobody_knows(case: Case) -> None:
    assert case.situation("999999") == "unknown job"
    assert reaction(None).action is Action.RETRY
    assert not case.slurm.accounting_is_off


@pytest.mark.parametrize(
    ("options", "kind", "action"),
    [
        (("--partition=nowhere",), "partition", Action.STOP),
        (("--account=nobody-at-all",), "account", Action.STOP),
        (("--qos=nothing",), "qos", Action.STOP),
        (("--array=0-5000",), "array", Action.STOP),
        (("--qos=few", "--array=0-9"), "limit", Action.WAIT),
    ],
)
def test_a_refused_submission(
    options: tuple[str, ...], kind: str, action: Action, slurm: Slurm, tmp_path: Path
) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --time=5\nexit 0\n")
    with pytest.raises(SubmissionRefusedError) as refused:
        slurm.submit(script, options=options)
    assert refused.value.kind == kind
    assert reaction_to_error(refused.value).action is action


def test_a_controller_that_goes_and_comes(cluster: DevCluster, slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --time=5\n#SBATCH --comment=a-token\nexit 0\n")
    cluster.stop_controller()
    with pytest.raises(SchedulerUnavailableError) as silent:
        slurm.queue()
    assert reaction_to_error(silent.value).action is Action.WAIT
    back = threading.Timer(4, cluster.start_controller)
    back.start()
    said: list[str] = []
    began = time.monotonic()
    patient = Slurm(cluster.environment, patience_seconds=60, say=said.append)
    job = patient.submit(script, token="a-token")
    back.join()
    assert 3 < time.monotonic() - began < 60
    assert len(said) <= 1  # sbatch itself may have waited long enough
    assert [found.id for found in slurm.find_by_comment("a-token")] == [job]


def test_what_slurm_says_of_itself(slurm: Slurm) -> None:
    limits = slurm.limits()
    assert (limits.cluster, limits.max_array_size, limits.has_accounting, limits.requeues) == (
        "hpcrl",
        1001,
        True,
        True,
    )
    partitions = {one.name: one for one in slurm.partitions()}
    assert (partitions["debug"].is_default, partitions["cpu"].nodes, partitions["gpu"].nodes) == (True, 2, 2)


def test_time_left_and_an_array_longer_than_one_line(case: Case) -> None:
    job = running(case, "--time=5")
    left = case.slurm.time_left(job)
    assert left is not None
    assert 200 < left <= 300
    array = case.cluster.submit("exit 0", "--hold", f"--array={','.join(str(n) for n in range(0, 1000, 3))}")
    found = case.slurm.look([array])
    assert sorted(job.element for job in found.values() if job.element is not None) == list(range(0, 1000, 3))
    case.slurm.cancel([array])
