"""Opening the world, the world of one process, and launches that are refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcrl.comm import SingleProcess, TreeSum, Waiting, launched_under_mpi, open_world
from hpcrl.comm.exit_code import EXIT_CODE_FILE, gravest, leave, record_exit_code
from hpcrl.comm.world import MPI_LAUNCH_VARIABLES, STEP_TASKS, WORLD_SIZE, refuse_singletons
from hpcrl.errors import InputError

ROOT = Path(__file__).parents[2]


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's variables without any launcher's."""
    launchers = {*MPI_LAUNCH_VARIABLES, WORLD_SIZE, STEP_TASKS, "SLURM_NTASKS"}
    inherited = {name: value for name, value in os.environ.items() if name not in launchers}
    return {**inherited, "PYTHONPATH": str(ROOT), **variables}


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    environment = clean_environment(**variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_one_process_needs_no_mpi4py() -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"  # any import of it fails
        "from hpcrl.comm import open_world; world = open_world(); print(world.rank, world.size)"
    )
    ended = run_python(code)
    assert ended.stdout == "0 1\n", ended.stderr


def test_missing_mpi4py_under_mpi_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from hpcrl.comm import open_world\n"
        "try: open_world()\n"
        "except ValueError as error: print(error)"
    )
    ended = run_python(code, PMI_RANK="0")
    assert "MPI: want mpi4py" in ended.stdout
    assert "pip install 'hpcrl[mpi]'" in ended.stdout


def test_tasks_of_one_srun_that_do_not_meet_are_refused() -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'hpcrl[mpi]'")
    code = "from hpcrl.comm import open_world\ntry: open_world()\nexcept ValueError as error: print(error)"
    ended = run_python(code, SLURM_STEP_NUM_TASKS="4", SLURM_NTASKS="4", SLURM_PROCID="1")
    assert "want 4 (SLURM_STEP_NUM_TASKS), given 4 separate processes that each see 1" in ended.stdout, ended.stderr
    assert "srun --mpi=pmi2" in ended.stdout


def test_a_single_process_in_an_allocation_of_several_tasks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*MPI_LAUNCH_VARIABLES, WORLD_SIZE, STEP_TASKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(InputError, match=r"want 2 \(SLURM_NTASKS\).*srun --ntasks=1"):
        open_world()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert open_world().size == 1


def test_the_launcher_s_promise_is_checked() -> None:
    with pytest.raises(InputError, match=r"want 2 \(HPCRL_WORLD_SIZE, .*given 1.*different MPI libraries"):
        refuse_singletons(1, {WORLD_SIZE: "2"})
    refuse_singletons(1, {WORLD_SIZE: "1", "SLURM_NTASKS": "8"})  # one rank on purpose
    refuse_singletons(2, {WORLD_SIZE: "2"})
    refuse_singletons(8, {"SLURM_NTASKS": "8", STEP_TASKS: "8"})


def test_launchers_are_known_by_their_variables() -> None:
    assert not launched_under_mpi({})
    assert not launched_under_mpi({STEP_TASKS: "1"})
    assert launched_under_mpi({STEP_TASKS: "2"})
    for name in (*MPI_LAUNCH_VARIABLES, WORLD_SIZE):
        assert launched_under_mpi({name: "1"})


def test_a_world_of_one_is_a_world() -> None:
    world = SingleProcess()
    value = {"a": 1}
    assert world.broadcast(value) is value
    assert world.gather(value) == world.all_gather(value) == [value]
    assert (world.any(True), world.any(False), world.all(True), world.all(False)) == (True, False, True, False)
    received = np.zeros(3)
    world.exchange([(0, np.arange(3.0))], [(0, received)])
    assert received.tolist() == [0, 1, 2]
    subset = world.split(1, 0)
    assert subset is not None
    assert subset.size == 1
    assert world.split(None, 0) is None
    with pytest.raises(IndexError, match="want 0 <= root < 1"):
        world.broadcast(1, root=1)
    world.barrier()
    world.finalize()


def test_abort_ends_the_process_with_its_code() -> None:
    code = (
        "from hpcrl.comm import SingleProcess\n"
        "try: print('said'); SingleProcess().abort(2)\n"
        "finally: print('not reached')"
    )
    ended = run_python(code)
    assert (ended.returncode, ended.stdout) == (2, "said\n")


@pytest.mark.parametrize(
    ("leaves", "out", "message"),
    [
        ([np.zeros(3)], None, "leaves: want 2 arrays .blocks 0 to 1 are owned by rank 0., given 1"),
        ([np.zeros(3), np.zeros(4)], None, r"leaves\[1\]: want float64\[3\] like leaves\[0\], given float64\[4\]"),
        ([np.zeros(3), np.zeros(3, np.float32)], None, r"leaves\[1\]: want float64\[3\].*given float32\[3\]"),
        ([np.zeros(3, int), np.zeros(3, int)], None, "leaves: want float32 or float64, given int64"),
        ([np.zeros((2, 2)), np.zeros((2, 2)).T[::-1]], None, r"leaves\[1\]: want C-contiguous memory"),
        ([np.zeros(3), np.zeros(3)], np.zeros(2), r"out: want float64\[3\] like leaves\[0\], given float64\[2\]"),
    ],
)
def test_leaves_that_do_not_fit_are_named(leaves: list[np.ndarray], out: np.ndarray | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TreeSum(SingleProcess(), 2).sum(leaves, out)


def test_statistics_are_float64() -> None:
    with pytest.raises(InputError, match="want float64 leaves, given float32"):
        TreeSum(SingleProcess(), 1).statistics([np.zeros(2, np.float32)])  # type: ignore[list-item]


def test_waiting_looks_until_ready_and_sleeps_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps: list[float] = []
    monkeypatch.setattr("time.sleep", sleeps.append)
    looks = iter([False] * 60 + [True])
    Waiting(spin_seconds=0.0, longest_sleep_seconds=1e-3).until(lambda: next(looks))
    assert next(looks, "used up") == "used up"
    assert sleeps == sorted(sleeps)
    assert sleeps[-1] == 1e-3
    assert sleeps[0] < 1e-4


def test_the_gravest_exit_code_stands_for_all() -> None:
    assert gravest([0, 0]) == 0
    assert gravest([0, 85]) == 85
    assert gravest([2, 85, 0]) == 2
    assert gravest([85, 2, 1]) == 1
    assert gravest([0, 139]) == 1


def test_leaving_records_the_code_for_the_launcher_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "code"
    monkeypatch.setenv(EXIT_CODE_FILE, str(path))
    with pytest.raises(SystemExit) as left:
        leave(SingleProcess(), 85)
    assert left.value.code == 85
    record_exit_code(1)
    assert path.read_text() == "85\n"
