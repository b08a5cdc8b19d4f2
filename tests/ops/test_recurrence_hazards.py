"""What goes wrong in scans: empty and huge batches, misaligned views, NaN, neighbours' memory, threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from batches import OPS, Op, ragged

every_op = pytest.mark.parametrize("op", OPS, ids=[op.name for op in OPS])


@every_op
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_empty_batch(isa, stores, op: Op, lengths):
    moments = np.full(3, np.nan)
    results = op.run(ragged(lengths), moments_out=moments, num_threads=3)
    assert all(result.shape == (0,) and result.dtype == np.float32 for result in results)
    assert moments.tolist() == [0.0, 0.0, 0.0]


@every_op
def test_one_step(isa, stores, op: Op):
    batch = ragged([1])
    for given, wanted in zip(op.run(batch), op.oracle(batch), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-6, atol=1e-6)


@every_op
def test_empty_trajectories_between_others_change_nothing(isa, stores, op: Op):
    batch = ragged([5, 40, 9])
    o = batch.offsets
    gaps = dataclasses.replace(
        batch,
        offsets=np.array([0, 0, o[1], o[1], o[1], o[2], o[3], o[3]]),
        bootstrap_values=np.concatenate(
            [[np.nan], batch.bootstrap_values[:1], [np.nan] * 2, batch.bootstrap_values[1:], [np.nan]]
        ).astype(np.float32),
    )
    for given, wanted in zip(op.run(gaps), op.run(batch), strict=True):
        assert np.array_equal(given, wanted)


def shifted(array: np.ndarray, num_bytes: int) -> np.ndarray:
    """The same numbers at an address that is `num_bytes` past a multiple of 64."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + num_bytes
    view = room[start : start + array.nbytes].view(array.dtype) if num_bytes % 4 == 0 else None
    if view is None:
        view = np.frombuffer(room.data, array.dtype, len(array), offset=start)
    view[:] = array
    return view


@every_op
@pytest.mark.parametrize("num_bytes", [0, 4, 20, 60, 1, 6])
def test_misaligned_views_have_the_same_bits(isa, stores, op: Op, num_bytes):
    batch = ragged([33, 1, 70, 600, 7, 1100])
    wanted = op.run(batch)
    for skew in (0, 8):
        moved = batch.with_dtype(lambda field, skew=skew: shifted(field, num_bytes + skew))
        outputs = {name: shifted(np.full_like(batch.rewards, np.nan), num_bytes + 2 * skew) for name in op.outputs}
        for given, expected in zip(op.run(moved, **outputs), wanted, strict=True):
            assert np.array_equal(given, expected)


@every_op
@pytest.mark.parametrize("num_threads", [1, 3])
def test_trajectories_shorter_than_a_vector_fill_it_together(isa, stores, op: Op, num_threads):
    """Also across the borders of threads and where the two outputs do not lie alike; nothing beside them is touched."""
    batch = ragged(list(np.random.default_rng(8).integers(1, 6, size=50_000)), seed=8)
    wanted = op.run(batch)
    num_steps = len(batch.rewards)
    for shift in (0, 1, 5, 8, 13, 15):
        rooms = [shifted(np.full(num_steps + 64, 12345.0, np.float32), 4 * (shift + 3 * i % 16)) for i in range(2)]
        outputs = {name: room[32:-32] for name, room in zip(op.outputs, rooms, strict=False)}
        for given, expected in zip(op.run(batch, **outputs, num_threads=num_threads), wanted, strict=True):
            assert np.array_equal(given, expected)
        for room in rooms:
            assert (room[:32] == 12345).all()
            assert (room[-32:] == 12345).all()


@every_op
def test_a_nan_stays_in_its_trajectory_and_moves_only_backwards(isa, stores, op: Op):
    batch = ragged([40, 50, 60])
    clean = op.run(batch)
    batch.rewards[40 + 30] = np.nan
    for given, wanted in zip(op.run(batch), clean, strict=True):
        assert np.isnan(given[40 : 40 + 31]).all()
        assert np.array_equal(np.delete(given, np.s_[40 : 40 + 31]), np.delete(wanted, np.s_[40 : 40 + 31]))


@pytest.mark.parametrize("name", ["vtrace", "retrace"])
def test_a_nan_ratio_is_not_clipped_away(isa, name):
    (op,) = (op for op in OPS if op.name == name)
    batch = ragged([40])
    batch.ratios[20] = np.nan
    assert all(np.isnan(result[:20]).all() for result in op.run(batch))


@every_op
@pytest.mark.parametrize("length", [1, 15, 16, 17, 513, 70_001])
def test_nothing_is_written_outside_the_outputs(isa, stores, op: Op, length):
    batch = ragged([length, 3])
    num_steps = length + 3
    guarded = {name: np.full(num_steps + 128, 12345.0, np.float32) for name in op.outputs}
    op.run(batch, **{name: room[64:-64] for name, room in guarded.items()}, num_threads=2)
    for room in guarded.values():
        assert (room[:64] == 12345).all()
        assert (room[-64:] == 12345).all()
        assert not (room[64:-64] == 12345).any()


@every_op
def test_outputs_are_filled_whatever_they_held(isa, stores, op: Op):
    batch = ragged([10, 30, 200])
    poisoned = {name: np.full_like(batch.rewards, np.nan) for name in op.outputs}
    given = op.run(batch, **poisoned)
    assert all(result is poisoned[name] for result, name in zip(given, op.outputs, strict=True))
    assert all(np.array_equal(result, wanted) for result, wanted in zip(given, op.run(batch), strict=True))


@every_op
def test_the_number_of_threads_changes_no_bit(isa, stores, op: Op):
    """Outputs and moments; long trajectories leave some chunks of steps empty."""
    batch = ragged([500] * 300 + [200_000, 3] + [100] * 900)
    runs = []
    for num_threads in (1, 2, 3, 8):
        moments = np.empty(3)
        runs.append((*op.run(batch, moments_out=moments, num_threads=num_threads), moments))
    for other in runs[1:]:
        assert all(np.array_equal(given, wanted) for given, wanted in zip(other, runs[0], strict=True))


@every_op
def test_more_threads_than_work(isa, op: Op):
    batch = ragged([4])
    assert np.array_equal(op.run(batch, num_threads=64)[0], op.run(batch)[0])


@every_op
def test_tiny_discounts_make_no_subnormal_trouble(isa, op: Op):
    op = dataclasses.replace(op, scalars={**op.scalars, "gamma": 1e-30})
    batch = ragged([100])
    for given, wanted in zip(op.run(batch), op.oracle(batch), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
