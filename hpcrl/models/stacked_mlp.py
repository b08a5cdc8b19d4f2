"""A multi-layer perceptron's passes over the flat buffer: fewer and larger operations than module by module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hpcrl.models.parameters import FlatParameters

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}


def _relu_backward(gradients: Tensor, activations: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward(gradients, activations, 0.0)
    return result


_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": torch.ops.aten.tanh_backward,
    "relu": _relu_backward,
}
"""Gradient of an activation from the gradient and value of its output; the others need their input as well."""


class StackedMlp:
    """Both towers of an MlpNetwork in one operation per layer, forward and, by hand, backward.

    Weights and gradients are views of the flat buffer, so they follow every optimiser step.

    Args:
        flat: parameters `<prefix><tower>.<layer>.weight` and so on, the towers' tensors of one layer side by side.
        tower_names: one tower under both heads, or the policy's and the value function's.
    """

    def __init__(
        self, flat: FlatParameters, prefix: str, tower_names: Sequence[str], num_layers: int, activation: str
    ) -> None:
        def stacked(buffer: Tensor, layer: int, kind: str) -> Tensor:
            return flat.stack(buffer, [f"{prefix}{name}.{layer}.{kind}" for name in tower_names])

        def heads(buffer: Tensor, kind: str) -> list[Tensor]:
            return [flat.view(buffer, f"{prefix}{head}.{kind}") for head in ("policy_head", "value_head")]

        self.activation = ACTIVATIONS[activation]
        self._activation_backward = _BACKWARD.get(activation)
        self.num_towers = len(tower_names)
        layers = range(num_layers)
        # A hidden layer is [towers, outputs, inputs] and its bias [towers, 1, outputs]; a head has no tower axis.
        self._weights = [stacked(flat.values, layer, "weight") for layer in layers]
        self._biases = [stacked(flat.values, layer, "bias").unsqueeze(1) for layer in layers]
        self._head_weights, self._head_biases = heads(flat.values, "weight"), heads(flat.values, "bias")
        self._weight_gradients = [stacked(flat.gradients, layer, "weight") for layer in layers]
        self._bias_gradients = [stacked(flat.gradients, layer, "bias") for layer in layers]
        self._head_weight_gradients = heads(flat.gradients, "weight")
        self._head_bias_gradients = heads(flat.gradients, "bias")
        self._first_weight, self._first_bias = self._weights[0].flatten(0, 1).t(), self._biases[0].flatten()
        self._transposed = [weight.transpose(1, 2) for weight in self._weights]
        self._transposed_heads = [weight.t() for weight in self._head_weights]

    @property
    def has_backward(self) -> bool:
        """Whether `backward` knows the activation's derivative."""
        return self._activation_backward is not None

    def __call__(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded observations f32[n, inputs] to policy outputs f32[n, outputs] and value outputs f32[n]."""
        return self.heads(self.hidden(encoded)[-1])

    def hidden(self, encoded: Tensor) -> list[Tensor]:
        """Activations f32[towers, n, units] of every hidden layer."""
        # Both towers read the same rows: one product, seen as [towers, n, units] afterwards.
        first = self.activation(torch.addmm(self._first_bias, encoded, self._first_weight))
        activations = [first.view(len(encoded), self.num_towers, -1).transpose(0, 1)]
        for weight, bias in zip(self._transposed[1:], self._biases[1:], strict=True):
            activations.append(self.activation(torch.baddbmm(bias, activations[-1], weight)))
        return activations

    def heads(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """The two heads over the last hidden layer's activations."""
        policy_outputs = torch.addmm(self._head_biases[0], last[0], self._transposed_heads[0])
        return policy_outputs, torch.addmm(self._head_biases[1], last[-1], self._transposed_heads[1]).squeeze(1)

    def backward(self, encoded: Tensor, activations: Sequence[Tensor], d_policy: Tensor, d_values: Tensor) -> None:
        """Writes the gradient of every weight and bias into the flat buffer, over what was there.

        Args:
            encoded, activations: what `hidden` took and gave.
            d_policy: gradient of the loss by the policy outputs, f32[n, outputs]; d_values: by the values, f32[n].
        """
        assert self._activation_backward is not None
        last = activations[-1]
        slopes = torch.empty(last.shape) if self.num_towers == 2 else torch.zeros(last.shape)
        for head, (tower, outputs) in enumerate(((0, d_policy), (-1, d_values.unsqueeze(1)))):
            torch.mm(outputs.t(), last[tower], out=self._head_weight_gradients[head])
            torch.sum(outputs, 0, out=self._head_bias_gradients[head])
            if self.num_towers == 2:
                torch.mm(outputs, self._head_weights[head], out=slopes[tower])
            else:
                slopes[tower].addmm_(outputs, self._head_weights[head])
        for layer in reversed(range(len(activations))):
            slopes = self._activation_backward(slopes, activations[layer])
            inputs = activations[layer - 1] if layer > 0 else encoded.expand(self.num_towers, -1, -1)
            torch.bmm(slopes.transpose(1, 2), inputs, out=self._weight_gradients[layer])
            torch.sum(slopes, 1, out=self._bias_gradients[layer])
            if layer > 0:
                slopes = torch.bmm(slopes, self._weights[layer])
