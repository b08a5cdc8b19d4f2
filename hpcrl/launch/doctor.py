"""hpcrl doctor: tries on the cluster what a site file says, and tells line by line what holds and what to do."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.launch.doctor_facts import findings_of_job
from hpcrl.launch.doctor_job import Probe, follow, kinds_of_jobs, submit_probe
from hpcrl.launch.findings import Finding, judged
from hpcrl.launch.shared_folder import leave
from hpcrl.scheduler.nodes import Partition, refuse_impossible
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.site import Resources, Site, read_site
from hpcrl.scheduler.slurm import ClusterLimits, Slurm
from hpcrl.signals import DONE, FAILED
from hpcrl.store.machine import machine_facts
from hpcrl.store.publish import make_folder

_WAIT_SECONDS = 600.0
"""How long a probe may wait in the queue and run."""


def doctor_command(site_file: Path | None, *, folder: Path) -> int:
    """`hpcrl doctor`. Returns 0, or 1 when a check failed. Raises: InputError for a bad site file."""
    site = read_site(site_file)
    print(f"site {site.name}: {site.source or 'no file, a plain SLURM'}", flush=True)
    return doctor(site, folder=folder, slurm=Slurm(patience_seconds=10.0), say=lambda line: print(line, flush=True))


def doctor(
    site: Site, *, folder: Path, slurm: Slurm, say: Callable[[str], None], wait_seconds: float = _WAIT_SECONDS
) -> int:
    """Tries what a site says: commands, partitions, limits, the shared folder, and a job of each kind end to end.

    A job of two ranks is submitted for each kind of job that the site file describes (partition, GPUs, ...), all at
    once. What failed keeps its scripts and logs in a folder that the last line names.

    Args:
        folder: where runs would be, on the shared file system.
        say: told each finding in one line: ok, failed or unknown, what was seen, what to do.
        wait_seconds: how long to wait for the jobs.
    Returns: 0; 1 when a check failed. Unknown is no failure.
    """
    counts = {"ok": 0, "failed": 0, "unknown": 0}

    def tell(finding: Finding) -> None:
        counts[finding.verdict] += 1
        say(str(finding))

    kept = _examine(site, folder, slurm, tell, wait_seconds)
    where = f"; scripts and logs are in {kept}" if kept else ""
    say(
        f"{sum(counts.values())} checks: {counts['ok']} ok, {counts['failed']} failed, {counts['unknown']} unknown"
        f"{where}"
    )
    return FAILED if counts["failed"] else DONE


def _examine(
    site: Site, folder: Path, slurm: Slurm, tell: Callable[[Finding], None], wait_seconds: float
) -> Path | None:
    """All checks; stops where going on makes no sense. Returns what was kept of the jobs, if anything."""
    missing = slurm.missing_commands()
    tell(_commands(missing))
    if missing:
        return None
    try:
        limits, partitions = slurm.limits(), slurm.partitions()
    except (InputError, SchedulerUnavailableError) as error:
        tell(Finding("failed", "controller", str(error)))
        return None
    for finding in _cluster(limits, site, slurm):
        tell(finding)
    possible = {}
    for names, asked in kinds_of_jobs(site).items():
        finding = _request(names, asked, site, partitions)
        tell(finding)
        if finding.verdict == "ok":
            possible[names] = asked
    with _own_folder(folder, tell) as own:
        return None if own is None else _try_jobs(site, possible, partitions, own, slurm, tell, wait_seconds)


def _commands(missing: Sequence[str]) -> Finding:
    troubles = [f"not on PATH: {', '.join(missing)}"] if missing else []
    return judged(
        troubles, "commands", "sbatch, squeue, scancel, scontrol and sinfo", "use a login node, or load a module"
    )


def _cluster(limits: ClusterLimits, site: Site, slurm: Slurm) -> Iterator[Finding]:
    """What the cluster's configuration says."""
    yield Finding("ok", "controller", f"SLURM {limits.version}, cluster {limits.cluster}")
    ours, theirs = site.limits.max_array_size, limits.max_array_size
    too_large = ours and theirs is not None and ours > theirs
    troubles = [f"limits.max_array_size is {ours}, the cluster takes {theirs}"] if too_large else []
    jobs = "not known" if limits.max_submit_jobs is None else str(limits.max_submit_jobs)
    yield judged(troubles, "limits", f"arrays up to {theirs}, jobs of a user: {jobs}", "lower it, or leave it out")
    slurm.accounting(["1"])
    if slurm.accounting_is_off:
        memory = limits.min_job_age_seconds or 0
        words = f"how a job ended is told by squeue for {memory:.0f} s, then only by the job's own word"
        yield Finding("unknown", "accounting", f"off ({slurm.accounting_trouble}); {words}")
    else:
        yield Finding("ok", "accounting", "sacct answers")


def _request(names: tuple[str, ...], asked: Resources, site: Site, partitions: Sequence[Partition]) -> Finding:
    """Whether the partition exists, is up, has nodes, and fits one rank."""
    label = f"partition ({', '.join(names)})"
    try:
        refuse_impossible(asked, site.launch, partitions, ranks=1, cpus_per_rank=1, where=names[0])
    except InputError as error:
        return Finding("failed", label, str(error))
    wanted = None if asked.partition is None else asked.partition.split(",")
    chosen = [one for one in partitions if (one.is_default if wanted is None else one.name in wanted)]
    told = [f"{one.name} has {one.usable_nodes} of {one.nodes} nodes" for one in chosen]
    closed = [one.name for one in chosen if not one.is_up or not one.usable_nodes]
    if len(closed) == len(chosen):
        return Finding(
            "failed", label, f"{'; '.join(told)}, and takes no jobs now; choose another, or wait until it does"
        )
    return Finding("ok", label, "; ".join(told))


@contextlib.contextmanager
def _own_folder(folder: Path, tell: Callable[[Finding], None]) -> Iterator[Path | None]:
    """A new folder beside which runs would lie; None when none can be made. What is empty at the end goes again."""
    was_there = folder.is_dir()
    try:
        make_folder(folder)
        own = Path(tempfile.mkdtemp(prefix="doctor-", dir=folder)).absolute()
    except (InputError, OSError) as error:
        tell(Finding("failed", "folder", f"{folder}: cannot be written to ({error}); choose another with --folder"))
        yield None
        return
    try:
        yield own
    finally:
        for path in (own, *(() if was_there else (folder,))):
            with contextlib.suppress(OSError):  # not empty: something was kept
                path.rmdir()


def _try_jobs(
    site: Site,
    possible: dict[tuple[str, ...], Resources],
    partitions: Sequence[Partition],
    own: Path,
    slurm: Slurm,
    tell: Callable[[Finding], None],
    wait_seconds: float,
) -> Path | None:
    """Submits a probe of each kind and tells what became of it. Returns the folder, where something is kept in it."""
    versions = machine_facts()["versions"]
    probes: list[Probe] = []
    running: set[str] = set()
    all_well = True

    def note(finding: Finding) -> None:
        nonlocal all_well
        all_well = all_well and finding.verdict != "failed"
        tell(finding)

    try:
        for number, (names, asked) in enumerate(possible.items()):
            probe = _submit(site, names, asked, partitions, own / f"job-{number}", slurm, note)
            if probe is not None:
                probes.append(probe)
                running.add(probe.job)
        for ending in follow(probes, slurm, wait_seconds):
            if ending.job is None or ending.job.is_over:
                running.discard(ending.probe.job)
            for finding in findings_of_job(ending, site, versions):
                note(finding)
    except (InputError, SchedulerUnavailableError) as error:
        note(Finding("failed", "job", str(error)))
    finally:
        if running:  # also when a person ends the waiting with Ctrl-C
            with contextlib.suppress(InputError, SchedulerUnavailableError):
                slurm.cancel(sorted(running))
        if all_well:
            shutil.rmtree(own, ignore_errors=True)
    return None if all_well else own


def _submit(
    site: Site,
    names: tuple[str, ...],
    asked: Resources,
    partitions: Sequence[Partition],
    folder: Path,
    slurm: Slurm,
    note: Callable[[Finding], None],
) -> Probe | None:
    """A probe of one kind, submitted; None when this host's part or SLURM fails."""
    token = f"doctor-{secrets.token_hex(8)}"
    label = f" ({', '.join(names)})"
    folder.mkdir()
    troubles = leave(folder, "login", token)
    if troubles:
        remedy = f"choose a file system with hard links (given: {folder.parent.parent})"
        note(judged([f"here: {trouble}" for trouble in troubles], f"shared folder{label}", "", remedy))
        return None
    try:
        return submit_probe(site, names, asked, partitions, folder=folder, token=token, slurm=slurm)
    except (InputError, SchedulerUnavailableError) as error:
        note(Finding("failed", f"job{label}", str(error)))
        return None
