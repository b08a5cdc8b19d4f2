"""Repair on a pretended cluster: whatever job is lost, the run finishes; nothing is submitted twice."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcrl import PPO, Advantage, Evaluate, Mesh, Mlp, Pipeline, Reached, Rollout, Update
from hpcrl.launch.repair import GUARD_MINUTES, Me
from hpcrl.launch.request import GUARD
from hpcrl.launch.units import Units
from hpcrl.scheduler.jobs import Job
from hpcrl.store.ledger import Claim, Ledger, Unit, now
from tests.launch.pretend import Cluster, case_of


def loop(num_iterations: int = 3) -> Pipeline:
    return Pipeline(
        name="p",
        num_iterations=num_iterations,
        models={"actor": Mlp()},
        stages=[Rollout(env="CartPole-v1"), Advantage(), Update(PPO())],
    )


def apart(num_iterations: int = 5, *, array: int = 1, lag: int = 0, num_blocks: int = 4) -> Pipeline:
    return dataclasses.replace(
        loop(num_iterations),
        stages=[
            Rollout(env="CartPole-v1", num_envs=8 * num_blocks, mesh="play"),
            Advantage(),
            Update(PPO()),
            Evaluate(every=2, stop_when=Reached("return", 1e9)),
        ],
        meshes={"play": Mesh(world="play", array=array)},
        policy_lag=lag,
        num_blocks=num_blocks,
    )


def run_out(cluster: Cluster, steps: int = 500) -> None:
    """Plays until nothing is queued."""
    for _ in range(steps):
        startable = cluster.startable()
        if not startable:
            assert not cluster.waiting(), [one.job for one in cluster.waiting()]
            return
        cluster.play(cluster.random.choice(startable))
    raise AssertionError("the run does not come to an end")


def is_finished(cluster: Cluster) -> bool:
    return Units(cluster.case.run, cluster.case.pipeline).is_finished()


def test_a_loop_has_a_second_behind_it(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", loop()))
    done = cluster.repair().done
    assert [(one.unit, one.number, one.dependency) for one in done.submitted] == [
        (Unit("main", None), 1, ()),
        (Unit("main", None), 2, ("1",)),
        (GUARD, 1, ()),
    ]
    assert done.submitted[2].begin_minutes == GUARD_MINUTES
    assert cluster.repair().done.submitted == []
    run_out(cluster)
    assert is_finished(cluster)
    assert cluster.jobs["2"].job.state == "CANCELLED"
    assert cluster.repair().done.submitted == []


def test_a_window_is_submitted_and_topped_up(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(4), window=2))
    submitted = cluster.repair().done.submitted
    assert [(one.unit.name, one.dependency) for one in submitted] == [
        ("rollout-000000", ()),
        ("advantage-000000", ("1",)),
        ("rollout-000001", ("1", "2")),
        ("advantage-000001", ("2", "3")),
        ("rollout-000002", ("3", "4")),
        ("advantage-000002", ("4", "5")),
        ("guard-loop", ()),
    ]
    run_out(cluster)
    assert is_finished(cluster)
    # One job for each unit and two guards: nothing twice.
    assert len(cluster.jobs) == 10
    assert len(set(cluster.played)) == len(cluster.played) == 8


def test_a_lag_is_an_edge_less(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(4, lag=1), window=2))
    submitted = {one.unit.name: one.dependency for one in cluster.repair().done.submitted}
    assert submitted["rollout-000001"] == ("1",)  # its lanes only
    run_out(cluster)
    assert is_finished(cluster)


@pytest.mark.parametrize("array", [1, 3])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("seed", range(12))
def test_any_one_lost_job_is_made_good(tmp_path: Path, seed: int, lag: int, array: int) -> None:
    """At a random moment a random job, queued or running, is lost (cancelled, or dead with its node)."""
    case = case_of(tmp_path / "run", apart(5, array=array, lag=lag), retries=3)
    cluster = Cluster(case, seed=seed)
    cluster.repair()
    moment = cluster.random.randrange(12)
    for step in range(400):
        if step == moment and cluster.waiting():
            if cluster.random.random() < 0.5 and cluster.startable():
                cluster.play(cluster.random.choice(cluster.startable()), dies=True)
            else:
                cluster.end(cluster.random.choice(cluster.waiting()), "CANCELLED")
        startable = cluster.startable()
        if not startable:
            break
        cluster.play(cluster.random.choice(startable))
    assert is_finished(cluster), cluster.lines
    assert not cluster.waiting()


@pytest.mark.parametrize("pipeline", [loop(), apart(3), apart(3, array=3, lag=1)], ids=["loop", "apart", "lag"])
@pytest.mark.parametrize("seed", range(4))
def test_a_job_that_slurm_holds_is_replaced_when_the_guards_time_comes(
    tmp_path: Path, seed: int, pipeline: Pipeline
) -> None:
    cluster = Cluster(case_of(tmp_path / "run", pipeline, retries=3), seed=seed)
    cluster.repair()
    for _ in range(cluster.random.randrange(4)):
        if pipeline.meshes:  # a loop has one job to hold
            cluster.play(cluster.random.choice(cluster.startable()))
    victims = [one for one in cluster.startable() if not one.request.begin_minutes]
    cluster.hold(cluster.random.choice(victims))
    run_out(cluster)
    assert is_finished(cluster), cluster.lines


@pytest.mark.parametrize("seed", range(8))
def test_a_loop_outlives_its_jobs(tmp_path: Path, seed: int) -> None:
    cluster = Cluster(case_of(tmp_path / "run", loop()), seed=seed)
    cluster.repair()
    victim = cluster.random.choice(list(cluster.jobs.values()))
    if victim.request.dependency:
        cluster.end(victim, "CANCELLED")
    else:
        cluster.play(victim, dies=True)
    run_out(cluster)
    assert is_finished(cluster)


def test_only_missing_elements_are_played_again(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(1, array=4)))
    cluster.repair()
    for element in (0, 1, 3):
        cluster.play(cluster.jobs[f"1_{element}"])
    cluster.play(cluster.jobs["1_2"], dies=True)
    run_out(cluster)
    assert is_finished(cluster)
    rollouts = [element for unit, element in cluster.played if unit.segment == "rollout"]
    assert rollouts == [0, 1, 3, 2]


@pytest.mark.parametrize("pipeline", [loop(), apart(3), apart(3, array=3)], ids=["loop", "apart", "array"])
def test_two_repairs_at_once_submit_nothing_twice(tmp_path: Path, pipeline: Pipeline) -> None:
    """The second looks and submits between the first one's look and what it would submit."""
    cluster = Cluster(case_of(tmp_path / "run", pipeline))
    look = cluster.look

    def look_and_be_overtaken(ids: Sequence[str]) -> dict[str, Job]:
        found = look(ids)
        cluster.look = look  # type: ignore[method-assign]
        cluster.repair()
        return found

    cluster.look = look_and_be_overtaken  # type: ignore[method-assign]
    assert cluster.repair().done.submitted == []
    run_out(cluster)
    assert is_finished(cluster)
    assert len(set(cluster.played)) == len(cluster.played)


@pytest.mark.parametrize("pipeline", [loop(), apart(4), apart(4, array=2, lag=1)], ids=["loop", "apart", "array"])
@pytest.mark.parametrize("seed", range(4))
def test_a_queue_that_is_full_is_filled_up_later(tmp_path: Path, seed: int, pipeline: Pipeline) -> None:
    cluster = Cluster(case_of(tmp_path / "run", pipeline), seed=seed, most_jobs=3)
    assert cluster.repair().done.halted is None
    run_out(cluster)
    assert is_finished(cluster)
    assert len(set(cluster.played)) == len(cluster.played)


@pytest.mark.parametrize("is_told", [False, True], ids=["refused", "max_jobs"])
@pytest.mark.parametrize("most_jobs", [2, 3, 4, 6, 9])
@pytest.mark.parametrize("lag", [0, 1])
def test_an_array_longer_than_the_queue_comes_in_pieces(
    tmp_path: Path, lag: int, most_jobs: int, is_told: bool
) -> None:
    """Whether the site file says the limit or SLURM refuses; no job is submitted beyond it."""
    case = case_of(tmp_path / "run", apart(3, array=8, num_blocks=8, lag=lag), max_jobs=most_jobs if is_told else 0)
    for seed in range(3):
        cluster = Cluster(case_of(tmp_path / f"run-{seed}", case.pipeline), seed=seed, most_jobs=most_jobs)
        cluster.case = dataclasses.replace(cluster.case, site=case.site)
        assert cluster.repair().done.left_out
        for _ in range(400):
            # Nobody waits half an hour for a guard.
            startable = [one for one in cluster.startable() if not one.request.begin_minutes]
            if not startable:
                break
            cluster.play(cluster.random.choice(startable))
            assert sum(not one.job.is_over for one in cluster.jobs.values()) <= most_jobs
        assert is_finished(cluster), cluster.lines
        assert len(set(cluster.played)) == len(cluster.played)


def test_a_job_to_wait_for_that_the_cluster_has_forgotten_is_not_waited_for(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(1)))
    cluster.repair()
    cluster.end(cluster.jobs["2"], "CANCELLED")
    look = cluster.look

    def look_and_forget(ids: Sequence[str]) -> dict[str, Job]:
        found = look(ids)
        cluster.forgotten.add("1")
        return {} if ids == ("1",) else found

    cluster.look = look_and_forget  # type: ignore[method-assign]
    cluster.repair()
    again = next(one for one in cluster.jobs.values() if one.request.number == 2 and one.request.unit.iteration == 0)
    assert (again.request.unit.name, again.request.dependency) == ("advantage-000000", ())


def test_arrays_beyond_the_limit_are_split(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(1, array=8, num_blocks=8)), max_array_size=3)
    submitted = [one for one in cluster.repair().done.submitted if one.unit.segment == "rollout"]
    assert [(one.elements, one.indices, one.first_element) for one in submitted] == [
        ((0, 1, 2), (0, 1, 2), 0),
        ((3, 4, 5), (0, 1, 2), 3),
        ((6, 7), (0, 1), 6),
    ]
    run_out(cluster)
    assert is_finished(cluster)
    assert sorted(
        element for unit, element in cluster.played if unit.segment == "rollout" and element is not None
    ) == list(range(8))


def test_a_unit_that_fails_again_and_again_halts_the_run(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(3), retries=2))
    cluster.repair()
    for _ in range(50):
        startable = cluster.startable()
        if not startable:
            break
        one = startable[0]
        cluster.play(one, outcome_code=1 if one.request.unit.segment == "rollout" else 0)
    halted = Ledger(tmp_path / "run").halted()
    assert halted is not None
    assert halted.startswith("rollout-000000: failed 3 times (limits.retries = 2); the last time: try 3 (job")
    assert cluster.repair().done.halted == halted
    assert cluster.repair().done.submitted == []


def test_a_refused_unit_halts_at_once_and_a_person_may_go_on(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(2)))
    cluster.repair()
    cluster.play(cluster.startable()[0], outcome_code=2)
    run_out(cluster)
    ledger = Ledger(tmp_path / "run")
    assert "bad input" in (ledger.halted() or "")
    ledger.go_on()
    # Submitted again by a person: what failed before is forgiven.
    cluster.case = dataclasses.replace(cluster.case, papers=dataclasses.replace(cluster.case.papers, submitted=now()))
    cluster.repair()
    run_out(cluster)
    assert is_finished(cluster)


def test_a_claim_without_a_job_is_adopted_or_forgotten(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", loop()))
    ledger, unit = Ledger(tmp_path / "run"), Unit("main", None)
    long_ago = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)).isoformat()
    papers = dataclasses.replace(cluster.case.papers, submitted=long_ago)
    cluster.case = dataclasses.replace(cluster.case, papers=papers)
    # Submitted, but whoever did it died before writing the id down.
    ledger.claim(Claim(unit, 1, token="lost-and-found", door="sbatch", created=long_ago))
    request = cluster.repair().done.submitted  # nothing has that token yet: forgotten
    assert [one.number for one in request if one.unit == unit] == [2, 3]
    one = cluster.jobs["1"]
    one.job = dataclasses.replace(one.job, comment="lost-and-found")
    cluster.repair()
    assert [one.job for one in ledger.tries(unit)] == ["1", "1", "2"]


def test_a_young_claim_is_somebody_elses_submission(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(1)))
    Ledger(tmp_path / "run").claim(Claim(Unit("rollout", 0), 1, token="t", door="sbatch", created=now()))
    submitted = cluster.repair().done.submitted
    assert [one.unit.name for one in submitted] == ["advantage-000000", "guard-loop", "guard-loop"]


@pytest.mark.parametrize("lag", [0, 1])
def test_an_evaluation_that_stops_ends_the_jobs(tmp_path: Path, lag: int) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(50, lag=lag)), stops_at=3)
    cluster.repair()
    run_out(cluster)
    units = Units(cluster.case.run, cluster.case.pipeline)
    assert units.last_iteration == 3
    assert is_finished(cluster)
    assert not cluster.case.run.stage(4, "update").is_done()


def test_the_guard_looks_at_everything(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(100)))
    run = cluster.case.run
    for iteration in range(100):
        for stage in cluster.case.pipeline.stages:
            if stage.due(iteration) and (iteration, stage.name) != (1, "evaluate"):
                run.stage(iteration, stage.name).begin_attempt(compute_threads=1).publish([], {"stop": False})
    assert cluster.repair().done.submitted == []  # 64 finished iterations behind it are taken for all
    guard = cluster.repair(Me(GUARD, "77")).done
    assert [one.unit.name for one in guard.submitted] == ["advantage-000001", "guard-loop"]
