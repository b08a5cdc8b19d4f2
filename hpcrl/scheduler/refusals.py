"""When SLURM says no, or nothing: its words, what they mean and what to do. They differ between releases a little."""

from __future__ import annotations

import re
from typing import Final, Literal

from hpcrl.errors import InputError

RefusalKind = Literal[
    "partition",
    "account",
    "qos",
    "array",
    "time",
    "size",
    "memory",
    "gpus",
    "constraint",
    "limit",
    "dependency",
    "permission",
    "script",
    "option",
    "other",
]

_REFUSALS: Final[tuple[tuple[RefusalKind, str, str], ...]] = (
    (
        "account",
        r"invalid account|account/partition combination|invalid.*association|user/account",
        "set resources.account in the site file to one of yours that may use this partition "
        "(sacctmgr show associations user=$USER)",
    ),
    ("qos", r"invalid qos|qos.*not (permitted|allowed)", "set resources.qos in the site file to one you may use"),
    (
        "partition",
        r"invalid partition|partition.*(not exist|unknown)|no partition specified|required partition not available",
        "set resources.partition in the site file to one of the cluster's that is up (sinfo lists them)",
    ),
    ("array", r"job array", "lower limits.max_array_size in the site file to the cluster's (scontrol show config)"),
    ("dependency", r"dependency", "it waits for a job that SLURM has forgotten: submit it again without that"),
    (
        "time",
        r"time limit (specification )?(is )?invalid|requested time limit|MaxWall|invalid time",
        "lower resources.time_minutes in the site file to what the partition allows (sinfo -o '%P %l')",
    ),
    (
        "memory",
        r"memory (specification|required)|Max\w*Mem\w*PerJob",
        "lower resources.memory_gb_per_rank in the site file, or choose a partition with larger nodes",
    ),
    (
        "gpus",
        r"generic resource|\bgres\b",
        "correct launch.gres or resources.gpus_per_rank in the site file (sinfo -o '%P %G')",
    ),
    (
        "constraint",
        r"feature",
        "set resources.constraint in the site file to a feature that nodes have (sinfo -o '%P %f')",
    ),
    (
        "size",
        r"node configuration|node count|cpu count|processors|partition configuration|too many (nodes|cpus|tasks)|"
        r"Max(TRES|Cpu|Node)\w*PerJob|invalid number of",
        "ask for fewer ranks, CPUs or nodes, or for another partition (sinfo -o '%P %D %c %m %G')",
    ),
    (
        "limit",
        r"submit ?(job)? ?limit|MaxSubmit|GrpSubmit|accounting/qos policy|maximum number of jobs",
        "you have as many jobs queued as you may, or this one is larger than you may ask for: wait for some to "
        "end, or lower limits.max_jobs, limits.window or the request in the site file",
    ),
    (
        "permission",
        r"permission denied|not permitted|not authorized|invalid user|user id",
        "this host or user may not submit there: try from a login node; if only jobs are refused, set "
        "launch.submit_from_jobs = false in the site file",
    ),
    ("script", r"batch script|unable to open file|no such file|dos line breaks", "correct the script"),
    (
        "option",
        r"unrecognized option|invalid option|invalid .*specification|--help",
        "correct resources.extra in the site file",
    ),
)
"""Kind, what SLURM's words match, what to do. The first that matches counts, so the narrower ones come first."""

_UNREACHED: Final = (
    r"unable to contact slurm|connect failure|connection refused|no route to host|network is unreachable|"
    r"standby mode|munge encode failed|failed to access socket|control(ler)? machine address"
)
"""The request was never sent, so that sending it again cannot do a thing twice."""
_UNANSWERED: Final = (
    r"socket timed out|connection (timed out|reset)|zero bytes|message (receive|send) failure|"
    r"communication (connection|shutdown) failure|transport endpoint|authentication (error|credential)|"
    r"temporarily unavailable|temporarily unable|no answer in"
)
"""The request may have arrived."""
_ACCOUNTING_OFF: Final = (
    r"accounting storage is (disabled|off)|slurm_persist_conn|problem talking to the database|slurmdbd|"
    r"not running a supported accounting_storage"
)


class SubmissionRefusedError(InputError):
    """sbatch would not take a job: SLURM's words and what to do."""

    def __init__(self, message: str, kind: RefusalKind = "other") -> None:
        super().__init__(message)
        self.kind: RefusalKind = kind

    @property
    def is_temporary(self) -> bool:
        """Whether the same job may be taken later, when others have ended."""
        return self.kind == "limit"


class SchedulerUnavailableError(RuntimeError):
    """SLURM's controller did not answer for as long as it was waited for."""


def refusal(error_output: str, script: str) -> SubmissionRefusedError:
    """What sbatch's complaint means.

    Example:
        >>> error = refusal("sbatch: error: Batch job submission failed: Invalid qos specification", "play.sbatch")
        >>> error.kind, error.is_temporary
        ('qos', False)
    """
    words = slurm_words(error_output) or "no reason given"
    for kind, pattern, advice in _REFUSALS:
        if re.search(pattern, words, re.IGNORECASE):
            return SubmissionRefusedError(f"{script}: SLURM refused the job: {words}; {advice}", kind)
    return SubmissionRefusedError(f"{script}: SLURM refused the job: {words}; see sbatch's manual page")


def slurm_words(error_output: str) -> str:
    """A command's complaint as one line, without the command's name before each.

    Example:
        >>> slurm_words("sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed")
        'invalid partition specified: x; Batch job submission failed'
    """
    lines = (re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in error_output.splitlines())
    return "; ".join(line.strip().rstrip(".") for line in lines if line.strip())


def did_not_arrive(error_output: str) -> bool:
    """Whether a request surely never reached the controller."""
    return re.search(_UNREACHED, error_output, re.IGNORECASE) is not None


def is_unavailable(error_output: str) -> bool:
    """Whether the controller gave no answer, as opposed to saying no."""
    return did_not_arrive(error_output) or re.search(_UNANSWERED, error_output, re.IGNORECASE) is not None


def accounting_is_off(error_output: str) -> bool:
    """Whether sacct failed because there is no accounting, or its daemon is away."""
    return re.search(_ACCOUNTING_OFF, error_output, re.IGNORECASE) is not None


def is_unknown_job(error_output: str) -> bool:
    """Whether a command failed only because the job has left the queue."""
    return re.search(r"invalid job id|already (completing|completed|finished)", error_output, re.IGNORECASE) is not None
