"""What acts: the small interface that rollouts and evaluations ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hpcrl.envs import Space
    from hpcrl.models.parameters import FlatParameters

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


class Policy(Protocol):
    """Chooses actions for a block of rows; draws nothing itself, the numbers come counted from outside."""

    @property
    def random_numbers_per_action(self) -> int:
        """Numbers a row needs to choose one action."""

    @property
    def random_kind(self) -> Literal["uniform", "normal"]:
        """Their distribution: uniform in [0, 1) or standard normal."""

    def act(
        self, observations: Array, random_numbers: Array, *, greedy: bool = False
    ) -> tuple[Array, Float32, Float32]:
        """Actions, log-probabilities f32[rows], values f32[rows]."""

    def values(self, observations: Array) -> Float32:
        """V(s), f32[rows]; a row's bits do not depend on the other rows."""


class Model(Protocol):
    """A network that rests in checkpoints: what all kinds have in common."""

    @property
    def flat(self) -> FlatParameters:
        """Its parameters and their gradients, one buffer each."""

    def arrays(self) -> dict[str, Array]:
        """Everything that learning moves, by name, copied."""

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Takes what `arrays()` gave; refuses other names or shapes and then changes nothing."""


class ModelConfig(Protocol):
    """A frozen dataclass that describes a network and builds it."""

    def build(self, observation_space: Space | None, action_space: Space | None, *, seed: int) -> Model:
        """The network; its bits depend on the arguments alone. The spaces are None in a pipeline of text."""
