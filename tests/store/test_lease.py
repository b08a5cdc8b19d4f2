"""One launch works on a run; dead ones are found, their orphans ended, the living left alone."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_samples import flipped_bit

from hpcrl.errors import CorruptFileError, InputError
from hpcrl.store.documents import seal
from hpcrl.store.lease import Holder, Lease, find_holder, record_processes
from hpcrl.store.processes import Process, end_processes

HOLD = """
import sys, time
from pathlib import Path
from hpcrl.store.lease import Lease
from hpcrl.store.processes import Process
lease = Lease.acquire(Path(sys.argv[1]))
lease.record([Process.of(int(pid)) for pid in sys.argv[2:]] + [Process.this()])
print("held", flush=True)
time.sleep(100)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(100)"
)
PATIENT = "import time; print('ready', flush=True); time.sleep(100)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(started: list[subprocess.Popen[str]], code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that has printed its first line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_a_lease_is_taken_and_given_back(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path, environment={"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}) as lease:
        holder = find_holder(tmp_path)
        assert holder == lease.holder
        assert (holder.process.pid, holder.job, holder.restart_count) == (os.getpid(), "9_2", 0)
        lease.record([Process.this()])
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
    assert find_holder(tmp_path) is None


def test_a_living_holder_is_named_and_left_alone(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    other = start(started, HOLD, tmp_path)
    with pytest.raises(InputError, match=rf"held by pid {other.pid} on .* since .*; wait for it, or end it"):
        Lease.acquire(tmp_path)
    assert other.poll() is None


def test_a_dead_holder_is_replaced_and_its_orphans_ended(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    rank, stubborn = start(started, PATIENT), start(started, STUBBORN)
    holder = start(started, HOLD, tmp_path, rank.pid, stubborn.pid)
    holder.kill()
    holder.wait()
    assert rank.poll() is None
    began = time.monotonic()
    with Lease.acquire(tmp_path, grace_seconds=0.5) as lease:
        assert (rank.wait(1), stubborn.wait(1)) == (-signal.SIGTERM, -signal.SIGKILL)
        assert time.monotonic() - began < 5
        assert find_holder(tmp_path) == lease.holder
        assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_a_holder_whose_launcher_died_is_an_orphan(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    launcher = start(started, PATIENT)
    code = HOLD.replace("Path(sys.argv[1])", "Path(sys.argv[1]), launcher=Process.of(int(sys.argv[2]))")
    rank_zero = start(started, code, tmp_path, launcher.pid)
    with pytest.raises(InputError, match=f"held by pid {rank_zero.pid}"):
        Lease.acquire(tmp_path)
    launcher.kill()
    launcher.wait()
    with Lease.acquire(tmp_path):
        assert rank_zero.wait(1) == -signal.SIGTERM


@pytest.mark.parametrize(
    "change", [{"start_time": 1}, {"command": "another"}, {"boot": "earlier"}, {"host": "elsewhere"}]
)
def test_a_process_that_is_not_the_recorded_one_is_never_ended(
    started: list[subprocess.Popen[str]], change: dict[str, object]
) -> None:
    process = start(started, PATIENT)
    recorded = Process.of(process.pid)
    assert recorded.is_the_recorded_one()
    assert end_processes([dataclasses.replace(recorded, **change)]) == []  # type: ignore[arg-type]
    assert process.poll() is None
    assert end_processes([recorded]) == [recorded]
    assert process.wait(1) == -signal.SIGTERM
    assert not recorded.is_alive()


def test_this_process_never_ends_itself() -> None:
    assert end_processes([Process.this()]) == []


def publish_foreign_lease(run: Path, heartbeat_age: float, **changes: object) -> Holder:
    """A lease as a process on another host would have left it."""
    process = dataclasses.replace(Process.this(), host="elsewhere", boot="other")
    holder = dataclasses.replace(Holder.new({"SLURM_JOB_ID": "7"}, None), process=process, **changes)  # type: ignore[arg-type]
    (run / "lease").write_bytes(seal("lease", dataclasses.asdict(holder)))
    then = time.time() - heartbeat_age
    os.utime(run / "lease", (then, then))
    return holder


def test_a_holder_elsewhere_counts_by_its_heartbeat(tmp_path: Path) -> None:
    publish_foreign_lease(tmp_path, heartbeat_age=20)
    with pytest.raises(InputError, match=r"held by pid \d+ on elsewhere, job 7 since .* run again in 40 s"):
        Lease.acquire(tmp_path)
    publish_foreign_lease(tmp_path, heartbeat_age=70)
    with Lease.acquire(tmp_path) as lease:
        assert lease.holder.process == Process.this()


def test_slurms_restart_of_the_same_job_takes_over_at_once(tmp_path: Path) -> None:
    publish_foreign_lease(tmp_path, heartbeat_age=1)
    for environment in ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}):
        with pytest.raises(InputError, match="job 7"):
            Lease.acquire(tmp_path, environment=environment)
    with Lease.acquire(tmp_path, environment={"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}) as lease:
        assert lease.holder.restart_count == 1


def test_the_heartbeat_beats_and_notices_a_loss(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path, heartbeat_seconds=0.02) as lease:
        os.utime(tmp_path / "lease", (1, 1))
        deadline = time.monotonic() + 5
        while (tmp_path / "lease").stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "lease").stat().st_mtime > 2
        assert not lease.is_lost
        (tmp_path / "lease").unlink()
        publish_foreign_lease(tmp_path, heartbeat_age=0)
        while not lease.is_lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lease.is_lost
    assert find_holder(tmp_path).process.host == "elsewhere"  # type: ignore[union-attr]  # not ours to remove


def test_ranks_of_a_replaced_launch_stop_themselves(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path) as lease, pytest.raises(InputError, match=rf"given {lease.token}; another took over"):
        record_processes(tmp_path, "0123", [Process.this()])
    with pytest.raises(InputError, match="given none; another took over"):
        record_processes(tmp_path, "0123", [Process.this()])
    assert list(tmp_path.iterdir()) == []


def test_a_take_over_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    rank = start(started, PATIENT)
    holder = start(started, HOLD, tmp_path, rank.pid)
    holder.kill()
    holder.wait()
    token = find_holder(tmp_path).token  # type: ignore[union-attr]
    os.rename(tmp_path / "lease", tmp_path / f"lease.stale-{token}")  # the taker died here, before it ended the rank
    with Lease.acquire(tmp_path):
        assert rank.wait(1) == -signal.SIGTERM
        assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_four_launches_race_and_one_holds(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    dead = start(started, HOLD, tmp_path)
    dead.kill()
    dead.wait()
    code = HOLD.replace("lease = ", "import time\nwhile not Path(sys.argv[2]).exists(): time.sleep(0.001)\nlease = ")
    code = code.replace("sys.argv[2:]]", "sys.argv[3:]]").replace('print("held"', 'print("held", lease.token')
    code = "print('ready', flush=True)\n" + code
    racers = [start(started, code, tmp_path, tmp_path / "go") for _ in range(4)]
    (tmp_path / "go").touch()
    lines = []
    for racer in racers:
        assert racer.stdout is not None
        lines.append(racer.stdout.readline())
    winners = [line.split()[1] for line in lines if line.startswith("held")]
    assert winners == [find_holder(tmp_path).token]  # type: ignore[union-attr]


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    publish_foreign_lease(tmp_path, heartbeat_age=0)
    with flipped_bit(tmp_path / "lease", 60), pytest.raises(CorruptFileError, match="lease: its content"):
        Lease.acquire(tmp_path)
