"""The table of states on a real cluster: where each row is tested, and what jobs alone can show without a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcrl.scheduler import STATES, Action, Slurm, SubmissionRefusedError, reaction, situation
from hpcrl.scheduler.states import reaction_to_error
from tests.slurm.dev_cluster import ROOT, DevCluster

ME = os.geteuid()
needs_root = pytest.mark.skipif(ME != 0, reason="only root is an administrator of the cluster it brings up")
NOBODY = 65534

ENDS = "slurm/test_ends.py::test_a_lost_job_is_submitted_again"
MORE_TIME = "slurm/test_ends.py::test_a_job_that_got_nothing_done_gets_more_time_where_the_site_allows"
WAITS = "slurm/test_waits.py::test_what_a_repair_does_about_a_job_that_waits"
ELEMENT = "slurm/test_troubles.py::test_a_failed_element_alone_is_played_again"
HELD = "slurm/test_troubles.py::test_a_job_that_slurm_holds_is_replaced_by_the_guard"
UNKNOWN = "slurm/test_troubles.py::test_a_job_that_nobody_knows_is_submitted_again"
NO_ACCOUNTING = "slurm/test_troubles.py::test_without_accounting"
REFUSED = "slurm/test_states.py::test_a_refused_submission"
ERRORS = "scheduler/test_states.py::test_errors_of_the_scheduler"
MORE_MEMORY = "scheduler/test_states.py::test_more_memory_and_more_time_only_where_the_site_allows_them"
RECORDED = "scheduler/test_states.py::test_jobs_that_the_cluster_cannot_produce"
"""From what SLURM's documentation says, where no cluster on one machine can produce it."""

TESTED = {
    "manifest published": ELEMENT,
    "job says: done": ELEMENT,
    "job says: waiting": ELEMENT,
    "job says: stopped": ENDS,
    "job says: stopped, no progress": ENDS,
    "job says: stopped, no progress, time may grow": MORE_TIME,
    "job says: refused": "slurm/test_runs.py::test_another_version_on_the_compute_node_halts_the_run",
    "job says: failed": ENDS,
    "COMPLETED": ELEMENT,
    "COMPLETED, manifest missing": ENDS,
    "FAILED": ENDS,
    "TIMEOUT": ENDS,
    "TIMEOUT, no progress": ENDS,
    "TIMEOUT, no progress, time may grow": MORE_TIME,
    "OUT_OF_MEMORY": RECORDED,
    "OUT_OF_MEMORY, memory may grow": MORE_MEMORY,
    "PREEMPTED": ENDS,
    "NODE_FAIL": ENDS,
    "NODE_FAIL, no progress": ENDS,
    "BOOT_FAIL": RECORDED,
    "LAUNCH_FAILED": RECORDED,
    "DEADLINE": "slurm/test_troubles.py::test_a_deadline_that_cannot_be_met_halts_the_run",
    "CANCELLED (by you)": ENDS,
    "CANCELLED (by somebody else)": "slurm/test_states.py::test_cancelled_by_an_administrator",
    "CANCELLED (by whom is not known)": NO_ACCOUNTING,
    "REVOKED": RECORDED,
    "PENDING": WAITS,
    "PENDING (BeginTime)": WAITS,
    "PENDING (Dependency)": WAITS,
    "PENDING (limit)": WAITS,
    "PENDING (nodes away)": WAITS,
    "PENDING (partition away)": WAITS,
    "PENDING (held by you)": WAITS,
    "PENDING (held by an administrator)": WAITS,
    "PENDING (held after failed starts)": HELD,
    "PENDING (DependencyNeverSatisfied)": WAITS,
    "PENDING (cannot start)": WAITS,
    "CONFIGURING": RECORDED,
    "RUNNING": WAITS,
    "COMPLETING": WAITS,
    "RESIZING": RECORDED,
    "SIGNALING": RECORDED,
    "STAGE_OUT": RECORDED,
    "SUSPENDED": WAITS,
    "STOPPED": WAITS,
    "REQUEUED": RECORDED,
    "REQUEUE_FED": RECORDED,
    "REQUEUE_HOLD": RECORDED,
    "RESV_DEL_HOLD": RECORDED,
    "SPECIAL_EXIT": WAITS,
    "another state": RECORDED,
    "submission refused": REFUSED,
    "submission refused (submit limit)": REFUSED,
    "submission refused (dependency)": ERRORS,
    "controller down": "slurm/test_troubles.py::test_a_controller_that_is_silent_is_asked_again",
    "unknown job": UNKNOWN,
    "unknown job, progress": UNKNOWN,
    "unknown job, accounting off": NO_ACCOUNTING,
}
"""Row of the table -> the test that has SLURM bring it about, and shows what follows."""


def test_every_row_is_tested_in_one_place() -> None:
    assert set(TESTED) == set(STATES)
    for row, place in TESTED.items():
        file, _, name = place.partition("::")
        text = (ROOT / "tests" / file).read_text()
        assert f"def {name}(" in text, row
        # The other two are told by what follows from them.
        assert f'"{row}"' in text or place in (ERRORS, MORE_MEMORY), row


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


def running(case: Case, *options: object) -> str:
    """A long job that has started."""
    job = case.cluster.submit("sleep 300", *options)
    case.cluster.wait_for_state(job, "RUNNING", 60)
    return job


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


@pytest.mark.parametrize(
    ("options", "kind", "row"),
    [
        (("--partition=nowhere",), "partition", "submission refused"),
        (("--account=nobody-at-all",), "account", "submission refused"),
        (("--qos=nothing",), "qos", "submission refused"),
        (("--array=0-5000",), "array", "submission refused"),
        (("--qos=few", "--array=0-9"), "limit", "submission refused (submit limit)"),
    ],
)
def test_a_refused_submission(options: tuple[str, ...], kind: str, row: str, slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --time=5\nexit 0\n")
    with pytest.raises(SubmissionRefusedError) as refused:
        slurm.submit(script, options=options)
    assert refused.value.kind == kind
    assert reaction_to_error(refused.value) is STATES[row]


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
