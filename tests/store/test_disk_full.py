"""A disk that is really full: every writer says so, leaves nothing of its own behind, and works again with space."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcrl.data import Trajectories
from hpcrl.errors import InputError
from hpcrl.store.checkpoint import write_checkpoint
from hpcrl.store.metrics import MetricsWriter
from hpcrl.store.publish import publish, replace
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard, write_shard

BYTES = 64 << 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small file system takes root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def steps(num_bytes: int) -> Trajectories:
    return Trajectories(
        np.array([0, num_bytes]), {"noise": np.random.default_rng(0).integers(0, 255, num_bytes, np.uint8)}
    )


def write_metrics(path: Path, num_bytes: int) -> None:
    with MetricsWriter(path) as metrics:
        metrics.write({"text": "x" * num_bytes})


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "s.h5": lambda path, size: write_shard(path, steps(size), attributes={}),
    "compressed.h5": lambda path, size: write_shard(path, steps(size), attributes={}, compression={"noise": "gzip"}),
    "a.safetensors": lambda path, size: write_checkpoint(path.parent, {"a": {"w": np.zeros(size, np.uint8)}}, {}),
    "part-00000.json": lambda path, size: publish(path, b"x" * size),
    "pipeline.json": lambda path, size: replace(path, b"x" * size),
    "metrics.jsonl": write_metrics,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_nothing_is_left(small_disk: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"disk full while writing .*{name}; what is already published is safe"):
        WRITERS[name](small_disk / name, 2 * BYTES)
    assert sum(path.stat().st_size for path in small_disk.iterdir()) == 0
    WRITERS[name](small_disk / name, BYTES // 8)


def test_what_was_published_before_is_untouched(small_disk: Path) -> None:
    run = RunFolder.create(small_disk / "run", {"name": "small"})
    attempt = run.stage(0, "rollout").begin_attempt()
    record = write_shard(attempt.path / "shard-00000.h5", steps(1000), attributes={})
    attempt.publish([record])
    late = run.stage(1, "rollout").begin_attempt()
    with pytest.raises(InputError, match="disk full"):
        write_shard(late.path / "shard-00000.h5", steps(2 * BYTES), attributes={})
    manifest = run.stage(0, "rollout").manifest()
    assert manifest is not None
    assert read_shard(attempt.path / "shard-00000.h5", record=manifest.files[0]).num_steps == 1000
