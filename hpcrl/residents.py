"""The only owner of live weights: role -> network, optimiser and version on this rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt

from hpcrl.envs import EnvDescription
from hpcrl.errors import InputError
from hpcrl.models import Model, ModelConfig
from hpcrl.models.language import LanguageModel
from hpcrl.models.language.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hpcrl.algorithms.adam import FlatAdam
    from hpcrl.models.actor_critic import ActorCritic
    from hpcrl.models.language.decoder import Decoder

Array = npt.NDArray[Any]
_OPTIMIZER = ".optimizer"


@dataclasses.dataclass
class Resident:
    """One role's live network; `version` counts the updates it has had."""

    role: str
    model: Model
    version: int = 0
    optimizer: FlatAdam | None = None
    _stored_optimizer: Mapping[str, Array] | None = None

    trainer: str | None = None
    """The stage whose optimiser this is."""

    @property
    def actor_critic(self) -> ActorCritic:
        """The network, where it plays environments.

        Raises: InputError for a model of text.
        """
        from hpcrl.models.actor_critic import ActorCritic

        if not isinstance(self.model, ActorCritic):
            raise InputError(f"model '{self.role}': want Mlp(...) or Cnn(...), which play environments, given text's")
        return self.model

    @property
    def decoder(self) -> Decoder:
        """The network, where it reads text.

        Raises: InputError for a network that plays environments.
        """
        from hpcrl.models.language.decoder import Decoder

        if not isinstance(self.model, Decoder):
            raise InputError(f"model '{self.role}': want LanguageModel(...), which reads text, given another")
        return self.model

    def ready_to_train(self, trainer: str, make_optimizer: Callable[[Model], FlatAdam]) -> FlatAdam:
        """The optimiser, made at a stage's first update, with the stored state where there is one.

        A stage that trains a role after another one begins with moments of its own.
        """
        if self.trainer not in (None, trainer):
            self.optimizer = self._stored_optimizer = None
        self.trainer = trainer
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

    def state(self) -> dict[str, object]:
        """What goes beside the tensors."""
        return {"versions": {self.role: self.version}, "trainers": {self.role: self.trainer}}

    def load(self, groups: Mapping[str, Mapping[str, Array]], version: int, trainer: str | None) -> None:
        """Takes what `tensors` gave.

        Raises: InputError when the groups lack this role, or its arrays have other names or shapes.
        """
        if self.role not in groups:
            raise InputError(f"checkpoint: want the role '{self.role}', given {', '.join(groups) or 'none'}")
        self.model.load_arrays(groups[self.role])
        self._stored_optimizer = groups.get(self.role + _OPTIMIZER)
        if self.trainer != trainer:
            self.optimizer = None
        if self.optimizer is not None and self._stored_optimizer is not None:
            self.optimizer.load_arrays(self._stored_optimizer)
        self.version, self.trainer = version, trainer


class Residents:
    """The live networks of this rank, each built at its first use from its configuration and the run's seed."""

    def __init__(self, models: Mapping[str, ModelConfig], description: EnvDescription | None, seed: int) -> None:
        self._models, self._seed = dict(models), seed
        self._description = description
        self._live: dict[str, Resident] = {}
        self._tokenizers: dict[str, Tokenizer] = {}

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
            seen = self._description
            model = self._models[role].build(
                None if seen is None else seen.observation_space, None if seen is None else seen.action_space, seed=seed
            )
            self._live[role] = Resident(role, model)
        return self._live[role]

    def tokenizer(self, role: str) -> Tokenizer:
        """How a role reads text.

        Raises: InputError for an unknown role, or one that reads none.
        """
        config = self._models.get(role)
        if not isinstance(config, LanguageModel):
            given = f"'{role}'" if config is None else repr(config)
            raise InputError(f"model '{role}': want LanguageModel(...), which reads text, given {given}")
        if role not in self._tokenizers:
            self._tokenizers[role] = config.open_tokenizer()
        return self._tokenizers[role]

    def load(self, groups: Mapping[str, Mapping[str, Array]], state: Mapping[str, object]) -> None:
        """Takes a checkpoint of one or more roles: the tensors and the state that stood beside them."""
        trainers = cast(Mapping[str, str | None], state.get("trainers", {}))
        for role, version in cast(Mapping[str, int], state["versions"]).items():
            self.get(role).load(groups, version, trainers.get(role))
