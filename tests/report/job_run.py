"""A run played as SLURM jobs, put together fact by fact: what repair, the jobs and SLURM would have left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from hpcrl.scheduler.jobs import Job
from hpcrl.store.documents import seal
from hpcrl.store.lease import Holder
from hpcrl.store.ledger import Claim, End, Ledger, Outcome, Unit
from hpcrl.store.processes import Process
from tests.report.large_run import make_large_run

COMMAND = "hpcrl run large.py --on sbatch --run runs/large"


class JobRun:
    """A run of ten stages in its last iteration, played by segments 'rollout' (an array of 4) and 'generate'.

    Times are seconds from now, negative ones ago.
    Args: loop: it is one world instead, played by one job that loops over iterations.
    """

    def __init__(self, path: Path, iterations: int = 3, *, loop: bool = False) -> None:
        self._take(make_large_run(path, iterations=iterations, blocks=4, jobs=not loop))

    @classmethod
    def at(cls, path: Path) -> JobRun:
        """The same of a run that is there; what it was launched with goes."""
        run = cls.__new__(cls)
        run._take(path)
        return run

    def _take(self, path: Path) -> None:
        self.path = path
        for folder in ("launches", "ledger"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
            (self.path / folder).mkdir()
        self.ledger = Ledger(self.path)
        self.now = time.time()
        self.launches = 0

    def submit(
        self,
        segment: str,
        iteration: int | None,
        job: str | None,
        at: float,
        *,
        number: int = 1,
        elements: Sequence[int] | None = None,
        first_element: int = 0,
        after: Sequence[str] = (),
    ) -> Unit:
        """A claim, and the id that sbatch gave (None: it has not answered)."""
        unit, moment = Unit(segment, iteration), self._iso(at)
        places = None if elements is None else tuple(elements)
        claim = Claim(unit, number, secrets.token_hex(4), "sbatch", moment, tuple(after), places, first_element)
        with mock.patch("os.fsync"):  # many small files, which need not survive a power failure
            assert self.ledger.claim(claim)
        if job is not None:
            with mock.patch("hpcrl.store.ledger.now", return_value=moment), mock.patch("os.fsync"):
                assert self.ledger.record_job(unit, number, job)
        return unit

    def launch(self, unit: Unit, job: str, at: float, *, element: int | None = None, restarts: int = 0) -> None:
        """One start of the job, as the runner registers it."""
        self.launches += 1
        facts = {"command": COMMAND, "host": "node-1", "pid": 1, "ranks": 2, "job": job, "started": self._iso(at)}
        facts |= {"unit": unit.name, "element": element, "restart_count": restarts}
        (self.path / f"launches/launch-{self.launches:04d}.json").write_text(json.dumps(facts))

    def end(
        self, unit: Unit, at: float, outcome: Outcome = "done", *, number: int = 1, element: int | None = None,
        reason: str = "",
    ) -> None:  # fmt: skip
        """What the job said at its end."""
        with mock.patch("os.fsync"):
            assert self.ledger.record_end(unit, number, element, End(outcome, reason, "", 0, self._iso(at)))

    def hold(self, unit: Unit, job: str, *, element: int | None = None, heartbeat: float = 0.0) -> Path:
        """The lease of a job on another node, last touched so many seconds ago."""
        away = dataclasses.replace(Process.this(), host="node-7", boot="another")
        holder = dataclasses.replace(Holder.new({"SLURM_JOB_ID": job}, None), process=away)
        path = self.path / "leases" / (unit.name + ("" if element is None else f"_{element}")) / "lease"
        if unit.iteration is None:
            path = self.path / "lease"  # a loop holds the run's own
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seal("lease", dataclasses.asdict(holder)))
        os.utime(path, (self.now - heartbeat, self.now - heartbeat))
        return path

    def _iso(self, at: float) -> str:
        return datetime.fromtimestamp(self.now + at, UTC).isoformat(timespec="milliseconds")


def slurm_job(id: str, state: str, reason: str = "", *, started: float | None = None, restarts: int = 0) -> Job:
    """A job as squeue would tell it."""
    array, _, element = id.partition("_")
    return Job(
        id=id,
        array_id=array if element else None,
        element=int(element) if element else None,
        name="",
        user="",
        state=state,
        reason=reason,
        partition="cpu",
        submitted=None,
        started=started,
        ended=None,
        expected_start=None,
        nodes="",
        comment="",
        exit_code=None,
        signal=None,
        restarts=restarts,
        dependency="",
        time_limit=None,
    )


class FakeSlurm:
    """Answers as Slurm.look does: jobs by id, an array's elements one by one; notes what it was asked."""

    def __init__(self, *jobs: Job, error: Exception | None = None) -> None:
        self.jobs, self.error = jobs, error
        self.asked: list[str] = []

    def look(self, ids: Sequence[str], /) -> Mapping[str, Job]:
        self.asked += ids
        if self.error is not None:
            raise self.error
        return {job.id: job for job in self.jobs if job.id in ids or job.array_id in ids}
