"""Runs submitted to the test cluster from this process, and repairs that tell what they saw."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hpcrl.launch import repair as repair_module
from hpcrl.launch import standing as standing_module
from hpcrl.launch.doors import open_door
from hpcrl.launch.papers import Case, open_case
from hpcrl.launch.repair import Me, Repair, Repaired
from hpcrl.launch.request import GUARD
from hpcrl.launch.standing import Standing, standing_of
from hpcrl.launch.submission import Run
from hpcrl.scheduler import Job, Reaction, Slurm, reaction, situation
from hpcrl.scheduler.site import Launch, Limits, Resources, Site
from hpcrl.store.ledger import Ledger, Try, Unit
from tests.pipelines.forked import forked
from tests.pipelines.runs import published_bits
from tests.slurm.dev_cluster import ROOT, DevCluster

Bits = dict[str, dict[str, dict[str, str]]]


@contextlib.contextmanager
def login_node(cluster: DevCluster) -> Iterator[None]:
    """Until its end this process sees the cluster, as a shell on a login node does."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PYTHONPATH", "OMP_NUM_THREADS", "PATH"):
            patch.setenv(name, cluster.environment[name])
        for name in ("HPCRL_SITE", "HPCRL_KILL_AT"):
            patch.delenv(name, raising=False)
        patch.chdir(ROOT)
        yield


def site_for(python: Path | str, resources: Resources | None = None, **limits: Any) -> Site:
    """The test cluster, with an interpreter of the jobs."""
    limits = {"signal_lead_seconds": 30, **limits}
    return Site(launch=Launch(python=str(python)), limits=Limits(**limits), default=resources or Resources())


def reference_bits(folder: Path, *arguments: object) -> Bits:
    """What a pipeline publishes that one process plays from start to end, undisturbed."""
    done = forked("run", *arguments, "--on", "here", "--quiet", "--run", folder / "reference", folder=folder)
    assert done.code == 0, done.output
    return published_bits(folder / "reference")


@dataclasses.dataclass
class Look:
    """What one repair saw, and did."""

    rows: list[str]
    """Rows of the table that applied, in the order of units, tries and elements; the guards' left out."""
    standings: list[Standing]
    """Likewise."""
    done: Repaired


def look(run: Path, *, me: Me | None = None, patience_seconds: float = 20.0, **limits: Any) -> Look:
    """Repairs a run from here.

    Args: limits: of the site, other than the run's own.
    Raises: as Repair.repair.
    """
    case = open_case(run)
    case = dataclasses.replace(
        case, site=dataclasses.replace(case.site, limits=dataclasses.replace(case.site.limits, **limits))
    )
    slurm = Slurm(patience_seconds=patience_seconds)
    rows: list[str] = []
    standings: list[Standing] = []

    def weigh(case: Case, unit: Unit, *words: Any, **named: Any) -> Standing:
        def react(job: Job | None, **known: Any) -> Reaction:
            rows.extend([situation(job, **known)] if unit != GUARD else [])
            return reaction(job, **known)

        with mock.patch.object(standing_module, "reaction", react):
            standing = standing_of(case, unit, *words, **named)
        standings.extend([standing] if unit != GUARD else [])
        return standing

    with mock.patch.object(repair_module, "standing_of", weigh):
        done = Repair(case, open_door(case, slurm), slurm, me=me).repair()
    return Look(rows, standings, done)


def tries(run: Path, unit: str) -> list[Try]:
    """The ledger's tries at a unit, oldest first."""
    return next((found for name, found in Ledger(run).all_tries().items() if name.name == unit), [])


def job_of(run: Path, unit: str, number: int = 1) -> str:
    """SLURM's id of a try."""
    job = next(one.job for one in tries(run, unit) if one.number == number)
    assert job is not None
    return job


def jobs_of(run: Path, unit: str | None = None) -> list[str]:
    """SLURM's ids of all tries, or of those at one unit, oldest first."""
    found = [one for tries in Ledger(run).all_tries().values() for one in tries]
    ids = [one.job for one in found if unit in (None, one.unit.name)]
    return sorted((one for one in ids if one is not None), key=int)


def jobs_in_queue(cluster: DevCluster, run: Path) -> list[str]:
    """Ids of a run's jobs that have not ended."""
    shown = cluster.output("squeue", "--noheader", "--format=%F").split()
    return [job for job in jobs_of(run) if job in shown]


def finish(cluster: DevCluster, run: Path, seconds: float = 90) -> Bits:
    """Waits until a run has reached its end and has no job left; returns what it published."""
    try:
        Run(run).wait(seconds, poll_seconds=0.2)
    except Exception as error:
        raise AssertionError(f"{error}\n{logs(run)}") from error
    cluster.wait_for(lambda: jobs_in_queue(cluster, run) == [], 30, f"{run.name} to have no job left")
    return published_bits(run)


def logs(run: Path) -> str:
    """All that a run's jobs have said."""
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((run / "logs").glob("*.out")))
