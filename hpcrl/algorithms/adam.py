"""Adam over one flat buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.errors import InputError
from hpcrl.models.parameters import FlatParameters

Array = npt.NDArray[np.generic]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdam:
    """Adam with decoupled weight decay, in seven operations whatever the number of tensors.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        p = (1 - lr decay) p - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + epsilon)

    Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1; decay: Loshchilov & Hutter 2019 (arXiv:1711.05101).
    Same numbers as torch.optim.Adam (AdamW with decay) in fp32.

    Args:
        flat: parameters and gradients; the gradients are scaled in place by clipping.
    """

    def __init__(
        self,
        flat: FlatParameters,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.flat = flat
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.num_steps = 0
        self.exp_avg: Tensor = torch.zeros_like(flat.values)
        self.exp_avg_sq: Tensor = torch.zeros_like(flat.values)
        self._denominators: Tensor = torch.empty_like(flat.values)

    def step(self, learning_rate: float, max_grad_norm: float | None = None) -> float:
        """Moves the parameters against their gradients, once.

        Args:
            learning_rate: >= 0.
            max_grad_norm: gradients of a larger global norm are scaled to it, by max / (norm + 1e-6) as
                torch.nn.utils.clip_grad_norm_ does (Pascanu et al. 2013, arXiv:1211.5063); None: never.
        Returns:
            The norm before clipping.
        Raises:
            FloatingPointError: a gradient is not finite; nothing has moved.
        """
        gradients = self.flat.gradients
        norm = float(torch.linalg.vector_norm(gradients))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"gradients: want a finite norm, given {norm}; lower learning_rate or max_grad_norm, "
                "and look at the rewards and advantages of this iteration"
            )
        if max_grad_norm is not None and norm + 1e-6 > max_grad_norm:
            gradients.mul_(max_grad_norm / (norm + 1e-6))
        self.num_steps += 1
        beta1, beta2 = self.betas
        step_size = learning_rate / (1.0 - beta1**self.num_steps)
        correction = math.sqrt(1.0 - beta2**self.num_steps)
        with torch.inference_mode():
            if self.weight_decay > 0.0:
                self.flat.values.mul_(1.0 - learning_rate * self.weight_decay)
            self.exp_avg.lerp_(gradients, 1.0 - beta1)
            self.exp_avg_sq.mul_(beta2).addcmul_(gradients, gradients, value=1.0 - beta2)
            torch.sqrt(self.exp_avg_sq, out=self._denominators)
            self._denominators.div_(correction).add_(self.epsilon)
            self.flat.values.addcdiv_(self.exp_avg, self._denominators, value=-step_size)
        return norm

    def arrays(self) -> dict[str, Array]:
        """State by parameter name, copied: `<parameter>.exp_avg` and `.exp_avg_sq` f32, `num_steps` i64[1]."""
        state: dict[str, Array] = {"num_steps": np.array([self.num_steps], np.int64)}
        for moment in _MOMENTS:
            for name, array in self.flat.arrays(getattr(self, moment)).items():
                state[f"{name}.{moment}"] = array
        return state

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Takes what `arrays()` gave, whatever the layout it was made in; refuses other names or shapes."""
        wanted = {f"{name}.{moment}": shape for name, shape in self.flat.shapes.items() for moment in _MOMENTS}
        wanted["num_steps"] = (1,)
        for name in sorted(wanted.keys() | arrays.keys()):
            if name not in arrays or name not in wanted or arrays[name].shape != wanted[name]:
                want = list(wanted[name]) if name in wanted else "no such array"
                given = list(arrays[name].shape) if name in arrays else "none"
                raise InputError(f"optimiser state: {name}: want {want}, given {given}; open it with its own model")
        self.num_steps = int(arrays["num_steps"].item())
        for moment in _MOMENTS:
            buffer: Tensor = getattr(self, moment)
            for name in self.flat.names:
                self.flat.view(buffer, name).copy_(torch.tensor(arrays[f"{name}.{moment}"]))
