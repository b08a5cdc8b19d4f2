"""The layers of an actor-critic: encoded observations to policy outputs and value outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import skip_init

from hpcrl.models.parameters import FlatParameters
from hpcrl.models.stacked_mlp import ACTIVATIONS, StackedMlp

Inference = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Encoded observations to policy outputs [n, num_outputs] and value outputs [n], without gradients."""

HIDDEN_GAIN, POLICY_GAIN, VALUE_GAIN = math.sqrt(2.0), 0.01, 1.0
"""Gains of the orthogonal initialisation, as in OpenAI Baselines' PPO: the first policy is close to uniform."""


class Network(nn.Module, ABC):
    """A policy head and a value head over one trunk or two."""

    policy_head: nn.Linear
    value_head: nn.Linear

    @abstractmethod
    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Policy outputs [n, num_outputs] and value outputs [n], in the value statistics' scale; bf16 in autocast."""

    @abstractmethod
    def initialize(self, generator: torch.Generator) -> None:
        """Orthogonal weights, zero biases."""

    def parameter_order(self) -> list[str]:
        """Names in the order of the flat buffer."""
        return [name for name, _ in self.named_parameters()]

    def inference(self, flat: FlatParameters, prefix: str) -> Inference:
        """The forward pass for acting; may view the flat buffer (names there begin with `prefix`) as larger tensors."""
        return cast(Inference, self.__call__)


def empty_layer(kind: type[nn.Module], *shape: int, **options: int) -> nn.Module:
    """A layer whose weights are not drawn yet: PyTorch's own draw would move the global generator."""
    layer: nn.Module = skip_init(kind, *shape, **options)  # type: ignore[no-untyped-call]
    return layer


def initialize_layer(layer: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Orthogonal weight (Saxe et al. 2014, arXiv:1312.6120) times gain, zero bias."""
    nn.init.orthogonal_(cast(Tensor, layer.weight), gain, generator=generator)
    nn.init.zeros_(cast(Tensor, layer.bias))


class MlpNetwork(Network):
    """Linear layers and activations; `shared` has one tower, `trunk`; else `policy` and `value` are one each."""

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_outputs: int, activation: str, shared: bool) -> None:
        super().__init__()
        sizes = (num_inputs, *hidden)
        self.num_layers = len(hidden)
        self.activation_name, self.activation = activation, ACTIVATIONS[activation]
        self.tower_names = ("trunk",) if shared else ("policy", "value")
        for name in self.tower_names:
            layers = [empty_layer(nn.Linear, sizes[i], sizes[i + 1]) for i in range(self.num_layers)]
            self.add_module(name, nn.ModuleList(layers))
        self.policy_head = cast(nn.Linear, empty_layer(nn.Linear, sizes[-1], num_outputs))
        self.value_head = cast(nn.Linear, empty_layer(nn.Linear, sizes[-1], 1))

    def initialize(self, generator: torch.Generator) -> None:
        for name in self.tower_names:
            for layer in self.get_submodule(name).children():
                initialize_layer(layer, HIDDEN_GAIN, generator)
        initialize_layer(self.policy_head, POLICY_GAIN, generator)
        initialize_layer(self.value_head, VALUE_GAIN, generator)

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        for name in self.tower_names:
            x = encoded
            for layer in self.get_submodule(name).children():
                x = self.activation(layer(x))
            features.append(x)
        return self.policy_head(features[0]), self.value_head(features[-1]).squeeze(1)

    def parameter_order(self) -> list[str]:
        """Layer by layer with the towers' tensors side by side, so that both are one tensor with a leading axis."""
        order = [
            f"{name}.{layer}.{kind}"
            for layer in range(self.num_layers)
            for kind in ("weight", "bias")
            for name in self.tower_names
        ]
        return [*order, *(f"{head}.{kind}" for kind in ("weight", "bias") for head in ("policy_head", "value_head"))]

    def inference(self, flat: FlatParameters, prefix: str) -> Inference:
        return StackedMlp(flat, prefix, self.tower_names, self.num_layers, self.activation_name)


class CnnNetwork(Network):
    """Three convolutions and a dense layer (Mnih et al. 2015, doi:10.1038/nature14236), rectified linear units.

    32 filters 8x8 stride 4, 64 filters 4x4 stride 2, 64 filters 3x3 stride 1, `num_hidden` units; `shared` has one
    tower, `trunk`; else `policy` and `value` are one each.
    """

    def __init__(self, image: tuple[int, int, int], num_hidden: int, num_outputs: int, shared: bool) -> None:
        super().__init__()
        frames, height, width = image
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.tower_names = ("trunk",) if shared else ("policy", "value")
        for name in self.tower_names:
            layers = [
                empty_layer(nn.Conv2d, frames, 32, kernel_size=8, stride=4),
                empty_layer(nn.Conv2d, 32, 64, kernel_size=4, stride=2),
                empty_layer(nn.Conv2d, 64, 64, kernel_size=3, stride=1),
                empty_layer(nn.Linear, 64 * height * width, num_hidden),
            ]
            self.add_module(name, nn.ModuleList(layers))
        self.policy_head = cast(nn.Linear, empty_layer(nn.Linear, num_hidden, num_outputs))
        self.value_head = cast(nn.Linear, empty_layer(nn.Linear, num_hidden, 1))

    def initialize(self, generator: torch.Generator) -> None:
        for name in self.tower_names:
            for layer in self.get_submodule(name).children():
                initialize_layer(layer, HIDDEN_GAIN, generator)
        initialize_layer(self.policy_head, POLICY_GAIN, generator)
        initialize_layer(self.value_head, VALUE_GAIN, generator)

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        for name in self.tower_names:
            x = encoded
            *convolutions, dense = self.get_submodule(name).children()
            for convolution in convolutions:
                x = torch.relu(convolution(x))
            features.append(torch.relu(dense(x.flatten(1))))
        return self.policy_head(features[0]), self.value_head(features[-1]).squeeze(1)

    def inference(self, flat: FlatParameters, prefix: str) -> Inference:
        """The same operations on the same parameters, past nn.Module's hooks and attribute search."""
        towers = [self._layers(name) for name in self.tower_names]
        policy_head, value_head = _parameters(self.policy_head), _parameters(self.value_head)

        def infer(encoded: Tensor) -> tuple[Tensor, Tensor]:
            features = []
            for convolutions, dense in towers:
                x = encoded
                for weight, bias, stride in convolutions:
                    x = torch.conv2d(x, weight, bias, stride).relu_()
                features.append(linear(x.flatten(1), *dense).relu_())
            return linear(features[0], *policy_head), linear(features[-1], *value_head).squeeze(1)

        return infer

    def _layers(self, tower: str) -> tuple[list[tuple[Tensor, Tensor, tuple[int, ...]]], tuple[Tensor, Tensor]]:
        """Weights, biases and strides of a tower's convolutions; weight and bias of its dense layer."""
        *convolutions, dense = self.get_submodule(tower).children()
        return (
            [(*_parameters(layer), cast(nn.Conv2d, layer).stride) for layer in convolutions],
            _parameters(dense),
        )


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return cast(Tensor, layer.weight), cast(Tensor, layer.bias)
