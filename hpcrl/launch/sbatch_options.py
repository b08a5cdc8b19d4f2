"""What a request asks of sbatch: options that stand in a job's script, and those that one submission adds to them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping

from hpcrl.errors import InputError
from hpcrl.launch.request import GUARD, Request
from hpcrl.scheduler.jobs import array_text
from hpcrl.scheduler.site import Launch, Resources, Site

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def script_options(request: Request, site: Site) -> dict[str, str | None]:
    """The options that stand in the script, but for the site's `extra` ones: the same for every job of a segment.

    Returns: name -> value; None: an option without one.
    Raises: InputError for names that cannot stand in a script.
    """
    refuse_unprintable(request)
    segment = request.unit.segment
    options: dict[str, str | None] = {
        "job-name": f"{request.title}.{segment}",
        "output": log_pattern(request),
        "open-mode": "append",
        "requeue": None,
    }
    if request.unit != GUARD:  # which is over in seconds
        options["signal"] = f"B:USR1@{site.limits.signal_lead_seconds}"
    resources = site.resources(segment)
    return {**options, **resource_options(resources, request.ranks, request.compute_threads, site.launch)}


def submission_options(request: Request, site: Site) -> list[str]:
    """The words that one submission adds: its name, what it waits for, its elements, and resources that grew.

    Raises: InputError; ValueError when the request leaves out what the site asks for.
    """
    refuse_unprintable(request)
    words = [f"--job-name={request.job_name}", f"--comment={request.comment}"]
    if request.dependency:
        words.append(f"--dependency=afterany:{':'.join(request.dependency)}")
    if request.begin_minutes:
        words.append(f"--begin=now+{request.begin_minutes}minutes")
    if request.indices is not None:
        throttle = site.limits.array_throttle
        words.append(f"--array={array_text(request.indices)}{f'%{throttle}' if throttle else ''}")
    usual = resource_options(site.resources(request.unit.segment), request.ranks, request.compute_threads, site.launch)
    wanted = resource_options(request.resources, request.ranks, request.compute_threads, site.launch)
    if missing := usual.keys() - wanted.keys():
        raise ValueError(f"{request.unit.name}: asks for no {', '.join(sorted(missing))}, which its script asks for")
    return words + [option_word(name, value) for name, value in wanted.items() if usual.get(name, "") != value]


def resource_options(resources: Resources, ranks: int, compute_threads: int, launch: Launch) -> dict[str, str | None]:
    """What a job of `ranks` ranks asks for, but for the site's `extra` options; never more nodes than ranks.

    Example:
        >>> resource_options(Resources(partition="gpu", gpus_per_rank=1, nodes=2), 4, 1, Launch())["gres"]
        'gpu:2'
    """
    options: dict[str, str | None] = {
        name: value
        for name, value in (
            ("account", resources.account),
            ("partition", resources.partition),
            ("qos", resources.qos),
            ("constraint", resources.constraint),
        )
        if value is not None
    }
    cpus = resources.cpus_per_rank or compute_threads
    options["time"] = str(resources.time_minutes)
    # GPUs are asked for by node, so their number needs the number of nodes.
    nodes = resources.nodes or (1 if resources.gpus_per_rank else None)
    ranks_per_node = ranks
    if nodes is not None:
        nodes = min(nodes, ranks)
        ranks_per_node = math.ceil(ranks / nodes)
        options["nodes"] = str(nodes)
    options["ntasks"] = str(ranks)
    if nodes is not None:
        options["ntasks-per-node"] = str(ranks_per_node)
    options["cpus-per-task"] = str(cpus)
    if resources.memory_gb_per_rank is not None:
        options["mem-per-cpu"] = f"{math.ceil(resources.memory_gb_per_rank * 1024 / cpus)}M"
    if resources.gpus_per_rank:
        options["gres"] = launch.gpus(resources.gpus_per_rank * ranks_per_node)
    return options


def log_pattern(request: Request) -> str:
    """Where a job's output goes, as sbatch's --output takes it: RUN/logs/SEGMENT_JOB[_ELEMENT].out."""
    number = "%j" if request.elements is None else "%A_%a"
    folder = str(request.run / "logs").replace("%", "%%")
    return f"{folder}/{request.unit.segment}_{number}.out"


def option_word(name: str, value: str | None) -> str:
    """An option as one word of a command."""
    return f"--{name}" if value is None else f"--{name}={value}"


def directive(word: str) -> str:
    """An option as a line of a script.

    sbatch reads quotes as a shell does, but takes a backslash for an escape even between single quotes.
    Example:
        >>> directive("--job-name=it's $HOME"), directive("--requeue")
        ('#SBATCH --job-name=\\'it\\'"\\'"\\'s $HOME\\'', '#SBATCH --requeue')
    """
    name, equals, value = word.partition("=")
    escaped = value.replace("\\", "\\\\")
    return f"#SBATCH {name}{equals}{shlex.quote(escaped) if equals else ''}"


def refuse_unprintable(request: Request) -> None:
    """Refuses a run folder or a pipeline's name that would end a script's line, or that SLURM cannot tell apart.

    Raises: InputError.
    """
    names: Mapping[str, str] = {
        "run folder": str(request.run),
        "Pipeline.name": request.title,
        "stage": "+".join(request.stages),
    }
    for what, name in names.items():
        if _CONTROL.search(name):
            raise InputError(f"{what}: want a name without line breaks and control characters, given {name!r}")
    if "\\" in str(request.run):
        raise InputError(
            f"run folder: want a path without backslashes (SLURM does not take one for a log), given {request.run}; "
            f"choose another with --run"
        )
