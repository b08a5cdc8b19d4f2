"""Faults of files, disks, processes and environments: refused or reported clearly, nothing lost, resumable."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcrl.store.run_folder import RunFolder
from tests.pipelines.forked import ForkedRun, forked
from tests.pipelines.killing import rank_processes
from tests.pipelines.runs import TINY, hpcrl, published_bits, start
from tests.pipelines.test_kill import assert_same

RUN = ("run", TINY, "--on", "here", "--num-epochs", 3, "--progress-every-minutes", 1e-7)
FAULTY = ("run", TINY, "--env", "tests.pipelines.faulty:make", "--num-steps", 40)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is one, so that the disk adds no time."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Path:
    done = forked(*RUN, "--run", folder / "unbroken", folder=folder)
    assert done.code == 0, done.output
    return folder / "unbroken"


@pytest.fixture(scope="module")
def killed_in_update(folder: Path) -> Path:
    """Iteration 2's update has saved progress; its rollout and iteration 1's checkpoint are read."""
    killed = forked(*RUN, "--run", folder / "in-update", folder=folder, kill_at="optimizer.after_step:22")
    assert killed.code == -signal.SIGKILL, killed.output
    return folder / "in-update"


@pytest.fixture(scope="module")
def killed_in_rollout(folder: Path) -> Path:
    """Iteration 2's rollout has published two blocks of four; iteration 1's lanes are read."""
    killed = forked(*RUN, "--run", folder / "in-rollout", folder=folder, kill_at="part.after_link:18")
    assert killed.code == -signal.SIGKILL, killed.output
    assert len(list((folder / "in-rollout/iteration-000002/rollout").glob("part-*.json"))) == 2
    return folder / "in-rollout"


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(position: float) -> Callable[[bytes], bytes]:
    """One bit, at a share of the file's length."""

    def flip(data: bytes) -> bytes:
        at = min(len(data) - 1, int(position * len(data)))
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    return flip


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": truncated,
    "emptied": lambda data: b"",
    "a bit at the beginning": flipped(0.0),
    "a bit in the header": flipped(0.01),
    "a bit in the middle": flipped(0.5),
    "a bit at the end": flipped(1.0),
    "foreign": lambda data: b"\x89HDF\r\n\x1a\n" + bytes(len(data)),
}


@pytest.mark.parametrize(
    ("state", "pattern"),
    [
        ("killed_in_update", "pipeline.json"),
        ("killed_in_update", "iteration-000001/update/manifest.json"),
        ("killed_in_update", "iteration-000001/update/attempt-*/checkpoint/actor.safetensors"),
        ("killed_in_update", "iteration-000001/update/attempt-*/checkpoint/actor.optimizer.safetensors"),
        ("killed_in_update", "iteration-000001/update/attempt-*/checkpoint/state.json"),
        ("killed_in_update", "iteration-000002/rollout/manifest.json"),
        ("killed_in_update", "iteration-000002/rollout/attempt-*/shard-00002.h5"),
        ("killed_in_update", "iteration-000002/advantage/attempt-*/shard-00001.h5"),
        ("killed_in_update", "iteration-000002/update/progress-*.json"),
        ("killed_in_update", "iteration-000002/update/attempt-*/progress-*/actor.safetensors"),
        ("killed_in_update", "iteration-000002/update/attempt-*/progress-*/state.json"),
        ("killed_in_rollout", "iteration-000002/rollout/part-00000.json"),
        ("killed_in_rollout", "iteration-000002/rollout/attempt-*/shard-00000.h5"),
        ("killed_in_rollout", "iteration-000001/rollout/attempt-*/lanes-00003.h5"),
        ("killed_in_rollout", "lease"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_nothing_is_lost(
    state: str, pattern: str, unbroken: Path, folder: Path, request: pytest.FixtureRequest
) -> None:
    run = folder / "damaged"
    shutil.copytree(request.getfixturevalue(state), run)  # elsewhere than it was: a run may be moved
    (file,) = run.glob(pattern)
    whole = file.read_bytes()
    try:
        for damage, change in DAMAGES.items():
            file.write_bytes(change(whole))
            done = forked(*RUN, "--run", run, folder=folder)
            assert done.code == 2, (damage, done.output)
            complaint = done.output.splitlines()[-1]
            assert complaint.startswith(f"hpcrl run: {file}: "), (damage, done.output)
            assert "Traceback" not in done.output
            file.write_bytes(whole)
        done = forked(*RUN, "--run", run, folder=folder)
        assert done.code == 0, done.output
        assert_same(run, unbroken)
    finally:
        shutil.rmtree(run)


def test_a_file_of_another_run_or_block_is_not_taken(killed_in_update: Path, unbroken: Path, folder: Path) -> None:
    """Whole files that hpcrl wrote, in the wrong place: their own checksums are right, the manifest's are not."""
    run = folder / "swapped"
    for name in ("rollout/attempt-*/shard-00002.h5", "update/attempt-*/progress-*/actor.safetensors"):
        shutil.copytree(killed_in_update, run)
        (file,) = run.glob(f"iteration-000002/{name}")
        (other,) = run.glob(
            "iteration-000001/rollout/attempt-*/shard-00002.h5"
            if "shard" in name
            else "iteration-000001/update/attempt-*/checkpoint/actor.safetensors"
        )
        shutil.copy(other, file)
        done = forked(*RUN, "--run", run, folder=folder)
        assert done.code == 2, done.output
        assert done.output.splitlines()[-1].startswith(f"hpcrl run: {file}: "), done.output
        file.unlink()
        done = forked(*RUN, "--run", run, folder=folder)
        assert done.code == 2, done.output
        assert f"{file}: missing" in done.output
        shutil.rmtree(run)


@contextlib.contextmanager
def mounted(path: Path, size: str) -> Iterator[None]:
    """A small file system in memory at `path`; skips where it may not be made."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("a file system in memory cannot be mounted here (not root)")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


def test_a_full_disk_is_reported_and_the_run_goes_on_when_there_is_space(unbroken: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    with mounted(place, "64k"):
        sizes = ("64k", "200k", "330k", "500k", "700k")
        for size in sizes:
            remount(place, f"size={size}")
            done = forked(*RUN, "--run", place / "run", folder=tmp_path)
            assert done.code == 2, (size, done.output)
            lines = [line for line in done.output.splitlines() if line.startswith("hpcrl run: ")]
            assert len(lines) == 1, (size, done.output)
            assert "disk full while writing" in lines[0]
            assert "free space on that file system, then run the same command again" in lines[0]
            assert "Traceback" not in done.output
        remount(place, "size=50m")
        done = forked(*RUN, "--run", place / "run", folder=tmp_path)
        assert done.code == 0, done.output
        assert_same(place / "run", unbroken)


def test_a_file_size_limit_is_reported(unbroken: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
    for size in (1000, 5000, 12000):
        done = forked(*RUN, "--run", tmp_path / "run", folder=tmp_path, setup=limit.format(size))
        assert done.code == 2, (size, done.output)
        assert "file size limit reached while writing" in done.output
        assert "Traceback" not in done.output
    done = forked(*RUN, "--run", tmp_path / "run", folder=tmp_path)
    assert done.code == 0, done.output
    assert_same(tmp_path / "run", unbroken)


def test_a_read_only_folder_is_reported(killed_in_update: Path, unbroken: Path, tmp_path: Path) -> None:
    place = tmp_path / "fixed"
    with mounted(place, "50m"):
        shutil.copytree(killed_in_update, place / "run")
        remount(place, "ro")
        for path in (place / "run", place / "another"):
            done = forked(*RUN, "--run", path, folder=tmp_path)
            assert done.code == 2, done.output
            assert re.search("read-only file system while writing .*: choose a folder on a writable", done.output)
            assert len(done.output.splitlines()) == 1
        remount(place, "rw")
        done = forked(*RUN, "--run", place / "run", folder=tmp_path)
        assert done.code == 0, done.output
        assert_same(place / "run", unbroken)


def test_a_second_process_is_refused_and_the_first_unharmed(unbroken: Path, folder: Path) -> None:
    run = folder / "held"
    # The first waits in its third iteration until it is told to go on.
    hold = (
        "import time, os, hpcrl.stages.advantage as a\n"
        "play = a.Advantage.run\n"
        "def run(stage, context):\n"
        f"    while context.iteration == 2 and not os.path.exists({str(folder / 'go')!r}): time.sleep(0.01)\n"
        "    play(stage, context)\n"
        "a.Advantage.run = run"
    )
    first = ForkedRun(*RUN, "--run", run, output=folder / "first.txt", setup=hold)
    wait_for(lambda: (run / "iteration-000002").exists(), first)
    before = (run / "pipeline.json").read_bytes()
    for options in ([], ["--fresh"], ["--num-iterations", 9]):
        second = forked(*RUN, *options, "--run", run, folder=folder)
        assert second.code == 2, second.output
        wanted = rf"hpcrl run: {run}: want a run nobody works on, given one held by pid {first.process.pid} on "
        assert re.match(wanted, second.output), second.output
        assert len(second.output.splitlines()) == 1
    assert (run / "pipeline.json").read_bytes() == before
    assert not list(folder.glob("held.old-*"))
    (folder / "go").touch()
    done = first.wait()
    assert done.code == 0, done.output
    assert_same(run, unbroken)


def wait_for(is_true: Callable[[], bool], run: ForkedRun, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds} s"
        assert run.process.is_alive(), run.wait().output
        time.sleep(0.005)


@pytest.mark.parametrize("state", [None, "killed_in_update"])
def test_launches_that_race(state: str | None, unbroken: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    run = folder / "raced"
    if state is not None:
        shutil.copytree(request.getfixturevalue(state), run)
    racers = [ForkedRun(*RUN, "--run", run, output=folder / f"racer-{number}.txt") for number in range(4)]
    ended = [racer.wait() for racer in racers]
    codes = sorted(end.code for end in ended)
    assert codes[0] == 0, ended
    assert set(codes) <= {0, 2}, ended
    assert all("held by" in end.output or "others keep taking" in end.output for end in ended if end.code == 2), ended
    assert_same(run, unbroken)
    shutil.rmtree(run)


def test_fresh_renames_the_old_run_and_deletes_nothing(killed_in_update: Path, unbroken: Path, folder: Path) -> None:
    run = folder / "again"
    shutil.copytree(killed_in_update, run)
    old = sorted(str(path.relative_to(run)) for path in run.rglob("*.h5"))
    done = forked(*RUN, "--fresh", "--run", run, folder=folder)
    assert done.code == 0, done.output
    assert_same(run, unbroken)
    aside = folder / "again.old-1"
    assert sorted(str(path.relative_to(aside)) for path in aside.rglob("*.h5")) == old
    assert not list(aside.glob("lease*"))
    assert forked(*RUN, "--run", aside, folder=folder).code == 0
    assert_same(aside, unbroken)


def test_a_moved_run_goes_on_with_another_number_of_ranks(
    killed_in_rollout: Path, unbroken: Path, folder: Path
) -> None:
    shutil.copytree(killed_in_rollout, folder / "a folder, moved")
    resume = [*RUN[:2], *RUN[4:], "--on", "mpi", "--ranks", 3, "--run", folder / "a folder, moved"]
    done = hpcrl(*resume)
    assert done.code == 0, done.output
    assert_same(folder / "a folder, moved", unbroken)


def test_a_rank_that_raises_ends_the_job_with_its_traceback(tmp_path: Path) -> None:
    command = (*FAULTY, "--on", "mpi", "--ranks", 2, "--run", tmp_path / "run")
    done = hpcrl(*command, timeout=60, HPCRL_TEST_FAULT="raise", HPCRL_TEST_RANK="1")
    assert done.code == 1, done.output
    assert 'faulty.py", line' in done.output
    assert "hpcrl run: rank 1 of 2 failed: RuntimeError: the environment broke; what is published stays" in done.output
    assert "0/update" in published_bits(tmp_path / "run")
    done = hpcrl(*command)
    assert done.code == 0, done.output
    unbroken = forked(*FAULTY, "--on", "here", "--run", tmp_path / "unbroken", folder=tmp_path)
    assert unbroken.code == 0, unbroken.output
    assert_same(tmp_path / "run", tmp_path / "unbroken")


def test_nan_from_an_environment_names_the_stage_and_the_place(tmp_path: Path) -> None:
    setup = "import os; os.environ['HPCRL_TEST_FAULT'] = 'nan'"
    done = forked(*FAULTY, "--on", "here", "--run", tmp_path / "run", folder=tmp_path, setup=setup)
    assert done.code == 1
    assert re.search(
        "rank 0 of 1 failed: FloatingPointError: stage 'rollout', iteration 1: rewards: want finite numbers, given "
        r"nan from tests.pipelines.faulty:make, lane \d+, episode \d+, step \d+; mend the environment",
        done.output,
    ), done.output
    assert "Traceback" not in done.output
    assert forked(*FAULTY, "--on", "here", "--run", tmp_path / "run", folder=tmp_path).code == 0


def test_advantages_that_are_not_finite_name_the_stage(tmp_path: Path) -> None:
    setup = (
        "import numpy as np, hpcrl.stages.advantage as a\n"
        "estimate = a.Advantage.estimate\n"
        "a.Advantage.estimate = lambda *x, **y: tuple(array * np.float32(np.inf) for array in estimate(*x, **y))"
    )
    done = forked(*RUN, "--run", tmp_path / "run", folder=tmp_path, setup=setup)
    assert done.code == 1, done.output
    assert re.search("FloatingPointError: stage 'update', iteration 0: moments: want finite numbers", done.output)
    assert "Traceback" not in done.output


SIGNAL = """
import os, signal
def once(done=[]):
    if not done:
        done.append(1)
        os.kill(os.getpid(), signal.{number})
"""
MOMENTS = {
    "rollout": (
        "import hpcrl.runner.display as d\n"
        "d.Display.tick = lambda self, what, done, total: once() if what == 'rollout' and done == 30 else None"
    ),
    "update": (
        "import hpcrl.runner.display as d\n"
        "d.Display.tick = lambda self, what, done, total: once() if what == 'update' and done == 2 else None"
    ),
    "evaluate": (
        "import hpcrl.stages.evaluate as e\n"
        "make = e.make_env\n"
        "def make_env(*x, **y):\n    once()\n    return make(*x, **y)\n"
        "e.make_env = make_env"
    ),
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [("rollout", "SIGUSR2"), ("rollout", "SIGTERM"), ("update", "SIGTERM"), ("evaluate", "SIGUSR1")],
)
def test_a_stop_signal_inside_a_stage(moment: str, number: str, tmp_path: Path) -> None:
    arguments = (*FAULTY, "--on", "here")
    setup = SIGNAL.format(number=number) + MOMENTS[moment]
    stopped = forked(*arguments, "--run", tmp_path / "run", folder=tmp_path, setup=setup)
    assert stopped.code == 85, stopped.output
    assert f"stopped ({number}), everything is published; go on with: " in stopped.output
    run = RunFolder.open(tmp_path / "run")
    assert not run.stage(max(run.iterations(), default=0), moment).is_done(), "the stage was over"
    done = forked(*arguments, "--run", tmp_path / "run", folder=tmp_path)
    assert done.code == 0, done.output
    unbroken = forked(*arguments, "--run", tmp_path / "unbroken", folder=tmp_path)
    assert unbroken.code == 0, unbroken.output
    assert_same(tmp_path / "run", tmp_path / "unbroken")


def test_a_signal_before_the_first_stage_begins_nothing(tmp_path: Path) -> None:
    setup = SIGNAL.format(number="SIGTERM") + (
        "import hpcrl.runner.session as s\n"
        "look = s._look\n"
        "def asked(*given):\n    once()\n    return look(*given)\n"
        "s._look = asked"
    )
    stopped = forked(*RUN, "--run", tmp_path / "run", folder=tmp_path, setup=setup)
    assert stopped.code == 85, stopped.output
    assert RunFolder.open(tmp_path / "run").iterations() == []


def test_a_second_ctrl_c_ends_a_run_that_does_not_stop(tmp_path: Path) -> None:
    setup = "import os; os.environ['HPCRL_TEST_FAULT'] = 'slow'"
    run = ForkedRun(
        *FAULTY, "--on", "here", "--num-envs", 60, "--run", tmp_path / "run", output=tmp_path / "output", setup=setup
    )
    wait_for(lambda: (tmp_path / "run" / "launches").exists(), run)  # a step of 60 environments takes 12 s
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert run.process.is_alive()
    run.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert run.wait(20).code == -signal.SIGINT
    assert time.monotonic() - began < 5


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    command = ("run", TINY, "--on", "mpi", "--ranks", 2, "--num-iterations", 400, "--run", tmp_path / "run")
    process = start(*command)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/iteration-000003").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = rank_processes(tmp_path / "run")
    maps = [Path(f"/proc/{rank.pid}/maps").read_text() for rank in ranks]
    assert not any(re.search(r"/mpich_shm_\w+$", text, re.MULTILINE) for text in maps), (
        "a kill would leave memory taken"
    )
    os.kill(ranks[1].pid, signal.SIGTERM)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85, output
    assert time.monotonic() - began < 15
    assert "stopped (another rank), everything is published; go on with: " in output
    stopped_after = max(RunFolder.open(tmp_path / "run").iterations())
    assert stopped_after < 399
    unbroken = ("run", TINY, "--on", "here", "--num-iterations", 400)
    for name in ("run", "unbroken"):
        resumed = ForkedRun(*unbroken, "--run", tmp_path / name, output=tmp_path / f"{name}.txt")
        wait_for(lambda name=name: (tmp_path / name / f"iteration-{stopped_after + 2:06d}").exists(), resumed)  # type: ignore[misc]
        resumed.send_signal(signal.SIGTERM)
        assert resumed.wait().code == 85
    bits, expected = published_bits(tmp_path / "run"), published_bits(tmp_path / "unbroken")
    both = [key for key in bits if key in expected]
    assert f"{stopped_after}/update" in both
    assert all(bits[key] == expected[key] for key in both)
