"""The machine a benchmark ran on: what it is, its name in file names, and how much of it others used meanwhile."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path

# Intel server cores by family and model (Linux kernel, arch/x86/include/asm/intel-family.h).
_INTEL_MODELS = {
    (6, 85): "cascade-lake",
    (6, 106): "ice-lake",
    (6, 143): "sapphire-rapids",
    (6, 207): "emerald-rapids",
    (6, 173): "granite-rapids",
}
# Virtual machines hide the model; the newest instruction set present still names the oldest core that has it.
_OLDEST_CORE_WITH = (
    ("amx_fp16", "granite-rapids"),
    ("amx_bf16", "sapphire-rapids"),
    ("avx512_vbmi2", "ice-lake"),
    ("avx512_vnni", "cascade-lake"),
)
_REPORTED_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "sve", "asimd")
_PACKAGES = ("numpy", "torch", "h5py", "gymnasium", "ale-py", "mujoco", "stable-baselines3", "numba", "mpi4py", "hpcrl")


def hardware_facts() -> dict[str, object]:
    """CPU, cores, instruction sets, memory, system and versions, as plain values for JSON."""
    cpu = _cpu_info()
    return {
        "name": hardware_name(),
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "cores": usable_cores(),
        "instruction_sets": [flag for flag in _REPORTED_FLAGS if flag in _flags(cpu)],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": _versions(),
    }


def hardware_name() -> str:
    """A name for files, from the CPU's model and the usable cores: `xeon-sapphire-rapids-2core`."""
    cpu = _cpu_info()
    product = "xeon" if "Xeon" in cpu.get("model name", "") else _slug(cpu.get("model name", platform.machine()))
    core = _core_name(cpu)
    return "-".join(part for part in (product, core, f"{usable_cores()}core") if part)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


class CpuUse:
    """CPU time of the whole machine since construction, against that of this process and its finished children."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._machine, self._own = _machine_cpu_seconds(), _own_cpu_seconds()

    def share_of_others(self) -> float:
        """Share of all cores' time, in [0, 1], that processes not started by this one used meanwhile."""
        others = (_machine_cpu_seconds() - self._machine) - (_own_cpu_seconds() - self._own)
        available = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return min(max(others / available, 0.0), 1.0)


def _cpu_info() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _flags(cpu: dict[str, str]) -> set[str]:
    return set((cpu.get("flags") or cpu.get("Features") or "").split())


def _core_name(cpu: dict[str, str]) -> str:
    if "Intel" not in cpu.get("vendor_id", ""):
        return ""
    flags = _flags(cpu)
    by_flags = next((core for flag, core in _OLDEST_CORE_WITH if flag in flags), "")
    family_model = (int(cpu.get("cpu family", 0)), int(cpu.get("model", 0)))
    return _INTEL_MODELS.get(family_model, by_flags)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", text.lower())).strip("-")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine_cpu_seconds() -> float:
    """Busy CPU seconds of all cores (user, nice, system, irq, softirq) from /proc/stat."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
