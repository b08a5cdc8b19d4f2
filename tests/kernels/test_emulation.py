"""Builds the CUDA kernels' bodies with the C++ compiler; runs them on emulated blocks, plain and under the sanitizers.

Each program is built once for its sources: the result stays in build/emulation, named by a hash of what went into it.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off", "-pthread"]
SANITIZERS = {
    "plain": [],
    "thread": ["-O1", "-fsanitize=thread"],  # the others compile three times as fast without it
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}
FEW_CASES = ["-DHPCRL_FEW_CASES"]  # compiling and running under a sanitizer are slow

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler {COMPILER}")


def build(name: str, flags: list[str]) -> Path:
    """The program of tests/kernels/<name>.cpp, compiled unless its sources, flags and compiler were met before."""
    sources = [ROOT / "tests" / "kernels" / f"{name}.cpp", ROOT / "kernels" / "random.cpp"]
    headers = [path for folder in ("kernels", "tests/kernels") for path in (ROOT / folder).glob("*.*h")]
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(version + " ".join(FLAGS + flags).encode())
    for path in sorted(sources + headers):
        key.update(path.name.encode() + path.read_bytes())
    program = ROOT / "build" / "emulation" / f"{name}-{key.hexdigest()[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *FLAGS, *flags, "-I", str(ROOT), *map(str, sources), "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        unfinished.rename(program)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it with addresses that ThreadSanitizer can map, and stops it at the first report."""
    fixed_addresses = ["setarch", "-R"] if shutil.which("setarch") else []
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [*fixed_addresses, str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_recurrence_kernels_match_float64_loops(sanitizer: str) -> None:
    flags = SANITIZERS[sanitizer] + ([] if sanitizer == "plain" else FEW_CASES)
    done = run(build("test_recurrence_emulation", flags))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("all well\n")


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_random_kernels_give_the_bits_of_the_cpu(sanitizer: str) -> None:
    done = run(build("test_random_emulation", SANITIZERS[sanitizer]))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


# Ticket, first trajectory, ends, spans, near words, far words, sums: seven; and the first of the moments kernel.
@pytest.mark.parametrize("barrier", range(8))
def test_a_missing_barrier_is_reported(barrier: int) -> None:
    done = run(build("test_recurrence_emulation", SANITIZERS["thread"] + FEW_CASES), "--skip-barrier", str(barrier))
    assert done.returncode == 66, done.stdout[-2000:]
    # Without the first two a block works with numbers that nobody wrote, and may leave the arrays before the race.
    assert "data race" in done.stderr or (barrier < 2 and "SEGV" in done.stderr)


def test_a_barrier_that_is_not_there_is_not_missed() -> None:
    done = run(build("test_recurrence_emulation", SANITIZERS["thread"] + FEW_CASES), "--skip-barrier", "100")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
