"""Keys and values of sequences that are being decoded: fixed blocks from one pool, and attention over them.

A sequence's attention is computed block by block, each a matrix product of one shape, and added up in the order of
positions. So its bits depend on its own keys alone: not on its neighbours, their lengths, or where its blocks lie.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcrl.models.language.architecture import Architecture

Int64 = npt.NDArray[np.int64]

KEYS_PER_BLOCK = 32
_NULL_BLOCK = 0
"""Never given out and always zero: what stands behind the last block of a shorter sequence, where nothing is seen."""


@dataclass(frozen=True)
class AttentionPlan:
    """Which queries meet which blocks, the same for all layers with one window.

    Queries come in N groups of M; a pair is one group and one block. Pair 0 is of the null block.
    """

    blocks: Tensor | None
    """i64[P x kv_heads], the rows of the pool that each pair's keys are; None: those of block p for pair p."""
    owners: Tensor
    """i64[P], the query group of each pair."""
    table: Tensor
    """i64[n x N]: of each group its first pair in the order of positions, then of each its second, ...; 0 behind the
    last."""
    bias: Tensor
    """[P x kv_heads, M, KEYS_PER_BLOCK]: 0 for a key that is seen, else -inf."""


def attend_blocks(
    q: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, *, scale: float, soft_cap: float | None
) -> Tensor:
    """softmax(cap(scale q k^T)) v of each query over the keys that its plan lets it see.

    Args:
        q: [N, kv_heads, M, d].  keys, values: [blocks x kv_heads, KEYS_PER_BLOCK, d].
        scale, soft_cap: as `attend` has them.
    Returns:
        [N, kv_heads, M, d].
    """
    num_pairs, (num_groups, kv_heads, num_queries, head_dim) = len(plan.owners), q.shape
    num_matrices, by_pair, given_dtype = num_pairs * kv_heads, (num_pairs, kv_heads * num_queries), q.dtype
    if plan.blocks is None:
        k, v = keys[:num_matrices], values[:num_matrices]
    else:
        k, v = keys.index_select(0, plan.blocks), values.index_select(0, plan.blocks)
    arithmetic = attention_dtype(given_dtype, q.device)
    if arithmetic != given_dtype:
        q, k, v = q.to(arithmetic), k.to(arithmetic), v.to(arithmetic)
    queries = q.index_select(0, plan.owners).view(num_matrices, num_queries, head_dim)
    if soft_cap is None:
        scores = torch.baddbmm(plan.bias, queries, k.transpose(1, 2), alpha=scale)
    else:
        scores = soft_cap * torch.tanh(torch.bmm(queries, k.transpose(1, 2)) * (scale / soft_cap)) + plan.bias
    largest = _of_groups(scores.amax(-1).view(by_pair), plan.table, num_groups).amax(0)
    # Pairs of the null block are all -inf: their weights are 0 exactly, and adding 0 changes no bits.
    weights = scores.sub_(largest.index_select(0, plan.owners).view(num_matrices, num_queries, 1)).exp_()
    totals = _of_groups(weights.sum(-1).view(by_pair), plan.table, num_groups).unbind()
    sums = _of_groups(torch.bmm(weights, v).view(num_pairs, -1), plan.table, num_groups).unbind()
    total, attended = totals[0], sums[0]
    for block_total, block_sum in zip(totals[1:], sums[1:], strict=True):
        total, attended = total + block_total, attended + block_sum
    attended = attended.view(q.shape) / total.view(num_groups, kv_heads, num_queries, 1)
    return attended if arithmetic == given_dtype else attended.to(given_dtype)


def _of_groups(pairs: Tensor, table: Tensor, num_groups: int) -> Tensor:
    """[n, N, columns] of [P, columns]."""
    return pairs.index_select(0, table).view(-1, num_groups, pairs.shape[1])


def attention_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of the products in `attend_blocks`: f32 for bf16 on a CPU.

    For bf16, PyTorch there chooses the library by the size of the whole batch (measured: other bits).
    """
    return torch.float32 if dtype == torch.bfloat16 and device.type == "cpu" else dtype


class BlockPool:
    """The blocks of all layers that have one window: who owns which, and their keys and values.

    Args:
        layers: their indices.
        window: keys a query sees, its own included; None: all.
        num_slots: sequences at a time.
        num_blocks: to begin with; the pool grows by half when it is full.
    """

    def __init__(
        self,
        layers: Sequence[int],
        window: int | None,
        num_slots: int,
        num_blocks: int,
        *,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers, self.window = tuple(layers), window
        self._shape, self._dtype, self._device = (kv_heads, KEYS_PER_BLOCK, head_dim), dtype, device
        self._capacity, self._num_given = 1 + num_blocks, 0
        self._free = list(range(1, 1 + num_blocks))  # a heap
        self.keys = [self._new_blocks(self._capacity) for _ in layers]
        self.values = [self._new_blocks(self._capacity) for _ in layers]
        self._tables = np.zeros((num_slots, 8), np.int64)  # block of each 32 positions; 0: none
        self._first, self._end = np.zeros(num_slots, np.int64), np.zeros(num_slots, np.int64)
        # Row 33 low + high: keys low, ..., high - 1 of a block are seen.
        key, low, high = np.arange(KEYS_PER_BLOCK), np.arange(KEYS_PER_BLOCK + 1), np.arange(KEYS_PER_BLOCK + 1)
        seen = (key >= low[:, None, None]) & (key < high[:, None])
        bias = np.where(seen, 0.0, -np.inf).reshape(-1, KEYS_PER_BLOCK)
        self._bias = torch.from_numpy(bias).to(device, attention_dtype(dtype, device))

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block in all layers."""
        return 2 * len(self.layers) * int(np.prod(self._shape)) * self._dtype.itemsize

    @property
    def allocated_bytes(self) -> int:
        return self._capacity * self.block_bytes

    @property
    def used_bytes(self) -> int:
        """Of blocks that sequences own."""
        return self._num_given * self.block_bytes

    def reserve(self, slot: int, start: int, stop: int) -> None:
        """Makes room for positions below `stop`; the next queries come from position `start` on."""
        if self.window is not None:
            visible = max(start - self.window + 1, 0) // KEYS_PER_BLOCK
            for place in range(int(self._first[slot]), min(visible, int(self._end[slot]))):
                self._take_back(slot, place)
            self._first[slot] = max(self._first[slot], visible)
        wanted = -(-stop // KEYS_PER_BLOCK)
        if wanted > self._tables.shape[1]:
            wider = np.zeros((len(self._tables), 2 * wanted), np.int64)
            wider[:, : self._tables.shape[1]] = self._tables
            self._tables = wider
        for place in range(int(self._end[slot]), wanted):
            if not self._free:
                self._grow()
            # The smallest, so that the blocks in use lie close together.
            self._tables[slot, place] = heapq.heappop(self._free)
            self._num_given += 1
        self._end[slot] = max(self._end[slot], wanted)

    def release(self, slot: int) -> None:
        """Gives all blocks of a sequence back."""
        for place in range(int(self._first[slot]), int(self._end[slot])):
            self._take_back(slot, place)
        self._first[slot] = self._end[slot] = 0

    def copy(self, source: int, target: int) -> None:
        """Gives an empty slot what another one holds."""
        first, end = int(self._first[source]), int(self._end[source])
        self._first[target] = self._end[target] = first
        self.reserve(target, first * KEYS_PER_BLOCK, end * KEYS_PER_BLOCK)
        self._first[target] = first
        old, new = (
            torch.from_numpy(self._tables[slot, first:end].copy()).to(self._device) for slot in (source, target)
        )
        for pool in (*self.keys, *self.values):
            blocks = pool.view(-1, *self._shape)
            blocks[new] = blocks[old]

    def places(self, slots: Int64, positions: Int64) -> tuple[Tensor, Tensor]:
        """Where keys and values are written: rows i64[n, kv_heads] of the pool, and places inside i64[n, 1]."""
        blocks = self._tables[slots, positions // KEYS_PER_BLOCK]
        return self._on_device(self._rows_of(blocks)), self._on_device(positions[:, None] % KEYS_PER_BLOCK)

    def write(self, layer: int, places: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> None:
        """Puts k and v [n, kv_heads, d] where `places` says; layer counts within `layers`."""
        self.keys[layer][places] = k
        self.values[layer][places] = v

    def _rows_of(self, blocks: Int64) -> Int64:
        """i64[n, kv_heads]."""
        kv_heads = self._shape[0]
        return blocks[:, None] * kv_heads + np.arange(kv_heads)

    def plan_single(self, slots: Int64, positions: Int64, queries_per_position: int) -> AttentionPlan:
        """One query position per sequence: N = len(slots), M = queries_per_position."""
        lowest = np.zeros_like(positions) if self.window is None else np.maximum(positions - (self.window - 1), 0)
        first, last = lowest // KEYS_PER_BLOCK, positions // KEYS_PER_BLOCK
        place = first[:, None] + np.arange(int((last - first).max()) + 1)
        there = place <= last[:, None]
        table = np.where(there, self._tables[slots[:, None], np.minimum(place, last[:, None])], _NULL_BLOCK)
        base = place * KEYS_PER_BLOCK
        seen = (lowest[:, None] - base).clip(0, KEYS_PER_BLOCK) * (KEYS_PER_BLOCK + 1)
        seen += (positions[:, None] + 1 - base).clip(0, KEYS_PER_BLOCK)
        group, owned = np.nonzero(there)[0], table[there]
        num_blocks = int(owned.max()) + 1
        blocks = None
        # Blocks read where they lie, even if some are not these queries', beat blocks copied together.
        if num_blocks > 2 * len(owned) + 1:
            blocks = self._on_device(self._rows_of(np.concatenate(([_NULL_BLOCK], owned))).reshape(-1))
            owned, num_blocks = np.arange(1, len(owned) + 1), len(owned) + 1
            table[there] = owned
        owners, kinds = np.zeros(num_blocks, np.int64), np.zeros(num_blocks, np.int64)
        owners[owned], kinds[owned] = group, seen[there]
        bias = self._bias.index_select(0, self._on_device(np.repeat(kinds, self._shape[0]))).unsqueeze(1)
        return AttentionPlan(
            blocks,
            self._on_device(owners),
            self._on_device(table.T.reshape(-1)),
            bias.expand(-1, queries_per_position, -1).contiguous(),
        )

    def plan_blocks(self, slots: Int64, query_blocks: Int64, queries_per_position: int) -> AttentionPlan:
        """All query positions of one block per sequence: M = KEYS_PER_BLOCK x queries_per_position, in that order."""
        start = query_blocks * KEYS_PER_BLOCK
        lowest = np.zeros_like(start) if self.window is None else np.maximum(start - (self.window - 1), 0)
        first = lowest // KEYS_PER_BLOCK
        place = first[:, None] + np.arange(int((query_blocks - first).max()) + 1)
        there = place <= query_blocks[:, None]
        group = np.nonzero(there)[0]
        owned = np.concatenate(([_NULL_BLOCK], self._tables[slots[group], place[there]]))
        table = np.zeros(place.shape, np.int64)
        table[there] = np.arange(1, len(owned))
        ahead = (start[group] - place[there] * KEYS_PER_BLOCK)[:, None, None]
        distance = ahead + np.arange(KEYS_PER_BLOCK)[:, None] - np.arange(KEYS_PER_BLOCK)
        hidden = np.ones((len(owned), KEYS_PER_BLOCK, KEYS_PER_BLOCK), np.bool_)
        hidden[1:] = distance < 0 if self.window is None else (distance < 0) | (distance >= self.window)
        bias = torch.zeros(hidden.shape, dtype=self._bias.dtype, device=self._device)
        bias.masked_fill_(torch.from_numpy(hidden).to(self._device), -torch.inf)
        bias = bias.repeat_interleave(queries_per_position, dim=1)
        return AttentionPlan(
            self._on_device(self._rows_of(owned).reshape(-1)),
            self._on_device(np.concatenate(([0], group))),
            self._on_device(table.T.reshape(-1)),
            bias.repeat_interleave(self._shape[0], dim=0),
        )

    def _take_back(self, slot: int, place: int) -> None:
        heapq.heappush(self._free, int(self._tables[slot, place]))
        self._tables[slot, place] = _NULL_BLOCK
        self._num_given -= 1

    def _grow(self) -> None:
        added = max(32, self._capacity // 2)
        for pool in (self.keys, self.values):
            for layer, blocks in enumerate(pool):
                pool[layer] = torch.cat((blocks, self._new_blocks(added)))
        for block in range(self._capacity, self._capacity + added):
            heapq.heappush(self._free, block)
        self._capacity += added

    def _new_blocks(self, count: int) -> Tensor:
        # Zeros: a weight of 0 times whatever lies there must be 0.
        kv_heads, *shape = self._shape
        return torch.zeros((count * kv_heads, *shape), dtype=self._dtype, device=self._device)

    def _on_device(self, array: Int64) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class KeyValueCache:
    """Keys and values of up to `num_slots` sequences in all layers of a decoder; one pool for each window.

    Each pool begins with `num_blocks` blocks and grows by half when it is full.
    Example:
        >>> cache = KeyValueCache(Architecture.llama(10, num_layers=2), 4, dtype=torch.float32)
        >>> cache.reserve(0, 0, 33)
        >>> cache.used_bytes == 2 * 32 * cache.bytes_per_token
        True
    """

    def __init__(
        self,
        architecture: Architecture,
        num_slots: int,
        num_blocks: int = 0,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        layers_of: dict[int | None, list[int]] = {}
        for layer in range(architecture.num_layers):
            layers_of.setdefault(architecture.window(layer), []).append(layer)
        self.pools = [
            BlockPool(
                layers,
                window,
                num_slots,
                num_blocks,
                kv_heads=architecture.num_kv_heads,
                head_dim=architecture.head_dim,
                dtype=dtype,
                device=torch.device(device),
            )
            for window, layers in layers_of.items()
        ]
        self.place_of_layer = {
            layer: (number, place) for number, pool in enumerate(self.pools) for place, layer in enumerate(pool.layers)
        }
        """Layer -> number of its pool, place among the pool's layers."""

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return sum(pool.block_bytes for pool in self.pools) // KEYS_PER_BLOCK

    @property
    def allocated_bytes(self) -> int:
        """What the pools hold now; they grow by half when they are full."""
        return sum(pool.allocated_bytes for pool in self.pools)

    @property
    def used_bytes(self) -> int:
        """What sequences own: whole blocks of the positions that a later token can see."""
        return sum(pool.used_bytes for pool in self.pools)

    def reserve(self, slot: int, start: int, stop: int) -> None:
        """Makes room for positions below `stop` and drops what no query from `start` on can see."""
        for pool in self.pools:
            pool.reserve(slot, start, stop)

    def release(self, slot: int) -> None:
        """Empties a slot."""
        for pool in self.pools:
            pool.release(slot)

    def copy(self, source: int, target: int) -> None:
        """Gives an empty slot what another one holds: samples of one prompt."""
        for pool in self.pools:
            pool.copy(source, target)
