"""What ptxas and the disassembler say of the CUDA kernels: registers, spills, 16-byte accesses. Needs nvcc, no GPU."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("/usr/local/cuda/bin/nvcc")
OPS = ("Gae", "TdLambda", "RewardToGo", "VTrace", "Retrace")
# Registers a thread that let kResidentBlocks blocks of 128 threads stay on a multiprocessor (recurrence.cu).
REGISTER_CAPS = {80: 96, 90: 72, 100: 72}
VTRACE_REGISTER_CAPS = {80: 96, 90: 80, 100: 80}
LARGEST_BUILD_SECONDS = 300  # a guard against a template that grows out of hand; it takes about 2 s on a quiet machine

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc: set CUDACXX to its path to check the CUDA kernels")


def compile_kernels(source: str, architecture: int, kind: str, out: Path) -> str:
    """Compiles kernels/<source> to PTX or to a cubin; gives what ptxas reports."""
    command = [str(NVCC), "-std=c++17", "-O3", "-DHPCRL_WITH_CUDA", f"-arch=sm_{architecture}", f"-{kind}"]
    command += ["-Xptxas", "-v", "-Werror", "all-warnings", str(ROOT / "kernels" / source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LARGEST_BUILD_SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def resources(report: str) -> dict[str, tuple[int, int]]:
    """Kernel name (mangled) -> (registers a thread, bytes spilled)."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    return {
        name: (int(registers), int(stack) + int(stores) + int(loads)) for name, stack, stores, loads, registers in found
    }


@pytest.mark.parametrize("architecture", REGISTER_CAPS)
def test_recurrence_kernels_fit_their_registers(architecture: int, tmp_path: Path) -> None:
    report = compile_kernels("recurrence.cu", architecture, "cubin", tmp_path / "recurrence.cubin")
    kernels = {name: used for name, used in resources(report).items() if "recurrence_kernel" in name}
    assert len(kernels) == len(OPS), report
    for name, (registers, spilled) in kernels.items():
        print(f"sm_{architecture} {name}: {registers} registers, {spilled} bytes spilled")
        assert spilled == 0, name
        caps = VTRACE_REGISTER_CAPS if "6VTraceE" in name else REGISTER_CAPS
        assert registers <= caps[architecture], name


def test_random_kernels_do_not_spill(tmp_path: Path) -> None:
    kernels = resources(compile_kernels("random.cu", 90, "cubin", tmp_path / "random.cubin"))
    assert len(kernels) == 3
    assert all(spilled == 0 for _, spilled in kernels.values()), kernels


def split_by_op(listing: str, begin: str) -> dict[str, str]:
    """The part of a listing that belongs to each op's recurrence kernel; `begin` marks where a kernel's part begins."""
    parts = {}
    for part in re.split(begin, listing)[1:]:
        name = part.split("\n", 1)[0]
        for op in OPS:
            if "recurrence_kernel" in name and f"{len(op)}{op}E" in name:
                parts[op] = part
    assert len(parts) == len(OPS)
    return parts


def columns_read(op: str) -> int:
    return {"Gae": 2, "TdLambda": 2, "RewardToGo": 1, "VTrace": 3, "Retrace": 4}[op]


def test_ptx_reads_and_writes_16_bytes_at_once(tmp_path: Path) -> None:
    ptx = tmp_path / "recurrence.ptx"
    compile_kernels("recurrence.cu", 90, "ptx", ptx)
    for op, part in split_by_op(ptx.read_text(), r"\.entry ").items():
        loads, stores = (len(re.findall(rf"\b{word}\.global\.cs\.v4\.\w+", part)) for word in ("ld", "st"))
        halves = len(re.findall(r"\bld\.global\.cs\.v2\.\w+", part))
        assert loads >= columns_read(op), (op, "float32 columns are not read 16 bytes at once")
        assert halves >= columns_read(op), (op, "bfloat16 columns are not read 8 bytes at once")
        assert stores >= 1, (op, "outputs are not written 16 bytes at once")


def disassembler() -> str | None:
    """nvdisasm of the toolkit, or the one that the triton wheel carries."""
    triton = importlib.util.find_spec("triton")
    folders = [Path("/usr/local/cuda/bin")]
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which("nvdisasm") or next((str(f / "nvdisasm") for f in folders if (f / "nvdisasm").exists()), None)


def test_machine_code_reads_and_writes_128_bits_and_no_local_memory(tmp_path: Path) -> None:
    program = disassembler()
    if program is None:
        pytest.skip("no nvdisasm: it comes with the CUDA toolkit or with triton; the PTX was checked")
    cubin = tmp_path / "recurrence.cubin"
    compile_kernels("recurrence.cu", 90, "cubin", cubin)
    listing = subprocess.run([program, str(cubin)], capture_output=True, text=True, check=True).stdout
    for op, part in split_by_op(listing, r"\.section\s+\.text\.").items():
        assert len(re.findall(r"\bLDG\.E\.EF\.128\b", part)) >= columns_read(op), op
        assert re.search(r"\bSTG\.E\.EF\.128\b", part), op
        assert not re.search(r"\b(LDL|STL)\b", part), op


def test_kernels_on_this_machines_gpu(tmp_path: Path) -> None:
    """Compiles tests/kernels/test_cuda.cu, GPU or not, and runs it where there is one."""
    program = tmp_path / "test_cuda"
    sources = ["tests/kernels/test_cuda.cu", "kernels/recurrence.cu", "kernels/random.cu", "kernels/random.cpp"]
    options = ["-std=c++20", "-O1", "-arch=sm_90", "-DHPCRL_WITH_CUDA", "-Xcompiler", "-ffp-contract=off", "-I", "."]
    command = [str(NVCC), *options, *sources, "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LARGEST_BUILD_SECONDS)
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=200)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-4000:]
