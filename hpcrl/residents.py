"""The only owner of live weights: role -> network, optimiser and version on this rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt

from hpcrl.envs import Space
from hpcrl.errors import InputError
from hpcrl.models import ModelConfig

if TYPE_CHECKING:
    from hpcrl.algorithms.adam import FlatAdam
    from hpcrl.models.actor_critic import ActorCritic

Array = npt.NDArray[Any]
_OPTIMIZER = ".optimizer"


@dataclasses.dataclass
class Resident:
    """One role's live network; `version` counts the updates it has had."""

    role: str
    model: ActorCritic
    version: int = 0
    optimizer: FlatAdam | None = None
    _stored_optimizer: Mapping[str, Array] | None = None

    def ready_to_train(self, make_optimizer: Callable[[ActorCritic], FlatAdam]) -> FlatAdam:
        """The optimiser, made at the first update, with the stored state where there is one."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model)
            if self._stored_optimizer is not None:
                self.optimizer.load_arrays(self._stored_optimizer)
        return self.optimizer

    def tensors(self) -> dict[str, dict[str, Array]]:
        """Copies by name, in the groups of a checkpoint: the role, and `ROLE.optimizer` where it has trained."""
        groups = {self.role: self.model.arrays()}
        if self.optimizer is not None:
            groups[self.role + _OPTIMIZER] = self.optimizer.arrays()
        elif self._stored_optimizer is not None:
            groups[self.role + _OPTIMIZER] = dict(self._stored_optimizer)
        return groups

    def load(self, groups: Mapping[str, Mapping[str, Array]], version: int) -> None:
        """Takes what `tensors` gave.

        Raises: InputError when the groups lack this role, or its arrays have other names or shapes.
        """
        if self.role not in groups:
            raise InputError(f"checkpoint: want the role '{self.role}', given {', '.join(groups) or 'none'}")
        self.model.load_arrays(groups[self.role])
        self._stored_optimizer = groups.get(self.role + _OPTIMIZER)
        if self.optimizer is not None and self._stored_optimizer is not None:
            self.optimizer.load_arrays(self._stored_optimizer)
        self.version = version


class Residents:
    """The live networks of this rank, each built at its first use from its configuration and the run's seed."""

    def __init__(
        self, models: Mapping[str, ModelConfig], observation_space: Space, action_space: Space, seed: int
    ) -> None:
        self._models, self._seed = dict(models), seed
        self._observation_space, self._action_space = observation_space, action_space
        self._live: dict[str, Resident] = {}

    def get(self, role: str) -> Resident:
        """The role's live network.

        Raises: InputError for an unknown role.
        """
        if role not in self._models:
            raise InputError(f"model: want one of {', '.join(self._models) or 'none'}, given '{role}'")
        if role not in self._live:
            from hpcrl.ops.random import Draw, episode_seed

            # Roles draw their initial weights from keys of their own, in the order in which the pipeline names them.
            seed = episode_seed(self._seed, list(self._models).index(role), 0, Draw.INITIALIZE)
            model = self._models[role].build(self._observation_space, self._action_space, seed=seed)
            self._live[role] = Resident(role, model)
        return self._live[role]

    def tensors(self) -> dict[str, dict[str, Array]]:
        """Everything that learning moves, of every live role, copied."""
        return {name: group for resident in self._live.values() for name, group in resident.tensors().items()}

    def state(self) -> dict[str, object]:
        """What goes beside the tensors: the version of each live role."""
        return {"versions": {role: resident.version for role, resident in self._live.items()}}

    def load(self, groups: Mapping[str, Mapping[str, Array]], state: Mapping[str, object]) -> None:
        """Takes a checkpoint: the tensors and the state that stood beside them."""
        for role, version in cast(Mapping[str, int], state["versions"]).items():
            self.get(role).load(groups, version)
