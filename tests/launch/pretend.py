"""A pretended cluster: jobs start when what they depend on has ended, and do to the run folder what real ones do."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from hpcrl.launch.job import others_go_on
from hpcrl.launch.papers import Case, Papers
from hpcrl.launch.repair import Me, Repair, cancel_rest
from hpcrl.launch.request import GUARD, Request
from hpcrl.launch.units import Units
from hpcrl.pipeline import Pipeline
from hpcrl.scheduler.jobs import Job
from hpcrl.scheduler.refusals import SubmissionRefusedError
from hpcrl.scheduler.site import Limits, Site
from hpcrl.scheduler.slurm import ClusterLimits
from hpcrl.store.ledger import End, Ledger, Unit, now
from hpcrl.store.run_folder import RunFolder


def case_of(path: Path, pipeline: Pipeline, *, door: str = "sbatch", **limits: object) -> Case:
    """A submitted run with nothing done yet."""
    run = RunFolder.open(path) if RunFolder.exists(path) else RunFolder.create(path, {"pipeline": pipeline.plain()})
    papers = Papers(door, (), str(path), "hpcrl run", now())  # type: ignore[arg-type]
    return Case(run, pipeline, papers, Site(limits=Limits(**limits)))  # type: ignore[arg-type]


@dataclasses.dataclass
class PretendedJob:
    request: Request
    job: Job
    phase: str = ""
    """How far it has come since it was last started."""

    @property
    def me(self) -> Me:
        return Me(self.request.unit, self.job.array_id or self.job.id)

    @property
    def element(self) -> int | None:
        return None if self.job.element is None else self.job.element + self.request.first_element


class Cluster:
    """Both the door and the Slurm of a repair."""

    def __init__(
        self, case: Case, *, max_array_size: int = 1001, seed: int = 0, stops_at: int = -1, most_jobs: int = 10**6
    ) -> None:
        self.case, self.max_array_size = case, max_array_size
        self.jobs: dict[str, PretendedJob] = {}
        self.random = random.Random(seed)
        self.stops_at = stops_at
        self.most_jobs = most_jobs
        self.foreign = 0
        """Jobs of the same user that are not the run's."""
        self.forgotten: set[str] = set()
        """Jobs that sbatch takes no dependency on."""
        self.accounting_is_off = False
        self.played: list[tuple[Unit, int | None]] = []
        self.lines: list[str] = []
        self._next = 1

    # What a door does.
    def prepare(self, requests: tuple[Request, ...]) -> None:
        pass

    def submit(self, request: Request) -> str:
        if set(request.dependency) & self.forgotten:
            raise SubmissionRefusedError("Job dependency problem", "dependency")
        if len(self.alive()) + self.foreign + len(request.indices or (0,)) > self.most_jobs:
            raise SubmissionRefusedError("QOSMaxSubmitJobPerUserLimit", "limit")
        array = str(self._next)
        self._next += 1
        for index in request.indices or (None,):
            id_ = array if index is None else f"{array}_{index}"
            assert index is None or 0 <= index < self.max_array_size
            self.jobs[id_] = PretendedJob(request, _pending(id_, None if index is None else array, index, request))
        return array

    # What a Slurm does.
    def look(self, ids: Sequence[str]) -> dict[str, Job]:
        return {one.job.id: one.job for one in self.jobs.values() if {one.job.id, one.job.array_id} & set(ids)}

    def queue(self, ids: Sequence[str] | None = None) -> list[Job]:
        if ids is not None:
            return list(self.look(ids).values())
        return [one.job for one in self.jobs.values()] + [_foreign(f"9{number}") for number in range(self.foreign)]

    def find_by_comment(self, token: str) -> list[Job]:
        return [one.job for one in self.jobs.values() if token in one.job.comment]

    def cancel(self, ids: Sequence[str]) -> None:
        for one in self.jobs.values():
            if {one.job.id, one.job.array_id} & set(ids) and not one.job.is_over:
                self.end(one, "CANCELLED")

    def limits(self) -> ClusterLimits:
        return ClusterLimits("pretended", "", self.max_array_size, None, None, True, True)

    # What happens on it.
    def waiting(self) -> list[PretendedJob]:
        return [one for one in self.jobs.values() if one.job.state == "PENDING"]

    def startable(self) -> list[PretendedJob]:
        """Jobs that may start now; those with a time of their own when there is nothing else to wait for."""
        alive = {one.job.array_id or one.job.id for one in self.alive()}
        ready = [
            one
            for one in self.waiting()
            if not set(one.request.dependency) & alive and one.job.reason in ("", "BeginTime")
        ]
        return [one for one in ready if not one.request.begin_minutes] or ready

    def hold(self, one: PretendedJob) -> None:
        """SLURM could not start it, and keeps it for a person."""
        one.job = dataclasses.replace(one.job, reason="launch failed requeued held")

    def end(self, one: PretendedJob, state: str, code: int | None = None) -> None:
        one.job = dataclasses.replace(one.job, state=state, exit_code=code, cancelled_by=None)

    def repair(self, me: Me | None = None) -> Repair:
        repair = Repair(self.case, self, self, me=me, say=self.lines.append)  # type: ignore[arg-type]
        repair.repair()
        return repair

    def play(self, one: PretendedJob, *, dies: bool = False, outcome_code: int = 0) -> None:
        """A job from start to end; or it dies after its first repair."""
        self.start(one)
        if dies or outcome_code:
            self.end(one, "FAILED" if outcome_code else "NODE_FAIL", outcome_code or None)
            return
        self.work(one)
        self.leave(one)
        self.vanish(one)

    def start(self, one: PretendedJob) -> None:
        """It repairs, if it is the one of its array to do so, and has not been started before."""
        one.job = dataclasses.replace(one.job, state="RUNNING", reason="", started=0.0)
        one.phase = "starts"
        first = one.element in (None, min(one.request.elements or (0,)))
        if one.request.unit != GUARD and first and not self._has_ended(one):
            self.repair(one.me)

    def work(self, one: PretendedJob) -> None:
        """It publishes, and says its last word."""
        one.phase = "has worked"
        if self._has_ended(one):
            return
        unit, request = one.request.unit, one.request
        units = Units(self.case.run, self.case.pipeline)
        ready = unit != GUARD and units.is_ready(unit)
        if ready and not self._is_beyond(unit, units):
            self._publish(unit, one.element, units)
        outcome = "done" if ready or unit == GUARD else "waiting"
        end = End(outcome, "", one.job.id, 0, now())  # type: ignore[arg-type]
        Ledger(self.case.run.path).record_end(unit, request.number, one.element, end)

    def leave(self, one: PretendedJob) -> None:
        """It repairs again, and decides whether it stays; until `vanish` it is still in the queue."""
        one.phase = "leaves"
        if others_go_on(self.case, one.request.unit, one.request.number, one.element):
            return
        if not self.repair(one.me).done.is_followed:
            one.phase = "stays"
        elif Units(self.case.run, self.case.pipeline).is_finished():
            cancel_rest(self.case, self, but=one.me.job)  # type: ignore[arg-type]

    def vanish(self, one: PretendedJob) -> None:
        """It is out of the queue, or back in it."""
        if one.phase == "stays":
            restarts = one.job.restarts + 1
            one.job = dataclasses.replace(one.job, state="PENDING", reason="BeginTime", started=None, restarts=restarts)
            one.phase = ""
        else:
            self.end(one, "COMPLETED", 0)

    def step(self, one: PretendedJob) -> None:
        """What comes next in a job's life."""
        {"": self.start, "starts": self.work, "has worked": self.leave}.get(one.phase, self.vanish)(one)

    def alive(self) -> list[PretendedJob]:
        """Jobs in the queue."""
        return [one for one in self.jobs.values() if not one.job.is_over]

    def _has_ended(self, one: PretendedJob) -> bool:
        return one.element in Ledger(self.case.run.path).ended(one.request.unit, one.request.number)

    @staticmethod
    def _is_beyond(unit: Unit, units: Units) -> bool:
        return unit.iteration is not None and unit.iteration > units.last_iteration

    def _publish(self, unit: Unit, element: int | None, units: Units) -> None:
        self.played.append((unit, element))
        if unit.iteration is None:
            for iteration in range(self.case.pipeline.num_iterations):
                for stage in self.case.pipeline.stages:
                    self._publish_stage(iteration, stage.name)
            return
        for stage_name in units.stages(unit):
            folder = self.case.run.stage(unit.iteration, stage_name)
            if element is None:
                self._publish_stage(unit.iteration, stage_name)
            elif not folder.is_done():
                count, blocks = units.segment(unit).mesh.array, self.case.pipeline.num_blocks
                attempt = folder.begin_attempt(compute_threads=1)
                for block in range(element * blocks // count, (element + 1) * blocks // count):
                    attempt.publish_part(block, [])
                folder.publish_if_complete(blocks)

    def _publish_stage(self, iteration: int, stage: str) -> None:
        folder = self.case.run.stage(iteration, stage)
        if folder.is_done():
            return
        attempt = folder.begin_attempt(compute_threads=1)
        attempt.publish([], {"stop": iteration == self.stops_at} if stage == "evaluate" else {})


def _foreign(id_: str) -> Job:
    return Job(
        id=id_, array_id=None, element=None, name="other", user="me", state="RUNNING", reason="", partition="debug",
        submitted=0.0, started=0.0, ended=None, expected_start=None, nodes="", comment="", exit_code=None, signal=None,
        restarts=0, dependency="", time_limit=3600.0,
    )  # fmt: skip


def _pending(id_: str, array: str | None, element: int | None, request: Request) -> Job:
    return Job(
        id=id_, array_id=array, element=element, name=request.job_name, user="me", state="PENDING", reason="",
        partition="debug", submitted=0.0, started=None, ended=None, expected_start=None, nodes="",
        comment=request.comment, exit_code=None, signal=None, restarts=0, dependency="", time_limit=3600.0,
    )  # fmt: skip
