"""The pipeline: what a user writes, checked whole before anything is written or submitted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hpcrl.data import Mesh
from hpcrl.data.configuration import near_names, to_plain
from hpcrl.errors import InputError
from hpcrl.models import ModelConfig
from hpcrl.stages import Advantage, Evaluate, Evaluation, Rollout, Stage, Update
from hpcrl.stages.generate import GENERATED
from hpcrl.store.retention import Keep

MAIN = "main"
"""Name of the mesh that `Pipeline.mesh` describes."""

FREE_TO_CHANGE = re.compile(
    r"mesh\.(dp|ranks|array|world)(\[.*)?|meshes.*|stages\[\d+\]\.mesh|keep\..*|progress_every_minutes|checkpoint_every"
)
"""Paths of what a resumed run may change, since no bits depend on it; `num_iterations` may grow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Stages repeated for a number of iterations over named models.

    Raises: InputError when a stage reads a field that no earlier stage writes, two stages write one field, a stage
    names an unknown role, or the mesh is impossible.
    """

    name: str
    """Names the run folder: runs/NAME."""
    num_iterations: int
    """Iterations of the whole list of stages."""
    stages: Sequence[Stage]
    """In the order in which they run."""
    models: Mapping[str, ModelConfig] = dataclasses.field(default_factory=dict)
    """Role -> network."""
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    """The mesh 'main': the ranks of the world; `--ranks` sets dp."""
    meshes: Mapping[str, Mesh] = dataclasses.field(default_factory=dict)
    """Further meshes by name, for stages that say `mesh="NAME"`."""
    policy_lag: int = 0
    """Rollout i acts with the weights that update i - 1 - policy_lag left, exactly, so that it may play while later
    updates learn. PPO's ratio is taken against the policy that acted; an update refuses steps that are older."""
    num_blocks: int = 4
    """Fixed parts of the lanes: never derived from ranks, so that any number of ranks gives the same bits."""
    seed: int = 1
    """Key of all randomness, 0 <= seed < 2**64."""
    compute_threads: int = 1
    """Threads of one rank's matrix library; changes bits, so it is part of the run."""
    keep: Keep = dataclasses.field(default_factory=Keep)
    """Which rollouts and checkpoints stay on disk."""
    checkpoint_every: int = 1
    """A checkpoint every n-th update, after the last, and wherever an evaluation may stop the run; the updates between
    are redone after a kill from their stored shards."""
    progress_every_minutes: float = 10.0
    """A long update saves its progress this often."""
    inputs: str | None = None
    """A run folder whose published rollouts are read instead of playing (offline training)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "models", dict(self.models))
        self._check_numbers()
        check_graph(self.stages, offline=self.inputs is not None)
        for stage in self.stages:
            for role in (stage.role, stage.trains):
                if role is not None and role not in self.models:
                    known = ", ".join(self.models) or "none"
                    raise InputError(
                        f"stage '{stage.name}' drives model '{role}'; models given: {known}; add it to models="
                    )
        self._check_models()
        self._check_batch()
        object.__setattr__(self, "meshes", dict(self.meshes))
        check_meshes(self)

    def _check_models(self) -> None:
        for role, model in self.models.items():
            if not callable(getattr(model, "build", None)):
                raise InputError(
                    f"Pipeline.models: want Mlp(...), Cnn(...) or LanguageModel(...) as '{role}', given {model!r}"
                )

    def _check_batch(self) -> None:
        """The lanes divide into blocks, and a block's steps into minibatches."""
        rollout, update = self.rollout, self.find(Update)
        for stage in self.stages:
            num_prompts = getattr(stage, "num_prompts", None)
            if num_prompts is not None and stage.writes and num_prompts % self.num_blocks:
                raise InputError(
                    f"{type(stage).__name__}.num_prompts: want a multiple of num_blocks={self.num_blocks}, given "
                    f"{num_prompts}"
                )
        if rollout is None:
            return
        if rollout.num_envs % self.num_blocks:
            below = rollout.num_envs - rollout.num_envs % self.num_blocks
            nearest = " or ".join(str(n) for n in (below, below + self.num_blocks) if n)
            raise InputError(
                f"Rollout.num_envs: want a multiple of num_blocks={self.num_blocks}, given {rollout.num_envs}; "
                f"use {nearest}"
            )
        steps = rollout.num_envs // self.num_blocks * rollout.num_steps
        if isinstance(update, Update) and not update.is_text and update.algorithm.num_minibatches > steps:
            raise InputError(
                f"PPO.num_minibatches: want at most {steps} (steps of one block and iteration: num_envs / num_blocks * "
                f"num_steps), given {update.algorithm.num_minibatches}; lower it, or play more"
            )

    def _check_numbers(self) -> None:
        if not isinstance(self.name, str) or self.name in ("", ".", "..") or "/" in self.name:
            raise InputError(f"Pipeline.name: want a folder name without '/', given {self.name!r}")
        for field in ("num_iterations", "num_blocks", "compute_threads", "checkpoint_every"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"Pipeline.{field}: want a whole number >= 1, given {value!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**64:
            raise InputError(f"Pipeline.seed: want a whole number, 0 <= seed < 2**64, given {self.seed!r}")
        if not isinstance(self.policy_lag, int) or isinstance(self.policy_lag, bool) or self.policy_lag < 0:
            raise InputError(f"Pipeline.policy_lag: want a whole number >= 0, given {self.policy_lag!r}")
        if not self.progress_every_minutes > 0:
            raise InputError(f"Pipeline.progress_every_minutes: want > 0, given {self.progress_every_minutes}")

    @property
    def all_meshes(self) -> dict[str, Mesh]:
        """Mesh name -> mesh, `main` first."""
        return {MAIN: self.mesh, **self.meshes}

    def find(self, kind: type[Stage]) -> Stage | None:
        """The first stage of a kind, or None."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    @property
    def is_text(self) -> bool:
        """Whether its models read text instead of an environment's observations."""
        return any(stage.is_text for stage in self.stages)

    @property
    def rollout(self) -> Rollout | None:
        """The stage that plays, if any."""
        stage = self.find(Rollout)
        return stage if isinstance(stage, Rollout) else None

    def plain(self) -> dict[str, Any]:
        """As JSON values, for pipeline.json."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def check_graph(stages: Sequence[Stage], *, offline: bool) -> None:
    """Every field read is written before; none is written twice; an update has exactly one source of advantages.

    Raises: InputError naming stage, field and remedy.
    """
    if not stages:
        raise InputError("Pipeline.stages: want at least one stage, given none")
    for stage in stages:
        if not isinstance(stage, Stage):
            raise InputError(f"Pipeline.stages: want stages such as Rollout(...), given {stage!r}")
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"stages: want every stage once, given '{name}' {names.count(name)} times")
    if offline and "rollout" in names:
        raise InputError("Pipeline.inputs: rollouts are read from a folder, so want no Rollout stage, given one")
    # What takes part changes only where a phase begins or ends.
    phases = [stage.phase for stage in stages if stage.phase is not None]
    borders = {0, *(phase.start for phase in phases), *(phase.stop for phase in phases if phase.stop is not None)}
    for border in sorted(borders):
        _check_fields([stage for stage in stages if stage.phase is None or stage.phase.holds(border)], offline)


def _check_fields(stages: Sequence[Stage], offline: bool) -> None:
    """Of the stages that take part together, every field read is written before, and none twice."""
    names = [stage.name for stage in stages]
    recorded = (*GENERATED, "scores") if any(stage.is_text for stage in stages) else Rollout(env="offline").writes
    written = dict.fromkeys(recorded, "inputs") if offline else {}
    for stage in stages:
        if isinstance(stage, Evaluate) and stage.env is None and "rollout" not in names:
            raise InputError(
                "stage 'evaluate' plays the environment of a Rollout stage, given none; name one: Evaluate(env=...)"
            )
        _check_one_source_of_advantages(stage, written)
        for field in stage.reads:
            if field not in written:
                remedy = _remedy(field)
                raise InputError(
                    f"stage '{stage.name}' reads '{field}', which no earlier stage writes; {remedy} before it"
                )
        for field in stage.writes:
            if field in written:
                raise InputError(
                    f"field '{field}' is written by stage '{written[field]}' and again by '{stage.name}'; remove one"
                )
            written[field] = stage.name


def check_meshes(pipeline: Pipeline) -> None:
    """Every stage stands on a known mesh; meshes of a world share no rank; arrays hold stages that work block by block.

    Raises: InputError.
    """
    meshes = pipeline.all_meshes
    if MAIN in pipeline.meshes:
        raise InputError(f"Pipeline.meshes: want names other than '{MAIN}', which mesh= sets, given one of that name")
    for stage in pipeline.stages:
        if stage.mesh not in meshes:
            raise InputError(
                f"stage '{stage.name}': want a mesh of this pipeline, given '{stage.mesh}' "
                f"({near_names(stage.mesh, list(meshes))}); add it to meshes="
            )
    for name, mesh in meshes.items():
        _check_mesh(pipeline, name, mesh)
    used = {name: mesh for name, mesh in meshes.items() if any(stage.mesh == name for stage in pipeline.stages)}
    for world in {mesh.world for mesh in used.values()}:
        _check_world(world, {name: mesh for name, mesh in used.items() if mesh.world == world})
    if pipeline.checkpoint_every > 1 and (len(used) > 1 or pipeline.policy_lag > 0):
        raise InputError(
            f"Pipeline.checkpoint_every: want 1 with several meshes or policy_lag > 0 (weights are handed on by "
            f"checkpoint), given {pipeline.checkpoint_every}"
        )


def _check_mesh(pipeline: Pipeline, name: str, mesh: Mesh) -> None:
    if mesh.dp * mesh.array > pipeline.num_blocks:
        product, given = (
            ("dp x array", f"dp={mesh.dp}, array={mesh.array}") if mesh.array > 1 else ("dp", f"dp={mesh.dp}")
        )
        raise InputError(
            f"mesh '{name}': want {product} <= {pipeline.num_blocks} (num_blocks: a rank owns whole blocks), "
            f"given {given}; use --ranks {pipeline.num_blocks} or fewer, or more blocks"
        )
    whole = [stage.name for stage in pipeline.stages if stage.mesh == name and not stage.by_block]
    if mesh.array > 1 and whole:
        raise InputError(
            f"mesh '{name}': want array=1, because stage '{whole[0]}' needs all blocks at once, given "
            f"array={mesh.array}; put it on another mesh"
        )


def _check_world(world: str, meshes: Mapping[str, Mesh]) -> None:
    """Its meshes share no rank, and either all name their ranks or none does."""
    named = {name: set(mesh.ranks) for name, mesh in meshes.items() if mesh.ranks is not None}
    if named and len(named) < len(meshes):
        rest = next(name for name in meshes if name not in named)
        raise InputError(
            f"world '{world}': want ranks for all of its meshes or for none, given none for '{rest}' beside "
            f"{', '.join(named)}"
        )
    taken: dict[int, str] = {}
    for name, ranks in named.items():
        for rank in sorted(ranks):
            if rank in taken:
                raise InputError(
                    f"world '{world}': want meshes that share no rank, given rank {rank} in '{taken[rank]}' and "
                    f"'{name}'"
                )
            taken[rank] = name
    if taken and set(taken) != set(range(len(taken))):
        raise InputError(
            f"world '{world}': want its meshes to fill ranks 0 to {len(taken) - 1}, given {sorted(taken)}; "
            "leave none out"
        )
    if len(meshes) > 1 and any(mesh.array > 1 for mesh in meshes.values()):
        raise InputError(f"world '{world}': want array=1 where meshes share a world, given {', '.join(meshes)}")


def _check_one_source_of_advantages(stage: Stage, written: Mapping[str, str]) -> None:
    if isinstance(stage, Update) and stage.advantage is not None and "advantages" in written:
        raise InputError(
            "stage 'update' has an advantage of its own and a stage 'advantage' stands before it; remove one of them"
        )


def _remedy(field: str) -> str:
    for kind in (Rollout(env="any"), Advantage()):
        if field in kind.writes:
            return f"add {type(kind).__name__}(...)"
    return "add the stage that writes it"


def refuse_changes(changed: Mapping[str, tuple[Any, Any]], run: str) -> None:
    """A resumed run is the run it was: raise unless every difference is free to change.

    Args: changed: dotted path -> (stored, now).
    Raises: InputError naming each refused difference.
    """
    refused = []
    for path, (stored, now) in changed.items():
        free = FREE_TO_CHANGE.fullmatch(path) is not None
        grows = path == "num_iterations" and isinstance(now, int) and now >= stored
        if not (free or grows):
            refused.append(f"{path}: stored {stored!r}, now {now!r}")
    if refused:
        raise InputError(
            f"{run}: holds a run with another configuration ({'; '.join(refused)}); give the stored values to resume, "
            "--run DIR for a new run, or --fresh to start over"
        )


def evaluation(pipeline: Pipeline) -> Evaluation | None:
    """The stage that can stop the run, if any."""
    return next((stage for stage in pipeline.stages if isinstance(stage, Evaluation)), None)
