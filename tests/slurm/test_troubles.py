"""What befalls a cluster while a run is on it: nodes cut off, the controller away, full queues, no accounting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.launch.submission import submit
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.meshes import meshes
from tests.pipelines.tiny import tiny
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.orders import Orders
from tests.slurm.submitted import (
    Bits,
    finish,
    job_of,
    login_node,
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


def test_a_node_that_is_taken_away(login: DevCluster, tmp_path: Path, alone: Bits) -> None:
    orders, run = Orders(tmp_path / "orders"), tmp_path / "run"
    pause = orders.pause(LOOP, "optimizer.after_step:1")
    submit(tiny(num_iterations=1), site_for(orders.python), run=run, door="sbatch")
    login.wait_for(pause.is_reached, 60, "the job to play")
    node = login.job_field(job_of(run, LOOP), "BatchHost")
    login.output("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    assert finish(login, run) == alone
    assert login.job_field(job_of(run, LOOP), "Restarts") == "1"


def test_a_failed_element_alone_is_played_again(login: DevCluster, tmp_path: Path, apart: Bits) -> None:
    """Of three elements one dies, one fails when all is published; later a person removes what was done."""
    orders, run, gate = Orders(tmp_path / "orders"), tmp_path / "run", tmp_path / "gate"
    orders.give("rollout-000000", "kill -KILL $$", element=1)
    orders.give("rollout-000000", "play; exit 7", element=2)
    orders.give("rollout-000000", f"meet {gate}", number=2, element=1)
    orders.give("rollout-000001", f"meet {gate}-2", number=2, element=0)
    submit(APART, site_for(orders.python), run=run, door="sbatch")
    login.wait_for(lambda: orders.has_begun("rollout-000000", number=2, element=1), 60, "the second try")
    login.wait_for(lambda: tries(run, "advantage-000000")[0].ends, 60, "the update to find its input missing")
    seen = look(run)
    assert seen.rows[:5] == ["COMPLETED", "FAILED", "manifest published", "RUNNING", "job says: waiting"]
    assert [len(standing.failures) for standing in seen.standings[:2]] == [1, 0]
    again = tries(run, "rollout-000000")[1]
    assert again.claim.elements == (1,)
    gate.touch()
    login.wait_for(lambda: orders.has_begun("rollout-000001", number=2, element=0), 90, "the second rollout")
    remove(RunFolder(run).stage(0, "update").path)
    seen = look(run)
    assert [standing.unit.name for standing in seen.standings][:1] == ["advantage-000000"]
    assert seen.rows[:2] == ["job says: waiting", "job says: done"]
    Path(f"{gate}-2").touch()
    assert finish(login, run, 120) == apart
    assert {one.claim.elements for one in tries(run, "rollout-000000")} == {(0, 1, 2), (1,)}


def remove(folder: Path) -> None:
    """A person tidies up, and takes too much."""
    folder.rename(folder.with_name("taken-away"))
