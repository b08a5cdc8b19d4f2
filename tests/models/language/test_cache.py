"""Blocks of keys and values: attention over them against one softmax, windows, slots that come and go, bytes."""

import numpy as np
import pytest
import torch

from hpcrl.models.language import Architecture
from hpcrl.models.language.attention import attend
from hpcrl.models.language.cache import KEYS_PER_BLOCK, KeyValueCache, attend_blocks

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8
GROUP = HEADS // KV_HEADS


def architecture(*windows: int | None) -> Architecture:
    return Architecture(
        vocab_size=10,
        hidden_size=48,
        intermediate_size=64,
        num_layers=len(windows),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_positions=1000,
        windows=windows,
    )


def cache_of(*windows: int | None, num_slots: int = 6, dtype=torch.float64) -> KeyValueCache:
    return KeyValueCache(architecture(*windows), num_slots, dtype=dtype)


def random_keys(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [length, heads, d], k and v [length, kv_heads, d]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((length, HEADS, HEAD_DIM), (length, KV_HEADS, HEAD_DIM), (length, KV_HEADS, HEAD_DIM))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def fill(cache: KeyValueCache, slot: int, k: torch.Tensor, v: torch.Tensor, start: int = 0) -> None:
    """Writes positions start, start + 1, ... one after the other, as decoding does."""
    for position in range(start, start + len(k)):
        cache.reserve(slot, position, position + 1)
        for pool in cache.pools:
            places = pool.places(np.array([slot]), np.array([position]))
            for layer in range(len(pool.layers)):
                pool.write(
                    layer,
                    places,
                    k[position - start : position - start + 1],
                    v[position - start : position - start + 1],
                )


def attended_single(pool, slots, positions, q, **options) -> torch.Tensor:
    plan = pool.plan_single(np.array(slots), np.array(positions), GROUP)
    queries = q.reshape(len(slots), KV_HEADS, GROUP, HEAD_DIM)
    return attend_blocks(queries, pool.keys[0], pool.values[0], plan, **options).reshape(len(slots), HEADS, HEAD_DIM)


def attended_last(q, k, v, **options) -> torch.Tensor:
    """Of the last position, by the masked reference."""
    return attend(q, k, v, [0, len(q)], backend="masked", **options)[-1]


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, 32, 33, 70])
def test_one_query_of_each_sequence(window, soft_cap):
    cache, lengths, options = cache_of(window), [1, 31, 32, 33, 64, 150], {"scale": 0.3, "soft_cap": soft_cap}
    given = [random_keys(length, seed) for seed, length in enumerate(lengths)]
    for slot, (_, k, v) in enumerate(given):
        fill(cache, slot, k, v)
    slots = [4, 0, 5, 2, 1, 3]
    queries = torch.stack([given[slot][0][-1] for slot in slots])
    got = attended_single(cache.pools[0], slots, [lengths[slot] - 1 for slot in slots], queries, **options)
    for row, slot in enumerate(slots):
        torch.testing.assert_close(got[row], attended_last(*given[slot], window=window, **options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
def test_all_queries_of_a_block(window, soft_cap):
    cache, options = cache_of(window, num_slots=2), {"scale": 0.3, "soft_cap": soft_cap}
    given = [random_keys(length, seed) for seed, length in enumerate((96, 64))]
    for slot, (_, k, v) in enumerate(given):
        cache.reserve(slot, 0, len(k))
        places = cache.pools[0].places(np.full(len(k), slot), np.arange(len(k)))
        cache.pools[0].write(0, places, k, v)
    units = [(0, 2), (1, 1), (0, 0)]
    queries = torch.stack([given[slot][0][block * KEYS_PER_BLOCK :][:KEYS_PER_BLOCK] for slot, block in units])
    queries = (
        queries.view(3, KEYS_PER_BLOCK, KV_HEADS, GROUP, HEAD_DIM).transpose(1, 2).reshape(3, KV_HEADS, -1, HEAD_DIM)
    )
    plan = cache.pools[0].plan_blocks(*np.array(units).T, GROUP)
    got = attend_blocks(queries, cache.pools[0].keys[0], cache.pools[0].values[0], plan, **options)
    got = got.view(3, KV_HEADS, KEYS_PER_BLOCK, GROUP, HEAD_DIM).transpose(1, 2).reshape(3, -1, HEADS, HEAD_DIM)
    for row, (slot, block) in enumerate(units):
        q, k, v = given[slot]
        wanted = attend(q, k, v, [0, len(q)], window=window, backend="masked", **options)
        wanted = wanted[block * KEYS_PER_BLOCK :][:KEYS_PER_BLOCK]
        torch.testing.assert_close(got[row], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sequences_bits_depend_on_its_own_keys_alone(dtype):
    """Alone in a fresh cache; beside others; in blocks that others left; in a pool so sparse that blocks are copied."""
    q, k, v = (tensor.to(dtype) for tensor in random_keys(100, 3))

    def bits(cache, slot, others=()) -> torch.Tensor:
        slots, positions = [*others, slot], [10] * len(others) + [99]
        return attended_single(cache.pools[0], slots, positions, q[-len(slots) :], scale=0.3, soft_cap=None)[-1]

    alone = cache_of(None, dtype=dtype)
    fill(alone, 0, k, v)
    wanted = bits(alone, 0)
    busy = cache_of(None, dtype=dtype)
    for slot in (0, 1, 2, 4):
        _, other_k, other_v = (tensor.to(dtype) for tensor in random_keys(300 - slot, slot))
        fill(busy, slot, other_k, other_v)
        if slot == 1:
            busy.release(0)
    fill(busy, 3, k, v)
    assert torch.equal(bits(busy, 3, others=[4, 1, 2]), wanted)
    assert torch.equal(bits(busy, 3), wanted)
    busy.copy(3, 5)
    busy.release(3)
    assert torch.equal(bits(busy, 5, others=[1]), wanted)


def test_slots_are_emptied_and_blocks_used_again():
    cache = cache_of(None, None)
    _, k, v = random_keys(65, 0)
    fill(cache, 0, k, v)
    allocated = cache.allocated_bytes
    assert cache.used_bytes == 3 * KEYS_PER_BLOCK * cache.bytes_per_token
    assert cache.bytes_per_token == 2 * 2 * KV_HEADS * HEAD_DIM * 8
    for _ in range(5):
        cache.release(0)
        assert cache.used_bytes == 0
        fill(cache, 1, k, v)
        cache.release(1)
        fill(cache, 0, k, v)
    assert cache.allocated_bytes == allocated


def test_windows_drop_what_no_later_query_sees():
    cache = cache_of(None, 40)
    _, k, v = random_keys(500, 0)
    fill(cache, 0, k, v)
    whole, windowed = cache.pools
    assert whole.used_bytes == 16 * whole.block_bytes
    assert windowed.used_bytes <= 3 * windowed.block_bytes
    cache.copy(0, 1)
    assert windowed.used_bytes <= 6 * windowed.block_bytes
    cache.release(0)
    cache.release(1)
    assert cache.used_bytes == 0


def test_keys_that_are_no_numbers_stay_with_their_sequence():
    cache = cache_of(None)
    q, k, v = random_keys(40, 1)
    fill(cache, 0, k, v)
    fill(cache, 1, torch.full_like(k, torch.nan), v)
    got = attended_single(cache.pools[0], [0], [39], q[-1:], scale=0.3, soft_cap=None)
    torch.testing.assert_close(got[0], attended_last(q, k, v, scale=0.3), rtol=0, atol=1e-12)
