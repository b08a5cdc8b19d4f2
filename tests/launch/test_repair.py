"""Repair on a pretended cluster: whatever job is lost, the run finishes; nothing is submitted twice."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcrl import PPO, Advantage, Evaluate, Mesh, Mlp, Pipeline, Reached, Rollout, Update
from hpcrl.launch.repair import Me, cancel_rest
from hpcrl.launch.request import GUARD, Request
from hpcrl.launch.standing import GUARD_MINUTES
from hpcrl.launch.units import Units
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SubmissionRefusedError
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
        (GUARD, 1, ("1", "2")),
        (GUARD, 2, ()),
    ]
    assert done.submitted[3].begin_minutes == GUARD_MINUTES
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
    cluster.lines.clear()
    assert cluster.repair().done.halted == halted
    assert cluster.lines == [f"nothing is submitted, the run is halted: {halted}; go on with: hpcrl run"]
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
    # Nothing is put behind a job that may never come; should the claim stay lonely, a guard finds out soon.
    assert [(one.unit, one.begin_minutes) for one in submitted] == [(GUARD, 2), (GUARD, GUARD_MINUTES)]
    assert cluster.repair().done.submitted == []


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


def live(cluster: Cluster, *, lose: int = -1, seed: int = 0, steps: int = 4000) -> int:
    """Plays jobs side by side, a step of one after a step of another, until the run is over; nobody waits half an hour.

    Args: lose: before this step a job, queued or running, is lost; later, where it would be the last one.
    Returns: how many steps it took.
    """
    for step in range(steps):
        if step >= lose >= 0 and sum(one.phase != "leaves" for one in cluster.alive()) > 1:
            cluster.end(cluster.random.choice(cluster.alive()), "NODE_FAIL")
            lose = -1
        if cluster.foreign and cluster.random.random() < 0.05:
            cluster.foreign = 0
        running = [one for one in cluster.alive() if one.job.state == "RUNNING"]
        startable = [one for one in cluster.startable() if not one.request.begin_minutes or one.job.restarts]
        if not running + startable:
            break
        cluster.step(cluster.random.choice(running + startable))
        assert is_finished(cluster) or cluster.alive(), cluster.lines
        room = cluster.case.site.limits.max_jobs or cluster.most_jobs
        assert len(cluster.alive()) + cluster.foreign <= room
    assert is_finished(cluster), (seed, cluster.lines, [one.job for one in cluster.alive()])
    assert all(one.request.begin_minutes for one in cluster.alive())
    return step


@pytest.mark.parametrize("is_told", [False, True], ids=["refused", "max_jobs"])
@pytest.mark.parametrize("limit", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("lag", [0, 1])
def test_whatever_job_is_lost_in_a_narrow_queue_the_run_finishes(
    tmp_path: Path, lag: int, limit: int, is_told: bool
) -> None:
    """An array of four, queues that hold fewer jobs, as many, or a few more; any job is lost at any moment."""
    for seed in range(5):
        case = case_of(tmp_path / f"run-{seed}", apart(2, array=4, lag=lag), max_jobs=limit * is_told, retries=3)
        cluster = Cluster(case, seed=seed, most_jobs=limit if not is_told else 10**6)
        cluster.repair()
        live(cluster, lose=cluster.random.randrange(60), seed=seed)


@pytest.mark.parametrize("is_told", [False, True], ids=["refused", "max_jobs"])
@pytest.mark.parametrize("free", [1, 2, 3])
def test_a_queue_that_others_fill_for_a_while(tmp_path: Path, free: int, is_told: bool) -> None:
    for seed in range(5):
        case = case_of(tmp_path / f"run-{seed}", apart(2, array=4), max_jobs=6 * is_told, retries=3)
        cluster = Cluster(case, seed=seed, most_jobs=6 if not is_told else 10**6)
        cluster.foreign = 6 - free
        cluster.repair()
        live(cluster, seed=seed)


@pytest.mark.parametrize("is_told", [False, True], ids=["refused", "max_jobs"])
@pytest.mark.parametrize("limit", [3, 4, 5])
def test_elements_that_end_in_the_same_moment_leave_somebody_behind(tmp_path: Path, limit: int, is_told: bool) -> None:
    case = case_of(tmp_path / "run", apart(2, array=limit, num_blocks=limit), max_jobs=limit * is_told)
    cluster = Cluster(case, most_jobs=limit if not is_told else 10**6)
    cluster.repair()
    for _ in range(200):
        together = cluster.startable()
        if all(one.request.begin_minutes and not one.job.restarts for one in together):
            break
        for one in [one for one in together if one.job.restarts]:  # these wait for a random time before they look
            cluster.play(one)
        for _ in range(4):  # start, work, leave, vanish: all of them, one after the other
            for one in together:
                if not one.job.is_over and not one.job.restarts and not one.request.begin_minutes:
                    cluster.step(one)
    assert is_finished(cluster), cluster.lines


def test_the_last_place_of_a_queue_is_for_a_guard(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(2, array=4), max_jobs=4))
    submitted = cluster.repair().done.submitted
    assert [(one.unit.name, one.elements, one.dependency) for one in submitted] == [
        ("rollout-000000", (0, 1, 2), ()),
        ("guard-loop", None, ("1",)),
    ]


def test_a_unit_done_meanwhile_is_not_submitted_again(tmp_path: Path) -> None:
    """Jobs publish, say so and end while a repair looks: after it saw what is pending, before it asks the queue."""
    for max_array_size in (1, 1000):
        cluster = Cluster(
            case_of(tmp_path / f"run-{max_array_size}", apart(3, array=4), retries=0), max_array_size=max_array_size
        )
        cluster.repair()
        look, overtaken = cluster.look, False

        def look_after_all_have_ended(ids: Sequence[str], cluster: Cluster = cluster) -> dict[str, Job]:
            nonlocal overtaken
            if not overtaken:
                overtaken = True
                for one in [one for one in cluster.startable() if not one.request.begin_minutes]:
                    cluster.play(one)
            return look(ids)  # noqa: B023

        cluster.look = look_after_all_have_ended  # type: ignore[method-assign]
        done = cluster.repair().done
        assert done.halted is None
        assert not [one for one in done.submitted if one.unit.iteration == 0]


def test_an_array_that_is_cancelled_before_it_may_start_is_one_job(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(2, array=4), retries=0))
    cluster.repair()
    for id_ in [id_ for id_ in cluster.jobs if id_.startswith("3_")]:
        job = cluster.jobs.pop(id_)
        job.job = dataclasses.replace(job.job, id="3", array_id=None, element=None, state="CANCELLED")
        job.job = dataclasses.replace(job.job, cancelled_by=os.geteuid())
        cluster.jobs["3"] = job
    done = cluster.repair().done
    assert done.halted is None  # by this user: no failure
    assert [(one.unit.name, one.elements) for one in done.submitted] == [("rollout-000001", (0, 1, 2, 3))]


def test_a_refused_submission_leaves_no_open_claim(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(2)))

    def refuse(request: Request) -> str:
        raise SubmissionRefusedError("invalid qos", "qos")

    cluster.submit = refuse  # type: ignore[method-assign]
    with pytest.raises(SubmissionRefusedError, match="invalid qos"):
        cluster.repair()
    (one,) = Ledger(tmp_path / "run").tries(Unit("rollout", 0))
    assert (one.job, one.ends[None].outcome) == (None, "refused")
    assert cluster.lines == []  # who called tells the reason


def test_a_loop_whose_two_jobs_fail_at_once_has_a_guard_behind_them(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", loop(), retries=3))
    cluster.repair()
    for id_ in ("1", "2"):
        cluster.end(cluster.jobs[id_], "FAILED", 1)
    (guard,) = [one for one in cluster.startable() if one.request.dependency == ("1", "2")]
    cluster.play(guard)
    run_out(cluster)
    assert is_finished(cluster)


def test_the_pieces_of_a_split_array_are_all_cancelled_at_the_end(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(2, array=4)), max_array_size=1)
    cluster.repair()
    pieces = [id_ for id_, one in cluster.jobs.items() if one.request.unit == Unit("rollout", 1)]
    assert len(pieces) == 4
    assert {f"{id_}_0" for id_ in cancel_rest(cluster.case, cluster, but="")} >= set(pieces)  # type: ignore[arg-type]


def test_an_interruption_before_sbatch_leaves_no_claim(tmp_path: Path) -> None:
    cluster = Cluster(case_of(tmp_path / "run", apart(2)))

    def interrupt(requests: tuple[Request, ...]) -> None:
        raise KeyboardInterrupt

    cluster.prepare, prepare = interrupt, cluster.prepare  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cluster.repair()
    cluster.prepare = prepare  # type: ignore[method-assign]
    assert cluster.repair().done.submitted[0].unit == Unit("rollout", 0)


def test_a_run_with_a_lonely_claim_goes_on_soon(tmp_path: Path) -> None:
    """Killed while sbatch was asked, or as its answer came; then a person submits the run again."""
    cluster = Cluster(case_of(tmp_path / "run", apart(2)))
    ledger = Ledger(tmp_path / "run")
    ledger.claim(Claim(Unit("rollout", 0), 1, token="t", door="sbatch", created=now()))
    cluster.repair()
    (soon,) = [one for one in cluster.startable() if one.request.begin_minutes == 2]
    # Two minutes later.
    claim = ledger.path / "claim-rollout-000000-01.json"
    claim.unlink()
    long_ago = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=2)).isoformat()
    ledger.claim(Claim(Unit("rollout", 0), 1, token="t", door="sbatch", created=long_ago))
    cluster.play(soon)
    for _ in range(100):
        startable = [one for one in cluster.startable() if not one.request.begin_minutes]
        if not startable:
            break
        cluster.play(startable[0])
    assert is_finished(cluster), cluster.lines


def test_an_array_whose_manifest_is_about_to_be_published_has_not_failed(tmp_path: Path) -> None:
    """All its elements have said that they are done but the last, which publishes the manifest now."""
    cluster = Cluster(case_of(tmp_path / "run", apart(2, array=2), retries=0))
    cluster.repair()
    cluster.play(cluster.jobs["1_0"])
    cluster.start(cluster.jobs["1_1"])
    folder = cluster.case.run.stage(0, "rollout")
    attempt = folder.begin_attempt(compute_threads=1)
    for block in (2, 3):
        attempt.publish_part(block, [])
    done = cluster.repair().done
    assert (done.halted, [one for one in done.submitted if one.unit.iteration == 0]) == (None, [])
    # It is lost before it has: somebody else publishes the manifest.
    cluster.end(cluster.jobs["1_1"], "NODE_FAIL")
    again = [one for one in cluster.repair().done.submitted if one.unit == Unit("rollout", 0)]
    assert [one.elements for one in again] == [(0,)]
    run_out(cluster)
    assert is_finished(cluster)
