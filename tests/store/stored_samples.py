"""Trajectories of every kind that a shard must hold, and comparison to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hpcrl.data import Ragged, Trajectories


def sample(lengths: tuple[int, ...] = (3, 1, 5), seed: int = 0) -> Trajectories:
    """Fields of many dtypes and shapes over trajectories of the given lengths."""
    rng = np.random.default_rng(seed)
    steps, count = sum(lengths), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = [length % 3 for length in lengths]
    return Trajectories(
        offsets,
        {
            "observations": rng.normal(size=(steps, 4)).astype(np.float32),
            "actions": rng.integers(0, 9, steps),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "half": rng.normal(size=(steps, 2)).astype(np.float16),
            "double": rng.normal(size=steps),
            "valid": rng.random(steps) < 0.5,
            "pixels": rng.integers(0, 255, (steps, 2, 3), dtype=np.uint8),
        },
        {"ending": rng.integers(1, 4, count).astype(np.uint8), "names": np.array([b"ab", b"c"] * count, "S3")[:count]},
        {
            "frames": image_frames(rng, lengths),
            "tokens": Ragged(
                rng.integers(0, 99, sum(rows)).astype(np.int32), np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
            ),
        },
    )


def image_frames(rng: np.random.Generator, lengths: tuple[int, ...], depth: int = 4) -> Ragged:
    rows = [length + depth for length in lengths]
    values = rng.integers(0, 255, (sum(rows), 5, 6), dtype=np.uint8)
    return Ragged(values, np.concatenate([[0], np.cumsum(rows)]).astype(np.int64))


def assert_same(one: Trajectories, other: Trajectories) -> None:
    """Equal names in equal order, dtypes, shapes and bits."""
    assert one.fields() == other.fields()
    pairs = [(one.offsets, other.offsets)]
    pairs += [(one[name], other[name]) for name in (*one.steps, *one.per_trajectory)]
    for name in one.ragged:
        pairs.append((one.ragged[name].values, other.ragged[name].values))
        pairs.append((one.ragged[name].offsets, other.ragged[name].offsets))
    for left, right in pairs:
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert left.tobytes() == right.tobytes()
        assert right.flags.aligned


@contextmanager
def flipped_bit(path: Path, place: int, bit: int = 0) -> Iterator[None]:
    """One bit of a file changed in place, and changed back. Rewriting the file would make ext4 flush it each time."""
    _flip(path, place, bit)
    try:
        yield
    finally:
        _flip(path, place, bit)


def _flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
