"""Counted random numbers: known answers, an independent Philox, distributions, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrl.errors import InputError
from hpcrl.ops.random import Draw, episode_seed, normals, permutation, philox, uniforms

AT = {"step": 3, "iteration": 2, "draw": Draw.ACTION}

words32 = st.integers(0, 2**32 - 1)
seeds = st.integers(0, 2**64 - 1)

# Philox4x32-10 of Random123's kat_vectors (Salmon et al. 2011): seed (key words low, high), counter, words.
KNOWN = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0_A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("seed", "counter", "words"), KNOWN)
def test_known_answers(seed, counter, words):
    assert philox(seed, np.array([counter], np.uint32)).tolist() == [list(words)]
    assert reference.philox(seed, counter) == words


@given(seed=seeds, counters=st.lists(st.tuples(words32, words32, words32, words32), max_size=5))
def test_philox_is_that_of_the_paper(seed, counters):
    given_words = philox(seed, np.array(counters, np.uint32).reshape(-1, 4))
    assert given_words.tolist() == [list(reference.philox(seed, counter)) for counter in counters]


@settings(max_examples=30)
@given(seed=seeds, lane=words32, step=words32, iteration=words32, draw=st.sampled_from(Draw), count=st.integers(0, 9))
def test_uniforms_are_the_upper_53_bits_of_word_pairs(seed, lane, step, iteration, draw, count):
    drawn = uniforms(seed, lane, step=step, iteration=iteration, draw=draw, count=count)
    pairs = reference.counted_pairs(seed, (lane, step, iteration, int(draw)), count)
    assert drawn.dtype == np.float64
    assert drawn.tolist() == [[(pair >> 11) / 2**53 for pair in pairs]]


@settings(max_examples=30)
@given(seed=seeds, lane=words32, n=st.integers(0, 50))
def test_permutation_is_fisher_and_yates_walk(seed, lane, n):
    drawn = permutation(seed, n, trajectory=lane, **AT)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == reference.permutation(seed, (lane, 3, 2, int(Draw.ACTION)), n)


# ---- Normal numbers -----------------------------------------------------------------------------------------------


def box_muller(seed: int, rows: np.ndarray, count: int) -> np.ndarray:
    """In float64, with NumPy's logarithm and cosine."""
    u = uniforms(seed, rows, **AT, count=count + count % 2).reshape(len(rows), -1, 2)
    radius, angle = np.sqrt(-2 * np.log1p(-u[..., 0])), 2 * np.pi * u[..., 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(len(rows), -1)[:, :count]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_normals_are_box_and_muller_to_float32(count):
    """Our logarithm and sine are good to 1e-15, so rounding to float32 hides all but one in 10^7 of the differences."""
    rows = np.arange(20_000)
    drawn = normals(11, rows, **AT, count=count)
    assert drawn.shape == (20_000, count)
    assert drawn.dtype == np.float32
    wanted = box_muller(11, rows, count)
    np.testing.assert_allclose(drawn, wanted, rtol=2**-23, atol=1e-15)
    assert (drawn != wanted.astype(np.float32)).sum() <= 2


def test_normals_have_the_bits_they_always_had():
    """Golden: seed 7, trajectories 0 and 1. Another platform or compiler must give the same words."""
    drawn = normals(7, np.arange(2), step=0, iteration=1, draw=Draw.ACTION, count=3)
    assert drawn.view(np.uint32).tolist() == [
        [0xBEB748B1, 0x3E46F48C, 0xBDF983A5],
        [0xBECAE623, 0xBFF2B87B, 0x3F72312F],
    ]


def test_normals_are_normal():
    drawn = normals(5, np.arange(100_000), **AT, count=2).astype(np.float64)
    for moment, wanted in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        spread = math.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[moment] / drawn.size)
        assert abs((drawn**moment).mean() - wanted) < 5 * spread
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / math.sqrt(len(drawn))
    inside = (np.abs(drawn) < 1).mean()
    assert abs(inside - math.erf(math.sqrt(0.5))) < 5 * math.sqrt(0.25 / drawn.size)


# ---- Counting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [uniforms, normals])
def test_numbers_do_not_depend_on_who_else_is_drawn(numbers):
    rows = np.array([9, 4, 700, 2**32 - 1])
    together = numbers(1, rows, **AT, count=6)
    for row, drawn in zip(rows, together, strict=True):
        assert np.array_equal(numbers(1, int(row), **AT, count=6)[0], drawn)
        assert np.array_equal(numbers(1, int(row), **AT, count=3)[0], drawn[:3])


@pytest.mark.parametrize("numbers", [uniforms, normals])
def test_steps_and_iterations_may_differ_by_row(numbers):
    rows, steps, iterations = np.array([5, 6]), np.array([1, 2]), np.array([7, 8], np.uint32)
    together = numbers(1, rows, step=steps, iteration=iterations, draw=Draw.ACTION)
    first = numbers(1, 5, step=1, iteration=7, draw=Draw.ACTION)
    second = numbers(1, 6, step=2, iteration=8, draw=Draw.ACTION)
    assert np.array_equal(together, np.concatenate([first, second]))


def test_every_coordinate_counts():
    base = {"seed": 1, "trajectories": 2, "step": 3, "iteration": 4, "draw": Draw.ACTION}
    changes = [{}, {"seed": 2}, {"seed": 1 + 2**32}, {"trajectories": 3}, {"step": 4}, {"iteration": 5}]
    changes.append({"draw": Draw.SHUFFLE})
    drawn = {float(uniforms(**{**base, **change})[0, 0]) for change in changes}
    assert len(drawn) == len(changes)


def test_uniforms_fill_the_unit_interval_evenly():
    drawn = uniforms(3, np.arange(50_000), **AT, count=2)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    chi_square = ((counts - drawn.size / 64) ** 2).sum() / (drawn.size / 64)
    assert chi_square < 63 + 5 * math.sqrt(2 * 63)


def test_permutations_of_three_are_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for lane in range(6000):
        order = tuple(permutation(1, 3, trajectory=lane, **AT).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in counts.values())


def test_a_large_permutation_holds_every_number_once():
    assert np.array_equal(np.sort(permutation(1, 100_003, trajectory=0, **AT)), np.arange(100_003))


def test_episode_seeds():
    purposes = (Draw.RESET, Draw.EVALUATE_RESET)
    keys = itertools.product(range(20), range(20), purposes)
    seeds_drawn = {episode_seed(1, lane, episode, draw) for lane, episode, draw in keys}
    assert len(seeds_drawn) == 800
    assert all(0 <= seed < 2**31 for seed in seeds_drawn)
    assert episode_seed(1, 2, 3) == reference.philox(1, (2, 3, 0, int(Draw.RESET)))[0] >> 1


def test_draws_are_distinct_and_fit_their_byte():
    assert len({int(draw) for draw in Draw}) == len(Draw.__members__)
    assert all(0 < int(draw) < 256 for draw in Draw)


# ---- Refusals -----------------------------------------------------------------------------------------------------


def draw_uniforms(**changes):
    return uniforms(**{"seed": 1, "trajectories": np.arange(3), **AT, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed: want an integer in [0, 2**64), got -1"),
        ({"seed": 2**64}, "seed: want an integer in [0, 2**64), got 18446744073709551616"),
        ({"seed": 1.5}, "seed: want an integer in [0, 2**64), got 1.5"),
        ({"trajectories": np.array([0, -1])}, "trajectories: want integers in [0, 2**32), got -1 to 0"),
        ({"trajectories": 2**32}, "trajectories: want integers in [0, 2**32), got 4294967296 to 4294967296"),
        (
            {"trajectories": np.ones(3)},
            "trajectories: want an integer or a one-dimensional integer array, got float64 (3,)",
        ),
        ({"step": np.arange(2)}, "step: want one integer or length 3 (= len(trajectories)), got length 2"),
        ({"iteration": -5}, "iteration: want integers in [0, 2**32), got -5 to -5"),
        ({"count": -1}, "count: want an integer in [0, 2**25], got -1"),
        ({"draw": 256}, "draw: want a Draw with a value in [1, 256), got 256"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(InputError) as refusal:
        draw_uniforms(**changes)
    assert str(refusal.value) == message


def test_refused_lengths_and_counters():
    with pytest.raises(InputError, match=r"^n: want 0 to 33554432, got -1$"):
        permutation(1, -1, trajectory=0, **AT)
    with pytest.raises(InputError, match=r"^counters: want dtype uint32, got int64$"):
        philox(1, np.zeros((1, 4), np.int64))
    with pytest.raises(InputError, match=r"^counters: want shape \(2, 4\), got shape \(2, 3\)$"):
        philox(1, np.zeros((2, 3), np.uint32))
