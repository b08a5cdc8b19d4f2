"""What befalls a cluster while a run is on it: nodes cut off, the controller away, full queues, no accounting."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.errors import InputError
from hpcrl.launch.cancel import cancel_run
from hpcrl.launch.submission import submit
from hpcrl.scheduler import STATES, Resources, SchedulerUnavailableError, Slurm, SubmissionRefusedError, situation
from hpcrl.scheduler.states import reaction_to_error
from hpcrl.store.ledger import Claim, Ledger, Unit, now
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.meshes import meshes
from tests.pipelines.tiny import tiny
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.orders import Orders
from tests.slurm.submitted import (
    Bits,
    finish,
    job_of,
    jobs_in_queue,
    jobs_of,
    login_node,
    logs,
    look,
    reference_bits,
    site_for,
    tries,
)

LOOP = "main-loop"
APART = meshes(num_iterations=2, play_world="play", array=3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """What one iteration of the tiny pipeline publishes, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    return reference_bits(folder, "tests/pipelines/tiny.py", "--num-iterations", 1)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """What two iterations of the pipeline in two worlds publish, undisturbed."""
    folder = tmp_path_factory.mktemp("apart")
    return reference_bits(folder, "tests/pipelines/meshes.py", "--no-play", "--num-iterations", 2)


@pytest.fixture
def login(cluster: DevCluster) -> Iterator[DevCluster]:
    """The cluster, which this process sees."""
    with login_node(cluster):
        yield cluster


def test_a_node_that_is_cut_off_writes_on_beside_its_successor(login: DevCluster, tmp_path: Path, alone: Bits) -> None:
    """Both starts of one job play at the same time on two nodes; what is published first stays."""
    orders, run = Orders(tmp_path / "orders"), tmp_path / "run"
    old = orders.pause(LOOP, "optimizer.before_step:2", start=0)
    new = orders.pause(LOOP, "optimizer.before_step:2", start=1)
    submit(tiny(num_iterations=1), site_for(orders.python), run=run, door="sbatch")
    login.wait_for(old.is_reached, 60, "the first start to play")
    job = job_of(run, LOOP)
    node = login.job_field(job, "BatchHost")
    login.crash_node(int(node.removeprefix("n")), noticed=True)
    login.wait_for(new.is_reached, 60, "the second start to play")
    assert login.job_field(job, "BatchHost") != node
    # Both are in the middle of the update now: neither has ended the other.
    old.end()
    folder = RunFolder(run).stage(0, "update")
    login.wait_for(folder.is_done, 30, "the old start to publish its update")
    new.end()
    assert finish(login, run) == alone
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest.attempts == {"attempt-0001"}
    (only,) = [one for one in tries(run, LOOP) if one.ends]
    assert (only.job, only.ends[None].outcome) == (job, "done")


def test_a_job_that_slurm_holds_is_replaced_by_the_guard(login: DevCluster, tmp_path: Path, alone: Bits) -> None:
    """Its node is taken away and back before its processes have ended: SLURM cannot start it there again."""
    orders, run = Orders(tmp_path / "orders"), tmp_path / "run"
    orders.give(LOOP, "hang")
    submit(tiny(num_iterations=1), site_for(orders.python), run=run, door="sbatch")
    login.wait_for(lambda: orders.has_begun(LOOP), 60, "the job to begin")
    held, guard = job_of(run, LOOP), job_of(run, "guard-loop", 2)  # the first stands behind both loop jobs
    node = login.job_field(held, "BatchHost")
    login.output("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    row = "PENDING (held after failed starts)"
    login.wait_for(lambda: situation(Slurm().look([held]).get(held)) == row, 60, row)
    assert login.job_state(job_of(run, LOOP, 2)) == "PENDING"  # nothing is left that could go on by itself
    login.output("scontrol", "update", f"JobId={guard}", "StartTime=now")
    assert finish(login, run) == alone
    assert login.job_state(held) == "CANCELLED"
    assert tries(run, "guard-loop")[1].ends[None].outcome == "done"


def test_a_failed_element_alone_is_played_again(login: DevCluster, tmp_path: Path, apart: Bits) -> None:
    """Of three elements one dies, one fails when all is published; later a person removes what was done."""
    orders, run, gate = Orders(tmp_path / "orders"), tmp_path / "run", tmp_path / "gate"
    orders.give("rollout-000000", "kill -KILL $$", element=1)
    orders.give("rollout-000000", "play; exit 7", element=2)
    orders.give("rollout-000000", f"meet {gate}", number=2, element=1)
    for number in (2, 3):  # the second try, or the third if the first's elements find their input missing one by one
        orders.give("rollout-000001", f"meet {gate}-2", number=number, element=0)
    submit(APART, site_for(orders.python), run=run, door="sbatch")
    login.wait_for(lambda: orders.has_begun("rollout-000000", number=2, element=1), 60, "the second try")
    login.wait_for(lambda: tries(run, "advantage-000000")[0].ends, 60, "the update to find its input missing")
    seen = look(run)
    assert seen.rows[:5] == ["COMPLETED", "FAILED", "manifest published", "RUNNING", "job says: waiting"]
    assert [len(standing.failures) for standing in seen.standings[:2]] == [1, 0]
    again = tries(run, "rollout-000000")[1]
    assert again.claim.elements == (1,)
    gate.touch()
    login.wait_for(
        lambda: any(orders.has_begun("rollout-000001", number=number, element=0) for number in (2, 3)),
        *(90, "the second rollout"),
    )
    shutil.rmtree(RunFolder(run).stage(0, "update").path)
    seen = look(run)
    assert [standing.unit.name for standing in seen.standings][:1] == ["advantage-000000"]
    assert seen.rows[:2] == ["job says: waiting", "job says: done"]
    Path(f"{gate}-2").touch()
    assert finish(login, run, 120) == apart
    assert {one.claim.elements for one in tries(run, "rollout-000000")} == {(0, 1, 2), (1,)}


def test_a_controller_that_is_silent_is_asked_again(login: DevCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --comment=a-token\nexit 0\n")
    login.stop_controller()
    with pytest.raises(SchedulerUnavailableError) as silent:
        Slurm(patience_seconds=0).queue()
    assert reaction_to_error(silent.value) is STATES["controller down"]
    back = threading.Timer(2, login.start_controller)
    back.start()
    job = Slurm(patience_seconds=60).submit(script, token="a-token")
    back.join()
    assert [found.id for found in Slurm().find_by_comment("a-token")] == [job]


@pytest.mark.soak
def test_a_run_goes_on_while_the_controller_is_away(login: DevCluster, tmp_path: Path, alone: Bits) -> None:
    """A job that has just started cannot repair; it plays, and leaves what is to be done in the queue to the next."""
    orders, run, gate = Orders(tmp_path / "orders"), tmp_path / "run", tmp_path / "gate"
    orders.give(LOOP, f"meet {gate}")
    submit(tiny(num_iterations=1), site_for(orders.python), run=run, door="sbatch")
    login.wait_for(lambda: orders.has_begun(LOOP), 60, "the first job to begin")
    login.stop_controller()
    gate.touch()
    with pytest.raises(InputError, match=r"no answer from SLURM's controller in .* with the same command"):
        submit(tiny(num_iterations=1), site_for(orders.python), run=tmp_path / "other", door="sbatch")
    assert not (tmp_path / "other").exists()
    login.wait_for(RunFolder(run).stage(0, "update").is_done, 60, "the job to play all the same")
    login.start_controller()
    assert "repair: squeue: no answer from SLURM's controller" in logs(run)
    assert finish(login, run) == alone  # the second job and the guard are gone too


def test_a_queue_that_takes_three_jobs_of_a_user(login: DevCluster, tmp_path: Path, apart: Bits) -> None:
    run, site = tmp_path / "run", site_for(sys.executable, Resources(qos="few"))
    said: list[str] = []
    submit(meshes(num_iterations=2, play_world="play"), site, run=run, door="sbatch", say=said.append)
    assert [line.split(" as job")[0] for line in said[:3]] == [
        f"submitted {unit}" for unit in ("rollout-000000", "advantage-000000", "rollout-000001")
    ]
    assert said[3].startswith("advantage-000001: not submitted now: ")
    assert "you have as many jobs queued as you may" in said[3]
    assert len(said) == 4
    assert tries(run, "advantage-000001")[0].ends[None].outcome == "waiting"
    assert finish(login, run) == apart


def test_an_array_longer_than_the_queue_comes_in_pieces(login: DevCluster, tmp_path: Path, apart: Bits) -> None:
    """Four elements where a user may have three jobs: two, then as many as fit beside those that still run."""
    run, site = tmp_path / "run", site_for(sys.executable, Resources(qos="few"))
    submit(meshes(num_iterations=2, play_world="play", array=4), site, run=run, door="sbatch")
    first = tries(run, "rollout-000000")
    assert [one.claim.elements for one in first] == [(0, 1, 2, 3), (0, 1)]
    assert [one.job is None for one in first] == [True, False]
    assert finish(login, run) == apart


@pytest.mark.parametrize("asks", [{"account": "nobodys"}, {"qos": "nothing"}], ids=lambda asks: next(iter(asks)))
def test_a_refused_submission_halts_the_run(login: DevCluster, tmp_path: Path, asks: dict[str, str]) -> None:
    (name,) = asks
    run = tmp_path / "run"
    with pytest.raises(SubmissionRefusedError, match=f"SLURM refused the job: .*; set resources.{name} in the site"):
        submit(tiny(num_iterations=1), site_for(sys.executable, Resources(**asks)), run=run, door="sbatch")
    assert Ledger(run).halted() is not None
    assert jobs_of(run) == []
    # A person corrects the site file and submits it again.
    submit(tiny(num_iterations=1), site_for("true"), run=run, door="sbatch")
    assert len(jobs_in_queue(login, run)) == 4


def test_a_deadline_that_cannot_be_met_halts_the_run(login: DevCluster, tmp_path: Path) -> None:
    resources = Resources(time_minutes=1, extra=("--deadline=now+1minute", "--nodelist=n4"))
    run = tmp_path / "run"
    login.output("scontrol", "update", "NodeName=n4", "State=DRAIN", "Reason=test")  # tidied afterwards
    said: list[str] = []
    submit(tiny(num_iterations=1), site_for("true", resources), run=run, door="sbatch", say=said.append)
    assert said[3].startswith("guard-loop: not submitted now: ")  # it would begin too late; the run does without
    login.wait_for_state(job_of(run, LOOP), "DEADLINE", 60)
    seen = look(run)
    assert seen.rows[0] == "DEADLINE"
    assert seen.done.halted == f"{LOOP}: try 1 (job {job_of(run, LOOP)}): {STATES['DEADLINE'].words}"
    assert Ledger(run).halted() == seen.done.halted
    assert seen.done.submitted == []


@pytest.mark.parametrize("progress", [False, True], ids=["", "progress"])
def test_a_job_that_nobody_knows_is_submitted_again(login: DevCluster, tmp_path: Path, progress: bool) -> None:
    """As after a cluster has been set up anew while a run was in its queue."""
    run = tmp_path / "run"
    lost(run, progress)
    seen = look(run)
    assert seen.rows == ["unknown job, progress" if progress else "unknown job"]
    assert [len(standing.failures) for standing in seen.standings] == [0 if progress else 1]
    assert [request.number for request in seen.done.submitted if request.unit.segment == "main"] == [2, 3]


def test_without_accounting(tmp_path: Path, alone: Bits) -> None:
    cluster = DevCluster("--nodes", "1", "--no-accounting")
    try:
        with login_node(cluster):
            lost(tmp_path / "lost")
            assert look(tmp_path / "lost").rows == ["unknown job, accounting off"]
            cluster.output("scancel", *jobs_of(tmp_path / "lost")[:-1])
            orders, run = Orders(tmp_path / "orders"), tmp_path / "run"
            orders.give(LOOP, "sleep 300")
            submit(tiny(num_iterations=1), site_for(orders.python), run=run, door="sbatch")
            cluster.output("scontrol", "hold", job_of(run, LOOP, 2))
            cluster.wait_for(lambda: orders.has_begun(LOOP), 60, "the first job to begin")
            cluster.output("scancel", job_of(run, LOOP))
            cluster.wait_for_state(job_of(run, LOOP), "CANCELLED", 30)
            assert look(run).rows[0] == "CANCELLED (by whom is not known)"
            cluster.output("scontrol", "release", job_of(run, LOOP, 2))
            assert finish(cluster, run) == alone
    finally:
        cluster.down()


def lost(run: Path, progress: bool = False) -> None:
    """A run whose only job, as the ledger has it, SLURM has never heard of."""
    submit(tiny(num_iterations=1), site_for("true", Resources(extra=("--begin=now+1hour",))), run=run, door="sbatch")
    cancel_run(run)
    shutil.rmtree(Ledger(run).path)
    unit = Unit("main", None)
    Ledger(run).claim(Claim(unit, 1, token="lost", door="sbatch", created=now()))
    Ledger(run).record_job(unit, 1, "999999")
    if progress:
        RunFolder(run).stage(0, "rollout").begin_attempt(compute_threads=1).publish([])
