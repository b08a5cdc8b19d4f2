"""slurm/dev-cluster: it comes up and goes down without a trace, and does to jobs what a real cluster does."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.dev_cluster import DEV_CLUSTER, ROOT, DevCluster, interpreter_for, run_dev_cluster

BEATS = """
beat() {{ while sleep 0.1; do echo $SLURMD_NODENAME >> {folder}/beats-${{SLURM_RESTART_COUNT:-0}}; done; }}
echo "${{SLURM_RESTART_COUNT:-0}} $SLURMD_NODENAME" >> {folder}/starts
beat
"""
"""A job that never ends; the first try's beats are told from the second's."""


def starts(folder: Path) -> list[list[str]]:
    """[restart count, node] of each start of a BEATS job."""
    path = folder / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def beats(folder: Path, restart: int) -> int:
    path = folder / f"beats-{restart}"
    return path.stat().st_size if path.exists() else 0


def processes_with(text: str) -> list[int]:
    """Live processes whose command line or environment holds a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            is_dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if text.encode() in words and not is_dead:
            found.append(int(entry.name))
    return found


@pytest.fixture
def second(cluster: DevCluster) -> Iterator[DevCluster]:
    """A cluster of its own beside the shared one: two nodes, no accounting."""
    second = DevCluster("--nodes", "2", "--no-accounting")
    yield second
    second.down()


# Up, status, down


def test_up_again_changes_nothing(cluster: DevCluster) -> None:
    before = cluster.control("status")
    again = cluster.control("up")
    assert (again.returncode, again.stdout) == (0, f"export SLURM_CONF={cluster.folder}/etc/slurm.conf\n")
    after = cluster.control("status")
    assert before.returncode == after.returncode == 0
    assert re.findall(r"process \d+", before.stdout) == re.findall(r"process \d+", after.stdout)


def test_up_with_another_size_is_refused(cluster: DevCluster) -> None:
    done = cluster.control("up", "--nodes", 3)
    assert done.returncode == 2
    assert "want nodes 3, given a cluster with 4; run `down` first" in done.stderr


def test_up_starts_what_is_missing(cluster: DevCluster) -> None:
    cluster.crash_node(2, whole=True)
    assert cluster.control("status").returncode == 1
    assert cluster.control("up").returncode == 0
    assert cluster.control("status").returncode == 0
    assert cluster.output("srun", "--nodelist=n2", "printenv", "SLURMD_NODENAME") == "n2"


def test_status_shows_daemons_nodes_and_partitions(cluster: DevCluster) -> None:
    shown = cluster.control("status").stdout
    daemons = ["munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-n1", "slurmd-n4"]
    assert all(re.search(rf"^{daemon} +runs, process \d+$", shown, re.MULTILINE) for daemon in daemons)
    assert re.search(r"^debug\* +idle +4 +n\[1-4\]", shown, re.MULTILINE)
    assert re.search(r"^cpu +idle +2 +n\[1-2\]", shown, re.MULTILINE)
    assert re.search(r"^gpu +idle +2 +n\[3-4\]", shown, re.MULTILINE)
    assert re.search(r"^urgent +idle +4 ", shown, re.MULTILINE)


def test_down_leaves_nothing_and_touches_nobody_else(cluster: DevCluster, second: DevCluster, tmp_path: Path) -> None:
    second.submit(f"setsid sleep 600 & {BEATS.format(folder=tmp_path)}")
    second.wait_for(lambda: starts(tmp_path), 10)
    assert len(processes_with(str(second.folder))) >= 6  # munged, slurmctld, two slurmd, the script, sleep
    second.down()
    assert processes_with(str(second.folder)) == []
    assert not second.folder.exists()
    assert cluster.control("status").returncode == 0


def test_down_after_every_daemon_was_killed(second: DevCluster, tmp_path: Path) -> None:
    second.submit(BEATS.format(folder=tmp_path))
    second.wait_for(lambda: starts(tmp_path), 10)
    for pid in re.findall(r"process (\d+)", second.control("status").stdout):
        os.kill(int(pid), 9)
    assert second.control("status").returncode == 1
    second.down()
    assert processes_with(str(second.folder)) == []
    assert not second.folder.exists()


def test_down_kills_no_process_that_has_a_daemons_old_number(second: DevCluster) -> None:
    record = second.folder / "run" / "slurmd-n2.process"
    slurmd, started = record.read_text().split()
    with subprocess.Popen(["sleep", "600"]) as innocent:
        record.write_text(f"{innocent.pid} {started}")
        os.kill(int(slurmd), 9)
        second.down()
        assert innocent.poll() is None
        innocent.kill()


def test_down_can_keep_the_logs(second: DevCluster) -> None:
    assert second.control("down", "--keep").returncode == 0
    assert [path.name for path in second.folder.iterdir()] == ["log"]
    assert "slurmctld version" in (second.folder / "log" / "slurmctld.log").read_text()
    assert second.control("up", "--nodes", 1, "--no-accounting", "--port", 0).returncode == 0


def test_down_of_no_cluster_is_no_error(tmp_path: Path) -> None:
    done = run_dev_cluster("down", "--folder", tmp_path)
    assert (done.returncode, "no cluster in" in done.stderr) == (0, True)
    assert tmp_path.exists()


def test_a_taken_port_is_refused(cluster: DevCluster, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = run_dev_cluster("up", "--port", port - 1, "--no-accounting", "--folder", tmp_path / "new")
    assert done.returncode == 2
    assert f"given {port} taken; give --port 0" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_refused(cluster: DevCluster, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    done = run_dev_cluster("up", "--port", 0, "--folder", tmp_path)
    assert done.returncode == 2
    assert "want an empty folder, given one with thesis.tex" in done.stderr
    assert run_dev_cluster("down", "--folder", tmp_path).returncode == 0
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_missing_packages_are_named(tmp_path: Path) -> None:
    done = run_dev_cluster("up", "--folder", tmp_path / "new", PATH=str(tmp_path))
    assert done.returncode == 2
    assert re.search(r"Debian's .*\bslurm-client\b.*; as root, run slurm/install-packages", done.stderr)
    assert not (tmp_path / "new").exists()


def test_installing_again_does_nothing(cluster: DevCluster) -> None:
    if shutil.which("dpkg-query") is None:
        pytest.skip("packages are checked with dpkg-query, which this system lacks")
    done = subprocess.run([ROOT / "slurm" / "install-packages"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_ordinary_user_can_have_one(cluster: DevCluster) -> None:
    if os.getuid() != 0:
        pytest.skip("the shared cluster is an ordinary user's already; only root can try another user's")
    python = interpreter_for("nobody")
    assert python is not None, "want a python3 that user nobody may run"
    folder = Path(tempfile.mkdtemp(prefix="hpcrl-nobody-"))
    shutil.copytree(DEV_CLUSTER.parent, folder / "slurm")
    shutil.chown(folder, "nobody")
    environment = {"PATH": os.environ["PATH"], "SLURM_CONF": f"{folder}/cluster/etc/slurm.conf"}

    def as_nobody(*command: object) -> subprocess.CompletedProcess[str]:
        words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *map(str, command)]
        return subprocess.run(
            words, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )

    control = [python, folder / "slurm" / "dev-cluster"]
    try:
        up = as_nobody(*control, "up", "--port", 0, "--nodes", 2, "--folder", folder / "cluster")
        assert up.returncode == 0, up.stderr
        ran = as_nobody("srun", "--nodes=2", "--gres=gpu:1", "bash", "-c", "echo $UID $CUDA_VISIBLE_DEVICES")
        assert ran.stdout.split("\n")[:2] == ["65534 0", "65534 0"], ran.stderr
        rows = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=User,State"]
        cluster.wait_for(lambda: as_nobody(*rows).stdout == "nobody|COMPLETED\n", 15, "sacct to know the job")
    finally:
        down = as_nobody(*control, "down", "--folder", folder / "cluster")
        shutil.rmtree(folder)
    assert down.returncode == 0, down.stderr
    assert processes_with(str(folder)) == []


# What it does to jobs

WORLD = """
import os
from hpcrl.comm.world import open_world
world = open_world()
nodes = world.all_gather(os.environ["SLURMD_NODENAME"])
if world.rank == 0:
    print(world.size, *sorted(nodes))
world.finalize()
"""


def test_mpi_on_two_nodes(cluster: DevCluster) -> None:
    shape = ["--nodes=2", "--ntasks-per-node=2", "--mpi=pmi2", "--kill-on-bad-exit=1"]
    done = cluster.run("srun", *shape, sys.executable, "-m", "mpi4py", "-c", WORLD)
    assert (done.returncode, done.stdout.strip()) == (0, "4 n1 n1 n2 n2"), done.stderr


def test_singletons_are_refused(cluster: DevCluster) -> None:
    code = """
import sys
from hpcrl.comm.world import open_world
from hpcrl.errors import InputError
try:
    open_world()
except InputError as error:
    print(error)
    sys.exit(2)
"""
    done = cluster.run("srun", "--nodes=2", "--ntasks-per-node=2", "--mpi=none", sys.executable, "-c", code)
    assert done.returncode == 2
    assert done.stdout.count("ranks: want 4 (SLURM_STEP_NUM_TASKS), given 4 separate processes that each see 1") == 4


def test_a_job_starts_within_a_second(cluster: DevCluster, tmp_path: Path) -> None:
    waits = []
    for number in range(3):
        began = time.monotonic()
        cluster.submit(f"touch {tmp_path}/{number}")
        cluster.wait_for((tmp_path / str(number)).exists, 10)
        waits.append(time.monotonic() - began)
    assert min(waits) < 1, waits


@pytest.mark.soak
def test_a_crashed_nodes_job_goes_on_elsewhere_and_the_old_one_may_still_write(
    cluster: DevCluster, tmp_path: Path
) -> None:
    job = cluster.submit(BEATS.format(folder=tmp_path), "--requeue")
    cluster.wait_for(lambda: starts(tmp_path), 10)
    node = starts(tmp_path)[0][1]
    cluster.crash_node(int(node[1:]))
    cluster.wait_for(lambda: len(starts(tmp_path)) == 2, 60, "the second start")
    assert starts(tmp_path)[1][0] == "1"
    assert starts(tmp_path)[1][1] != node
    assert cluster.job_field(job, "Restarts") == "1"
    before = beats(tmp_path, 0)
    cluster.wait_for(lambda: beats(tmp_path, 0) > before, 5, "the first try to go on writing")


def test_a_node_that_crashed_whole_writes_no_more(cluster: DevCluster, tmp_path: Path) -> None:
    cluster.submit(BEATS.format(folder=tmp_path), "--requeue")
    cluster.wait_for(lambda: beats(tmp_path, 0), 10)
    cluster.crash_node(int(starts(tmp_path)[0][1][1:]), whole=True)
    before = beats(tmp_path, 0)
    time.sleep(1)
    assert beats(tmp_path, 0) == before


def test_a_crash_that_is_noticed_requeues_at_once(cluster: DevCluster, tmp_path: Path) -> None:
    cluster.submit(BEATS.format(folder=tmp_path), "--requeue")
    cluster.wait_for(lambda: starts(tmp_path), 10)
    node = starts(tmp_path)[0][1]
    cluster.crash_node(int(node[1:]), noticed=True)
    cluster.wait_for(lambda: len(starts(tmp_path)) == 2, 20, "the second start")
    assert starts(tmp_path)[1][1] != node


def test_a_node_that_comes_back_at_once_has_lost_its_job(cluster: DevCluster, tmp_path: Path) -> None:
    job = cluster.submit(BEATS.format(folder=tmp_path), "--requeue")
    cluster.wait_for(lambda: starts(tmp_path), 10)
    number = int(starts(tmp_path)[0][1][1:])
    cluster.crash_node(number, whole=True)
    cluster.start_node(number)
    cluster.wait_for(lambda: len(starts(tmp_path)) == 2, 20, "the second start")
    assert cluster.job_field(job, "Restarts") == "1"


@pytest.mark.soak
def test_urgent_preempts_debug(cluster: DevCluster, tmp_path: Path) -> None:
    script = f"trap 'echo asked > {tmp_path}/asked' USR1; {BEATS.format(folder=tmp_path)}"
    job = cluster.submit(script, "--requeue", "--nodes=4", "--exclusive", "--signal=B:USR1@60", "--time=60")
    cluster.wait_for(lambda: beats(tmp_path, 0), 10)
    urgent = cluster.submit("sleep 1", "--partition=urgent")
    cluster.wait_for_state(urgent, "COMPLETED", 30)
    assert (tmp_path / "asked").exists()
    cluster.wait_for(lambda: len(starts(tmp_path)) == 2, 40, "the second start")
    assert cluster.job_field(job, "Restarts") == "1"


def test_a_requeued_job_starts_again_soon(cluster: DevCluster, tmp_path: Path) -> None:
    job = cluster.submit(BEATS.format(folder=tmp_path), "--requeue")
    cluster.wait_for(lambda: starts(tmp_path), 10)
    cluster.output("scontrol", "requeue", job)
    cluster.wait_for(lambda: len(starts(tmp_path)) == 2, 20, "the second start")


def test_a_job_that_requeues_itself_keeps_its_successors_waiting(cluster: DevCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    again = "if [ -z $SLURM_RESTART_COUNT ]; then exec scontrol requeue $SLURM_JOB_ID; fi"
    job = cluster.submit(f"echo first >> {log}; {again}; echo again $SLURM_RESTART_COUNT >> {log}", "--requeue")
    successor = cluster.submit(f"echo successor >> {log}", f"--dependency=afterany:{job}")
    cluster.wait_for(lambda: cluster.job_field(job, "Reason") == "BeginTime", 10, "the pause after the requeue")
    assert cluster.job_state(successor) == "PENDING"
    cluster.wait_for_state(successor, "COMPLETED", 30)
    assert log.read_text().split("\n") == ["first", "first", "again 1", "successor", ""]


def test_fake_gpus_are_visible(cluster: DevCluster) -> None:
    visible = ["printenv", "CUDA_VISIBLE_DEVICES"]
    assert cluster.output("srun", "--gres=gpu:1", *visible) == "0"
    assert cluster.output("srun", "--partition=gpu", "--gres=gpu:2", *visible) == "0,1"
    assert cluster.output("srun", "--gpus-per-node=1", "--nodes=2", *visible) == "0\n0"
    assert cluster.run("srun", *visible).returncode == 1
    assert cluster.run("srun", "--gres=gpu:3", *visible).returncode != 0


def test_accounting_answers(cluster: DevCluster) -> None:
    job = cluster.submit("exit 3", "--comment=token-7")

    def row() -> list[str]:
        words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}"]
        return cluster.output(*words, "--format=State,ExitCode,Comment").split("|")

    cluster.wait_for(lambda: row() == ["FAILED", "3:0", "token-7"], 15, "sacct to know the job's end")


def test_a_cluster_without_accounting_says_so(second: DevCluster) -> None:
    done = second.run("sacct")
    assert done.returncode == 1
    assert "Slurm accounting storage is disabled" in done.stderr


@pytest.mark.soak
def test_jobs_go_on_while_the_controller_is_down(cluster: DevCluster, tmp_path: Path) -> None:
    job = cluster.submit(f"touch {tmp_path}/began; sleep 3; touch {tmp_path}/ended")
    cluster.wait_for((tmp_path / "began").exists, 10)
    cluster.stop_controller()
    assert cluster.run("squeue").returncode != 0
    cluster.wait_for((tmp_path / "ended").exists, 15)
    cluster.start_controller()
    cluster.wait_for_state(job, "COMPLETED", 30)


def test_the_submit_limit_refuses(cluster: DevCluster) -> None:
    for _ in range(3):
        cluster.submit("sleep 600", "--qos=few")
    done = cluster.run("sbatch", "--qos=few", "--output=/dev/null", "--wrap", "sleep 600")
    assert done.returncode == 1
    assert "QOSMaxSubmitJobPerUserLimit" in done.stderr


def test_an_array_above_the_limit_is_refused(cluster: DevCluster) -> None:
    done = cluster.run("sbatch", "--array=0-1001", "--output=/dev/null", "--wrap", "true")
    assert (done.returncode, "Invalid job array specification" in done.stderr) == (1, True)
