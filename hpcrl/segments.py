"""Segments: which stages play together, and what each needs from the others. Pure: touches no disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from hpcrl.data import Mesh
from hpcrl.pipeline import Pipeline
from hpcrl.stages import Evaluation, Rollout, Stage

ONLY = "main"
"""Name of the segment that holds a whole pipeline."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive stages on one mesh; in jobs, what one job plays of an iteration."""

    name: str
    """The first stage's name; 'main' where one segment holds the whole pipeline."""
    mesh_name: str
    mesh: Mesh
    stages: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its stages, for people: 'advantage+update'."""
        return "+".join(self.stages)


@dataclasses.dataclass(frozen=True, order=True)
class Need:
    """A published stage that must be there before another can start."""

    iteration: int
    stage: str


def segments(pipeline: Pipeline) -> tuple[Segment, ...]:
    """The pipeline's stages as runs on one mesh, in order.

    Example:
        >>> from hpcrl import Advantage, Mesh, Mlp, PPO, Pipeline, Rollout, Update
        >>> stages = [Rollout(env="CartPole-v1", mesh="play"), Advantage(), Update(PPO())]
        >>> pipeline = Pipeline(name="p", num_iterations=1, stages=stages, models={"actor": Mlp()},
        ...                     meshes={"play": Mesh(world="play", array=4)})
        >>> [(segment.name, segment.stages) for segment in segments(pipeline)]
        [('rollout', ('rollout',)), ('advantage', ('advantage', 'update'))]
    """
    found: list[tuple[str, list[str]]] = []
    for stage in pipeline.stages:
        if not found or found[-1][0] != stage.mesh:
            found.append((stage.mesh, []))
        found[-1][1].append(stage.name)
    meshes = pipeline.all_meshes
    return tuple(
        Segment(ONLY if len(found) == 1 else names[0], mesh, meshes[mesh], tuple(names)) for mesh, names in found
    )


def is_one_world(pipeline: Pipeline) -> bool:
    """Whether one MPI launch plays all of it: then its job loops over iterations."""
    return len({segment.mesh.world for segment in segments(pipeline)}) == 1


def segment_of(pipeline: Pipeline) -> Mapping[str, Segment]:
    """Stage name -> its segment."""
    return {name: segment for segment in segments(pipeline) for name in segment.stages}


def trainers_of(pipeline: Pipeline, role: str | None) -> tuple[Stage, ...]:
    """The stages that train a role, in order."""
    return tuple(stage for stage in pipeline.stages if role is not None and stage.trains == role)


def newest_training(pipeline: Pipeline, role: str, iteration: int) -> Need | None:
    """The last training of a role up to and with an iteration; None: it has its initial weights."""
    trainers = trainers_of(pipeline, role)
    for at in range(iteration if trainers else -1, -1, -1):
        for stage in reversed(trainers):
            if stage.due(at):
                return Need(at, stage.name)
    return None


def policy_update(pipeline: Pipeline, stage: Stage, iteration: int) -> Need | None:
    """The update whose weights a stage reads in an iteration.

    None: it reads no trained role, or the initial weights. What acts does so `policy_lag` updates late; a stage behind
    a trainer reads what it has just left.
    """
    if stage.role is None or stage.trains == stage.role:
        return None
    before = pipeline.stages[: list(pipeline.stages).index(stage)]
    just_trained = [other for other in before if other.trains == stage.role and other.due(iteration)]
    if just_trained:
        return Need(iteration, just_trained[-1].name)
    return newest_training(pipeline, stage.role, iteration - 1 - (pipeline.policy_lag if stage.acts else 0))


def needs(pipeline: Pipeline, stage: Stage, iteration: int) -> tuple[Need, ...]:
    """Everything that must be published before a stage of an iteration starts, wherever it is played."""
    found = {need for kind in (_fields, _own, stops) for need in kind(pipeline, stage, iteration)}
    update = policy_update(pipeline, stage, iteration)
    return tuple(sorted(found if update is None else {*found, update}))


def _fields(pipeline: Pipeline, stage: Stage, iteration: int) -> Iterator[Need]:
    """The stages of this iteration that write fields, for one that reads any."""
    for earlier in pipeline.stages[: list(pipeline.stages).index(stage)]:
        if stage.reads and earlier.writes and earlier.due(iteration):
            yield Need(iteration, earlier.name)


def _own(pipeline: Pipeline, stage: Stage, iteration: int) -> Iterator[Need]:
    """What it goes on from: a rollout's lanes, a trainer's weights and optimiser."""
    if iteration > 0 and isinstance(stage, Rollout):
        yield Need(iteration - 1, stage.name)
    before = training_before(pipeline, stage, iteration)
    if before is not None:
        yield before


def training_before(pipeline: Pipeline, stage: Stage, iteration: int) -> Need | None:
    """The training of a role that a stage which trains it goes on from; None: it begins with the initial weights."""
    if stage.trains is None:
        return None
    before = pipeline.stages[: list(pipeline.stages).index(stage)]
    just_trained = [other for other in before if other.trains == stage.trains and other.due(iteration)]
    if just_trained:
        return Need(iteration, just_trained[-1].name)
    return newest_training(pipeline, stage.trains, iteration - 1)


def stops(pipeline: Pipeline, stage: Stage, iteration: int) -> Iterator[Need]:
    """The evaluation whose word a stage waits for: it may say that the run is over.

    Stages before the trainer may run `policy_lag` iterations ahead of that word; the trainer itself never does, so the
    last weights do not depend on who was faster.
    """
    trained = [index for index, other in enumerate(pipeline.stages) if other.trains is not None]
    ahead = pipeline.policy_lag if trained and list(pipeline.stages).index(stage) < trained[0] else 0
    for other in pipeline.stages:
        if isinstance(other, Evaluation) and other.stop_when is not None:
            newest = next((at for at in reversed(range(iteration - ahead)) if other.due(at)), None)
            if newest is not None:
                yield Need(newest, other.name)
