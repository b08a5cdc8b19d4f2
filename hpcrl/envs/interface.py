"""The small interface behind which every environment stands."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs.spaces import Space
from hpcrl.errors import InputError

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Restart = Literal["state", "replay", "fresh"]


@dataclasses.dataclass(slots=True)
class StepResult:
    """What one step of all lanes answered; the arrays are the caller's and are not written again.

    Shapes: observations and final_observations [lanes, ...]; rewards float32[lanes]; the rest bool[lanes].
    Where an episode ended (`terminated | truncated`), `final_observations` holds its last observation, elsewhere the
    same as `observations`. `terminated` wins: `truncated` is never True beside it. Where `valid` is False the engine
    spent the step on a reset and ignored the action: nothing is recorded, `observations` starts the new episode.
    """

    observations: Array
    rewards: Float32
    terminated: Bool
    truncated: Bool
    final_observations: Array
    valid: Bool


def picture(env: str, draw: Callable[[], Any]) -> npt.NDArray[np.uint8]:
    """What `draw` draws; its library's complaint as ours.

    Raises: InputError where a library, a display or OpenGL is missing.
    """
    try:
        return np.asarray(draw(), np.uint8)
    except Exception as error:  # pygame, GLFW and MuJoCo each raise their own
        raise InputError(
            f"{env}: render: want a machine that can draw it, given {type(error).__name__}: {error}; install "
            "'gymnasium[classic-control]', or for MuJoCo without a display set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
        ) from error


class VectorEnv(abc.ABC):
    """The environments of one block: one lane each, stepped together.

    Call `reset` or `restore` first. `lanes` are the global lane numbers; `observations` is what the next action answers
    to, [lanes, ...] (with `frame_stack` k > 1: uint8[lanes, k, H, W], a sliding window within an episode). `episode`
    and `episode_step` say which episode each lane is in and how many steps of it are played, int64[lanes] (live arrays:
    copy to keep).

    `restart` is what `save` and `restore` promise. "state": arrays taken out and put in. "replay": the open episode is
    reset with its key and its stored actions are played again. "fresh": neither; open episodes are dropped, and
    `restore` starts each lane's next episode. The first two continue bit for bit.
    """

    name: str
    lanes: range
    observation_space: Space
    action_space: Space
    restart: Restart
    frame_stack: int = 1
    max_episode_steps: int | None = None
    observations: Array
    episode: Int64
    episode_step: Int64
    _answer: StepResult | None = None

    @property
    def num_lanes(self) -> int:
        return len(self.lanes)

    @abc.abstractmethod
    def reset(self) -> Array:
        """Starts episode 0 in every lane; the first observations."""

    @abc.abstractmethod
    def step(self, actions: Array) -> StepResult:
        """Plays one action per lane.

        Raises: InputError for actions of another shape or dtype, out of range, or not finite.
        """

    def send(self, actions: Array) -> None:
        """Begins a step; `receive` ends it. An engine with threads of its own works in between."""
        self._answer = self.step(actions)

    def receive(self) -> StepResult:
        """The answer to the last `send`."""
        answer, self._answer = self._answer, None
        if answer is None:
            raise RuntimeError(f"{self.name}: receive() without send()")
        return answer

    @abc.abstractmethod
    def save(self) -> Trajectories:
        """Where every lane stands: no steps, one trajectory per lane.

        Fields: `lane`, `episode`, `episode_step` int64, `observations`, those of the adapter, and ragged `actions` (the
        open episode's) for the restart level "replay".
        """

    @abc.abstractmethod
    def restore(self, lanes: Trajectories) -> Array:
        """Goes on where `save` was called; the observations of that moment ("fresh": of new episodes).

        Raises: InputError when the lanes are others, a field is missing, or a replayed episode came out differently.
        """

    def render(self) -> npt.NDArray[np.uint8] | None:
        """A picture of the first lane, uint8[H, W, 3]; None where the environment was made without `render_mode`.

        Raises: InputError where this machine cannot draw it.
        """
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of the engine."""
