"""The recurrences on a GPU through Python: PyTorch and CuPy arrays, the oracle, streams, graphs, memory, latency."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from batches import OPS, Batch, Op, ragged

from hpcrl import _kernels
from hpcrl.errors import InputError
from hpcrl.ops.recurrence import gae

TOLERANCE = 1e-6
BF16_EXACT = np.uint32(0xFFFF0000)  # mask: numbers that bfloat16 holds
LENGTHS = [3, 0, 1, 31, 32, 33, 2047, 2048, 2049, 0, 5000, 64, 64, 1]


def why_not() -> str | None:
    """What keeps the tests from running here; None when a GPU answers."""
    if not _kernels.WITH_CUDA:
        return "hpcrl was built without CUDA"
    torch = pytest.importorskip("torch")
    return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"


@pytest.fixture(autouse=True)
def need_gpu() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


pytestmark = pytest.mark.gpu
every_op = pytest.mark.parametrize("op", OPS, ids=[op.name for op in OPS])


def to_torch(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def to_cupy(array: Any) -> Any:
    return pytest.importorskip("cupy").asarray(array)


def to_numpy(array: Any) -> np.ndarray:
    return array.cpu().numpy() if hasattr(array, "cpu") else array.get()


def assert_oracle(op: Op, batch: Batch, arrays: tuple[Any, ...]) -> None:
    for array, wanted in zip(arrays, op.oracle(batch), strict=True):
        assert reference.relative_difference(to_numpy(array), wanted) < TOLERANCE


# ---- Numbers ------------------------------------------------------------------------------------------------------


@every_op
@pytest.mark.parametrize("to_device", [to_torch, to_cupy], ids=["torch", "cupy"])
@pytest.mark.parametrize("lengths", [[1], [0, 0], LENGTHS, [700_000, 2]], ids=["one", "empty", "ragged", "long"])
def test_matches_the_oracle(op: Op, to_device: Callable[[Any], Any], lengths: list[int]) -> None:
    batch = ragged(lengths)
    moments = to_device(np.full(3, np.nan))
    arrays = op.run(batch.map(to_device), moments_out=moments)
    assert_oracle(op, batch, arrays)
    first = to_numpy(arrays[0]).astype(np.float64)
    n, total, squares = to_numpy(moments)
    assert n == len(first)
    assert total == pytest.approx(first.sum(), rel=1e-10, abs=1e-8)
    assert squares == pytest.approx((first**2).sum(), rel=1e-10)


@every_op
def test_bfloat16_inputs(op: Op) -> None:
    import torch

    batch = ragged(LENGTHS).with_dtype(lambda a: (a.view(np.uint32) & BF16_EXACT).view(np.float32))
    halves = batch.map(to_torch).with_dtype(lambda a: a.to(torch.bfloat16))
    assert_oracle(op, batch, op.run(halves))


@every_op
@pytest.mark.parametrize("skew", [1, 2, 3])
def test_views_off_the_16_byte_border(op: Op, skew: int) -> None:
    import torch

    batch = ragged(LENGTHS)

    def skewed(array: Any) -> Any:
        return torch.cat([torch.zeros(skew, dtype=array.dtype, device="cuda"), array])[skew:]

    assert_oracle(op, batch, op.run(batch.map(to_torch).with_dtype(skewed)))


@every_op
def test_every_run_gives_the_same_bits(op: Op) -> None:
    batch = ragged([17, 2_000_000, 900, 64]).map(to_torch)
    first = [to_numpy(array) for array in op.run(batch)]
    for _ in range(20):
        assert all(np.array_equal(to_numpy(a), b) for a, b in zip(op.run(batch), first, strict=True))


def test_nan_stays_in_its_trajectory() -> None:
    batch = ragged([300, 5000, 40])
    batch.rewards[5299] = np.nan
    advantages, _ = OPS[0].run(batch.map(to_torch))
    is_nan = np.isnan(to_numpy(advantages))
    assert is_nan[300:5300].all()
    assert not is_nan[:300].any()
    assert not is_nan[5300:].any()


def test_a_million_short_trajectories() -> None:
    rng = np.random.default_rng(0)
    batch = ragged(list(rng.integers(0, 4, 1_000_000)))
    arrays = OPS[2].run(batch.map(to_torch))  # reward_to_go: its oracle is quick
    assert_oracle(OPS[2], batch, arrays)


# ---- Streams, graphs, memory --------------------------------------------------------------------------------------


def packed(batch: Batch) -> tuple[Any, ...]:
    return batch.rewards, batch.values, batch.bootstrap_values, batch.offsets


def test_runs_on_the_callers_stream() -> None:
    """The stream sleeps, then its rewards change: a launch on any other stream would have read the old ones."""
    import torch

    batch = ragged([100_000])
    device = batch.map(to_torch)
    changed = device.rewards + 1.0
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        device.rewards.copy_(changed, non_blocking=True)
        advantages, _ = gae(*packed(device), gamma=0.99, gae_lambda=0.95)
        assert not stream.query(), "the call waited for the GPU"
    stream.synchronize()
    batch.rewards[:] += 1.0
    wanted = reference.gae(*packed(batch), gamma=0.99, gae_lambda=0.95)[0]
    assert reference.relative_difference(to_numpy(advantages), wanted) < TOLERANCE


def test_a_graph_replays_the_call() -> None:
    import torch

    batch = ragged(LENGTHS)
    device = batch.map(to_torch)
    out, returns_out = torch.empty_like(device.rewards), torch.empty_like(device.rewards)

    def call() -> None:
        gae(*packed(device), gamma=0.99, gae_lambda=0.95, out=out, returns_out=returns_out)

    call()  # warm up: modules load before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for shift in (1.0, 2.0):
        batch.rewards[:] += shift
        device.rewards.copy_(torch.from_numpy(batch.rewards))
        out.fill_(float("nan"))
        graph.replay()
        wanted = reference.gae(*packed(batch), gamma=0.99, gae_lambda=0.95)[0]
        assert reference.relative_difference(to_numpy(out), wanted) < TOLERANCE


def test_no_allocation_by_the_kernel() -> None:
    """PyTorch's pool covers the workspace after the first call; the driver's free memory then no longer moves."""
    import torch

    device = ragged([64] * 8192).map(to_torch)
    out, returns_out = torch.empty_like(device.rewards), torch.empty_like(device.rewards)
    free = []
    for _ in range(5):
        gae(*packed(device), gamma=0.99, gae_lambda=0.95, out=out, returns_out=returns_out)
        torch.cuda.synchronize()
        free.append(torch.cuda.mem_get_info()[0])
    assert len(set(free[1:])) == 1


def test_half_a_million_steps_take_ten_microseconds_to_call() -> None:
    """From Python, with `out`: the median of 500 calls, back to back, GPU time included. Best of five tries."""
    import torch

    device = ragged([512] * 1024).map(to_torch)
    out, returns_out = torch.empty_like(device.rewards), torch.empty_like(device.rewards)
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(500):
            gae(*packed(device), gamma=0.99, gae_lambda=0.95, out=out, returns_out=returns_out)
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / 500)
    print(f"0.5M steps, gae with out=: {best * 1e6:.1f} us a call")
    assert best <= 10e-6


# ---- Refusals -----------------------------------------------------------------------------------------------------


def test_arrays_on_two_devices_are_refused() -> None:
    batch = ragged([5])
    with pytest.raises(InputError, match="values"):
        gae(to_torch(batch.rewards), batch.values, *packed(batch.map(to_torch))[2:], gamma=0.9, gae_lambda=0.9)
