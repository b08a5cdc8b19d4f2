"""The convolutional network of Mnih et al. 2015 with a policy head and a value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpcrl.models.checks import check_build, check_heads, check_hidden, check_member, check_spaces

if TYPE_CHECKING:
    from hpcrl.envs import Space
    from hpcrl.models.actor_critic import ActorCritic


@dataclass(frozen=True, kw_only=True)
class Cnn:
    """Actor-critic for stacks of images, u8[frames, height, width], scaled by 1/255 ("Nature CNN").

    Weights are orthogonal with gain sqrt(2) (policy head 0.01, value head 1), biases zero.
    """

    hidden: int = 512
    """Units of the dense layer after the convolutions."""
    heads: tuple[str, ...] = ("policy", "value")
    """What the network predicts; an actor-critic has both."""
    shared: bool = True
    """One trunk under both heads; else the value function has layers of its own."""
    initial_log_std: float = 0.0
    """Logarithm of the Gaussian's first standard deviation; box actions only."""
    inference_autocast: Literal["bf16"] | None = None
    """Act in bfloat16 (AMX where the processor has it); the update's precision is PPO's own knob."""

    def __post_init__(self) -> None:
        check_hidden("Cnn.hidden", (self.hidden,))
        check_heads("Cnn.heads", self.heads)
        check_member("Cnn.inference_autocast", self.inference_autocast, (None, "bf16"))

    def build(self, observation_space: Space | None, action_space: Space | None, *, seed: int) -> ActorCritic:
        """A network for these spaces; its bits depend on the arguments alone, not on any global generator.

        Raises InputError for a space it cannot read or act in.
        """
        import torch

        from hpcrl.models.actor_critic import ActorCritic
        from hpcrl.models.distributions import action_distribution
        from hpcrl.models.networks import CnnNetwork
        from hpcrl.models.observations import ImageObservations, image_shape

        check_build(seed)
        observation_space, action_space = check_spaces("Cnn", observation_space, action_space)
        image = image_shape(observation_space)
        distribution = action_distribution(action_space, initial_log_std=self.initial_log_std)
        network = CnnNetwork(image, self.hidden, distribution.num_outputs, self.shared)
        network.initialize(torch.Generator().manual_seed(seed))
        return ActorCritic(ImageObservations(), network, distribution, image, self.inference_autocast)
