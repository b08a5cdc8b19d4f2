"""Rotary position embeddings: the frequencies of each kind, and the rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpcrl.models.language.architecture import Rope


def inverse_frequencies(rope: Rope, head_dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Radians per position of each rotated pair, [head_dim / 2]: theta^(-2 i / head_dim), stretched as `rope` says.

    linear: all divided by factor.  llama3: those that turn less than low_freq_factor times within the original context
    divided by factor, more than high_freq_factor times kept, a ramp over frequencies between.  yarn (Peng et al. 2023,
    arXiv:2309.00071, section 3.2): the same from beta_slow to beta_fast turns, a ramp over dimensions.  dynamic: the
    default, up to max_positions.
    """
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2).to(dtype) / head_dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_max_positions
        assert low is not None
        assert high is not None
        assert original is not None
        turns = original * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return (1 - kept) * frequencies / rope.factor + kept * frequencies
    if rope.kind == "yarn":
        first, last = (_dimension_of_turns(rope, head_dim, turns) for turns in (rope.beta_fast, rope.beta_slow))
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        # A ramp of no width would divide by zero.
        width = last - first or 0.001
        stretched = ((torch.arange(head_dim // 2).to(dtype) - first) / width).clamp(0.0, 1.0)
        return stretched * frequencies / rope.factor + (1 - stretched) * frequencies
    return frequencies


def _dimension_of_turns(rope: Rope, head_dim: int, turns: float) -> float:
    """The pair that turns this often within the original context, a real number."""
    assert rope.original_max_positions is not None, "Rope checks it"
    wavelength = rope.original_max_positions / turns
    return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))


class RotaryTable:
    """Cosines and sines of all positions of a context, made once per device and dtype, shared by all layers.

    Angles are f32 (f64 for f64 queries), as transformers computes them, so that long contexts agree.
    """

    def __init__(self, rope: Rope, head_dim: int, context_length: int) -> None:
        self.rope, self.head_dim, self.context_length = rope, head_dim, context_length
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turns pair (i, i + d/2) of each head by positions x frequency_i; x [T, heads, d], positions i64[T].

        Positions must lie below `context_length`.
        """
        cosines, sines = self._table(x.device, x.dtype)
        cos, sin = cosines[positions].unsqueeze(1), sines[positions].unsqueeze(1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _table(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[context_length, d/2] each."""
        if (device, dtype) not in self._tables:
            angle_dtype = torch.float64 if dtype == torch.float64 else torch.float32
            # An inference-mode tensor could not be saved for a later backward pass.
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                frequencies = inverse_frequencies(self.rope, self.head_dim, angle_dtype)
                angles = torch.outer(torch.arange(self.context_length).to(angle_dtype), frequencies)
                tables = (angles.cos() * self.rope.magnitude, angles.sin() * self.rope.magnitude)
                self._tables[device, dtype] = (tables[0].to(device, dtype), tables[1].to(device, dtype))
        return self._tables[device, dtype]
