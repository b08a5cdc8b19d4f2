"""A policy and a value function over one observation: acting in NumPy, learning in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcrl.errors import InputError
from hpcrl.models.distributions import ActionDistribution
from hpcrl.models.networks import Inference, Network
from hpcrl.models.observations import ImageObservations, OneHotObservations, VectorObservations
from hpcrl.models.parameters import FlatParameters, check_arrays
from hpcrl.models.stacked_mlp import StackedMlp
from hpcrl.models.statistics import ObservationStatistics, ValueStatistics

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Encoder = VectorObservations | OneHotObservations | ImageObservations

ROWS_PER_FORWARD = 32
"""Rows of one forward pass in `values`: matrix libraries pick other kernels for few rows, so the number is fixed."""


class ActorCritic(nn.Module):
    """What `Mlp.build` and `Cnn.build` give.

    All parameters lie in one flat f32 buffer, `flat`, and so do their gradients.  Everything that learning moves is in
    `arrays()`: parameters and the buffers of the statistics.  Acts on the CPU.
    """

    def __init__(
        self,
        encoder: Encoder,
        network: Network,
        distribution: ActionDistribution,
        observation_shape: tuple[int, ...],
        inference_autocast: Literal["bf16"] | None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network
        self.distribution = distribution
        self.value_statistics = ValueStatistics()
        self.observation_shape = observation_shape
        self.inference_autocast = inference_autocast
        self.random_kind: Literal["uniform", "normal"] = distribution.random_kind
        self.random_numbers_per_action = distribution.random_numbers_per_action
        self.flatten()

    flat: FlatParameters
    _infer: Inference
    _BOUND = ("flat", "_infer", "_encode", "_sample")

    def flatten(self) -> None:
        """Moves the parameters into one flat buffer; called whenever PyTorch gave them memory of their own."""
        order = [f"network.{name}" for name in self.network.parameter_order()]
        order += [f"distribution.{name}" for name, _ in self.distribution.named_parameters()]
        self.flat = FlatParameters(self, order)
        self._infer = self.network.inference(self.flat, "network.")
        # Called at every environment step: bound here, past nn.Module's hooks and attribute search.
        self._encode = self.encoder.forward
        self._sample = self.distribution.sample

    @property
    def stacked_mlp(self) -> StackedMlp | None:
        """The passes by hand, where the network is a multi-layer perceptron."""
        return self._infer if isinstance(self._infer, StackedMlp) else None

    @property
    def observation_statistics(self) -> ObservationStatistics | None:
        """None where observations are not normalised."""
        return self.encoder.statistics if isinstance(self.encoder, VectorObservations) else None

    def act(
        self, observations: Array, random_numbers: Array, *, greedy: bool = False
    ) -> tuple[Array, Float32, Float32]:
        """One forward pass over a block's rows, and one counted draw per row.

        Args:
            observations: [n, *observation_shape], raw.
            random_numbers: [n, random_numbers_per_action], uniform in [0, 1) or standard normal, by `random_kind`.
            greedy: the distribution's mode instead of a draw.
        Returns:
            actions (i64[n], i64[n, k] or f32[n, d]), log_probs f32[n], values f32[n].
        Raises:
            InputError: rows of another shape.  FloatingPointError: the policy's outputs are not finite.
        """
        if observations.shape[1:] != self.observation_shape:
            raise InputError(
                f"observations: want rows of {list(self.observation_shape)}, given {list(observations.shape)}"
            )
        policy_outputs, values = self._forward_rows(observations)
        actions, log_probs = self._sample(policy_outputs, random_numbers, greedy=greedy)
        return actions, log_probs, values

    def evaluate(
        self, observations: Tensor, actions: Tensor, *, normalized_values: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of given actions, entropies and values, each f32[n], with gradients.

        `normalized_values`: values in the scale of `value_statistics`, as a value loss wants them.
        """
        policy_outputs, values = self.network(self.encoder(observations))
        if policy_outputs.dtype == torch.bfloat16:
            policy_outputs, values = policy_outputs.float(), values.float()
        log_probs, entropies = self.distribution.log_probs_and_entropies(policy_outputs, actions)
        return log_probs, entropies, values if normalized_values else self.value_statistics.denormalize(values)

    def values(self, observations: Array) -> Float32:
        """V of raw observations [n, *observation_shape], f32[n]; a row's bits do not depend on the other rows."""
        result = np.empty(len(observations), np.float32)
        padded = np.zeros((ROWS_PER_FORWARD, *observations.shape[1:]), observations.dtype)
        for start in range(0, len(observations), ROWS_PER_FORWARD):
            rows = observations[start : start + ROWS_PER_FORWARD]
            padded[: len(rows)] = rows
            result[start : start + len(rows)] = self._forward_rows(padded)[1][: len(rows)]
        return result

    def reevaluate(self, observations: Array, actions: Array) -> tuple[Float32, Float32]:
        """Log-probabilities and values, f32[n] each, under the present parameters, without gradients.

        For advantages that are recomputed while learning; in passes of a fixed number of rows, like `values`.
        """
        log_probs, values = np.empty(len(actions), np.float32), np.empty(len(actions), np.float32)
        padded = np.zeros((ROWS_PER_FORWARD, *observations.shape[1:]), observations.dtype)
        padded_actions = np.zeros((ROWS_PER_FORWARD, *actions.shape[1:]), actions.dtype)
        for start in range(0, len(actions), ROWS_PER_FORWARD):
            rows = slice(start, min(start + ROWS_PER_FORWARD, len(actions)))
            count = rows.stop - start
            padded[:count], padded_actions[:count] = observations[rows], actions[rows]
            policy_outputs, padded_values = self._forward_rows(padded)
            with torch.inference_mode():
                padded_log_probs, _ = self.distribution.log_probs_and_entropies(
                    torch.from_numpy(policy_outputs), torch.from_numpy(padded_actions)
                )
            log_probs[rows], values[rows] = padded_log_probs.numpy()[:count], padded_values[:count]
        return log_probs, values

    def advance_value_statistics(self, sums: Float64, *, popart: bool, step: float | None = None) -> None:
        """Moves the scale of the value targets by one batch of returns, (n, sum, sum of squares) f64[3].

        `popart=False`: predictions jump with the scale.  `popart=True` rescales the value head so that they stay:
        w' = w s / s', b' = (s b + m - m') / s'  (van Hasselt et al. 2016, arXiv:1602.07714, eqs. 7 and 8).
        `step` as in RunningStatistics.advance.
        """
        old_shift, old_scale = self.value_statistics.shift, self.value_statistics.scale
        self.value_statistics.advance(sums, step=step)
        if popart:
            shift, scale = self.value_statistics.shift, self.value_statistics.scale
            head = self.network.value_head
            with torch.no_grad():
                head.weight.copy_(head.weight.double() * (old_scale / scale))
                head.bias.copy_((head.bias.double() * old_scale + (old_shift - shift)) / scale)

    def arrays(self) -> dict[str, Array]:
        """Parameters (f32) and statistics (f64) by name, copied: what a checkpoint holds."""
        return {name: tensor.cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Takes what `arrays()` gave; refuses other names or shapes and then changes nothing."""
        own = self.state_dict()
        check_arrays(own, arrays)
        self.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zeros the flat gradient buffer; gradients stay views of it, so `set_to_none` has no effect."""
        self.flat.zero_gradients()

    def _forward_rows(self, observations: Array) -> tuple[Float32, Float32]:
        """Policy outputs and values in their own scale, without gradients."""
        with torch.inference_mode():
            encoded = self._encode(self._rows(observations))
            if self.inference_autocast is None:
                policy_outputs, values = self._infer(encoded)
            else:
                with torch.autocast("cpu", torch.bfloat16):
                    policy_outputs, values = (output.float() for output in self._infer(encoded))
            return policy_outputs.numpy(), self.value_statistics.denormalize(values).numpy()

    def _rows(self, observations: Array) -> Tensor:
        """Observations as a tensor in one memory order, whatever order they came in.

        Rows in another memory order (a transposed engine state) take another matrix kernel below 16 rows, 1e-7 apart;
        an array read back from a shard must give the bits of the one that an engine handed out.
        """
        if not isinstance(self.encoder, ImageObservations):
            return torch.from_numpy(np.ascontiguousarray(observations))
        # The encoder wants the channels innermost. Frame by frame, while they are bytes, takes a quarter of the time
        # that PyTorch takes to turn them round and to f32 in one call.
        rows = np.empty((len(observations), *observations.shape[2:], observations.shape[1]), observations.dtype)
        for frame in range(observations.shape[1]):
            rows[..., frame] = observations[:, frame]
        return torch.from_numpy(rows).permute(0, 3, 1, 2)

    def _apply(self, fn: Any, recurse: bool = True) -> ActorCritic:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Views do not survive copying and pickling; they are taken anew."""
        return {name: value for name, value in self.__dict__.items() if name not in self._BOUND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.flatten()
