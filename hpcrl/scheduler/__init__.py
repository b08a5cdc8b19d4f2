"""What a cluster is: its site file, SLURM's commands, job states and what follows from each. Standard library only."""

from hpcrl.scheduler.jobs import Job, array_text
from hpcrl.scheduler.nodes import NodeGroup, Partition, refuse_impossible
from hpcrl.scheduler.refusals import SchedulerUnavailableError, SubmissionRefusedError
from hpcrl.scheduler.site import Launch, Limits, Resources, Site, read_site, site_text
from hpcrl.scheduler.slurm import ClusterLimits, Slurm
from hpcrl.scheduler.states import STATES, Action, Reaction, reaction, reaction_to_error, situation
from hpcrl.scheduler.trust import read_own, refuse_foreign

__all__ = [
    "STATES",
    "Action",
    "ClusterLimits",
    "Job",
    "Launch",
    "Limits",
    "NodeGroup",
    "Partition",
    "Reaction",
    "Resources",
    "SchedulerUnavailableError",
    "Site",
    "Slurm",
    "SubmissionRefusedError",
    "array_text",
    "reaction",
    "reaction_to_error",
    "read_own",
    "read_site",
    "refuse_foreign",
    "refuse_impossible",
    "site_text",
    "situation",
]
