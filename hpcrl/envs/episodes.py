"""Which episode each lane plays, how far it is, and the actions that led there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Ragged, Trajectories
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw, episode_seed

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class EpisodeCounter:
    """Episode number and step of every lane, and the key each episode is reset with.

    The key is counted, not drawn: episode_seed(run seed, global lane, episode), the same wherever the lane is played.
    """

    def __init__(self, env: str, lanes: range, seed: int, draw: Draw) -> None:
        self.env, self.lanes, self.seed, self.draw = env, lanes, seed, draw
        self.episode: Int64 = np.zeros(len(lanes), np.int64)
        self.episode_step: Int64 = np.zeros(len(lanes), np.int64)

    def begin(self) -> None:
        """Back to episode 0, step 0, in every lane."""
        self.episode[:] = 0
        self.episode_step[:] = 0

    def next_episode(self, index: int) -> int:
        """Moves lane number `index` of this block to its next episode; that episode's key."""
        self.episode[index] += 1
        self.episode_step[index] = 0
        return self.key(index)

    def key(self, index: int) -> int:
        """The seed with which the current episode of lane number `index` of this block is reset."""
        return episode_seed(self.seed, self.lanes[index], int(self.episode[index]), self.draw)

    def current_keys(self) -> list[int]:
        """The keys of all lanes' current episodes."""
        return [self.key(index) for index in range(len(self.lanes))]

    def save(
        self, observations: Array, arrays: Mapping[str, Array] | None = None, actions: Ragged | None = None
    ) -> Trajectories:
        """One trajectory without steps per lane."""
        per_trajectory = {
            "lane": np.asarray(self.lanes, np.int64),
            "episode": self.episode.copy(),
            "episode_step": self.episode_step.copy(),
            "observations": np.ascontiguousarray(observations),
            **(arrays or {}),
        }
        offsets = np.zeros(len(self.lanes) + 1, np.int64)
        return Trajectories(offsets, {}, per_trajectory, {} if actions is None else {"actions": actions})

    def restore(self, lanes: Trajectories, fields: tuple[str, ...] = ()) -> None:
        """Takes over what `save` wrote, once its lanes and fields are seen to be these."""
        missing = [name for name in ("lane", "episode", "episode_step", "observations", *fields) if name not in lanes]
        if missing:
            raise InputError(
                f"{self.env}: saved lanes: want the fields {', '.join(missing)}, given {', '.join(lanes.fields())}; "
                "they were saved by another environment or adapter: keep env and its options, or start a new run"
            )
        given = lanes["lane"].tolist()
        if given != list(self.lanes):
            raise InputError(
                f"{self.env}: saved lanes: want lanes {self.lanes.start} .. {self.lanes.stop - 1}, given {given}; "
                "give each block the lanes it saved"
            )
        self.episode[:] = lanes["episode"]
        self.episode_step[:] = lanes["episode_step"]


class ActionLog:
    """The actions of every lane since its last seeded reset, from which it can be brought here again.

    One row of all lanes per step, from the oldest of these resets on; different lanes begin at different rows.
    """

    def __init__(self, num_lanes: int, shape: tuple[int, ...], dtype: str) -> None:
        self._rows: Array = np.empty((256, num_lanes, *shape), dtype)
        self._end = 0
        self._begin = np.zeros(num_lanes, np.int64)

    def append(self, actions: Array) -> None:
        """One more step of every lane, [lanes, *shape]."""
        if self._end == len(self._rows):
            self._make_room()
        self._rows[self._end] = actions
        self._end += 1

    def _make_room(self) -> None:
        # Rows that no lane needs are dropped here only, so that they cost nothing per step.
        oldest = int(self._begin.min())
        kept = self._rows[oldest : self._end]
        self._rows = np.empty((max(256, 2 * len(kept)), *kept.shape[1:]), kept.dtype)
        self._rows[: len(kept)] = kept
        self._end, self._begin = len(kept), self._begin - oldest

    def begin(self, index: int) -> None:
        """Forgets a lane's actions so far."""
        self._begin[index] = self._end

    def clear(self) -> None:
        """Forgets all actions."""
        self._begin[:] = self._end

    def save(self) -> Ragged:
        """Ragged actions: each lane's, from where it begins."""
        parts = [self._rows[begin : self._end, lane] for lane, begin in enumerate(self._begin)]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum(self._end - self._begin, out=offsets[1:])
        return Ragged(np.concatenate(parts), offsets)

    def restore(self, actions: Ragged) -> None:
        """Takes over saved actions, aligned so that all lanes end on the same row."""
        lengths = np.diff(actions.offsets)
        longest = int(lengths.max(initial=0))
        rows = np.zeros((max(256, 2 * longest), *self._rows.shape[1:]), self._rows.dtype)
        for lane, length in enumerate(lengths):
            rows[longest - length : longest, lane] = actions[lane]
        self._rows, self._end, self._begin = rows, longest, longest - lengths

    def rows(self) -> Array:
        """The rows so far, [rows, lanes, *shape], oldest first."""
        return self._rows[: self._end]

    def begins(self) -> Int64:
        """The row at which each lane begins, int64[lanes]."""
        return self._begin

    def lengths(self) -> Int64:
        """Actions stored for each lane, int64[lanes]."""
        return self._end - self._begin


def check_replayed(env: str, lanes: Trajectories, index: int, observation: Array, *, in_step: bool) -> None:
    """Refuses a replayed episode that is not where it was (not `in_step`), or has not the saved observation's bits."""
    saved = lanes["observations"][index]
    same = saved.dtype == observation.dtype and saved.tobytes() == np.ascontiguousarray(observation).tobytes()
    if same and in_step:
        return
    given = "another" if in_step else "an episode that ended elsewhere"
    raise InputError(
        f"{env}: lane {lanes['lane'][index]}, episode {lanes['episode'][index]}: want the saved observation after "
        f"{lanes['episode_step'][index]} replayed actions, given {given}: the environment does not answer the same to "
        'the same seed and actions. Make it deterministic in reset(seed=...), or use the option restart="fresh", which '
        "drops open episodes at a restart"
    )
