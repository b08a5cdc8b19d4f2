"""Both doors on a real cluster: what they submit runs, ends as it should, is told to stop, and comes back once."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrl.launch.request import GUARD, Door, Request, Surroundings
from hpcrl.launch.scripts import Scripts
from hpcrl.scheduler.refusals import SubmissionRefusedError
from hpcrl.scheduler.site import Launch, Limits, Resources, Site
from hpcrl.scheduler.slurm import Slurm
from hpcrl.store.ledger import Unit
from tests.slurm.dev_cluster import ROOT, DevCluster

DOORS = ("sbatch", "slurm")
TOKEN = "token-of-a-secret-service-8c1f"


@pytest.fixture(params=DOORS)
def door_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder whose name holds what a shell would trip over."""
    path = tmp_path / 'a run\'s "$HOME" `touch x` 100%'
    path.mkdir()
    return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The cluster, with the stand-in as interpreter."""
    python = tmp_path / "stand in"
    python.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m tests.slurm.stand_in "$@"\n')
    python.chmod(0o755)
    return Site(
        launch=Launch(python=str(python), setup=("export FROM_SETUP=yes",)),
        limits=Limits(signal_lead_seconds=30),
        default=Resources(time_minutes=5),
    )


@pytest.fixture(autouse=True)
def _srun_on_path(cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process sees the cluster too, as a login node does, and has a secret in its environment."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    cluster.environment["SECRET_TOKEN"] = TOKEN
    yield
    del cluster.environment["SECRET_TOKEN"]


def open_door(name: str, cluster: DevCluster, site: Site) -> Door:
    surroundings = Surroundings(site, (str(ROOT),), ROOT)
    slurm = Slurm(cluster.environment)
    if name == "sbatch":
        return Scripts(surroundings, slurm)
    from hpcrl.launch.functions import Functions

    return Functions(surroundings, slurm)


def make_request(folder: Path, site: Site, segment: str, **changes: object) -> Request:
    unit = Unit(segment, 3)
    request = Request(
        run=folder,
        title="it's a pipeline",
        unit=unit,
        number=2,
        token="0123456789abcdef",
        stages=("rollout",),
        ranks=2,
        compute_threads=1,
        resources=site.resources(segment),
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def submit(door: Door, request: Request) -> str:
    door.prepare((request,))
    return door.submit(request)


def played(folder: Path) -> list[str]:
    """The lines of all ranks, sorted."""
    path = folder / "played"
    return sorted(path.read_text().splitlines()) if path.exists() else []


def log(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "logs").iterdir()))


def test_a_unit_is_played_by_every_rank(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    job = submit(open_door(door_name, cluster, site), make_request(folder, site, "done"))
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    assert cluster.job_state(job) == "COMPLETED", log(folder)
    assert played(folder) == [
        "rank=0 restarts=0 code 0 none",
        "rank=0 restarts=0 done 3 2 -1",
        "rank=1 restarts=0 code 0 none",
        "rank=1 restarts=0 done 3 2 -1",
    ]
    shown = cluster.output("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%j|%k")
    name, comment = shown.split("|")
    assert name == "it's a pipeline.done-000003"
    assert comment == f"hpcrl rollout of {folder} try 2 0123456789abcdef"
    assert [path.name for path in (folder / "logs").iterdir()] == [f"done_{job}.out"]


@pytest.mark.parametrize(("segment", "code"), [("refused", 2), ("failed", 1)])
def test_a_bad_end_is_a_failed_job(
    cluster: DevCluster, site: Site, folder: Path, door_name: str, segment: str, code: int
) -> None:
    job = submit(open_door(door_name, cluster, site), make_request(folder, site, segment))
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    assert cluster.job_state(job) == "FAILED", log(folder)
    assert cluster.job_field(job, "ExitCode") == f"{code}:0", log(folder)
    assert cluster.job_field(job, "Restarts") == "0"


def test_85_requeues_once(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    job = submit(open_door(door_name, cluster, site), make_request(folder, site, "stopped"))
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 90)
    assert cluster.job_state(job) == "COMPLETED", log(folder)
    assert cluster.job_field(job, "Restarts") == "1", log(folder)
    ends = [line for line in played(folder) if "code" in line]
    assert ends == [
        "rank=0 restarts=0 code 85 none",
        "rank=0 restarts=1 code 0 none",
        "rank=1 restarts=0 code 85 none",
        "rank=1 restarts=1 code 0 none",
    ]
    assert [path.name for path in (folder / "logs").iterdir()] == [f"stopped_{job}.out"]


def test_the_warning_before_the_time_limit_reaches_every_rank(
    cluster: DevCluster, site: Site, folder: Path, door_name: str
) -> None:
    # SLURM counts in minutes and may signal a minute early: the warning comes as soon as the job runs.
    request = make_request(folder, site, "waits", resources=Resources(time_minutes=1))
    job = submit(open_door(door_name, cluster, site), request)
    cluster.wait_for_state(job, ["COMPLETED", "FAILED", "TIMEOUT"], 120)
    assert cluster.job_state(job) == "COMPLETED", log(folder)
    assert cluster.job_field(job, "Restarts") == "1", log(folder)
    # The warning may even come before the ranks listen; then they have played nothing.
    first = [line for line in played(folder) if "restarts=0 code" in line]
    assert first in ([], ["rank=0 restarts=0 code 85 SIGUSR1", "rank=1 restarts=0 code 85 SIGUSR1"]), log(folder)


def test_preemption_reaches_every_rank_and_requeues_once(
    cluster: DevCluster, site: Site, folder: Path, door_name: str
) -> None:
    resources = Resources(time_minutes=5, nodes=4, extra=("--exclusive",))
    site = dataclasses.replace(site, default=resources)
    request = make_request(folder, site, "waits", ranks=4, resources=resources)
    job = submit(open_door(door_name, cluster, site), request)
    cluster.wait_for(lambda: len(played(folder)) == 4, 60, "four ranks to play")
    urgent = cluster.submit("sleep 1", "--partition=urgent")
    cluster.wait_for_state(urgent, "COMPLETED", 60)
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 90)
    assert cluster.job_state(job) == "COMPLETED", log(folder)
    assert cluster.job_field(job, "Restarts") == "1", log(folder)
    assert [line.split()[:4] for line in played(folder) if "restarts=0 code" in line] == [
        [f"rank={rank}", "restarts=0", "code", "85"] for rank in range(4)
    ]


def test_a_cancelled_job_does_not_come_back(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    job = submit(open_door(door_name, cluster, site), make_request(folder, site, "waits"))
    cluster.wait_for(lambda: len(played(folder)) == 2, 60, "both ranks to play")
    cluster.output("scancel", job)
    cluster.wait_for_state(job, ["CANCELLED", "COMPLETED", "FAILED", "PENDING"], 60)
    time.sleep(2)
    assert cluster.job_state(job) == "CANCELLED", log(folder)
    assert cluster.job_field(job, "Restarts") == "0"
    assert [line.split()[3] for line in played(folder) if "code" in line] == ["85", "85"], log(folder)


def test_elements_of_an_array(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    request = make_request(folder, site, "stopped", ranks=1, elements=(1001, 1003), first_element=1000)
    job = submit(open_door(door_name, cluster, site), request)
    for element in ("1", "3"):
        cluster.wait_for_state(f"{job}_{element}", ["COMPLETED", "FAILED"], 120)
        assert cluster.job_state(f"{job}_{element}") == "COMPLETED", log(folder)
    assert [line for line in played(folder) if "code" not in line] == [
        f"rank=0 restarts={restarts} stopped 3 2 {element}" for restarts in (0, 1) for element in (1001, 1003)
    ]
    assert sorted(path.name for path in (folder / "logs").iterdir()) == [
        f"stopped_{job}_1.out",
        f"stopped_{job}_3.out",
    ]


def test_a_job_waits_for_others(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    door = open_door(door_name, cluster, site)
    first = submit(door, make_request(folder, site, "waits", number=1))
    second = submit(door, make_request(folder, site, "done", dependency=(first,)))
    cluster.wait_for(lambda: len(played(folder)) == 2, 60, "the first to play")
    assert cluster.job_state(second) == "PENDING"
    cluster.output("scancel", first)
    cluster.wait_for_state(second, "COMPLETED", 60)


def test_the_guard_is_one_process(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    request = make_request(folder, site, "guard", unit=GUARD, number=1, stages=(), ranks=1)
    job = submit(open_door(door_name, cluster, site), request)
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    assert cluster.job_state(job) == "COMPLETED", log(folder)
    assert played(folder) == ["rank=0 restarts=0 guard None 1 -1"]


def test_resources_that_grew(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    site = dataclasses.replace(site, default=Resources(time_minutes=5, memory_gb_per_rank=0.5))
    grown = Resources(time_minutes=7, memory_gb_per_rank=0.75)
    job = submit(open_door(door_name, cluster, site), make_request(folder, site, "done", resources=grown))
    assert cluster.job_field(job, "TimeLimit") == "00:07:00"
    assert cluster.job_field(job, "MinMemoryCPU") == "768M"
    cluster.wait_for_state(job, "COMPLETED", 60)


def test_a_refusal_says_why(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    site = dataclasses.replace(site, default=Resources(partition="nowhere"))
    with pytest.raises(SubmissionRefusedError, match="invalid partition"):
        submit(open_door(door_name, cluster, site), make_request(folder, site, "done"))


def test_secrets_stay_where_they_are(cluster: DevCluster, site: Site, folder: Path, door_name: str) -> None:
    job = submit(open_door(door_name, cluster, site), make_request(folder, site, "stopped"))
    cluster.wait_for_state(job, "COMPLETED", 90)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) >= 3
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


def test_a_pickle_that_others_could_have_written_is_not_opened(cluster: DevCluster, site: Site, folder: Path) -> None:
    from hpcrl.launch.functions import pickle_folder

    request = make_request(folder, site, "done")
    blocker = cluster.submit("sleep 600")
    job = submit(open_door("slurm", cluster, site), dataclasses.replace(request, dependency=(blocker,)))
    (pickle_folder(folder) / "done-000003-02-0.pkl").chmod(0o666)
    cluster.output("scancel", blocker)
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    assert cluster.job_field(job, "ExitCode") == "2:0"
    assert "everybody may write to" in log(folder)
    assert played(folder) == []


def test_an_edited_script_by_hand(cluster: DevCluster, site: Site, folder: Path) -> None:
    request = make_request(folder, site, "done")
    Scripts(Surroundings(site, (str(ROOT),), ROOT), Slurm(cluster.environment)).prepare((request,))
    script = folder / "jobs" / "done.sbatch"
    script.write_text(script.read_text().replace("#SBATCH --ntasks=2", "#SBATCH --ntasks=3"))
    job = cluster.output("sbatch", "--parsable", script, "--iteration", 9, "--try", 1)
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    assert [line for line in played(folder) if "code" not in line] == [
        f"rank={rank} restarts=0 done 9 1 -1" for rank in range(3)
    ]


def by_hand(cluster: DevCluster, site: Site, folder: Path, name: str, *arguments: object) -> str:
    """Copies a template, names the interpreter, and submits it from a folder with a run in it; returns the job's id."""
    (folder / "runs" / "ppo-cartpole").mkdir(parents=True)
    text = (ROOT / "slurm" / f"{name}.sbatch").read_text()
    script = folder / f"{name}.sbatch"
    script.write_text(text.replace("PYTHON=.venv/bin/python", f"PYTHON={shlex.quote(str(site.launch.python))}"))
    return cluster.output("env", "--chdir", folder, "sbatch", "--parsable", script, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("loop", ("--seed", 3), "run pipelines/ppo_cartpole.py --ranks 2 --seed 3"),
        ("segment", ("--iteration", 7), "advantage 7 None -1"),
        ("update-gpu", (), "advantage None None -1"),
    ],
)
def test_a_copied_template(
    cluster: DevCluster, site: Site, folder: Path, name: str, arguments: tuple[object, ...], wanted: str
) -> None:
    job = by_hand(cluster, site, folder, name, *arguments)
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    logs = [path.read_text() for path in folder.glob(f"ppo-cartpole*_{job}.out")]
    assert len(logs) == 1
    assert cluster.job_state(job) == "COMPLETED", logs
    lines = [line for line in played(folder / "runs" / "ppo-cartpole") if "code" not in line]
    assert lines == [f"rank={rank} restarts=0 {wanted}" for rank in range(2)]


def test_a_copied_array(cluster: DevCluster, site: Site, folder: Path) -> None:
    job = by_hand(cluster, site, folder, "rollout", "--iteration", 7)
    cluster.wait_for(lambda: cluster.job_state(job) == "COMPLETED", 90, "all elements")
    lines = [line for line in played(folder / "runs" / "ppo-cartpole") if "code" not in line]
    assert lines == [f"rank=0 restarts=0 rollout 7 None {element}" for element in range(4)]


def test_a_copied_guard(cluster: DevCluster, site: Site, folder: Path) -> None:
    job = by_hand(cluster, site, folder, "guard")
    cluster.wait_for_state(job, ["COMPLETED", "FAILED"], 60)
    assert played(folder / "runs" / "ppo-cartpole") == ["rank=0 restarts=0 guard None None -1"]


def test_a_chain_by_hand(cluster: DevCluster, site: Site, folder: Path) -> None:
    run = folder / "runs" / "ppo-cartpole"
    run.mkdir(parents=True)
    scripts = Scripts(Surroundings(site, (str(ROOT),), folder), Slurm(cluster.environment))
    scripts.prepare(
        (make_request(run, site, "rollout", ranks=1, elements=(0, 1)), make_request(run, site, "advantage"))
    )
    text = (ROOT / "slurm" / "chain.sbatch").read_text()
    (folder / "chain.sbatch").write_text(text.replace("--array=0-3", "--array=0-1").replace("LAST=9", "LAST=1"))
    told = cluster.output("env", "--chdir", folder, "bash", "chain.sbatch").splitlines()
    assert [line.rpartition(":")[0] for line in told] == [
        *["iteration 0 rollout", "iteration 0 advantage", "iteration 1 rollout", "iteration 1 advantage"],
    ]
    jobs = [line.split()[-1] for line in told]
    cluster.wait_for(lambda: cluster.job_state(jobs[-1]) == "COMPLETED", 90, "the last job")
    order = [line.split()[2:4] for line in (run / "played").read_text().splitlines() if "code" not in line]
    assert order == [[name, str(number)] for number in (0, 1) for name in ("rollout",) * 2 + ("advantage",) * 2]


class Counter:
    """A callable that submitit checkpoints: it goes on from what it had counted."""

    def __init__(self, target: int) -> None:
        self.target, self.count = target, 0

    def __call__(self) -> tuple[int, str]:
        while self.count < self.target:
            self.count += 1
            time.sleep(0.1)
            if self.count == self.target // 2 and not os.environ.get("SLURM_RESTART_COUNT"):
                time.sleep(60)  # until it is told to stop
        return self.count, os.environ.get("SLURM_RESTART_COUNT", "0")

    def checkpoint(self) -> object:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def threads_and_folder(number: int) -> tuple[int, str, str]:
    return number * number, os.environ["OMP_NUM_THREADS"], os.getcwd()


def test_functions_of_a_users_own(cluster: DevCluster, tmp_path: Path) -> None:
    from hpcrl.launch.functions import executor

    made = executor(Surroundings(Site(), (str(ROOT),), ROOT), tmp_path / "functions", compute_threads=2)
    jobs = made.map_array(threads_and_folder, [1, 2, 3])
    for job in jobs:
        job.watcher._delay_s = 1
    assert [job.result() for job in jobs] == [(number * number, "2", str(ROOT)) for number in (1, 2, 3)]


def test_a_callable_of_a_users_own_goes_on(cluster: DevCluster, tmp_path: Path) -> None:
    from hpcrl.launch.functions import executor

    made = executor(Surroundings(Site(), (str(ROOT),), ROOT), tmp_path / "functions")
    job = made.submit(Counter(10))
    job.watcher._delay_s = 1
    cluster.wait_for_state(job.job_id, "RUNNING", 60)
    time.sleep(4)
    job._interrupt()
    assert job.result() == (10, "1")
