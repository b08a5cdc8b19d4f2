"""Killed at any named point, a run holds nothing half-done, and going on gives what an unbroken run gives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stored_samples import sample

from hpcrl.errors import InputError
from hpcrl.store import killpoints
from hpcrl.store.checkpoint import read_checkpoint, write_checkpoint
from hpcrl.store.killpoints import ALL_POINTS
from hpcrl.store.layout import shard_name
from hpcrl.store.lease import Lease
from hpcrl.store.ledger import Claim, End, Ledger, Unit, now
from hpcrl.store.manifest import Manifest
from hpcrl.store.metrics import MetricsWriter, read_rows
from hpcrl.store.publish import make_folder, publish
from hpcrl.store.retention import Keep, apply
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import read_shard, write_shard
from hpcrl.store.stage_folder import StageFolder

OWN_POINTS = [point for point in ALL_POINTS if not point.startswith("optimizer.")]
NUM_BLOCKS, NUM_STEPS, NUM_ITERATIONS = 2, 2, 2
ONCE = ("pipeline.", "launch.", "lease.", "halted.", "attempt.before_mkdir")
"""Points that a run passes once, not twice."""


def play(path: Path) -> None:
    """A small run that can be started again at any time: rollouts in parts, updates with progress, retention."""
    with Lease.acquire(path, grace_seconds=0):
        run = RunFolder.open(path) if RunFolder.exists(path) else RunFolder.create(path, {"name": "small"})
        run.remove_leftovers()
        make_folder(path / "launches")
        number = len(list((path / "launches").iterdir())) + 1
        assert publish(path / f"launches/launch-{number:04d}.json", b"{}")
        for iteration in range(NUM_ITERATIONS):
            play_rollout(run.stage(iteration, "rollout"))
            play_update(run.stage(iteration, "update"))
            apply(run, Keep(rollouts=1, checkpoints=1, every=None), needed=())
            keep_ledger(path, iteration)


def keep_ledger(path: Path, iteration: int) -> None:
    ledger, unit = Ledger(path), Unit("main", iteration)
    ledger.claim(Claim(unit, 1, token="t", door="sbatch", created=now()))
    ledger.record_job(unit, 1, "17")
    ledger.record_end(unit, 1, None, End("done", "", "17", 0, now()))
    if iteration == NUM_ITERATIONS - 1:
        ledger.halt("the test is over")


def play_rollout(stage: StageFolder) -> None:
    if not stage.is_done():
        attempt = stage.begin_attempt(compute_threads=1)
        stage.remove_leftovers(keep=attempt)
        with MetricsWriter(attempt.metrics) as metrics:
            for block in [block for block in range(NUM_BLOCKS) if block not in stage.parts()]:
                steps = sample((4, 2), seed=10 * stage.iteration + block)
                record = write_shard(attempt.path / shard_name(block), steps, attributes={"block": block})
                metrics.write({"block": block})
                attempt.publish_part(block, [record])
        stage.publish_if_complete(NUM_BLOCKS)
    if stage.manifest() is not None:
        stage.remove_leftovers()


def play_update(stage: StageFolder) -> None:
    if not stage.is_done():
        progress = stage.load_progress()
        weights, first_step, rows = np.full(4, float(stage.iteration)), 0, []
        if progress is not None:
            folder = stage.path / progress.folder
            weights = read_checkpoint(folder, progress.files).roles["actor"]["weights"].copy()
            first_step = progress.extra["step"]
            rows = read_rows(folder.parent / "metrics.jsonl", limit=first_step)
            assert len(rows) == first_step
        attempt = stage.begin_attempt(compute_threads=1)
        stage.remove_leftovers(keep=attempt)
        metrics = MetricsWriter(attempt.metrics, carry=rows)
        for step in range(first_step, NUM_STEPS):
            weights = weights * 1.5 + step
            metrics.write({"step": step})
            attempt.save_progress(
                lambda folder, weights=weights: write_checkpoint(folder, {"actor": {"weights": weights}}, {}),  # type: ignore[misc]
                {"step": step + 1},
            )
        records = write_checkpoint(attempt.path / "checkpoint", {"actor": {"weights": weights}}, {})
        attempt.publish([*(record.under("checkpoint") for record in records), metrics.close()])
    if stage.manifest() is not None:
        stage.remove_leftovers()


def contents(path: Path) -> dict[str, object]:
    """Everything a run says, without the numbers of its attempts; every published file is read and verified."""
    run = RunFolder.open(path)
    found: dict[str, object] = {}
    for iteration in run.iterations():
        for stage in run.stages(iteration):
            key = f"{iteration}/{stage.stage}"
            published = stage.manifest() or stage.removed()
            found[key] = stated(published) if published is not None else None
            found[f"{key} is here"] = stage.manifest() is not None
            if (manifest := stage.manifest()) is not None:
                verify(stage, manifest)
    return found


def stated(manifest: Manifest) -> list[tuple[str, int, str, dict[str, str]]]:
    return [
        (Path(file.name).name, file.bytes, file.metadata, dict(file.checksums))
        for file in manifest.files
        if not file.name.endswith("state.json")
    ]


def verify(stage: StageFolder, manifest: Manifest) -> None:
    for file in manifest.files:
        if file.name.endswith(".h5"):
            read_shard(stage.file(file), record=file)
        elif file.name.endswith("state.json"):
            folder = stage.file(file).parent
            read_checkpoint(folder, [one for one in manifest.files if "/checkpoint/" in one.name])


def run_killed_at(point: str, path: Path) -> int | None:
    """Plays in a fork that kills itself at a point; returns its exit code."""

    def child() -> None:
        killpoints._killer = killpoints._Killer(point)
        play(path)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill keeps the page cache, so the disk would add nothing but time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    play(path)
    return contents(path)


def test_the_small_run_is_what_it_should_be(unbroken: dict[str, object]) -> None:
    assert [key for key, value in unbroken.items() if value is True] == ["1/rollout is here", "1/update is here"]
    assert all(value for key, value in unbroken.items() if not key.endswith("is here"))


@pytest.mark.parametrize("point", OWN_POINTS)
def test_a_kill_loses_nothing(folder: Path, unbroken: dict[str, object], point: str) -> None:
    path = folder / "run"
    passage = 1 if point.startswith(ONCE) else 2
    assert run_killed_at(f"{point}:{passage}", path) == -signal.SIGKILL
    if RunFolder.exists(path):
        contents(path)  # raises if anything published is not whole
    play(path)
    assert contents(path) == unbroken
    left = {file.name for file in path.rglob("*") if file.is_file() and "attempt-" not in str(file)}
    left = {name for name in left if not name.startswith(("launch-", "claim-", "job-", "end-"))}
    assert left == {"pipeline.json", "halted.json", "manifest.json", "removed.json"}
    for iteration in range(NUM_ITERATIONS):
        for name in ("rollout", "update"):
            published = RunFolder(path).stage(iteration, name).manifest()
            if published is not None:
                assert len(RunFolder(path).stage(iteration, name).attempts()) == len(published.attempts)


def environment(**variables: str) -> dict[str, str]:
    ours = ("HPCRL_KILL_AT", "HPCRL_KILL_RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **variables}


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({}, 0),
        ({"HPCRL_KILL_AT": "manifest.before_link"}, -9),
        ({"HPCRL_KILL_AT": "manifest.before_link:2"}, -9),
        ({"HPCRL_KILL_AT": "manifest.before_link:3"}, 0),
        ({"HPCRL_KILL_AT": "part.before_link"}, 0),
        ({"HPCRL_KILL_AT": "manifest.before_link", "HPCRL_KILL_RANK": "1"}, 0),
        ({"HPCRL_KILL_AT": "manifest.before_link", "HPCRL_KILL_RANK": "1", "PMI_RANK": "1"}, -9),
        ({"HPCRL_KILL_AT": "manifest.before_lonk"}, 1),
        ({"HPCRL_KILL_AT": "manifest.before_link:0"}, 1),
    ],
)
def test_the_environment_chooses_the_point(variables: dict[str, str], code: int) -> None:
    program = "from hpcrl.store.killpoints import reach; [reach('manifest.before_link') for _ in range(2)]"
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment(**variables), check=False, capture_output=True, text=True
    )
    assert finished.returncode == code
    assert ("HPCRL_KILL_AT: want" in finished.stderr) == (code == 1)


def test_an_unlisted_point_is_refused() -> None:
    with pytest.raises(InputError, match="is not listed in ALL_POINTS"):
        killpoints._Killer("part.before_link").reach("part.before_lonk")
