"""Submitting a pipeline to a scheduler, and the handle of what was submitted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcrl.errors import InputError
from hpcrl.launch.active import refuse_active
from hpcrl.launch.cancel import cancel_run
from hpcrl.launch.doors import open_door
from hpcrl.launch.logs import log_text
from hpcrl.launch.papers import Case, DoorName, Papers, is_played_as_jobs, open_case
from hpcrl.launch.repair import Repair, Repaired, make_request
from hpcrl.launch.request import GUARD, Request
from hpcrl.launch.standing import GUARD_MINUTES
from hpcrl.launch.units import Units
from hpcrl.pipeline import Pipeline
from hpcrl.report.queue import find_scheduler
from hpcrl.report.status import status_text
from hpcrl.report.wording import path_text
from hpcrl.runner import Launch, check_resumable, open_run
from hpcrl.runner.part import world_size
from hpcrl.runner.prepare import set_aside
from hpcrl.scheduler.nodes import refuse_impossible
from hpcrl.scheduler.refusals import SchedulerUnavailableError
from hpcrl.scheduler.site import SITE_FILE, Site, read_site
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.trust import refuse_foreign_if_there
from hpcrl.segments import ONLY, is_one_world, segment_of, segments
from hpcrl.store.lease import Lease
from hpcrl.store.ledger import Ledger, Unit, now
from hpcrl.store.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run that plays as jobs, wherever it stands; made by `submit`, or Run(path) for one submitted before."""

    path: Path

    def status(self) -> str:
        """Where it stands, as `hpcrl status` prints it."""
        return status_text(self.path, find_scheduler(self.path))

    def is_finished(self) -> bool:
        """Whether it has reached its end."""
        case = open_case(self.path)
        return Units(case.run, case.pipeline).is_finished()

    def halted(self) -> str | None:
        """Why nothing is submitted any more; None while it goes on by itself."""
        return Ledger(self.path).halted()

    def wait(self, timeout_seconds: float | None = None, *, poll_seconds: float = 2.0) -> None:
        """Returns when the run has reached its end.

        Raises: InputError when it was halted; TimeoutError.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self.is_finished():
            reason = self.halted()
            if reason is not None:
                raise InputError(f"{self.path}: halted: {reason}; mend the cause, then submit the run again")
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.path}: not finished after {timeout_seconds} s; hpcrl status {path_text(self.path)}"
                )
            time.sleep(poll_seconds)

    def cancel(self) -> list[str]:
        """Halts the run and cancels its jobs; returns their ids. Submitting it again goes on."""
        return cancel_run(self.path)

    def logs(self, what: str | None = None, *, lines: int = 50) -> str:
        """The end of the newest job's log, of a segment or stage if one is named."""
        return log_text(self.path, what, lines=lines)


def submit(
    pipeline: Pipeline,
    site: Site | Path | str | None = None,
    *,
    run: Path | None = None,
    door: DoorName = "slurm",
    fresh: bool = False,
    command: str = "",
    python_path: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Run:
    """Submits a pipeline, or goes on with a run that was submitted before; nothing needs to stay on this machine.

    Args:
        site: the cluster, or its site file; None: the file that `read_site` finds, else a plain SLURM.
        run: run folder; None: runs/NAME.
        door: 'slurm' through submitit, 'sbatch' through scripts in the run folder.
        fresh: rename an existing run folder and start over.
        command: what a person types to go on.
        python_path: folders of modules that the pipeline's classes come from; importable on the compute nodes.
    Raises: InputError for everything that can be refused, before anything is written or submitted.
    """
    path = Path(run if run is not None else Path("runs") / pipeline.name)
    site = _read(site)
    slurm = Slurm(patience_seconds=20.0, say=say)
    launch = Launch(run=path, fresh=fresh, command=command)
    description = check_resumable(pipeline, launch)
    papers = Papers(
        door=door,
        python_path=_absolute(python_path),
        folder=os.getcwd(),
        command=command,
        submitted=now(),
    )
    with _silence_refuses():
        check_site(pipeline, site, slurm)
        check_writing(Case(RunFolder(path), pipeline, papers, site), slurm, fresh=fresh)
        # Of a halted run what is still in the queue submits nothing more, and is taken into account.
        if is_played_as_jobs(path) and (fresh or Ledger(path).halted() is None):
            refuse_active(path, slurm)
    if fresh and RunFolder.exists(path):
        set_aside(path)
    with Lease.acquire(path):
        open_run(pipeline, launch, description)
        papers.write(path, site)
        Ledger(path).go_on()
    with _silence_refuses():
        repaired = _repair(open_case(path), slurm, say)
    if not repaired.jobs:
        say(
            f"{path}: nothing to submit: {'the run is over' if Run(path).is_finished() else 'no room in the queue now'}"
        )
    elif repaired.left_out and sum(len(request.elements or (0,)) for request in repaired.submitted) < 2:
        say(
            f"{path}: the queue has room for one job of the run only; should it be lost, nobody submits the rest: look "
            f"again with hpcrl status {path}, or submit the run when there is more room"
        )
    return Run(path)


@contextlib.contextmanager
def _silence_refuses() -> Iterator[None]:
    """A person who submits is told that SLURM does not answer, as of everything else that is not as it should be."""
    try:
        yield
    except SchedulerUnavailableError as error:
        raise InputError(str(error)) from error


def _absolute(folders: Sequence[Path]) -> tuple[str, ...]:
    return tuple(str(Path(folder).absolute()) for folder in folders)


def _read(site: Site | Path | str | None) -> Site:
    return site if isinstance(site, Site) else read_site(None if site is None else Path(site))


def first_requests(case: Case) -> tuple[Request, ...]:
    """The jobs of a run's first window, as they would be submitted to a cluster that has none of them."""
    units = Units(case.run, case.pipeline)
    pending = units.pending(case.site.limits.window + 1)
    made: dict[Unit, Request] = {}
    for unit in pending:
        before = tuple(f"JOB:{need.name}" for need in units.needs(unit) if need in made)
        missing = units.unfinished_elements(unit)
        made[unit] = make_request(case, units, unit, dependency=before, elements=(0,) if missing == () else missing)
    requests = list(made.values())
    if units.is_loop and pending:
        requests.append(make_request(case, units, pending[0], number=2, dependency=(f"JOB:{pending[0].name}",)))
    if pending and case.site.launch.submit_from_jobs:
        if units.is_loop or units.reaches_the_end(pending):
            last = tuple(f"JOB:{request.unit.name}" for request in requests)
            requests.append(make_request(case, units, GUARD, dependency=last))
        number = 1 + sum(request.unit == GUARD for request in requests)
        requests.append(make_request(case, units, GUARD, number=number, begin_minutes=GUARD_MINUTES))
    return tuple(requests)


def requests_of_segments(case: Case) -> tuple[Request, ...]:
    """A job of each segment, and the guard: every other differs from one of them in its iteration, try and elements."""
    units = Units(case.run, case.pipeline)
    if units.is_loop:
        return make_request(case, units, Unit(ONLY, None)), make_request(case, units, GUARD)
    found = [
        make_request(
            case,
            units,
            Unit(segment.name, 0),
            elements=tuple(range(segment.mesh.array)) if segment.mesh.array > 1 else None,
        )
        for segment in units.segments
    ]
    return *found, make_request(case, units, GUARD)


def check_writing(case: Case, slurm: Slurm, *, fresh: bool = False) -> None:
    """Everything that a submission writes and reads again can be written, and read by those who trust only their own.

    Args: fresh: what is there now is renamed first.
    Raises: InputError, before anything is written.
    """
    if not fresh:
        refuse_foreign_if_there(case.run.path / "pipeline.json")
    open_door(case, slurm).check(requests_of_segments(case))


def _repair(case: Case, slurm: Slurm, say: Callable[[str], None]) -> Repaired:
    return Repair(case, open_door(case, slurm), slurm, say=say).repair()


def check_segments(pipeline: Pipeline, site: Site) -> None:
    """The site speaks of segments that the pipeline has.

    Raises: InputError, with the segment that plays it where a stage or a mesh is named.
    """
    ranks = _ranks(pipeline)
    for name in site.segments:
        if name in ranks or name == GUARD.segment:
            continue
        played = [ONLY] if ONLY in ranks else _segments_that_play(name, pipeline)
        what = "stage" if name in segment_of(pipeline) else "mesh" if name in pipeline.all_meshes else ""
        if what:
            tables = " or ".join(f"[segments.{segment}]" for segment in played)
            raise InputError(
                f"{site.source or SITE_FILE}: [segments.{name}]: want a segment of the pipeline, given a {what}; "
                f"{what} '{name}' is played by segment {' and '.join(map(repr, played))}: write {tables}"
            )
    site.refuse_unknown_segments([*ranks, GUARD.segment])


def _segments_that_play(name: str, pipeline: Pipeline) -> list[str]:
    """The segments of a stage or a mesh."""
    return [one.name for one in segments(pipeline) if name in one.stages or name == one.mesh_name]


def _ranks(pipeline: Pipeline) -> dict[str, int]:
    """Segment that jobs play -> its ranks; 'main' for all of a pipeline that one job plays."""
    ranks = {segment.name: segment.mesh.size for segment in segments(pipeline)}
    return {ONLY: world_size(pipeline) or next(iter(ranks.values()))} if is_one_world(pipeline) else ranks


def check_site(pipeline: Pipeline, site: Site, slurm: Slurm) -> None:
    """The cluster can give what the site asks for.

    Raises: InputError, before anything is written.
    """
    missing = slurm.missing_commands()
    if missing:
        raise InputError(
            f"--on slurm: want SLURM's commands on PATH, found no {', '.join(missing)}; run this on a login "
            "node, or use --on mpi"
        )
    check_segments(pipeline, site)
    if site.limits.max_jobs == 1 and site.launch.submit_from_jobs and not is_one_world(pipeline):
        raise InputError(
            "limits.max_jobs: want at least 2 for a pipeline of several segments (a job that runs submits the next), "
            "given 1; raise it, or give all stages one mesh and play the run in one job"
        )
    partitions = slurm.partitions()
    for name, count in _ranks(pipeline).items():
        refuse_impossible(
            site.resources(name),
            site.launch,
            partitions,
            ranks=count,
            cpus_per_rank=pipeline.compute_threads,
            where=f"segments.{name}" if name in site.segments else "resources",
        )


def dry_run(
    pipeline: Pipeline,
    site: Site | Path | str | None = None,
    *,
    run: Path | None = None,
    python_path: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """What `submit(..., door="sbatch")` would submit first, as text: each sbatch line and its script. Writes nothing.

    Args: say: told in one line when SLURM could not be asked whether it would take the jobs.
    Raises: InputError for everything that `submit` would refuse, as far as SLURM can be asked.
    """
    from hpcrl.launch.scripts import Scripts

    path = Path(run if run is not None else Path("runs") / pipeline.name)
    site = _read(site)
    slurm = Slurm(patience_seconds=0.0)
    papers = Papers("sbatch", _absolute(python_path), os.getcwd(), "", now())
    case = Case(RunFolder(path), pipeline, papers, site)
    check_segments(pipeline, site)
    check_writing(case, slurm)
    requests = first_requests(case)
    scripts = Scripts(case.surroundings, slurm)
    missing = slurm.missing_commands()
    if missing:
        say(f"not compared with a cluster: found no {', '.join(missing)} on PATH")
    else:
        try:
            check_site(pipeline, site, slurm)
            scripts.ask(requests, say)
        except SchedulerUnavailableError as error:
            say(f"not compared with the cluster: {error}")
    return scripts.dry_run(requests) if requests else f"{path}: nothing to submit: the run is over\n"
