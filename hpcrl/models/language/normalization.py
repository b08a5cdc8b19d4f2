"""Root-mean-square and layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from hpcrl.models.language.architecture import Norm


class RmsNorm(nn.Module):
    """w x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    `one_plus`: (1 + w) in the place of w.  In f32 for bf16 rows; rounded before the product with w, with
    `one_plus` after it, as transformers' llama and gemma are.
    """

    def __init__(self, size: int, eps: float, *, one_plus: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.one_plus = eps, one_plus

    def initialize(self) -> None:
        """The identity but for scale."""
        nn.init.constant_(self.weight, 0.0 if self.one_plus else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.one_plus:
            return (normalized * (1.0 + self.weight.to(wide.dtype))).to(x.dtype)
        return normalized.to(x.dtype) * self.weight


class LayerNorm(nn.Module):
    """w (x - mean) / sqrt(variance + eps) + b over the last axis (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps

    def initialize(self) -> None:
        """The identity but for shift and scale."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def norm_layer(kind: Norm, size: int, eps: float) -> RmsNorm | LayerNorm:
    """The norm that an architecture names."""
    return LayerNorm(size, eps) if kind == "layer" else RmsNorm(size, eps, one_plus=kind == "rms_one_plus")
