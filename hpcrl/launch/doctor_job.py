"""The small job by which hpcrl doctor tries a cluster, made from the same template as a run's jobs."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcrl.launch.job_files import write_script
from hpcrl.launch.probe import MARK, SCRATCH
from hpcrl.launch.request import Request, Surroundings
from hpcrl.launch.sbatch_options import submission_options
from hpcrl.launch.scripts import interpreter, make_job_folders, render, script_path
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.nodes import Partition
from hpcrl.scheduler.site import Resources, Site
from hpcrl.scheduler.slurm import Slurm
from hpcrl.store.ledger import Unit

RANKS: Final = 2
"""Ranks of the job's MPI world: the fewest that can fail to meet."""
_MINUTES, _LEAD_SECONDS = 10, 30
_UNKNOWN_SECONDS = 60.0
"""A job that SLURM does not know for so long is lost; the accounting may be late."""


@dataclass(frozen=True)
class Probe:
    """A job that was submitted."""

    names: tuple[str, ...]
    """Tables of the site file that ask for the same: "resources", "segments.learn"."""
    gpus: int
    """Asked for, for each rank."""
    folder: Path
    token: str
    job: str
    submitted: float
    """Seconds since 1970."""

    @property
    def log(self) -> Path:
        """What the job prints."""
        return self.folder / "logs" / f"probe_{self.job}.out"


@dataclass(frozen=True)
class Ending:
    """A probe that is over, or was waited for long enough."""

    probe: Probe
    job: Job | None
    """As SLURM told it last; None: it does not know it any more."""
    seen: float
    """When that was; seconds since 1970."""


def kinds_of_jobs(site: Site) -> dict[tuple[str, ...], Resources]:
    """What the site file's tables ask for, each once: names of the tables -> resources."""
    tables = {"resources": site.default, **{f"segments.{name}": asked for name, asked in site.segments.items()}}
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, asked in tables.items():
        where = (asked.account, asked.partition, asked.qos, asked.constraint, asked.gpus_per_rank, asked.extra)
        groups.setdefault(where, []).append(name)
    return {tuple(names): tables[names[0]] for names in groups.values()}


def submit_probe(
    site: Site,
    names: tuple[str, ...],
    asked: Resources,
    partitions: Sequence[Partition],
    *,
    folder: Path,
    token: str,
    slurm: Slurm,
) -> Probe:
    """Submits a probe of one kind of job.

    Args:
        asked: what its tables ask for; the probe takes as much for fewer ranks and a shorter time.
        folder: a folder of its own, on the shared file system.
    Raises: SubmissionRefusedError; SchedulerUnavailableError; InputError.
    """
    probe_site = _site_of_probe(site, asked, partitions, folder, token)
    request = Request(
        run=folder,
        title="hpcrl-doctor",
        unit=Unit("probe", 0),
        number=1,
        token=token,
        stages=("probe",),
        ranks=RANKS,
        compute_threads=1,
        resources=probe_site.default,
    )
    words = shlex.join(["hpcrl.launch.probe", "rank", str(folder), token])
    make_job_folders(folder, say=lambda _: None)
    path = script_path(request)
    write_script(path, render(request, Surroundings(probe_site, (), folder), words))
    job = slurm.submit(path, (), submission_options(request, probe_site), token=token, folder=folder)
    return Probe(names, asked.gpus_per_rank, folder, token, job, time.time())


def _site_of_probe(site: Site, asked: Resources, partitions: Sequence[Partition], folder: Path, token: str) -> Site:
    """The site for the probe: a short job, on two nodes where there are two, that first looks around alone."""
    nodes = asked.nodes
    if nodes is None:
        names = None if asked.partition is None else asked.partition.split(",")
        named = [one for one in partitions if (one.is_default if names is None else one.name in names)]
        nodes = RANKS if named and all(one.usable_nodes >= RANKS for one in named) else None
    resources = dataclasses.replace(asked, time_minutes=min(asked.time_minutes, _MINUTES), nodes=nodes)
    prefix = f"{site.launch.prefix} " if site.launch.prefix else ""
    python = shlex.quote(interpreter(site.launch))
    words = shlex.join(["-m", "hpcrl.launch.probe", "node", str(folder), token])
    # The last of the setup lines: it finds what a run's job finds there, and runs also where MPI does not come up.
    look_around = f"{SCRATCH}={shlex.quote(site.launch.scratch)} {prefix}{python} {words}"
    return dataclasses.replace(
        site,
        launch=dataclasses.replace(site.launch, setup=(*site.launch.setup, look_around)),
        limits=dataclasses.replace(
            site.limits, signal_lead_seconds=min(site.limits.signal_lead_seconds, _LEAD_SECONDS)
        ),
        default=resources,
        segments={},
    )


def follow(
    probes: Sequence[Probe], slurm: Slurm, wait_seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Ending]:
    """The probes as they end; after `wait_seconds` those that have not, as they stand.

    Raises: SchedulerUnavailableError; InputError.
    """
    left = {probe.job: probe for probe in probes}
    last_known = dict.fromkeys(left, time.time())
    deadline = time.time() + wait_seconds
    pause = 0.5
    while left:
        known = slurm.look(list(left))
        now = time.time()
        last_known |= dict.fromkeys(known, now)
        for id_, probe in list(left.items()):
            job = known.get(id_)
            is_lost = now - last_known[id_] > _UNKNOWN_SECONDS
            if now > deadline or is_lost or (job is not None and job.is_over):
                del left[id_]
                yield Ending(probe, job, now)
        if left:
            sleep(pause)
            pause = min(pause * 1.5, 10.0)


def read_facts(log: Path, wanted: int, seconds: float) -> list[Mapping[str, Any]]:
    """The lines of facts in a job's log.

    Args: seconds: how long to wait for as many as wanted; a shared file system shows late what another host wrote.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        found = [json.loads(line.partition(MARK)[2]) for line in lines if MARK in line]
        if len(found) >= wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def last_words(log: Path) -> str:
    """The last line in a log that is no facts, and if possible none that tells the end of what failed, not why.

    Such are srun's ("task 0: Exited with exit code 2") and slurmstepd's ("*** STEP 7.0 ON n1 CANCELLED AT ... ***").

    Returns: the line; "" when there is none.
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip() and MARK not in line]
    causes = [line for line in told if not line.startswith(("srun:", "slurmstepd: error: ***"))]
    return (causes or told or [""])[-1]
