"""Causal attention over packed sequences: one function, three backends."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hpcrl.errors import InputError
from hpcrl.models.checks import check_member

Backend = Literal["per_sequence", "varlen", "masked"]


class PackedOffsets:
    """Where each sequence of a packed batch begins, read from the device once and then known on the host.

    Args:
        offsets: i64[S + 1] or a list, from 0 to T, never falling; a sequence may be empty.
    Raises:
        InputError: not such offsets.
    """

    def __init__(self, offsets: Tensor | Sequence[int]) -> None:
        values = [int(offset) for offset in (offsets.tolist() if isinstance(offsets, Tensor) else offsets)]
        if not values or values[0] != 0 or any(a > b for a, b in itertools.pairwise(values)):
            raise InputError(f"offsets: want integers from 0 that never fall, given {values[:8]}")
        self.offsets = values
        self.lengths = [b - a for a, b in itertools.pairwise(values)]
        self.longest = max(self.lengths, default=0)
        self.num_tokens = values[-1]
        self._on_devices: dict[torch.device, Tensor] = {}

    @classmethod
    def of(cls, offsets: PackedOffsets | Tensor | Sequence[int]) -> PackedOffsets:
        """As they are, or read."""
        return offsets if isinstance(offsets, PackedOffsets) else cls(offsets)

    def on(self, device: torch.device) -> Tensor:
        """The offsets as i32[S + 1] on a device, copied there once."""
        if device not in self._on_devices:
            self._on_devices[device] = torch.tensor(self.offsets, dtype=torch.int32, device=device)
        return self._on_devices[device]

    def positions(self, device: torch.device) -> Tensor:
        """i64[T]: each token's place in its sequence, from 0."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        starts = torch.repeat_interleave(torch.tensor(self.offsets[:-1], dtype=torch.int64), lengths)
        return (torch.arange(self.num_tokens) - starts).to(device)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: PackedOffsets | Tensor | Sequence[int],
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """softmax(cap(scale q k^T)) v within each sequence, [T, heads, d]; a query sees keys up to its own position.

    Query head h uses key and value head h // (heads / kv_heads).  Backends:

    - per_sequence: PyTorch's fused attention, one call per sequence (one in all where they are of one length); no soft
      cap.
    - varlen: `torch.nn.attention.varlen`, one call for all sequences; CUDA, bf16 or f16, no soft cap.  Not run on a GPU
      yet.
    - masked: the scores as matrices, one sequence at a time; the reference, takes everything.

    Args:
        q: [T, heads, d].  k, v: [T, kv_heads, d].
        offsets: i64[S + 1]; pass a PackedOffsets to all layers, so that the device is asked once per batch.
        window: keys a query sees, its own included; None: all before it.
        soft_cap: scores become soft_cap tanh(scores / soft_cap).
        backend: default: the first that can of varlen, per_sequence and masked.
    Raises:
        InputError: shapes that do not fit, or a backend that cannot do what is asked.
    Example: two sequences of 2 and 1 tokens; a first token sees itself alone.
        >>> v = torch.tensor([1.0, 3.0, 5.0]).reshape(3, 1, 1)
        >>> attend(torch.zeros(3, 1, 1), torch.zeros(3, 1, 1), v, [0, 2, 3], scale=1.0).flatten()
        tensor([1., 2., 5.])
    """
    packed = PackedOffsets.of(offsets)
    if not len(q) == len(k) == len(v) == packed.num_tokens or q.shape[1] % k.shape[1] or k.shape != v.shape:
        raise InputError(
            f"attention: want q [T, heads, d], k and v [T, kv_heads, d] with T = {packed.num_tokens} (= offsets[-1]) "
            f"and heads a multiple of kv_heads, given {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    chosen = _default_backend(q, soft_cap) if backend is None else backend
    check_member("attention backend", chosen, ("per_sequence", "varlen", "masked"))
    if chosen != "masked" and (problem := _problem(chosen, q, soft_cap)) is not None:
        raise InputError(f"attention backend {chosen!r}: {problem}; use backend='masked'")
    if packed.num_tokens == 0:
        return q
    if chosen == "varlen":
        return _varlen(q, k, v, packed, scale, window)
    if chosen == "per_sequence" and min(packed.lengths) == packed.longest:
        # Sequences of one length need one call; their bits are those of single calls.
        q, k, v = (tensor.reshape(-1, packed.longest, *tensor.shape[1:]) for tensor in (q, k, v))
        return _fused(q, k, v, scale=scale, window=window).flatten(0, 1)
    # `split` is one operation with one backward; a slice per sequence would write a whole gradient for each.
    parts = zip(*(torch.split(tensor, packed.lengths) for tensor in (q, k, v)), strict=True)
    if chosen == "per_sequence":
        single = (tuple(tensor.unsqueeze(0) for tensor in part) for part in parts)
        return torch.cat([_fused(*part, scale=scale, window=window).squeeze(0) for part in single])
    return torch.cat([_masked(*part, scale=scale, window=window, soft_cap=soft_cap) for part in parts])


def _default_backend(q: Tensor, soft_cap: float | None) -> Backend:
    """By device, dtype and cap alone: the lengths of other sequences must not move a sequence's bits."""
    fused: tuple[Backend, ...] = ("varlen", "per_sequence")
    return next((backend for backend in fused if _problem(backend, q, soft_cap) is None), "masked")


def _problem(backend: Backend, q: Tensor, soft_cap: float | None) -> str | None:
    """Why a fused backend cannot do it."""
    if soft_cap is not None:
        return "has no soft cap"
    if backend == "varlen" and not q.is_cuda:
        return f"wants a CUDA device, given {q.device.type}"
    if backend == "varlen" and q.dtype not in (torch.bfloat16, torch.float16):
        return f"wants bfloat16 or float16, given {q.dtype}"
    if backend == "varlen" and "window_size" not in _varlen_options():
        return f"wants a PyTorch whose varlen_attn has window_size, given {torch.__version__}"
    return None


@functools.cache
def _varlen_options() -> frozenset[str]:
    """Parameters of PyTorch's variable-length attention, which differ between releases; none where it is missing."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _fused(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
    """[sequences, tokens, heads, d], sequences of one length."""
    length, dtype = q.shape[1], q.dtype
    if length == 0:
        return q
    visible = _visible(length, window, q.device) if window is not None and window < length else None
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if dtype == torch.bfloat16 and not q.is_cuda:
        # PyTorch's CPU kernel takes three times as long in bf16, most of it on the way back.
        q, k, v = q.float(), k.float(), v.float()
    grouped = q.shape[1] != k.shape[1]
    attended = scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=visible is None, scale=scale, enable_gqa=grouped
    )
    return attended.transpose(1, 2).to(dtype)


def _masked(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, soft_cap: float | None) -> Tensor:
    length, heads, _ = q.shape
    k, v = _repeated(k, v, heads)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~_visible(length, window, q.device), -torch.inf)
    weights = torch.softmax(scores if scores.dtype == torch.float64 else scores.float(), dim=-1).to(v.dtype)
    return torch.einsum("hqk,khd->qhd", weights, v)


def _visible(length: int, window: int | None, device: torch.device) -> Tensor:
    """bool[length, length]: whether a query (row) sees a key (column)."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _repeated(k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Each key and value head once per query head that it serves."""
    return k.repeat_interleave(heads // k.shape[1], dim=1), v.repeat_interleave(heads // v.shape[1], dim=1)


def _varlen(q: Tensor, k: Tensor, v: Tensor, packed: PackedOffsets, scale: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets = packed.on(q.device)
    # (left, right) neighbours besides the token itself; (-1, 0) is causal without a window.
    neighbours = (-1 if window is None else window - 1, 0)
    options: dict[str, Any] = {"scale": scale, "window_size": neighbours}
    if "enable_gqa" in _varlen_options():
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        k, v = _repeated(k, v, q.shape[1])
    attended = varlen_attn(q, k, v, offsets, offsets, packed.longest, packed.longest, **options)
    assert isinstance(attended, Tensor), "return_aux alone gives more"
    return attended
