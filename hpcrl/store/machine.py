"""What a result's bits can depend on: CPU, instruction set, threads and library versions."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16", "sve")
_LIBRARIES = ("hpcrl", "numpy", "torch", "h5py", "safetensors", "mpi4py", "gymnasium", "ale-py", "envpool", "mujoco")
_THREADS = "OMP_NUM_THREADS"


def machine_facts(compute_threads: int | None = None) -> dict[str, Any]:
    """CPU model, instruction set, threads and versions of this process, as JSON values; imports none of the libraries.

    Args:
        compute_threads: threads of the matrix library; None: OMP_NUM_THREADS, or all allowed cores.
    """
    if compute_threads is None:
        told = os.environ.get(_THREADS, "")
        compute_threads = int(told) if told.isdecimal() else len(os.sched_getaffinity(0))
    cpu, flags = _processor()
    return {
        "host": platform.node(),
        "cpu": cpu,
        "instruction_set": list(flags),
        "compute_threads": compute_threads,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": dict(_versions()),
    }


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two machines and may change bits: name -> (one's, other's). Hosts may differ.

    Example:
        >>> difference({"cpu": "A", "host": "n1", "versions": {"torch": "2.13"}}, {"cpu": "B", "versions": {}})
        {'cpu': ('A', 'B'), 'versions.torch': ('2.13', None)}
    """
    names = ("cpu", "instruction_set", "compute_threads")
    found = {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
    ours, theirs = one.get("versions", {}), other.get("versions", {})
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            found[f"versions.{name}"] = (ours.get(name), theirs.get(name))
    return found


@functools.cache
def _processor() -> tuple[str, tuple[str, ...]]:
    """Model name and the flags that choose kernels, from /proc/cpuinfo (x86: flags; Arm: Features)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", ()
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    has = set(facts.get("flags", facts.get("Features", "")).split())
    return facts.get("model name", platform.processor() or "unknown"), tuple(flag for flag in _FLAGS if flag in has)


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
