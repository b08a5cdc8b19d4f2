"""A multi-layer perceptron with a policy head and a value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcrl.models.checks import check_build, check_heads, check_hidden, check_member, check_spaces

if TYPE_CHECKING:
    from hpcrl.envs import Space
    from hpcrl.models.actor_critic import ActorCritic

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Actor-critic for vector and discrete observations.

    Weights are orthogonal with gain sqrt(2) (policy head 0.01, value head 1), biases zero.  Discrete observations are
    one-hot coded.  Discrete actions are categorical, box actions Gaussian with one log_std parameter per component.
    """

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer."""
    heads: tuple[str, ...] = ("policy", "value")
    """What the network predicts; an actor-critic has both."""
    activation: Activation = "tanh"
    """After every hidden layer."""
    shared: bool = False
    """One trunk under both heads; else the value function has layers of its own."""
    normalize_observations: bool = False
    """Subtract a running mean, divide by a running deviation, clip to [-10, 10]; advanced once per update."""
    initial_log_std: float = 0.0
    """Logarithm of the Gaussian's first standard deviation; box actions only."""

    def __post_init__(self) -> None:
        check_hidden("Mlp.hidden", self.hidden)
        check_heads("Mlp.heads", self.heads)
        check_member("Mlp.activation", self.activation, ("tanh", "relu", "elu", "silu", "gelu"))

    def build(self, observation_space: Space | None, action_space: Space | None, *, seed: int) -> ActorCritic:
        """A network for these spaces; its bits depend on the arguments alone, not on any global generator.

        Raises InputError for a space it cannot read or act in.
        """
        import torch

        from hpcrl.models.actor_critic import ActorCritic
        from hpcrl.models.distributions import action_distribution
        from hpcrl.models.networks import MlpNetwork
        from hpcrl.models.observations import flat_observations

        check_build(seed)
        observation_space, action_space = check_spaces("Mlp", observation_space, action_space)
        encoder = flat_observations(observation_space, normalize=self.normalize_observations)
        distribution = action_distribution(action_space, initial_log_std=self.initial_log_std)
        network = MlpNetwork(encoder.size, self.hidden, distribution.num_outputs, self.activation, self.shared)
        network.initialize(torch.Generator().manual_seed(seed))
        shape = tuple(int(extent) for extent in observation_space.shape)
        return ActorCritic(encoder, network, distribution, shape, None)
