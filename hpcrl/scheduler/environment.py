"""The environment in which SLURM's commands are run: what a new job must not inherit, what would change an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KEPT: Final = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
"""How SLURM's commands find their cluster."""

_OF_ONE_JOB = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "PALS_", "OMPI_", "MV2_", "HYD_", "HYDRA_", "MPI_LOCAL")
"""Beginnings of the names by which SLURM and MPI tell a process about its own job."""
_OF_ONE_NODE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL", "TMPDIR")
"""What a job's node gave to it; outside a job they are the user's own."""
_SEARCHED: Final = ("PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "MANPATH", "PYTHONPATH")
"""Lists of folders that a job's setup lines (module load, activate) put their own in front of."""
_ANSWERS = ("SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_")
"""Beginnings of the names that change what a command lists, and how."""


def submission_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for sbatch, which hands them on to the job.

    Left out is what belongs to the job that submits (its array element, its MPI rank, its GPUs, its temporary folder):
    the new job would take it for its own. SBATCH_* are left out too: they overrule a script's options, and
    the site file alone decides those. A folder that a list names again is left out there: each job's setup lines
    add to what the job before handed on, and after some hundreds of jobs no command could be started any more.

    Example:
        >>> submission_environment({"SLURM_JOB_ID": "7", "SLURM_CONF": "/etc/slurm.conf", "TMPDIR": "/tmp/7", "A": "1"})
        {'SLURM_CONF': '/etc/slurm.conf', 'A': '1'}
        >>> submission_environment({"PATH": "/m/bin:/usr/bin:/m/bin"})
        {'PATH': '/m/bin:/usr/bin'}
    """
    refused = (*_OF_ONE_JOB, "SBATCH_")
    in_a_job = "SLURM_JOB_ID" in environment
    return {
        name: ":".join(dict.fromkeys(value.split(":"))) if name in _SEARCHED else value
        for name, value in environment.items()
        if name in KEPT or not (name.startswith(refused) or (in_a_job and name in _OF_ONE_NODE))
    }


def question_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for commands whose answer is read.

    Times are told in seconds since 1970 and lists of array elements in full. Elements that were requeued or held are
    told apart from the others that wait. (squeue --array would do that too, but SLURM 22.05 then forgets the last
    element of "0-999:3"; a release that does not know SQUEUE_ARRAY_UNIQUE tells all reasons of such elements at once.)
    """
    refused = (*_OF_ONE_JOB, *_ANSWERS)
    kept = {name: value for name, value in environment.items() if name in KEPT or not name.startswith(refused)}
    return {**kept, "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "%s", "SQUEUE_ARRAY_UNIQUE": "1"}
