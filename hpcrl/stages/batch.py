"""One rank's steps as an update reads them: a reader over its blocks, as tensors, with advantages estimated anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms import PPO, Totals
from hpcrl.data import Ending, Trajectories
from hpcrl.stages.advantage import Advantage
from hpcrl.store.frames import FrameStacks
from hpcrl.store.replay import ReplayReader, part_bounds

if TYPE_CHECKING:
    import torch

    from hpcrl.models.actor_critic import ActorCritic

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LOSS_FIELDS = ("observations", "actions", "log_probs", "values", "advantages", "returns")


class StepBatch:
    """The steps of this rank's blocks. Part m of a block belongs to minibatch m; an epoch has an order of its own.

    Args: blocks: block -> its steps. seed, iteration: count the shuffle.
    """

    def __init__(self, blocks: Mapping[int, Trajectories], algorithm: PPO, *, seed: int, iteration: int) -> None:
        num_minibatches = algorithm.num_minibatches
        self._algorithm = algorithm
        self._reader = ReplayReader(blocks, seed=seed, iteration=iteration, num_minibatches=num_minibatches)
        self._bounds = {block: part_bounds(steps.num_steps, num_minibatches) for block, steps in blocks.items()}
        self._orders: dict[int, Int64] = {}

    @property
    def blocks(self) -> dict[int, Trajectories]:
        """Block -> its steps, in block order."""
        return self._reader.blocks

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle every block for an epoch."""
        self._orders = {block: self._reader.order(block, epoch) for block in self.blocks}

    def part(self, block: int, minibatch: int) -> dict[str, torch.Tensor]:
        """What a loss reads of one block's part; images as frame stacks."""
        import torch

        rows = self._reader.rows(block, self._part(block, minibatch), LOSS_FIELDS)
        return {name: torch.from_numpy(array) for name, array in rows.items()}

    def part_sums(self, block: int) -> Float64:
        """(n, sum, sum of squares) of the advantages of each of a block's parts, f64[num_minibatches * 3]."""
        advantages = self.blocks[block]["advantages"].astype(np.float64)
        parts = [advantages[self._part(block, index)] for index in range(len(self._bounds[block]) - 1)]
        return np.array([[len(part), part.sum(), np.square(part).sum()] for part in parts]).reshape(-1)

    def totals(self, sums: Float64, minibatch: int) -> Totals:
        """What a part must know of its minibatch, from the sums of all parts f64[num_minibatches, 3]."""
        whole_batch = self._algorithm.normalize_advantages == "batch"
        moments = sums.sum(axis=0) if whole_batch else sums[minibatch]
        return self._algorithm.totals(int(sums[minibatch, 0]), moments)

    def num_steps(self, sums: Float64) -> int:
        """Steps of the whole batch."""
        return int(sums[:, 0].sum())

    def replace(self, block: int, fields: Mapping[str, Array]) -> None:
        """Put step fields in the place of a block's old ones."""
        self.blocks[block] = self.blocks[block].with_fields(steps=fields)

    def estimate_advantages(self, model: ActorCritic, advantage: Advantage) -> None:
        """Advantages and returns from current values (and log-probabilities), on whole trajectories."""
        for block, steps in self.blocks.items():
            observations = self._reader.rows(block, np.arange(steps.num_steps), ["observations"])["observations"]
            new_log_probs, values = model.reevaluate(observations, steps["actions"])
            bootstrap = model.values(final_observations(steps))
            bootstrap[steps["ending"] == Ending.TERMINATED] = 0.0
            advantages, returns = advantage.estimate(
                steps, values=values, bootstrap_values=bootstrap, new_log_probs=new_log_probs
            )
            self.replace(block, {"advantages": advantages, "returns": returns})

    def _part(self, block: int, minibatch: int) -> Int64:
        start, stop = self._bounds[block][minibatch : minibatch + 2]
        return self._orders[block][start:stop]


def final_observations(trajectories: Trajectories) -> Array:
    """The observation after each trajectory's last step, [num_trajectories, ...]; frame stacks rebuilt."""
    if "frames" in trajectories.ragged:
        return FrameStacks(trajectories).final()
    return trajectories["final_observations"]
