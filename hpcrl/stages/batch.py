"""One block's steps as an update reads them: parts of shuffled rows, frame stacks rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Ending, Trajectories
from hpcrl.stages.advantage import Advantage

if TYPE_CHECKING:
    import torch

    from hpcrl.models.actor_critic import ActorCritic

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class BlockBatch:
    """The steps of one block; parts are gathered by row, images as stacks of `frame_stack` frames.

    Shapes: `rows(fields, indices)` gives tensors [len(indices), ...] per field.
    """

    def __init__(self, block: int, trajectories: Trajectories, frame_stack: int) -> None:
        self.block, self.trajectories, self.frame_stack = block, trajectories, frame_stack
        self.num_steps = trajectories.num_steps
        self._frame_of_step: Int64 | None = None
        if frame_stack > 1:
            frames = trajectories.ragged["frames"]
            shift = frames.offsets[:-1] - trajectories.offsets[:-1]
            self._frame_of_step = np.arange(self.num_steps) + np.repeat(shift, trajectories.lengths)

    def part_bounds(self, num_parts: int) -> Int64:
        """Where the parts of the shuffled order begin and end, int64[num_parts + 1]: as equal as they can be."""
        return np.arange(num_parts + 1, dtype=np.int64) * self.num_steps // num_parts

    def observations(self, indices: Int64) -> Array:
        """Observations [n, ...] of the given steps."""
        if self._frame_of_step is None:
            return self.trajectories.steps["observations"][indices]
        window = self._frame_of_step[indices][:, None] + np.arange(self.frame_stack)[None, :]
        stacks: Array = self.trajectories.ragged["frames"].values[window]
        return stacks

    def final_observations(self) -> Array:
        """The observation after each trajectory's last step, [num_trajectories, ...]."""
        if self._frame_of_step is None:
            return self.trajectories.per_trajectory["final_observations"]
        frames = self.trajectories.ragged["frames"]
        window: Int64 = frames.offsets[1:, None] - np.arange(self.frame_stack, 0, -1)[None, :]
        return frames.values[window]

    def tensors(self, indices: Int64) -> dict[str, torch.Tensor]:
        """What a loss reads, for the given steps."""
        import torch

        fields = {
            name: self.trajectories.steps[name][indices]
            for name in ("actions", "log_probs", "values", "advantages", "returns")
        }
        fields["observations"] = self.observations(indices)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fields.items()}

    def estimate_advantages(self, model: ActorCritic, advantage: Advantage) -> None:
        """Advantages and returns from current values (and log-probabilities), on whole trajectories."""
        every = np.arange(self.num_steps)
        new_log_probs, values = model.reevaluate(self.observations(every), self.trajectories["actions"])
        bootstrap = model.values(self.final_observations())
        bootstrap[self.trajectories["ending"] == Ending.TERMINATED] = 0.0
        advantages, returns = advantage.estimate(
            self.trajectories, values=values, bootstrap_values=bootstrap, new_log_probs=new_log_probs
        )
        self.trajectories = self.trajectories.with_fields(steps={"advantages": advantages, "returns": returns})
