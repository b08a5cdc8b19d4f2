"""The door that a run's jobs go through, by its name in the papers."""

from __future__ import annotations

from hpcrl.launch.papers import Case
from hpcrl.launch.request import Door
from hpcrl.scheduler.slurm import Slurm


def open_door(case: Case, slurm: Slurm) -> Door:
    """submitit for 'slurm', scripts for 'sbatch'.

    Raises: InputError when submitit is wanted and not installed.
    """
    if case.papers.door == "slurm":
        from hpcrl.launch.functions import Functions

        return Functions(case.surroundings, slurm)
    from hpcrl.launch.scripts import Scripts

    return Scripts(case.surroundings, slurm)
