"""`hpcrl status` of a long run reads no more than of a short one; see benchmarks/bench_status.py for its seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcrl.report.disk import bytes_on_disk, disk_use
from hpcrl.report.launches import launch_numbers
from hpcrl.report.status import status_text
from tests.report.job_run import FakeSlurm
from tests.report.large_run import make_large_run

HEAVY = ("torch", "mpi4py", "matplotlib", "gymnasium", "submitit", "tensorboard")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Iterations -> run."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        iterations: make_large_run(folder / str(iterations), iterations=iterations, blocks=4, jobs=True)
        for iterations in (130, 260)
    }


def files_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for a status, less the run's own path."""
    names: list[str] = []
    read_bytes = Path.read_bytes

    def note(self: Path) -> bytes:
        names.append(str(self.relative_to(path)))
        return read_bytes(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", note)
        status_text(path, FakeSlurm())
    return names


def test_a_run_of_twice_the_length_takes_no_more_reading(
    runs: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (files_read(path, monkeypatch) for path in runs.values())
    assert len(long) == len(short)
    assert 200 < len(short) < 1200
    assert len(launch_numbers(runs[130])) == 130 * 5


def test_the_launches_are_counted_though_only_the_newest_are_read(runs: dict[int, Path]) -> None:
    launches = next(line for line in status_text(runs[260]).splitlines() if line.startswith("launches"))
    assert launches.split(maxsplit=1)[1].startswith("1,300; the newest on node-1, job 520")


def test_disk_use_counts_the_newest_iterations_first(runs: dict[int, Path]) -> None:
    path = runs[130]
    whole = disk_use(path, seconds=60.0)
    assert whole.is_whole
    assert whole.iterations == 130
    assert whole.bytes == bytes_on_disk(path) == sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
    part = disk_use(path, seconds=0.0)
    assert not part.is_whole
    assert part.bytes < whole.bytes


def test_a_disk_that_is_too_slow_to_count_is_said_to_hold_at_least(
    runs: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(10**6))
    monkeypatch.setattr("hpcrl.report.disk.time.monotonic", lambda: 0.001 * next(moments))
    line = next(line for line in status_text(runs[130]).splitlines() if line.startswith("disk"))
    assert line.split(maxsplit=1)[1].startswith("at least ")
    assert " (the newest " in line
    assert line.endswith(" of 130 iterations counted)")


def test_status_imports_nothing_heavy() -> None:
    """Its whole command has to be instant on a login node."""
    program = f"import sys, hpcrl.report.status; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
