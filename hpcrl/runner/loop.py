"""The loop: iterations of its stages on this rank, from wherever the run stands."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from hpcrl.comm import Collectives, TreeSum
from hpcrl.data import Trajectories
from hpcrl.pipeline import evaluation
from hpcrl.residents import Residents
from hpcrl.runner.display import Display
from hpcrl.runner.gate import Gate, Passage
from hpcrl.runner.handoff import Handoff, Source, merge_facts, offline_sources
from hpcrl.runner.output import StageOutput
from hpcrl.runner.part import Part, whole
from hpcrl.runner.policy import Weights
from hpcrl.runner.position import (
    Position,
    RoleCheckpoint,
    load_checkpoints,
    newest_checkpoint,
    previous_facts,
    previous_scores,
    trained_roles,
)
from hpcrl.runner.prepare import Launch, Prepared
from hpcrl.segments import newest_training
from hpcrl.signals import DONE, REQUEUE, StopFlag
from hpcrl.stages import Environments, Stage, StageContext, StageInterruptedError
from hpcrl.store.machine import machine_facts
from hpcrl.store.retention import Retention
from hpcrl.store.writer import WriteBehind

_TIDY_SECONDS = 2.0
"""Retention looks at every folder of the run, so short iterations share one look."""


WAITING = -1
"""What `play` returns when something it needs is not published and its part does not wait."""


class Loop:
    """One rank's share of a part of a run."""

    def __init__(
        self,
        prepared: Prepared,
        launch: Launch,
        *,
        number: int,
        position: Position,
        comm: Collectives,
        stop: StopFlag,
        writer: WriteBehind,
        part: Part | None = None,
    ) -> None:
        self.pipeline, self.description, self.run = prepared.pipeline, prepared.description, prepared.run
        self.input_iterations = prepared.input_iterations
        self.launch, self.number, self.position = launch, number, position
        self.comm, self.stop, self.writer = comm, stop, writer
        self.part = whole(self.pipeline) if part is None else part
        self.gate = Gate(self.run, self.pipeline, self.part, launch=number, comm=comm, stop=stop, writer=writer)
        self.tree = TreeSum(comm, self.pipeline.num_blocks)
        self.handoff = Handoff(launch.handoff, self.run.path)
        self.environments = Environments()
        self.residents = Residents(self.pipeline.models, self.description, self.pipeline.seed)
        self.weights = Weights(self.run, self.pipeline, self.description, self.part, self.residents)
        self._trains = any(self.part.plays(stage.name) for stage in self.pipeline.stages if stage.trains is not None)
        quiet = launch.quiet or comm.rank != 0 or not self._keeps_house
        self.display = Display(self.pipeline.name, self.pipeline.num_iterations, quiet=quiet)
        self._progress_saved = time.monotonic()
        self._facts: dict[str, list[Mapping[str, Any]]] = {}
        self.retention = Retention(self.run, self.pipeline.keep)
        self._tidied = time.monotonic()
        self._tidied_iteration = self._oldest_unfinished = position.first_iteration
        self._scores = previous_scores(self.run) if comm.rank == 0 and self._keeps_house else {}

    @property
    def _keeps_house(self) -> bool:
        """Whether this loop shows progress and lets go what retention does not keep: one loop of a run does."""
        return self._trains or len(self.part.stages) == len(self.pipeline.stages)

    def play(self) -> int:
        """Run until the last iteration, a stopping evaluation, or a request to stop.

        Returns: the exit code DONE or REQUEUE, or WAITING.
        """
        self._load()
        try:
            if self.stop.agreed(self.comm):
                return self._interrupted()
            for iteration in self._iterations():
                passage = self._iteration(iteration)
                if passage is Passage.STOPPED:
                    return self._interrupted()
                if passage is Passage.MISSING:
                    self._settle()
                    return WAITING
                if passage is Passage.ENDED or self._evaluation_stops(iteration):
                    break
            if self.comm.rank == 0 and self._keeps_house:
                self._submit_tidy(iteration)
            self._settle()
        finally:
            self.environments.close()
        return DONE

    def _iterations(self) -> range:
        if self.part.iteration is not None:
            return range(self.part.iteration, self.part.iteration + 1)
        return range(self.position.first_iteration, self.pipeline.num_iterations)

    def _load(self) -> None:
        import torch

        torch.set_num_threads(self.pipeline.compute_threads)
        # Looking up library versions takes a while the first time; not while the first shard is written.
        machine_facts(self.pipeline.compute_threads)
        mine = {stage.trains for stage in self.pipeline.stages if self.part.plays(stage.name)}
        standing = [checkpoint for role, checkpoint in self.position.checkpoints.items() if role in mine]
        for checkpoint in load_checkpoints(self.run, standing) if self._trains else ():
            self.residents.load(checkpoint.roles, checkpoint.state)

    def _iteration(self, iteration: int) -> Passage:
        """All of the part's stages of one iteration that are not done; READY when all were played."""
        self.display.iteration(iteration)
        for index, stage in enumerate(self.pipeline.stages):
            if not self.part.plays(stage.name) or not stage.due(iteration) or self._is_done(stage, iteration):
                continue
            passage = self.gate.wait(stage, iteration)
            if passage is not Passage.READY:
                return passage
            # A stage that breaks off was asked to, here or on another rank.
            with contextlib.suppress(StageInterruptedError):
                self._run_stage(index, stage, iteration)
            if self.stop.agreed(self.comm):
                return Passage.STOPPED
        self.handoff.forget(before=iteration)
        if self.comm.rank == 0 and self._keeps_house and time.monotonic() - self._tidied > _TIDY_SECONDS:
            self._tidied = time.monotonic()
            self._submit_tidy(iteration)
        return Passage.READY

    def _is_done(self, stage: Stage, iteration: int) -> bool:
        """Published before this launch, and for a training stage also part of what was loaded."""
        published = self.position.done if stage.trains is None else self.position.trained
        return (iteration, stage.name) in published

    def _run_stage(self, index: int, stage: Stage, iteration: int) -> None:
        output = self._output(index, stage, iteration)
        try:
            stage.run(self._context(index, stage, iteration, output))
        except FloatingPointError as error:
            raise FloatingPointError(f"stage '{stage.name}', iteration {iteration}: {error}") from error
        finally:
            output.finish()
        facts = merge_facts(output.facts)
        if facts:
            self.display.facts(stage.name, facts)
            self._facts.setdefault(stage.name, []).insert(0, facts)
            del self._facts[stage.name][64:]
            if stage.name == "evaluate":
                self._scores[iteration] = cast(float, facts["return_mean"])

    def _output(self, index: int, stage: Stage, iteration: int) -> StageOutput:
        earlier = [
            self.run.stage(iteration, other.name) for other in self.pipeline.stages[:index] if other.due(iteration)
        ]
        return StageOutput(
            self.run.stage(iteration, stage.name),
            earlier,
            launch=self.number,
            compute_threads=self.pipeline.compute_threads,
            comm=self.comm,
            writer=self.writer,
            handoff=self.handoff,
            residents=self.residents,
            num_blocks=self.pipeline.num_blocks,
            finished=self.position.finished_blocks.get((iteration, stage.name), frozenset()),
            trained=stage.trains,
            with_checkpoint=stage.trains is not None and self._has_checkpoint(stage, iteration),
            scratch=self.launch.scratch,
            attributes={
                "stage": stage.name,
                "iteration": iteration,
                "seed": self.pipeline.seed,
                "pipeline": self.pipeline.name,
            },
        )

    def _context(self, index: int, stage: Stage, iteration: int, output: StageOutput) -> StageContext:
        sources = self._sources(index, iteration)
        if self.handoff.mode == "disk":
            # Everything this iteration wrote so far, by every rank, before anyone reads it back.
            self.writer.flush()
            self.comm.barrier()
        return StageContext(
            iteration=iteration,
            num_iterations=self.pipeline.num_iterations,
            seed=self.pipeline.seed,
            num_blocks=self.pipeline.num_blocks,
            comm=self.comm,
            tree=self.tree,
            residents=self.weights.of(stage, iteration),
            environments=self.environments,
            output=output,
            inputs=lambda block: self.handoff.fields(sources, block),
            previous_lanes=lambda block: self._previous_lanes(stage, iteration, block),
            earlier_facts=lambda name: self._earlier_facts(name, iteration),
            description=self.description,
            rollout=self.pipeline.rollout,
            stop_requested=lambda: self.stop.requested,
            progress_due=self._progress_due,
            tick=self.display.tick,
            element=self.part.element,
            num_elements=self.part.num_elements,
            policy_lag=self._policy_lag(),
        )

    def _policy_lag(self) -> int | None:
        """How old a step may be; steps of another run, or of a policy that draws blindly, are as old as they are."""
        rollout = self.pipeline.rollout
        return self.pipeline.policy_lag if rollout is not None and rollout.policy == "model" else None

    def _sources(self, index: int, iteration: int) -> list[Source]:
        """The stages whose fields a stage reads: those before it that write any; or another run's rollouts."""
        sources = []
        if self.pipeline.inputs is not None:
            sources = offline_sources(Path(self.pipeline.inputs), self.input_iterations, iteration)
        writing = [stage for stage in self.pipeline.stages[:index] if stage.writes and stage.due(iteration)]
        return [*sources, *(Source(self.run, iteration, stage.name) for stage in writing)]

    def _previous_lanes(self, stage: Stage, iteration: int, block: int) -> Trajectories | None:
        if iteration == 0:
            return None
        return self.handoff.lanes(Source(self.run, iteration - 1, stage.name), block)

    def _earlier_facts(self, stage: str, iteration: int) -> Iterator[Mapping[str, Any]]:
        """Newest first: what this launch saw, then what lies on disk."""
        if stage not in self._facts:
            found = previous_facts(self.run, stage, iteration) if self.comm.rank == 0 else []
            self._facts[stage] = self.comm.broadcast(found)
        return iter(self._facts[stage])

    def _evaluation_stops(self, iteration: int) -> bool:
        """Whether an evaluation of this iteration, now or by an earlier launch, says that the run is over."""
        for stage in self.pipeline.stages:
            if stage.name != "evaluate" or not stage.due(iteration) or not self.part.plays(stage.name):
                continue
            newest = next(self._earlier_facts(stage.name, iteration + 1), None)
            if newest is not None and bool(newest.get("stop")):
                return True
        return False

    def _progress_due(self) -> bool:
        """Asked of rank 0's clock only, from inside the gradient tree."""
        if time.monotonic() - self._progress_saved < 60.0 * self.pipeline.progress_every_minutes:
            return False
        self._progress_saved = time.monotonic()
        return True

    def _submit_tidy(self, iteration: int) -> None:
        since, self._tidied_iteration = self._tidied_iteration, iteration
        scores = dict(self._scores) if self.part.plays("evaluate") else None
        job = functools.partial(self._tidy, range(since, iteration + 1), scores)
        self.writer.submit(job, num_bytes=0, iteration=iteration, what="retention")

    def _tidy(self, iterations: range, scores: Mapping[int, float] | None) -> None:
        """Drop parts and attempts of stages that are done, and what retention lets go.

        Needed whatever `keep` says: everything since the newest checkpoint, from which a killed update is redone; up to
        the last iteration that an earlier launch reached, where this one is still redoing the updates before it.
        """
        for folder in [folder for iteration in iterations for folder in self.run.stages(iteration)]:
            if folder.is_done():
                folder.remove_leftovers()
        standing = {
            role: newest_checkpoint(self.run, self.pipeline, role, iterations.stop - 1)
            for role in trained_roles(self.pipeline)
        }
        # A role that is trained no more does not hold the others back.
        newest = min(
            (
                0 if checkpoint is None else checkpoint.iteration
                for role, checkpoint in standing.items()
                if self._is_trained_since(role, checkpoint, iterations.stop - 1)
            ),
            default=0,
        )
        # Other loops may still read what the oldest unfinished stage needs: a lagging policy, an evaluation on its own.
        while self._oldest_unfinished < newest and self._is_finished(self._oldest_unfinished):
            self._oldest_unfinished += 1
        oldest = max(0, min(newest, self._oldest_unfinished) - self.pipeline.policy_lag)
        unsettled = range(oldest, max(iterations.stop, self.position.newest_iteration + 1) + self.pipeline.policy_lag)
        needed = {(iteration, stage.name) for iteration in unsettled for stage in self.pipeline.stages}
        needed |= {(found.iteration, found.stage) for found in standing.values() if found is not None}
        self.retention.apply(needed, previous_scores(self.run) if scores is None else scores)

    def _is_finished(self, iteration: int) -> bool:
        return all(
            self.run.stage(iteration, stage.name).is_done() for stage in self.pipeline.stages if stage.due(iteration)
        )

    def _is_trained_since(self, role: str, checkpoint: RoleCheckpoint | None, iteration: int) -> bool:
        """Whether trainings of a role up to an iteration would have to be redone, or it is trained to this day."""
        newest = newest_training(self.pipeline, role, iteration)
        if newest is None:
            return False
        return checkpoint is None or newest.iteration == iteration or newest.iteration > checkpoint.iteration

    def _has_checkpoint(self, stage: Stage, iteration: int) -> bool:
        """Whether the training of a role in an iteration leaves a checkpoint."""
        last = not any(stage.due(later) for later in range(iteration + 1, self.pipeline.num_iterations))
        evaluate = evaluation(self.pipeline)
        may_stop = evaluate is not None and evaluate.stop_when is not None and evaluate.due(iteration)
        return last or may_stop or (iteration + 1) % self.pipeline.checkpoint_every == 0

    def _interrupted(self) -> int:
        if self.comm.rank == 0:
            self.gate.tell_others()
        self._settle()
        return REQUEUE

    def _settle(self) -> None:
        """Everything this loop wrote is published, by all of its ranks."""
        self.writer.flush()
        self.comm.barrier()
