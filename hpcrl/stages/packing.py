"""A block's rollout while it is played: time-major buffers, packed into trajectories at the end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Ending, Ragged, Trajectories

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class FinishedEpisodes:
    """Episodes that ended in this rollout, in lane order then time.

    Shapes: returns float64[n] (undiscounted sum over the whole episode), lengths int64[n] (steps of the whole episode).
    """

    returns: npt.NDArray[np.float64]
    lengths: Int64


@dataclasses.dataclass(frozen=True)
class _Segments:
    """Where the packed trajectories lie in the lane-major flat order of the recorded steps."""

    rows: Int64  # flat lane-major index (lane * num_steps + t) of each recorded step
    offsets: Int64
    lane: Int64  # lane within the block
    last_step: Int64  # t of each trajectory's last step
    ended: Bool  # False: cut by the rollout's end


class RolloutBuffer:
    """Time-major storage of one block's rollout.

    Shapes: vector observations [num_steps, lanes, ...]; images keep only the newest frame [num_steps, lanes, H, W] of a
    stack of `frame_stack`, and the stack at the start. Fill with `record_*`, then `pack`.
    """

    def __init__(self, num_steps: int, observations: Array, frame_stack: int, episode_return: Array) -> None:
        num_lanes = len(observations)
        self.num_steps, self.num_lanes, self.frame_stack = num_steps, num_lanes, frame_stack
        # Rows of small arrays are kept as they come and put together once, in `pack`: a copy a step costs more.
        self._decisions: list[tuple[Array, Array, Array]] = []
        self._outcomes: list[tuple[Array, Bool, Bool, Bool]] = []
        row = observations.shape[2:] if frame_stack > 1 else observations.shape[1:]
        self._observations = np.empty((num_steps, num_lanes, *row), observations.dtype)
        self._start_stacks: dict[tuple[int, int], Array] = {}
        if frame_stack > 1:
            self._start_stacks = {(0, lane): observations[lane].copy() for lane in range(num_lanes)}
        self._finals: dict[tuple[int, int], Array] = {}
        self._last: Array = observations
        self._episode_return = np.array(episode_return, np.float64)

    def record_decision(self, t: int, observations: Array, actions: Array, log_probs: Array, values: Array) -> None:
        """What the policy saw and did at step t; observations are copied, the others kept: do not write them again."""
        self._observations[t] = observations[:, -1] if self.frame_stack > 1 else observations
        self._decisions.append((actions, log_probs, values))

    def record_outcome(
        self,
        t: int,
        observations: Array,
        rewards: Array,
        terminated: Bool,
        truncated: Bool,
        final_observations: Array,
        valid: Bool,
    ) -> None:
        """What the environment answered at step t; the arrays are kept: do not write them again.

        `final_observations` counts only where an episode ended.
        """
        self._outcomes.append((rewards, terminated, truncated, valid))
        self._last = observations
        count = np.count_nonzero
        if not count(terminated) and not count(truncated) and count(valid) == self.num_lanes:
            return
        ended = (terminated | truncated) & valid
        for lane in np.flatnonzero(ended):
            self._finals[t, int(lane)] = np.array(final_observations[lane])
        if self.frame_stack > 1 and t + 1 < self.num_steps:
            # A new episode's first stack: after its predecessor's end, or after autoreset's dummy step.
            for lane in np.flatnonzero(ended | ~valid):
                self._start_stacks[t + 1, int(lane)] = np.array(observations[lane])

    def pack(self, lane: Int64, episode: Int64, episode_step: Int64) -> tuple[Trajectories, FinishedEpisodes, Array]:
        """Packed trajectories without bootstrap values, the finished episodes, and the open episodes' running returns.

        Shapes: lane, episode, episode_step int64[lanes]: global lane and where its episode stood when the rollout
        began; the running returns are float64[lanes].
        """
        self._put_together()
        segments = self._segments()
        first = segments.offsets[:-1]
        begins = segments.rows[first] % self.num_steps if len(first) else first
        order = np.arange(len(segments.lane))
        continues = np.ones(len(order), np.bool_)
        continues[1:] = segments.lane[1:] != segments.lane[:-1]
        rank_in_lane = order - np.maximum.accumulate(np.where(continues, order, 0)) if len(order) else order
        # A lane whose previous episode ended on the step before the rollout starts on autoreset's dummy step:
        # its counters already name the new episode, so the rank within the lane is all that is added.
        start_step = np.where(rank_in_lane == 0, episode_step[segments.lane], 0)
        ending = np.where(
            ~segments.ended,
            Ending.CUT,
            np.where(self.terminated[segments.last_step, segments.lane], Ending.TERMINATED, Ending.TRUNCATED),
        ).astype(np.uint8)
        packed = Trajectories(
            segments.offsets,
            self._packed_steps(segments),
            {
                "ending": ending,
                "lane": lane[segments.lane],
                "episode": episode[segments.lane] + rank_in_lane,
                "episode_step": start_step.astype(np.int64),
            },
        )
        packed = self._with_final_observations(packed, segments, begins)
        returns, running = self._returns(segments, packed, rank_in_lane)
        lengths = (start_step + packed.lengths)[segments.ended]
        return packed, FinishedEpisodes(returns, lengths.astype(np.int64)), running

    def _put_together(self) -> None:
        """The rows of all steps as arrays [num_steps, lanes, ...]."""
        actions, log_probs, values = zip(*self._decisions, strict=True)
        rewards, terminated, truncated, valid = zip(*self._outcomes, strict=True)
        self.actions: Array = np.stack(actions)
        self.log_probs, self.values, self.rewards = (
            np.stack(rows).astype(np.float32, copy=False) for rows in (log_probs, values, rewards)
        )
        self.terminated, self.truncated, self.valid = np.stack(terminated), np.stack(truncated), np.stack(valid)

    def _segments(self) -> _Segments:
        valid = np.ascontiguousarray(self.valid.T)
        ended = np.ascontiguousarray((self.terminated | self.truncated).T) & valid
        rows = np.flatnonzero(valid.reshape(-1))
        lane_of_row = rows // self.num_steps
        ends_here = ended.reshape(-1)[rows]
        last_of_lane = np.ones(len(rows), np.bool_)
        last_of_lane[:-1] = lane_of_row[1:] != lane_of_row[:-1]
        stops = np.flatnonzero(ends_here | last_of_lane)
        offsets = np.zeros(len(stops) + 1, np.int64)
        offsets[1:] = stops + 1
        return _Segments(rows, offsets, lane_of_row[stops], rows[stops] % self.num_steps, ends_here[stops])

    def _packed_steps(self, segments: _Segments) -> dict[str, Array]:
        fields = {"actions": self.actions, "rewards": self.rewards, "values": self.values, "log_probs": self.log_probs}
        if self.frame_stack == 1:
            fields = {"observations": self._observations, **fields}
        return {name: _lane_major(array, segments.rows) for name, array in fields.items()}

    def _with_final_observations(self, packed: Trajectories, segments: _Segments, begins: Int64) -> Trajectories:
        finals = [
            self._finals[int(t), int(lane)] if ended else self._last[lane]
            for t, lane, ended in zip(segments.last_step, segments.lane, segments.ended, strict=True)
        ]
        if self.frame_stack == 1:
            shape = self._observations.shape[2:]
            rows = np.stack(finals) if finals else np.empty((0, *shape))
            return packed.with_fields(per_trajectory={"final_observations": rows.astype(self._observations.dtype)})
        return packed.with_fields(ragged={"frames": self._frames(packed, segments, begins, finals)})

    def _frames(self, packed: Trajectories, segments: _Segments, begins: Int64, finals: list[Array]) -> Ragged:
        """Per trajectory: k - 1 lead-in frames, one per step, and the final one; k = frame_stack."""
        lead = self.frame_stack - 1
        offsets = packed.offsets + np.arange(packed.num_trajectories + 1, dtype=np.int64) * (lead + 1)
        values = np.empty((int(offsets[-1]), *self._observations.shape[2:]), self._observations.dtype)
        for i in range(packed.num_trajectories):
            lane, begin, length = int(segments.lane[i]), int(begins[i]), int(packed.lengths[i])
            rows = values[offsets[i] : offsets[i + 1]]
            rows[:lead] = self._start_stacks[begin, lane][:-1]
            rows[lead : lead + length] = self._observations[begin : begin + length, lane]
            rows[lead + length] = finals[i][-1]
        return Ragged(values, offsets)

    def _returns(self, segments: _Segments, packed: Trajectories, rank_in_lane: Int64) -> tuple[Array, Array]:
        sums = np.zeros(packed.num_trajectories, np.float64)
        if packed.num_trajectories:
            sums = np.add.reduceat(packed["rewards"].astype(np.float64), packed.offsets[:-1])
        sums += np.where(rank_in_lane == 0, self._episode_return[segments.lane], 0.0)
        running = np.zeros(self.num_lanes, np.float64)
        untouched = np.ones(self.num_lanes, np.bool_)
        untouched[segments.lane] = False
        running[untouched] = self._episode_return[untouched]
        running[segments.lane[~segments.ended]] = sums[~segments.ended]
        return sums[segments.ended], running


def _lane_major(array: Array, rows: Int64) -> Array:
    """[num_steps, lanes, ...] -> the recorded steps in lane-major order, [len(rows), ...]."""
    swapped = np.ascontiguousarray(np.swapaxes(array, 0, 1))
    flat = swapped.reshape(-1, *array.shape[2:])
    return flat if len(rows) == len(flat) else flat[rows]
