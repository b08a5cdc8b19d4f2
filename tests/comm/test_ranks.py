"""Collectives and the tree on 1, 2, 3 and 4 ranks, all inside one mpiexec."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcrl.errors import InputError
from hpcrl.launch.ranks import find_mpiexec

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKS = [
    line.split("(")[0].removeprefix("def ")
    for line in (HERE / "checks_on_ranks.py").read_text().splitlines()
    if line.startswith("def ") and line.endswith("(world: Collectives) -> None:")
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """The checks that passed, and what the ranks printed (the traceback of the first that failed)."""
    try:
        mpiexec = find_mpiexec()
    except InputError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install 'hpcrl[mpi]'")
    results = tmp_path_factory.mktemp("ranks") / "passed.json"
    command = [str(mpiexec), "-n", "4", sys.executable, "-m", "mpi4py", str(HERE / "checks_on_ranks.py"), str(results)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        printed = ended.stdout + ended.stderr
    except subprocess.TimeoutExpired as error:
        printed = f"{error}\n{error.stderr!r}"
    return (json.loads(results.read_text()) if results.exists() else []), printed


def test_there_are_checks() -> None:
    assert len(CHECKS) >= 14


@pytest.mark.parametrize("check", CHECKS)
def test_on_ranks(check: str, outcome: tuple[list[str], str]) -> None:
    passed, printed = outcome
    assert check in passed, f"failed, or not reached after an earlier failure:\n{printed}"
