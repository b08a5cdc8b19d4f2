"""Frame stacks rebuilt from images that are stored once per frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.errors import InputError

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class FrameStacks:
    """The observations of trajectories whose images lie in the ragged field `frames`.

    A trajectory of T steps stores k - 1 lead-in frames, the T frames it acted on and its final one: T + k rows, k the
    stack's depth. The stack seen at its step t is rows t .. t + k - 1; the final observation is the last k rows.
    Shapes: frames [rows, ...]; a stack [k, ...]. k is found from the rows; without trajectories it is 1.
    Raises: InputError when there is no `frames`, or trajectories disagree about k.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        if "frames" not in trajectories.ragged:
            known = ", ".join(trajectories.fields()) or "none"
            raise InputError(f"frames: want a ragged field of that name, given the fields {known}")
        frames = trajectories.ragged["frames"]
        self._frames: Array = frames.values
        depths = np.diff(frames.offsets) - trajectories.lengths
        if depths.size and (depths.min() != depths.max() or depths.min() < 1):
            raise InputError(
                "frames: want as many rows as steps plus the stack's depth in every trajectory, given depths "
                f"{depths.min()}..{depths.max()}; the field was not written by an image rollout"
            )
        self.depth = int(depths[0]) if depths.size else 1
        first_rows = np.repeat(frames.offsets[:-1] - trajectories.offsets[:-1], trajectories.lengths)
        self._first_row = np.arange(trajectories.num_steps, dtype=np.int64) + first_rows
        self._ends: Int64 = frames.offsets[1:]

    def at(self, steps: Int64) -> Array:
        """Stacks [len(steps), k, ...] seen at packed step numbers; a copy."""
        return self._gather(self._first_row[steps])

    def final(self) -> Array:
        """Final observations [num_trajectories, k, ...]; a copy."""
        return self._gather(self._ends - self.depth)

    def _gather(self, first_rows: Int64) -> Array:
        rows = first_rows[:, None] + np.arange(self.depth)
        stacks: Array = np.take(self._frames, rows, axis=0)
        return stacks
