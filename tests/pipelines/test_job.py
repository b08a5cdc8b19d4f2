"""`hpcrl job`: units played one by one, as a scheduler starts them, give the bits of one process that plays all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcrl.launch.papers import Papers
from hpcrl.pipeline import Pipeline
from hpcrl.runner import Launch, check_resumable, open_run
from hpcrl.scheduler.site import Launch as SiteLaunch
from hpcrl.scheduler.site import Site
from hpcrl.store.ledger import Ledger, Unit, now
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.forked import forked
from tests.pipelines.meshes import meshes
from tests.pipelines.runs import Finished, hpcrl, leftovers, published_bits, published_facts

LONELY = Site(launch=SiteLaunch(submit_from_jobs=False))
"""There is no scheduler here to repair with."""


def submitted(path: Path, pipeline: Pipeline) -> Path:
    """A run folder as `hpcrl run --on sbatch` leaves it, but for the jobs."""
    launch = Launch(run=path, command="hpcrl run")
    open_run(pipeline, launch, check_resumable(pipeline, launch))
    Papers("sbatch", (), os.getcwd(), "hpcrl run", now()).write(path, LONELY)
    return path


def job(
    path: Path,
    *arguments: object,
    element: int | None = None,
    restarts: int = 0,
    array: tuple[int, ...] = (),
    id_: str = "17",
) -> Finished:
    variables = {"SLURM_JOB_ID": id_, "SLURM_RESTART_COUNT": str(restarts)}
    if element is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": id_, "SLURM_ARRAY_TASK_ID": str(element)}
    if array:
        facts = {"MIN": min(array), "MAX": max(array), "STEP": 1, "COUNT": len(array)}
        variables |= {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}
    setup = f"import os; os.environ.update({variables!r})"
    return forked("job", path, *arguments, folder=path.parent, setup=setup)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "run"
    done = hpcrl("run", "tests/pipelines/meshes.py", "--on", "here", "--no-play", "--stop", "--run", path)
    assert done.code == 0, done.output
    return path


@pytest.mark.parametrize("array", [1, 2, 3])
def test_unit_by_unit_gives_the_same_bits(array: int, reference: Path, tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play", array=array, stop=True))
    for iteration in range(3):
        for element in range(array) if array > 1 else [None]:
            done = job(run, "--segment", "rollout", "--iteration", iteration, "--try", 1, element=element)
            assert done.code == 0, done.output
        done = job(run, "--segment", "advantage", "--iteration", iteration, "--try", 1)
        assert done.code == 0, done.output
    assert published_bits(run) == published_bits(reference)
    assert published_facts(run, "evaluate") == published_facts(reference, "evaluate")
    # Iteration 2's evaluation says stop: a job of the window that starts now finds the run over.
    done = job(run, "--segment", "rollout", "--iteration", 3, "--try", 1, element=0 if array > 1 else None)
    assert done.code == 0, done.output
    assert not RunFolder(run).stage(3, "rollout").is_done()
    assert leftovers(run) == []


def test_a_job_whose_input_is_not_there_says_so_and_leaves(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play"))
    done = job(run, "--segment", "advantage", "--iteration", 0, "--try", 1)
    assert done.code == 0, done.output
    assert not RunFolder(run).stage(0, "update").path.exists()
    (found,) = Ledger(run).path.glob("end-*.json")
    assert b'"waiting"' in found.read_bytes()


def test_a_script_submitted_by_hand_takes_the_next_unit_and_enters_the_ledger(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play"))
    for id_, segment in zip("567", ("rollout", "advantage", "rollout"), strict=True):
        done = job(run, "--segment", segment, id_=id_)
        assert done.code == 0, done.output
    assert [RunFolder(run).stage(n, s).is_done() for n, s in [(0, "rollout"), (0, "update"), (1, "rollout")]] == [
        True
    ] * 3
    (one,) = Ledger(run).tries(Unit("rollout", 1))
    assert (one.claim.door, one.job, one.ends[None].outcome) == ("hand", "7", "done")


@pytest.mark.parametrize(
    ("arrays", "claims"),
    [
        ([(0, 1, 2)], [(0, 1, 2)]),
        ([(0,), (1,), (2,)], [(0,), (1,), (2,)]),
        ([(0, 2), (1,)], [(0,), (2,), (1,)]),  # SLURM does not tell an irregular array's elements
    ],
)
def test_arrays_submitted_by_hand_enter_the_ledger_with_their_elements(
    arrays: list[tuple[int, ...]], claims: list[tuple[int, ...]], tmp_path: Path
) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play", array=3))
    for array in arrays:
        for element in array:
            done = job(run, "--segment", "rollout", "--iteration", 0, element=element, array=array)
            assert done.code == 0, done.output
    tries = Ledger(run).tries(Unit("rollout", 0))
    assert [one.claim.elements for one in tries] == claims
    assert [(one.job, sorted(one.ends)) for one in tries] == [("17", list(claim)) for claim in claims]


def test_a_job_submitted_by_hand_that_is_started_again_has_the_same_unit(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play"))
    for restarts in range(2):
        done = job(run, "--segment", "rollout", restarts=restarts)
        assert done.code == 0, done.output
    assert [len(Ledger(run).tries(Unit("rollout", iteration))) for iteration in range(2)] == [1, 0]


def test_a_job_that_has_said_its_last_word_plays_nothing_when_it_is_started_again(tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play"))
    assert job(run, "--segment", "advantage", "--iteration", 0, "--try", 1).code == 0  # its input is not there
    assert job(run, "--segment", "rollout", "--iteration", 0, "--try", 1).code == 0
    done = job(run, "--segment", "advantage", "--iteration", 0, "--try", 1, restarts=1)
    assert done.code == 0, done.output
    assert not RunFolder(run).stage(0, "update").path.exists()


def test_a_loop_is_one_job(reference: Path, tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play=False, stop=True))
    done = job(run, "--segment", "main", "--try", 1)
    assert done.code == 0, done.output
    assert published_bits(run) == published_bits(reference)


@pytest.mark.parametrize(
    ("arguments", "element", "message"),
    [
        (("--segment", "rolout"), None, "--segment: want one of rollout, advantage, given 'rolout'"),
        ((), None, "--segment: want the name of one, given none"),
        (("--segment", "rollout", "--iteration", 0), None, "SLURM_ARRAY_TASK_ID: want an element from 0 to 1"),
        (("--segment", "rollout", "--iteration", 0), 2, "SLURM_ARRAY_TASK_ID: want an element from 0 to 1 .* given 2"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], element: int | None, message: str, tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", meshes(play_world="play", array=2))
    done = job(run, *arguments, element=element)
    assert done.code == 2
    assert message.split(" .* ")[0] in done.output
    assert RunFolder(run).iterations() == []


def test_a_run_that_was_never_submitted_is_refused(reference: Path) -> None:
    done = job(reference, "--segment", "main")
    assert done.code == 2
    assert "want a run that was submitted, given one that was not; use hpcrl run --on slurm" in done.output


def test_what_others_could_have_written_is_not_read(tmp_path: Path) -> None:
    for name in ("pipeline.json", "jobs/jobs.json", "jobs/site.toml"):
        run = submitted(tmp_path / name.replace("/", "-"), meshes(play=False))
        (run / name).chmod(0o666)
        done = job(run, "--segment", "main", "--try", 1)
        assert done.code == 2
        assert f"{name}: want a file that only you or root can have written" in done.output
        assert RunFolder(run).iterations() == []
