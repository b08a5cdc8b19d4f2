"""One rank's responses as an update of text reads them: whole trajectories, shuffled within their block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms.preference import pair_rows
from hpcrl.algorithms.text_rule import TextRule, TextTotals
from hpcrl.data import Trajectories
from hpcrl.ops.random import Draw, permutation
from hpcrl.store.replay import part_bounds

if TYPE_CHECKING:
    from hpcrl.models.language.packing import TextPart

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class TextBatch:
    """The responses of this rank's blocks. Part m of a block belongs to minibatch m; an epoch has an order of its own.

    Args: blocks: block -> its trajectories. seed, iteration: count the shuffle.
    """

    def __init__(self, blocks: Mapping[int, Trajectories], rule: TextRule, *, seed: int, iteration: int) -> None:
        self.blocks, self._rule = {block: _chosen(rule, each) for block, each in blocks.items()}, rule
        self._seed, self._iteration = seed, iteration
        self._orders: dict[int, list[Int64]] = {}
        """Block -> the units of an epoch in their order, each the trajectories that stay together."""

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle the trajectories of every block for an epoch; by whole groups where the rule compares within them."""
        self._orders = {block: self._order(block, epoch) for block in self.blocks}

    def _order(self, block: int, epoch: int) -> list[Int64]:
        trajectories = self.blocks[block]
        units = np.split(np.arange(trajectories.num_trajectories), range(1, trajectories.num_trajectories))
        if self._rule.by_group:
            units = np.split(
                np.arange(trajectories.num_trajectories), np.flatnonzero(np.diff(trajectories["prompt_index"])) + 1
            )
        units = [unit for unit in units if len(unit)]
        order = permutation(
            self._seed, len(units), trajectory=block, step=epoch, iteration=self._iteration, draw=Draw.SHUFFLE
        )
        return [units[index] for index in order]

    def part(self, block: int, minibatch: int) -> TextPart:
        """What a rule reads of one block's part."""
        from hpcrl.models.language.packing import pack_text

        rows = self._part(block, minibatch)
        if self._rule.by_group:
            rows = rows[self.blocks[block]["preference"][rows] != 0]  # the others cost time and count for nothing
        return pack_text(self.blocks[block].select(rows), self._rule.fields)

    def part_sums(self, block: int) -> Float64:
        """Per part of a block: tokens, sequences, sum and sum of squares of advantages, pairs; f64[parts * 5]."""
        trajectories = self.blocks[block]
        lengths = trajectories.lengths
        advantages = trajectories.steps.get("advantages", np.zeros(trajectories.num_steps)).astype(np.float64)
        bounds = trajectories.offsets
        rows = []
        for minibatch in range(self._rule.num_minibatches):
            chosen = self._part(block, minibatch)
            parts = [advantages[bounds[index] : bounds[index + 1]] for index in chosen]
            sums = [float(part.sum()) for part in parts], [float(np.square(part).sum()) for part in parts]
            pairs = 0
            if self._rule.by_group:
                pairs = len(pair_rows(trajectories["preference"][chosen], trajectories["prompt_index"][chosen])[0])
            rows.append([float(lengths[chosen].sum()), len(chosen), math.fsum(sums[0]), math.fsum(sums[1]), pairs])
        return np.array(rows, np.float64).reshape(-1)

    def totals(self, sums: Float64, minibatch: int) -> TextTotals:
        """What a part must know of its minibatch, from the sums of all parts f64[num_minibatches, 5]."""
        tokens, sequences, total, squares, pairs = (float(number) for number in sums[minibatch])
        if tokens < 2:
            return TextTotals(int(tokens), int(sequences), num_pairs=int(pairs))
        mean = total / tokens
        variance = max(squares - tokens * mean * mean, 0.0) / (tokens - 1.0)
        return TextTotals(int(tokens), int(sequences), mean, math.sqrt(variance), int(pairs))

    def num_steps(self, sums: Float64) -> int:
        """Tokens of the whole batch."""
        return int(sums[:, 0].sum())

    def _part(self, block: int, minibatch: int) -> Int64:
        order = self._orders[block]
        start, stop = part_bounds(len(order), self._rule.num_minibatches)[minibatch : minibatch + 2]
        return np.concatenate(order[start:stop]) if start < stop else np.zeros(0, np.int64)


def _chosen(rule: TextRule, trajectories: Trajectories) -> Trajectories:
    """The responses that a rule learns from."""
    mask = rule.chosen(trajectories)
    return trajectories if mask is None else trajectories.select(np.flatnonzero(mask))
