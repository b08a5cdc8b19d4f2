"""What a pipeline will write, counted from spaces and configuration before anything runs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from hpcrl.envs import EnvDescription, Space
from hpcrl.pipeline import Pipeline
from hpcrl.stages import Rollout, Stage, Update

if TYPE_CHECKING:
    from hpcrl.residents import Residents

PER_STEP, PER_TRAJECTORY, PER_FRAME, PER_PROMPT_TOKEN = "step", "trajectory", "frame", "prompt token"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a shard."""

    name: str
    per: str
    """What has one row each: a step, a trajectory, a stored frame, or a token of a prompt."""
    shape: tuple[int, ...]
    """Of one row."""
    dtype: str

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Batch:
    """How many rows an iteration has: every lane has one trajectory, and one more for each episode that ends."""

    num_steps: int
    num_trajectories: int
    frame_stack: int

    def rows(self, field: Field) -> int:
        """Rows of a field. A trajectory stores frame_stack frames beside those of its steps: lead-in and final."""
        if field.per == PER_STEP:
            return self.num_steps
        if field.per == PER_TRAJECTORY:
            return self.num_trajectories
        return self.num_steps + self.frame_stack * self.num_trajectories

    def bytes(self, fields: list[Field]) -> int:
        """Size of fields, without offsets and the files' headers."""
        return sum(self.rows(field) * field.row_bytes for field in fields)


def batch_of(pipeline: Pipeline, description: EnvDescription | None) -> Batch | None:
    """The rows of one iteration, at least; None where rollouts come from another run."""
    rollout = pipeline.rollout
    if rollout is None or description is None:
        return None
    return Batch(rollout.num_envs * rollout.num_steps, rollout.num_envs, description.frame_stack)


def fields_of(stage: Stage, description: EnvDescription | None) -> list[Field]:
    """The fields that a stage adds to the shards, with their shapes in these spaces."""
    if isinstance(stage, Rollout) and description is not None:
        return _rollout_fields(description)
    if stage.is_text:
        names = [*stage.writes, *(["policy_version"] if stage.acts else [])]
        return [Field(name, *_TEXT_FIELDS.get(name, (PER_STEP, (), "float32"))) for name in names]
    return [Field(name, PER_STEP, (), "float32") for name in stage.writes]


_TEXT_FIELDS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "actions": (PER_STEP, (), "int64"),
    "prompt_tokens": (PER_PROMPT_TOKEN, (), "int64"),
    "ending": (PER_TRAJECTORY, (), "uint8"),
    "preference": (PER_TRAJECTORY, (), "int8"),
    **dict.fromkeys(("prompt_index", "sample_index", "policy_version"), (PER_TRAJECTORY, (), "int64")),
    **dict.fromkeys(("scores", "bootstrap_values"), (PER_TRAJECTORY, (), "float32")),
}
"""Of a step, which is a response's token, or a trajectory, which is a response; all others are f32 per step."""


def _rollout_fields(description: EnvDescription) -> list[Field]:
    seen, acted = description.observation_space, description.action_space
    if description.frame_stack > 1:
        observed = [Field("frames", PER_FRAME, seen.shape[1:], seen.dtype)]
    else:
        observed = [
            Field("observations", PER_STEP, seen.shape, seen.dtype),
            Field("final_observations", PER_TRAJECTORY, seen.shape, seen.dtype),
        ]
    return [
        *observed,
        Field("actions", PER_STEP, *action_row(acted)),
        *(Field(name, PER_STEP, (), "float32") for name in ("rewards", "values", "log_probs")),
        Field("bootstrap_values", PER_TRAJECTORY, (), "float32"),
        Field("ending", PER_TRAJECTORY, (), "uint8"),
        *(Field(name, PER_TRAJECTORY, (), "int64") for name in ("lane", "episode", "episode_step", "policy_version")),
    ]


def action_row(space: Space) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of one stored action: whole numbers for choices, float32 for a Gaussian."""
    if space.kind == "discrete":
        return (), "int64"
    if space.kind == "multi_discrete":
        return (len(space.nvec or ()),), "int64"
    return space.shape, "float32"


@dataclasses.dataclass(frozen=True)
class RoleSize:
    """What one role's network holds."""

    role: str
    parameters: int
    """Numbers that learning moves; statistics of normalisers do not count."""
    bytes: int
    """Of its tensors in a checkpoint, the optimiser's included where a stage trains it."""


def role_sizes(pipeline: Pipeline, description: EnvDescription | None) -> list[RoleSize]:
    """Builds every role's network on the CPU and counts. Raises: InputError when one does not fit the spaces."""
    from hpcrl.residents import Residents

    residents = Residents(pipeline.models, description, pipeline.seed)
    return [_role_size(residents, pipeline, role) for role in pipeline.models]


def _role_size(residents: Residents, pipeline: Pipeline, role: str) -> RoleSize:
    resident = residents.get(role)
    for stage in pipeline.stages:
        if isinstance(stage, Update) and stage.trains == role:
            resident.ready_to_train(stage.name, stage.algorithm.build_optimizer)
    parameters = resident.model.flat.size
    size = sum(array.nbytes for group in resident.tensors().values() for array in group.values())
    return RoleSize(role, parameters, size)
