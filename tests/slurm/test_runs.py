"""Whole runs on a real cluster: every door gives the bits of `--on mpi`, and a person may look, cancel and go on."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hpcrl.launch
from hpcrl.errors import InputError
from hpcrl.launch.submission import Run
from hpcrl.store.ledger import Ledger
from hpcrl.store.run_folder import RunFolder
from tests.pipelines.forked import forked
from tests.pipelines.meshes import meshes
from tests.pipelines.runs import Finished, published_bits
from tests.pipelines.runs import hpcrl as run_hpcrl
from tests.pipelines.tiny import tiny
from tests.slurm.dev_cluster import ROOT, DevCluster
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

CARTPOLE = ("pipelines/ppo_cartpole.py", "--num-iterations", "2")
APART = ("tests/pipelines/meshes.py", "--play-world", "play", "--array", "2", "--num-iterations", "2")
SITE = """
[limits]
signal_lead_seconds = 30
[resources]
partition = "cpu"
time_minutes = 10
[segments.advantage]
partition = "gpu"
gpus_per_rank = 1
"""
NO_TRACE: dict[str, tuple[str, ...]] = {
    "partition": ('[resources]\npartition = "nowhere"', "resources.partition: want a partition of this cluster", "gpu"),
    "GPUs": ("[resources]\ngpus_per_rank = 3", "resources.gpus_per_rank: want at most 2 GPUs", "given 3"),
    "memory": ("[resources]\nmemory_gb_per_rank = 99", "resources.memory_gb_per_rank: want at most", "given 99"),
    "nodes": ("[resources]\nnodes = 9", "resources.nodes: want at most 4", "given 9"),
    "time": ("[resources]\ntime_minutes = 9999", "resources.time_minutes: want at most 1440 minutes", "given 9999"),
    "key": ('[resources]\npartitoin = "cpu"', "no key is named 'partitoin'", "partition"),
    "segment": ("[segments.rolout]", "no key is named 'rolout'", "rollout"),
}
"""What is wrong with a site file: its text, and what the refusal says."""


@pytest.fixture
def login(request: pytest.FixtureRequest) -> DevCluster:
    """The cluster, for tests that leave nothing there: it is not tidied after them."""
    cluster: DevCluster = request.getfixturevalue("cluster")
    return cluster


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Bits]:
    """What the pipeline in two worlds publishes where one process plays all of it, by its policy lag."""
    found: dict[int, Bits] = {}

    def bits(policy_lag: int) -> Bits:
        if policy_lag not in found:
            words = (*APART[:1], "--no-play", *APART[-2:], "--policy-lag", policy_lag)
            found[policy_lag] = reference_bits(tmp_path_factory.mktemp("apart"), *words)
        return found[policy_lag]

    return bits


def submit(cluster: DevCluster, *arguments: object) -> None:
    """`hpcrl run ARGUMENTS`, typed on a login node."""
    done = run_hpcrl("run", *arguments, SLURM_CONF=cluster.environment["SLURM_CONF"])
    assert done.code == 0, done.output


def refused(cluster: DevCluster, folder: Path, *arguments: object) -> str:
    """The one line with which a command is refused."""
    done = typed(cluster, folder, *arguments)
    assert done.code == 2, done.output
    assert done.output.count("\n") == 1, done.output
    return done.output


def typed(cluster: DevCluster, folder: Path, *arguments: object) -> Finished:
    """A command that sees the cluster, in a fork of a warm process."""
    variables = {name: cluster.environment[name] for name in ("SLURM_CONF", "PATH", "PYTHONPATH")}
    folder.mkdir(exist_ok=True)
    return forked(*arguments, folder=folder, setup=f"import os; os.environ.update({variables!r})")


def edited(template: str, into: Path, **values: str) -> Path:
    """A copy of a template as a person edits it: its own interpreter, log folder and names."""
    text = (ROOT / "slurm" / f"{template}.sbatch").read_text()
    for name, value in values.items():
        text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1, name
    text = re.sub(r"^#SBATCH --output=", f"#SBATCH --output={into}/", text, flags=re.MULTILINE)
    path = into / f"my-{template}.sbatch"
    path.write_text(text)
    return path


@dataclass
class Played:
    """Six runs that were played side by side, and one under mpiexec."""

    cluster: DevCluster
    folder: Path
    by_hand: str
    """The job of the template that a person edited and submitted."""
    chain: list[str]
    """What the chain of jobs said that a person started."""


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Every door with either kind of run, from submission to end."""
    # Not by name: the cluster is tidied once, not after each test that only looks at what has been.
    cluster = request.getfixturevalue("cluster")
    folder = tmp_path_factory.mktemp("played")
    site, lonely = folder / "site.toml", folder / "lonely.toml"
    site.write_text(SITE)
    lonely.write_text(f"{SITE}[launch]\nsubmit_from_jobs = false\n")
    submit(cluster, *APART, "--on", "sbatch", "--site", lonely, "--run", folder / "chain")
    cancelled = run_hpcrl("cancel", folder / "chain", SLURM_CONF=cluster.environment["SLURM_CONF"])
    assert cancelled.code == 0, cancelled.output
    chain = edited("chain", folder, RUN=str(folder / "chain"), ARRAYS='(--array=0-1 "")', LAST="1")
    told = cluster.output("bash", chain).splitlines()
    for door, policy_lag in (("slurm", 0), ("sbatch", 1)):
        words = ("--policy-lag", policy_lag, "--on", door, "--site", site, "--run", folder / f"apart-{door}")
        submit(cluster, *APART, *words)
    for door in ("slurm", "sbatch"):
        submit(cluster, *CARTPOLE, "--ranks", 2, "--on", door, "--run", folder / f"cartpole-{door}")
    loop = edited("loop", folder, RUN=str(folder / "cartpole-hand"), PYTHON=sys.executable)
    by_hand = cluster.output("sbatch", "--parsable", loop, *CARTPOLE[1:])
    done = run_hpcrl("run", *CARTPOLE, "--ranks", 2, "--on", "mpi", "--run", folder / "mpi")
    assert done.code == 0, done.output
    cluster.wait_for(lambda: cluster.output("squeue", "--noheader") == "", 180, "all runs to end")
    yield Played(cluster, folder, by_hand, told)
    cluster.tidy()


def test_three_doors_give_the_bits_of_mpi(played: Played) -> None:
    cluster, wanted = played.cluster, published_bits(played.folder / "mpi")
    assert len(wanted) == 8  # rollout, advantage, update, evaluate of two iterations
    assert cluster.job_state(played.by_hand) == "COMPLETED"
    assert published_bits(played.folder / "cartpole-hand") == wanted
    for door in ("slurm", "sbatch"):
        run = played.folder / f"cartpole-{door}"
        assert published_bits(run) == wanted, logs(run)
        # One job played, the one behind it and the guards were not needed.
        assert [cluster.job_state(job) for job in jobs_of(run)] == ["COMPLETED", "CANCELLED", "CANCELLED", "CANCELLED"]
        assert cluster.job_field(jobs_of(run)[0], "NumTasks") == "2"


@pytest.mark.parametrize(("door", "policy_lag"), [("slurm", 0), ("sbatch", 1)])
def test_rollouts_on_cpus_and_updates_on_gpus(
    door: str, policy_lag: int, played: Played, apart: Callable[[int], Bits]
) -> None:
    run = played.folder / f"apart-{door}"
    assert published_bits(run) == apart(policy_lag), logs(run)
    jobs = ",".join(jobs_of(run))
    told = played.cluster.output("sacct", "-XnP", f"--jobs={jobs}", "--format=JobName,Partition,ReqTRES,State")
    rows = [line.split("|") for line in told.splitlines() if not line.startswith("tiny.guard")]
    assert {(name.split("-")[0], partition, "gres/gpu=1" in asked) for name, partition, asked, _ in rows} == {
        ("tiny.rollout", "cpu", False),
        ("tiny.advantage", "gpu", True),
    }
    # Two elements and an update for each iteration, and nothing twice.
    assert [state for *_, state in rows] == ["COMPLETED"] * 6
    # With a lag the next rollouts need not wait for the update.
    (second,) = [one for one in tries(run, "rollout-000001") if one.number == 1]
    before = ("rollout-000000", "advantage-000000") if policy_lag == 0 else ("rollout-000000",)
    assert second.claim.dependency == tuple(job_of(run, unit) for unit in before)


def test_a_chain_by_hand_where_jobs_may_not_submit(played: Played, apart: Callable[[int], Bits]) -> None:
    run = played.folder / "chain"
    assert [line.partition(":")[0] for line in played.chain] == [
        f"iteration {iteration} {segment}" for iteration in (0, 1) for segment in ("rollout", "advantage")
    ]
    assert published_bits(run) == apart(0), logs(run)
    assert Run(run).is_finished()
    by_hand = [one for found in Ledger(run).all_tries().values() for one in found if one.claim.door == "hand"]
    assert {one.job for one in by_hand} == {line.split()[-1] for line in played.chain}
    assert len(by_hand) == 4


def test_from_python(cluster: DevCluster, tmp_path: Path, apart: Callable[[int], Bits]) -> None:
    orders = Orders(tmp_path / "orders")
    orders.give("advantage-000000", f"meet {tmp_path}/gate")
    pipeline, site, path = meshes(num_iterations=2, play_world="play", array=2), site_for(orders.python), tmp_path / "r"
    with login_node(cluster):
        run = hpcrl.launch.submit(pipeline, site, run=path)
        cluster.wait_for(lambda: orders.has_begun("advantage-000000"), 60, "the first update's job")
        waiting = job_of(path, "advantage-000000")
        status = run.status()
        assert waiting in status, status
        assert "rollout-000000: done" in run.logs("rollout")
        with pytest.raises(TimeoutError, match=r"not finished after 0\.1 s; hpcrl status"):
            run.wait(0.1)
        with pytest.raises(InputError, match=r"given one with jobs .* it goes on by itself"):
            hpcrl.launch.submit(pipeline, site, run=path)
        assert waiting in run.cancel()
        cluster.wait_for(lambda: jobs_in_queue(cluster, path) == [], 30, "the queue to be empty")
        with pytest.raises(InputError, match=r"halted: cancelled by .* with hpcrl cancel; mend the cause"):
            run.wait(10)
        assert not RunFolder(path).stage(0, "update").is_done()
        run = hpcrl.launch.submit(pipeline, site, run=path)
        assert finish(cluster, run.path) == apart(0)
    assert Run(path).halted() is None
    # What was published before is not played again.
    assert len(tries(path, "rollout-000000")) == 1


def test_another_version_on_the_compute_node_halts_the_run(cluster: DevCluster, tmp_path: Path) -> None:
    orders, run = Orders(tmp_path / "orders"), tmp_path / "run"
    older = "import sys, hpcrl; hpcrl.__version__ = '0.0.9'; from hpcrl.cli import main; sys.exit(main(sys.argv[1:]))"
    for number in (1, 2):
        orders.give("main-loop", f'words=(-c "{older}" "${{words[@]:4}}")', number=number)
    with login_node(cluster):
        hpcrl.launch.submit(tiny(num_iterations=1), site_for(orders.python), run=run, door="sbatch")
        with pytest.raises(InputError, match="halted") as halted:
            Run(run).wait(60, poll_seconds=0.2)
        for job in jobs_of(run, "main-loop"):
            cluster.wait_for_state(job, "FAILED", 30)
        Ledger(run).go_on()  # without a person who submits it anew: the same follows
        seen = look(run)
    assert seen.rows == ["job says: refused", "job says: refused"]
    assert "bad input (exit code 2)" in (seen.done.halted or "")
    reason = f"want hpcrl {hpcrl.__version__}, as where the run was submitted, given 0.0.9 on this node"
    assert reason in str(halted.value)
    first = (run / "logs" / f"main_{job_of(run, 'main-loop')}.out").read_text()
    (line,) = [line for line in first.splitlines() if not line.startswith("srun: ")]
    assert reason in line
    assert cluster.job_field(job_of(run, "main-loop"), "ExitCode") == "2:0"
    assert RunFolder(run).iterations() == [], logs(run)


@pytest.mark.parametrize("what", NO_TRACE)
def test_what_cannot_be_is_refused_before_anything_is_written(what: str, login: DevCluster, tmp_path: Path) -> None:
    text, *wanted = NO_TRACE[what]
    folder = tmp_path / "folder"
    folder.mkdir()
    site = folder / "site.toml"
    site.write_text(f"{text}\n[limits]\nsignal_lead_seconds = 30\n")
    words = ("run", *APART, "--on", "sbatch", "--site", site, "--run", folder / "run")
    told = refused(login, tmp_path / "output", *words)
    assert all(words in told for words in wanted), told
    assert list(folder.iterdir()) == [site]
    assert login.output("squeue", "--noheader") == ""


def test_more_ranks_than_the_partition_has_room_for_are_refused(login: DevCluster, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[resources]\npartition = "cpu"\ncpus_per_rank = 2\n')
    words = ("--ranks", 4, "--on", "slurm", "--site", site, "--run", tmp_path / "run")
    told = refused(login, tmp_path / "output", "run", *CARTPOLE, *words)
    assert "want 2 nodes with room for 2 ranks (partition cpu), given 4 ranks" in told
    assert not (tmp_path / "run").exists()


def test_a_dry_run_submits_nothing(login: DevCluster, tmp_path: Path) -> None:
    site, run = tmp_path / "site.toml", tmp_path / "run"
    site.write_text(SITE)
    done = typed(login, tmp_path / "output", "run", *APART, "--on", "sbatch", "--dry-run", "--site", site, "--run", run)
    assert done.code == 0, done.output
    assert done.output.count("sbatch --job-name=tiny.rollout-") == 2, done.output
    assert done.output.count("sbatch --job-name=tiny.advantage-") == 2, done.output
    assert "#SBATCH --partition=gpu\n" in done.output
    assert "#SBATCH --gres=gpu:1\n" in done.output
    assert not run.exists()
    assert login.output("squeue", "--noheader") == ""
