"""Which stages one loop plays, on which ranks of its world, and whether it waits for the other loops."""

from __future__ import annotations

import dataclasses

from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Part:
    """One loop's share of a run: some of its stages, in all iterations or in one."""

    stages: tuple[str, ...]
    """In the pipeline's order."""
    ranks: tuple[int, ...] | None = None
    """Of the world; None: all of them."""
    iteration: int | None = None
    """The only one it plays (a job of its own); None: all."""
    element: int = 0
    """Which job of an array this is."""
    num_elements: int = 1
    """Jobs of the array: they share the blocks."""
    waits: bool = True
    """Whether it waits for what others have to publish first; a job of its own leaves instead."""

    def plays(self, stage: str) -> bool:
        """Whether a stage is this loop's."""
        return stage in self.stages


def whole(pipeline: Pipeline) -> Part:
    """All stages on all ranks."""
    return Part(tuple(stage.name for stage in pipeline.stages))


def world_size(pipeline: Pipeline) -> int | None:
    """Ranks that the pipeline's meshes ask for together, where they share a world; None where one mesh has it all."""
    names = list(dict.fromkeys(stage.mesh for stage in pipeline.stages))
    meshes = [pipeline.all_meshes[name] for name in names]
    if len(names) == 1 or len({mesh.world for mesh in meshes}) > 1:
        return None
    return sum(mesh.size for mesh in meshes)


def parts_of_world(pipeline: Pipeline, size: int) -> tuple[Part, ...]:
    """The loops that a world of `size` ranks plays: one for each mesh, or one for everything.

    One rank plays everything, whatever the meshes say; so does a world whose pipeline names several worlds.
    Raises: InputError when meshes share the world and it has another size.
    """
    wanted = world_size(pipeline)
    if wanted is None or size == 1:
        return (whole(pipeline),)
    if size != wanted:
        raise InputError(
            f"ranks: want {wanted} (the meshes' together), given {size}; set a mesh's with --mesh NAME.dp=N, or "
            "start one process"
        )
    found, free = [], 0
    for name in dict.fromkeys(stage.mesh for stage in pipeline.stages):
        mesh = pipeline.all_meshes[name]
        ranks = mesh.ranks or tuple(range(free, free + mesh.size))
        free += mesh.size
        found.append(Part(tuple(stage.name for stage in pipeline.stages if stage.mesh == name), ranks))
    return tuple(found)
