"""Reading stored steps again: shards joined field by field, shuffled minibatches by block, frame stacks rebuilt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw, permutation
from hpcrl.store.frames import FrameStacks
from hpcrl.store.layout import shard_name
from hpcrl.store.shards import read_shard
from hpcrl.store.stage_folder import StageFolder

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


def read_block(
    stages: Sequence[StageFolder],
    block: int,
    *,
    fields: Sequence[str] | None = None,
    memory_map: bool = True,
    verify: bool = True,
) -> Trajectories:
    """One block's fields from the published stages that wrote them (a rollout, then advantages, ...), joined.

    Args:
        stages: in the order in which they ran; each later shard adds fields to the same trajectories.
        fields: names to read; all by default.
    Raises: InputError when a stage is not published, a field is in no shard, or two shards hold other trajectories;
        CorruptFileError for a damaged shard.
    """
    joined: Trajectories | None = None
    for stage in stages:
        manifest = stage.manifest()
        if manifest is None:
            gone = "its files were removed by retention" if stage.removed() else "it is not there"
            raise InputError(f"{stage.path}: want a published stage, but {gone}; choose a kept iteration")
        record = manifest.find(shard_name(block))
        there = {name.split("/")[1] for name in record.checksums if "/" in name}
        wanted = None if fields is None else [name for name in fields if name in there]
        shard = read_shard(stage.file(record), record=record, fields=wanted, memory_map=memory_map, verify=verify)
        if joined is not None and not np.array_equal(joined.offsets, shard.offsets):
            raise InputError(
                f"{stage.file(record)}: want the trajectories of the stages before it, given other offsets"
            )
        joined = shard if joined is None else _join(joined, shard)
    if joined is None:
        raise InputError("stages: want at least one published stage, given none")
    missing = [name for name in fields or () if name not in joined]
    if missing:
        names = ", ".join(joined.fields()) or "none of the wanted"
        raise InputError(f"{stages[0].path}: want fields {', '.join(missing)}, given {names}")
    return joined


def _join(base: Trajectories, added: Trajectories) -> Trajectories:
    return base.with_fields(steps=added.steps, per_trajectory=added.per_trajectory, ragged=added.ragged)


@dataclass(frozen=True)
class Minibatch:
    """The union of every block's part. Shapes: parts: block -> field -> [rows, ...]."""

    index: int
    parts: Mapping[int, Mapping[str, Array]]

    @property
    def rows(self) -> int:
        """Steps in all blocks' parts."""
        return sum(len(next(iter(part.values()))) for part in self.parts.values() if part)


class ReplayReader:
    """Shuffled minibatches over blocks of steps, in memory or memory-mapped: the same path, the same bits.

    Minibatch m is the union of every block's m-th part: the steps of a block are shuffled within it, by a permutation
    counted by (block, epoch, iteration), and never leave it. So a reader of some blocks gives just what a
    reader of all gives for them. One minibatch at a time is copied out of the mapped files.

    Args:
        blocks: block -> its steps.
        seed: the run's seed.
        iteration: counts the shuffle, with epoch and block.
        num_minibatches: parts of each block, as equal as they can be.
        draw: separates readers that must not share their order.
    Raises: InputError when num_minibatches < 1 or blocks hold different step fields.
    """

    def __init__(
        self,
        blocks: Mapping[int, Trajectories],
        *,
        seed: int,
        iteration: int,
        num_minibatches: int,
        draw: Draw = Draw.SHUFFLE,
    ) -> None:
        if num_minibatches < 1:
            raise InputError(f"num_minibatches: want >= 1, given {num_minibatches}")
        names = {block: sorted([*steps.steps, *steps.ragged]) for block, steps in blocks.items()}
        for block, given in names.items():
            wanted = next(iter(names.values()))
            if given != wanted:
                raise InputError(f"block {block}: want the fields {wanted}, as in the others, given {given}")
        self.blocks = dict(blocks)
        self.num_minibatches = num_minibatches
        self._seed, self._iteration, self._draw = seed, iteration, draw
        self._stacks = {block: FrameStacks(steps) for block, steps in blocks.items() if "frames" in steps.ragged}

    @classmethod
    def open(
        cls,
        stages: Sequence[StageFolder],
        *,
        blocks: Sequence[int],
        seed: int,
        num_minibatches: int,
        fields: Sequence[str] | None = None,
        draw: Draw = Draw.SHUFFLE,
    ) -> ReplayReader:
        """A reader of the published shards of one iteration. Raises: as read_block."""
        steps = {block: read_block(stages, block, fields=fields) for block in blocks}
        iteration = stages[0].iteration if stages else 0
        return cls(steps, seed=seed, iteration=iteration, num_minibatches=num_minibatches, draw=draw)

    def part_rows(self, block: int) -> Int64:
        """Steps of each of a block's parts, i64[num_minibatches]."""
        return np.diff(part_bounds(self.blocks[block].num_steps, self.num_minibatches))

    def order(self, block: int, epoch: int) -> Int64:
        """A block's steps in the order of an epoch, i64[num_steps]."""
        return permutation(
            self._seed,
            self.blocks[block].num_steps,
            trajectory=block,
            step=epoch,
            iteration=self._iteration,
            draw=self._draw,
        )

    def rows(self, block: int, steps: Int64, fields: Sequence[str] | None = None) -> dict[str, Array]:
        """Fields of chosen steps of a block, [len(steps), ...] each; `observations` are rebuilt from frames.

        Args: fields: step fields and `observations`; None: all.
        Raises: InputError for a field that is not there.
        """
        stored, stacks = self.blocks[block].steps, self._stacks.get(block)
        known = [*stored, *(["observations"] if stacks is not None else [])]
        wanted = known if fields is None else fields
        missing = [name for name in wanted if name not in known]
        if missing:
            raise InputError(
                f"block {block}: want step fields {', '.join(missing)}, given {', '.join(known) or 'none'}"
            )
        return {name: stored[name][steps] if name in stored or stacks is None else stacks.at(steps) for name in wanted}

    def minibatches(self, epoch: int, fields: Sequence[str] | None = None) -> Iterator[Minibatch]:
        """The minibatches of one epoch, each gathered when it is asked for; together they hold every step once."""
        orders = {block: self.order(block, epoch) for block in self.blocks}
        bounds = {block: part_bounds(len(order), self.num_minibatches) for block, order in orders.items()}
        for index in range(self.num_minibatches):
            yield Minibatch(
                index,
                {
                    block: self.rows(block, order[bounds[block][index] : bounds[block][index + 1]], fields)
                    for block, order in orders.items()
                },
            )


def part_bounds(num_steps: int, num_parts: int) -> Int64:
    """Where parts begin and end, i64[num_parts + 1]: as equal as they can be.

    Example:
        >>> part_bounds(10, 4)
        array([ 0,  2,  5,  7, 10])
    """
    return np.arange(num_parts + 1, dtype=np.int64) * num_steps // num_parts
