"""Launching: exit codes, signals, deaths of ranks and of the launcher, the environment of a rank."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hpcrl.launch.ranks
from hpcrl.errors import InputError
from hpcrl.launch.ranks import default_ranks, exit_code_of, find_mpiexec, launch, mpi_command

ROOT = Path(__file__).parents[1]
PYTHONPATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"


@pytest.fixture(scope="module")
def _mpi() -> None:
    try:
        find_mpiexec()
    except InputError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install 'hpcrl[mpi]'")


needs_mpi = pytest.mark.usefixtures("_mpi")


def launch_worker(*arguments: object, ranks: int = 2) -> int:
    return launch(
        [str(argument) for argument in arguments],
        on="mpi",
        ranks=ranks,
        compute_threads=1,
        environment={"PYTHONPATH": PYTHONPATH},
        module="launch_worker",
    )


class Launcher:
    """A process of its own that launches two ranks."""

    def __init__(self, folder: Path, behaviour: str) -> None:
        self.folder = folder
        code = (
            "import sys; from hpcrl.launch.ranks import launch; "
            "sys.exit(launch(sys.argv[1:], on='mpi', ranks=2, compute_threads=1, module='launch_worker'))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, behaviour, str(folder)],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        files = [folder / f"ready-{rank}.json" for rank in range(2)]
        until(lambda: all(file.exists() for file in files), 30, "both ranks to start")
        self.ranks: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]

    def ranks_are_gone(self) -> bool:
        return not any(is_alive(rank["pid"]) for rank in self.ranks)


def until(is_true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@needs_mpi
@pytest.mark.parametrize(
    ("codes", "agreed"), [((0, 0), 0), ((85, 85), 85), ((2, 2), 2), ((1, 1), 1), ((0, 85), 85), ((2, 1), 1)]
)
def test_the_ranks_code_comes_through(codes: tuple[int, int], agreed: int, tmp_path: Path) -> None:
    assert launch_worker("leave", tmp_path, *codes) == agreed


@needs_mpi
@pytest.mark.parametrize("code", [0, 2, 85])
def test_codes_of_ranks_that_never_opened_a_world_come_through(code: int, tmp_path: Path) -> None:
    assert launch_worker("never-open", tmp_path, code) == code


@needs_mpi
@pytest.mark.parametrize(("how", "code"), [("raise", 1), ("abort", 2), ("exit", 2), ("SIGKILL", 1), ("SIGSEGV", 1)])
def test_one_rank_that_ends_alone_ends_all_within_seconds(how: str, code: int, tmp_path: Path) -> None:
    began = time.monotonic()
    assert launch_worker("end-one", tmp_path, how) == code
    assert time.monotonic() - began < 15


@needs_mpi
def test_no_rank_leaves_before_all_have_come(tmp_path: Path) -> None:
    assert launch_worker("late", tmp_path) == 85
    assert (tmp_path / "late").read_text() == "written"


@needs_mpi
def test_ranks_get_their_threads_and_every_core(tmp_path: Path) -> None:
    code = launch(
        ["leave", str(tmp_path), "0", "0"],
        on="mpi",
        ranks=2,
        compute_threads=3,
        environment={"PYTHONPATH": PYTHONPATH, "GIVEN": "yes"},
        module="launch_worker",
    )
    assert code == 0
    for rank in range(2):
        ready = json.loads((tmp_path / f"ready-{rank}.json").read_text())
        environment = ready["environment"]
        assert [environment[name] for name in hpcrl.launch.ranks.THREAD_VARIABLES] == ["3", "3", "3"]
        assert environment["HPCRL_WORLD_SIZE"] == "2"
        assert environment["GIVEN"] == "yes"
        assert ready["cores"] == sorted(os.sched_getaffinity(0)), "nothing is pinned"
        assert not Path(environment["HPCRL_EXIT_CODE_FILE"]).exists(), "the code's file is removed"


@needs_mpi
@pytest.mark.parametrize("number", ["SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"])
def test_a_request_to_stop_reaches_every_rank(number: str, tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "wait")
    launcher.process.send_signal(getattr(signal, number))
    assert launcher.process.wait(15) == 85
    assert {(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)} <= {"SIGUSR1", "another rank"}
    assert launcher.ranks_are_gone()


@needs_mpi
def test_a_terminal_s_ctrl_c_counts_once(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "wait")
    os.killpg(launcher.process.pid, signal.SIGINT)  # what a terminal does: the whole foreground group gets it
    assert launcher.process.wait(15) == 85
    reasons = {(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)}
    assert reasons <= {"SIGUSR1", "another rank"}, "only the launcher passes it on"


@needs_mpi
def test_a_second_ctrl_c_kills_ranks_that_do_not_stop(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "deaf")
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert not launcher.ranks_are_gone()
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.process.wait(10) == 1
    until(launcher.ranks_are_gone, 5, "the ranks to end")


@needs_mpi
def test_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "deaf")
    launcher.process.kill()
    until(launcher.ranks_are_gone, 5, "the ranks to end")


@needs_mpi
def test_ranks_end_with_a_proxy_that_is_killed(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "deaf")
    assert launcher.ranks[0]["parent"] != launcher.process.pid
    os.kill(launcher.ranks[0]["parent"], signal.SIGKILL)
    until(launcher.ranks_are_gone, 5, "the ranks to end")
    assert launcher.process.wait(10) == 1


@needs_mpi
def test_a_killed_rank_takes_the_others_with_it(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "deaf")
    os.kill(launcher.ranks[1]["pid"], signal.SIGKILL)
    until(launcher.ranks_are_gone, 5, "the other rank to end")
    assert launcher.process.wait(10) == 1
    assert launcher.process.stderr is not None
    assert "a rank ended before all could agree" in launcher.process.stderr.read()


@needs_mpi
def test_handlers_are_restored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in hpcrl.launch.ranks.STOP_SIGNALS]
    launch_worker("never-open", tmp_path, 0)
    assert [signal.getsignal(number) for number in hpcrl.launch.ranks.STOP_SIGNALS] == before


@pytest.mark.parametrize(
    ("mpiexec_code", "recorded", "stop_requested", "code"),
    [
        (0, 0, False, 0),
        (85, 85, True, 85),
        (3, 2, False, 2),  # MPICH's or of 2 and 1
        (0, 85, True, 85),  # a launcher that drops the codes
        (9, None, False, 1),
        (2, None, False, 2),
        (2, None, True, 1),  # died of SIGINT: not bad input
        (10, None, True, 85),  # asked to stop before it could take the signal
        (138, None, True, 85),
        (10, None, False, 1),
        (-9, None, True, 1),
        (11, 0, False, 1),  # fell over after all had agreed that they were done
        (7, None, False, 1),
    ],
)
def test_exit_codes_are_read_honestly(mpiexec_code: int, recorded: int | None, stop_requested: bool, code: int) -> None:
    assert exit_code_of(mpiexec_code, recorded, stop_requested) == code


def test_here_calls_the_function_with_its_threads_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hpcrl.launch.ranks.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")

    def command(arguments: object) -> int:
        assert arguments == ["run", "x.py"]
        return int(os.environ["OMP_NUM_THREADS"])

    assert launch(["run", "x.py"], on="here", ranks=1, compute_threads=3, run_here=command) == 3


def test_impossible_launches_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ranks: want an integer >= 1, given 0"):
        launch([], on="mpi", ranks=0, compute_threads=1)
    with pytest.raises(InputError, match="compute_threads: want an integer >= 1, given -1"):
        launch([], on="mpi", ranks=1, compute_threads=-1)
    with pytest.raises(InputError, match=r"ranks: want 1 with --on here .* given 2; use --on mpi"):
        launch([], on="here", ranks=2, compute_threads=1, run_here=len)
    with pytest.raises(TypeError, match="run_here"):
        launch([], on="here", ranks=1, compute_threads=1)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"want mpiexec, found none.*pip install 'hpcrl\[mpi\]'"):
        launch([], on="mpi", ranks=1, compute_threads=1)


def test_this_environment_s_mpiexec_goes_before_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place in ("own/bin", "path"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "mpiexec").write_text("#!/bin/sh\n")
        (tmp_path / place / "mpiexec").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere"))
    assert find_mpiexec() == tmp_path / "path" / "mpiexec"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "own"))
    assert find_mpiexec() == tmp_path / "own" / "bin" / "mpiexec"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="want mpi4py, which is not installed"):
        mpi_command(2, "hpcrl.cli")


def test_default_ranks_are_the_cores_but_never_more_than_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert default_ranks(num_blocks=4) == 4
    assert default_ranks(num_blocks=16) == 6
    assert default_ranks(num_blocks=16, compute_threads=4) == 1
    assert default_ranks(num_blocks=16, compute_threads=8) == 1
