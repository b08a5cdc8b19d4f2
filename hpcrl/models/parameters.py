"""One flat buffer for a module's parameters and one for their gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hpcrl.errors import InputError

Float32 = npt.NDArray[np.float32]


class FlatParameters:
    """Moves a module's parameters into one f32 buffer; they, and their gradients, become views of it.

    A module in f64 gets an f64 buffer, for tests: the types say f32.  An optimiser then needs a handful of operations
    however many tensors there are, the reduction tree sums one array, and neighbours of equal shape can be seen as one
    stacked tensor (`stack`).

    Args:
        module: its parameters are moved, values kept; all must be f32, or all f64, and on one device.
        order: parameter names in the order of the buffer; default: the module's own.
    """

    def __init__(self, module: nn.Module, order: Sequence[str] | None = None) -> None:
        parameters = dict(module.named_parameters())
        self.names: tuple[str, ...] = tuple(parameters if order is None else order)
        if sorted(self.names) != sorted(parameters):
            raise InputError(f"order: want each of {sorted(parameters)} once, given {sorted(self.names)}")
        self.shapes = {name: tuple(parameters[name].shape) for name in self.names}
        ends = np.cumsum([0] + [math.prod(self.shapes[name]) for name in self.names])
        self.slices = {name: slice(int(ends[i]), int(ends[i + 1])) for i, name in enumerate(self.names)}
        with torch.no_grad():
            self.values: Tensor = torch.cat([parameters[name].detach().reshape(-1) for name in self.names])
        dtypes = {parameter.dtype for parameter in parameters.values()}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
            given = ", ".join(sorted(map(str, dtypes)))
            raise InputError(f"parameters: want all float32 or all float64, given {given}; convert with .float()")
        self.gradients: Tensor = torch.zeros_like(self.values)
        for name, parameter in parameters.items():
            parameter.data = self.view(self.values, name)
            parameter.grad = self.view(self.gradients, name)

    @property
    def size(self) -> int:
        """Number of scalars."""
        return self.values.numel()

    def view(self, buffer: Tensor, name: str) -> Tensor:
        """The part of a flat buffer that belongs to one parameter, in its shape; shares memory."""
        return buffer[self.slices[name]].view(self.shapes[name])

    def stack(self, buffer: Tensor, names: Sequence[str]) -> Tensor:
        """Parameters of one shape that lie next to each other, as [len(names), *shape]; shares memory."""
        first, last, shape = self.slices[names[0]], self.slices[names[-1]], self.shapes[names[0]]
        assert last.stop - first.start == len(names) * math.prod(shape), "names must be neighbours of one shape"
        return buffer[first.start : last.stop].view(len(names), *shape)

    def zero_gradients(self) -> None:
        """Before the first backward pass of an optimiser step; passes that follow add up."""
        self.gradients.zero_()

    def gradients_array(self) -> Float32:
        """The gradients as f32[size], sharing memory: read it after a backward pass, or write a sum over ranks."""
        array: Float32 = self.gradients.numpy()
        return array

    def arrays(self, buffer: Tensor) -> dict[str, Float32]:
        """A flat buffer by parameter name, copied: for a checkpoint, which knows no layout."""
        return {name: self.view(buffer, name).cpu().numpy().copy() for name in self.names}


def check_arrays(own: Mapping[str, Tensor], arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Compares a checkpoint's arrays with a model's own state, by name and shape.

    Raises: InputError for names or shapes that differ.
    """
    if missing := sorted(own.keys() - arrays.keys()):
        raise InputError(
            f"checkpoint: want {', '.join(missing)}, which it lacks; open it with the model it was made with"
        )
    if unknown := sorted(arrays.keys() - own.keys()):
        raise InputError(f"checkpoint: holds {', '.join(unknown)}, which this model lacks; open it with its own model")
    for name, tensor in own.items():
        if arrays[name].shape != tuple(tensor.shape):
            raise InputError(f"checkpoint: {name}: want {list(tensor.shape)}, given {list(arrays[name].shape)}")
