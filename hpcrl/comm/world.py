"""Opening the world: all processes of one launch, whether that is one process or an MPI job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from hpcrl.comm.collectives import Collectives, SingleProcess
from hpcrl.comm.lifeline import end_with_parent
from hpcrl.comm.waiting import Waiting
from hpcrl.errors import InputError

WORLD_SIZE: Final = "HPCRL_WORLD_SIZE"
"""Environment variable: how many ranks hpcrl's own launcher started."""

STEP_TASKS: Final = "SLURM_STEP_NUM_TASKS"
"""Environment variable: how many tasks srun started in this step."""

MPI_LAUNCH_VARIABLES: Final = (
    "PMI_RANK",  # MPICH's and Intel's mpiexec, srun --mpi=pmi2
    "PMI_FD",
    "PMIX_RANK",  # srun --mpi=pmix
    "OMPI_COMM_WORLD_RANK",  # Open MPI's mpirun
    "MV2_COMM_WORLD_RANK",  # MVAPICH's mpirun_rsh
    "PALS_RANKID",  # Cray's mpiexec
)


def launched_under_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of several, by the variables it leaves. Imports nothing."""
    if int(environment.get(STEP_TASKS, "1")) > 1:
        return True  # srun, with or without an MPI plug-in: without one, open_world finds the singletons and refuses
    return WORLD_SIZE in environment or any(name in environment for name in MPI_LAUNCH_VARIABLES)


def open_world(waiting: Waiting | None = None) -> Collectives:
    """The world of this launch: MPI's when an MPI launcher started this process, else this process alone.

    Without an MPI launcher mpi4py is never imported. MPI is initialised THREAD_MULTIPLE. Ranks started by hpcrl's own
    launcher end when the process that started them ends.

    Raises: InputError when mpi4py is missing, when MPI lacks thread support, or when several processes were started
        and each finds itself alone (they would all write the same run).
    """
    if launched_under_mpi():
        if WORLD_SIZE in os.environ:
            end_with_parent(os.getppid())
        world = _open_mpi(waiting or Waiting())
    else:
        world = SingleProcess()
    refuse_singletons(world.size, os.environ)
    return world


def _open_mpi(waiting: Waiting) -> Collectives:
    try:
        from hpcrl.comm.mpi import open_mpi_world
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there but finds no libmpi
        raise InputError(
            f"MPI: want mpi4py, because an MPI launcher started this process; importing it failed: {error}. "
            f"Install it with: pip install 'hpcrl[mpi]' (brings MPICH), or load the cluster's MPI module"
        ) from error
    return open_mpi_world(waiting)


def refuse_singletons(size: int, environment: Mapping[str, str]) -> None:
    """Refuses a launch of N processes that came up as N worlds of one.

    Args:
        size: ranks that this process sees.
        environment: the process's variables; what the launcher promised is read from them.
    Raises: InputError that says what to do.
    Example:
        >>> refuse_singletons(4, {"SLURM_NTASKS": "4"})
        >>> refuse_singletons(1, {"SLURM_NTASKS": "4"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hpcrl.errors.InputError: ranks: want 4 (SLURM_NTASKS), given 4 separate processes that each see 1. ...
    """
    if WORLD_SIZE in environment:
        promised = int(environment[WORLD_SIZE])
        if size != promised:
            raise InputError(
                f"ranks: want {promised} ({WORLD_SIZE}, set by hpcrl's launcher), given {size}. mpiexec and mpi4py "
                f"belong to different MPI libraries: install both from one (pip install mpi4py mpich), or load one "
                f"MPI module and build mpi4py with it"
            )
        return
    for name in (STEP_TASKS, "SLURM_NTASKS"):
        tasks = int(environment.get(name, "1"))
        if size == 1 and tasks > 1:
            raise InputError(
                f"ranks: want {tasks} ({name}), given {tasks} separate processes that each see 1. SLURM and MPI did "
                f"not meet: start with srun --mpi=pmi2 (MPICH, Intel MPI) or srun --mpi=pmix (Open MPI), or run "
                f"'hpcrl run --on mpi' once instead of once per task; for one process on purpose: srun --ntasks=1"
            )
