"""What hpcrl doctor runs inside a job: python -m hpcrl.launch.probe node|rank FOLDER TOKEN prints a line of facts."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hpcrl.errors import InputError
from hpcrl.launch.shared_folder import leave, meet
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.variables import expand
from hpcrl.store.machine import machine_facts

MARK: Final = "hpcrl-probe "
"""Begins a line of facts in the job's log."""
SCRATCH: Final = "HPCRL_PROBE_SCRATCH"
"""Environment variable: launch.scratch of the site file, as it stands there."""
SCRIPT: Final = "jobs/probe.sbatch"


def node_facts(folder: Path, token: str) -> dict[str, Any]:
    """What one process finds on the first node of a job."""
    facts = machine_facts()
    return {
        "what": "node",
        "node": _node(),
        "versions": facts["versions"],
        "instruction_set": facts["instruction_set"],
        "cpus": len(os.sched_getaffinity(0)),
        "shared": [*meet(folder, "login", token), *leave(folder, "job", token)],
        "submit": _submit_trouble(folder / SCRIPT),
        "scratch": _scratch(os.environ),
        "gpus": _gpus(os.environ),
    }


def rank_facts() -> dict[str, Any]:
    """What one rank finds of its world. Collective."""
    from hpcrl.comm import open_world

    world = open_world()
    library, is_cuda_aware = _mpi_library()
    facts = {"what": "rank", "rank": world.rank, "size": world.size, "node": _node()}
    found = world.all_gather(world.rank)
    facts |= {"met": found == list(range(world.size)), "library": library, "cuda_aware": is_cuda_aware}
    world.finalize()
    return facts


def main(arguments: list[str]) -> int:
    """Prints one line of facts; returns 0, or 2 when the world was refused, whose reason the line then holds."""
    what, folder, token = arguments
    try:
        facts = node_facts(Path(folder), token) if what == "node" else rank_facts()
    except InputError as error:
        facts = {"what": what, "node": _node(), "refused": str(error)}
    # One write, so that ranks' lines do not run into each other.
    os.write(1, f"{MARK}{json.dumps(facts)}\n".encode())
    return 2 if "refused" in facts else 0


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", platform.node())


def _submit_trouble(script: Path) -> str:
    """Why this host may not submit jobs; "" when it may."""
    try:
        Slurm(os.environ, patience_seconds=5.0).check(script)
    except (InputError, SchedulerUnavailableError) as error:
        return str(error)
    return ""


def _scratch(environment: Mapping[str, str]) -> dict[str, Any]:
    """The scratch folder on this node: where, free bytes, and what is wrong with it ("": nothing)."""
    try:
        path = Path(expand(environment[SCRATCH], environment, "launch.scratch"))
        mine = path / f"hpcrl-probe-{os.getpid()}"
        mine.touch()
        mine.unlink()
        return {"path": str(path), "free": shutil.disk_usage(path).free, "trouble": ""}
    except InputError as error:
        return {"path": environment[SCRATCH], "free": 0, "trouble": str(error)}
    except OSError as error:
        return {"path": str(path), "free": 0, "trouble": f"cannot be written to: {error.strerror}"}


def _gpus(environment: Mapping[str, str]) -> dict[str, Any]:
    """What SLURM gave, what the driver and PyTorch see, and what they and our kernels were built with."""
    given = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {
        "given": len(given),
        "driver": _answer(_ask_driver),
        "pytorch": _answer(_ask_pytorch),
        "kernels": _answer(_ask_kernels),
    }


def _answer(ask: Callable[[], Any]) -> Any:
    """An answer, or in its place the words of what failed: a probe has to come back with something."""
    try:
        return ask()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _ask_driver() -> int:
    """GPUs that the driver lists. Raises: when there is no driver."""
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=True)
    return len([line for line in done.stdout.splitlines() if line.startswith("GPU ")])


def _ask_pytorch() -> dict[str, Any]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cuda": torch.version.cuda, "names": names if torch.cuda.is_available() else []}


def _ask_kernels() -> bool:
    from hpcrl import _kernels

    return bool(_kernels.WITH_CUDA)


def _mpi_library() -> tuple[str, bool | None]:
    """Name of the MPI library that is loaded, and whether it takes GPU memory; None: it does not say."""
    maps = Path("/proc/self/maps").read_text()
    for path in sorted(set(re.findall(r"/\S*/libmpi\S*\.so\S*", maps))):
        library = ctypes.CDLL(path)
        if not hasattr(library, "MPI_Get_library_version"):
            continue
        text, length = ctypes.create_string_buffer(8192), ctypes.c_int()
        library.MPI_Get_library_version(text, ctypes.byref(length))
        name = " ".join(text.value.decode(errors="replace").split("\n")[0].split())
        has_query = hasattr(library, "MPIX_Query_cuda_support")
        return name, bool(library.MPIX_Query_cuda_support()) if has_query else None
    return "", None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
