"""From the observations an environment gives to the f32 rows a network takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hpcrl.errors import InputError
from hpcrl.models.statistics import ObservationStatistics

if TYPE_CHECKING:
    from hpcrl.envs import Space


class VectorObservations(nn.Module):
    """Flattens [n, *shape] to f32[n, size]; with statistics, normalises it."""

    def __init__(self, shape: tuple[int, ...], normalize: bool) -> None:
        super().__init__()
        self.size = math.prod(shape)
        self.statistics = ObservationStatistics(self.size) if normalize else None

    def forward(self, observations: Tensor) -> Tensor:
        flat = observations.reshape(len(observations), self.size).float()
        if self.statistics is None:
            return flat
        normalized: Tensor = self.statistics(flat)
        return normalized


class OneHotObservations(nn.Module):
    """Integers [n] or [n, k] to their one-hot codes beside each other, f32[n, sum of nvec]."""

    starts: Tensor

    def __init__(self, nvec: tuple[int, ...]) -> None:
        super().__init__()
        self.size = sum(nvec)
        starts = torch.tensor([sum(nvec[:i]) for i in range(len(nvec))])
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        columns = observations.reshape(len(observations), -1).long() + self.starts
        return torch.zeros(len(observations), self.size, device=columns.device).scatter_(1, columns, 1.0)


class ImageObservations(nn.Module):
    """u8[n, k, height, width] to f32 in [0, 1], the channels innermost in memory: convolutions then learn faster."""

    def forward(self, observations: Tensor) -> Tensor:
        return observations.to(torch.float32, memory_format=torch.channels_last).mul_(1.0 / 255.0)


def flat_observations(space: Space, *, normalize: bool) -> VectorObservations | OneHotObservations:
    """How a multi-layer perceptron reads a space."""
    if space.kind == "box":
        return VectorObservations(tuple(int(extent) for extent in space.shape), normalize)
    if normalize:
        raise InputError(
            f"normalize_observations: want a box observation space, given {space.kind}, "
            "which is one-hot coded; leave it out"
        )
    if space.kind == "discrete" and space.n is not None:
        return OneHotObservations((space.n,))
    if space.kind == "multi_discrete" and space.nvec is not None:
        return OneHotObservations(tuple(int(count) for count in space.nvec))
    raise InputError(f"observation space: want box, discrete (n) or multi_discrete (nvec), given {space}")


def image_shape(space: Space) -> tuple[int, int, int]:
    """(frames, height, width) of a stack of u8 images, checked."""
    if space.kind != "box" or len(space.shape) != 3 or space.dtype != "uint8":
        raise InputError(
            f"Cnn: want observations u8[frames, height, width], given {space.kind} {space.dtype}{list(space.shape)}; "
            "use Mlp(...) for vectors"
        )
    frames, height, width = (int(extent) for extent in space.shape)
    if min(height, width) < 36:
        raise InputError(f"Cnn: want images of at least 36 x 36, given {height} x {width}; use Mlp(...) for small ones")
    return frames, height, width
