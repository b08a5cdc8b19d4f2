"""What a run played as jobs keeps beside its pipeline: how its jobs are submitted, and on which site."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import hpcrl
from hpcrl.errors import InputError
from hpcrl.launch.request import Surroundings
from hpcrl.pipeline import Pipeline
from hpcrl.runner.stored import stored_pipeline
from hpcrl.scheduler.site import Site, read_site, site_text
from hpcrl.scheduler.trust import read_own, refuse_foreign
from hpcrl.store.documents import seal, unseal
from hpcrl.store.layout import JOBS, PAPERS
from hpcrl.store.publish import make_folder, replace
from hpcrl.store.run_folder import RunFolder

DoorName = Literal["slurm", "sbatch"]
_SITE: Final = f"{JOBS}/site.toml"


@dataclass(frozen=True)
class Papers:
    """Written by `hpcrl run --on slurm | sbatch`, read by every job."""

    door: DoorName
    python_path: tuple[str, ...]
    """Folders of the user's own modules, absolute."""
    folder: str
    """Working folder of the jobs, absolute."""
    command: str
    """What a user types to go on."""
    submitted: str
    """When a person last submitted the run; UTC, ISO 8601. Failures before it do not count."""
    version: str = hpcrl.__version__
    """Of hpcrl where the run was submitted."""

    def write(self, run: Path, site: Site) -> None:
        """Puts them into the run folder, in place of older ones.

        Raises: InputError when the disk is full or read-only.
        """
        make_folder(run / JOBS)
        replace(run / _SITE, site_text(site).encode())
        replace(run / PAPERS, seal("jobs", dataclasses.asdict(self)))


@dataclass(frozen=True)
class Case:
    """Everything that a job, a repair or a look at the queue needs to know of a run."""

    run: RunFolder
    pipeline: Pipeline
    papers: Papers
    site: Site

    @property
    def surroundings(self) -> Surroundings:
        """What every job of the run is started with."""
        return Surroundings(self.site, self.papers.python_path, Path(self.papers.folder))


def is_played_as_jobs(run: Path) -> bool:
    """Whether a run was ever submitted."""
    return (run / PAPERS).exists()


def open_case(path: Path) -> Case:
    """A submitted run, as its folder tells it.

    Raises: InputError when it is no such run, was submitted by another version of hpcrl, or somebody else could have
    written what is executed here; CorruptFileError for a damaged document.
    """
    run = RunFolder.open(path)
    if not is_played_as_jobs(path):
        raise InputError(f"{path}: want a run that was submitted, given one that was not; use hpcrl run --on slurm")
    refuse_foreign(path / "pipeline.json")
    body: dict[str, Any] = unseal(read_own(path / PAPERS), "jobs", path / PAPERS)
    papers = Papers(**{**body, "python_path": tuple(body["python_path"])})
    if papers.version != hpcrl.__version__:
        raise InputError(
            f"{path}: want hpcrl {papers.version}, as where the run was submitted, given "
            f"{hpcrl.__version__} on this node; make both nodes use one environment: launch.setup or "
            "launch.python in site.toml"
        )
    return Case(run, stored_pipeline(run.pipeline()), papers, read_site(path / _SITE))
