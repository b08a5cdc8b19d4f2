"""What Keep keeps stays, what anyone needs stays, the rest goes without ever seeming to be there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored_samples import sample

from hpcrl.errors import InputError
from hpcrl.store.checkpoint import write_checkpoint
from hpcrl.store.metrics import MetricsWriter, read_metrics
from hpcrl.store.retention import Keep, Retention, apply
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.shards import write_shard


def make_run(path: Path, iterations: int) -> RunFolder:
    run = RunFolder.create(path / "run", {})
    for iteration in range(iterations):
        add_iteration(run, iteration)
    return run


def add_iteration(run: RunFolder, iteration: int) -> None:
    attempt = run.stage(iteration, "rollout").begin_attempt()
    record = write_shard(attempt.path / "shard-00000.h5", sample((2,)), attributes={})
    with MetricsWriter(attempt.metrics) as metrics:
        metrics.write({"return": iteration})
    attempt.publish([record])
    attempt = run.stage(iteration, "update").begin_attempt()
    records = write_checkpoint(attempt.path / "checkpoint", {"actor": {"w": np.zeros(2)}}, {"iteration": iteration})
    attempt.publish([record.under("checkpoint") for record in records])
    run.stage(iteration, "evaluate").begin_attempt().publish([], {"return": 1.0})


def kept(run: RunFolder, stage: str) -> list[int]:
    return [iteration for iteration in run.iterations() if run.stage(iteration, stage).manifest() is not None]


def test_the_newest_the_best_and_every_nth_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path, 8)
    removed = apply(
        run, Keep(rollouts=2, checkpoints=1, every=3, best=True), needed=(), scores={1: 5.0, 4: 9.0, 7: 2.0}
    )
    assert kept(run, "rollout") == [6, 7]
    assert kept(run, "update") == [0, 3, 4, 6, 7]
    assert kept(run, "evaluate") == list(range(8))
    assert set(removed) == {(i, "rollout") for i in range(6)} | {(i, "update") for i in (1, 2, 5)}
    assert {(one.iteration, one.stage) for one in run.removed()} == set(removed)
    stage = run.stage(2, "update")
    assert stage.is_done()
    manifest = stage.removed()
    assert manifest is not None
    assert manifest.files[0].checksums["w"]
    left = sorted(str(path.relative_to(run.path)) for path in run.path.glob("iteration-000002/**/*") if path.is_file())
    assert left == [
        "iteration-000002/evaluate/manifest.json",
        "iteration-000002/rollout/attempt-0001/metrics.jsonl",
        "iteration-000002/rollout/removed.json",
        "iteration-000002/update/removed.json",
    ]
    assert [row["return"] for row in read_metrics(run, "rollout")] == list(range(8))


def test_what_is_needed_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    keep = Keep(rollouts=1, checkpoints=1, every=None, best=False)
    apply(run, keep, needed={(1, "rollout"), (0, "update")}, scores={2: 1.0})
    assert kept(run, "rollout") == [1, 3]
    assert kept(run, "update") == [0, 3]


def test_none_keeps_everything(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3)
    assert apply(run, Keep(rollouts=None, checkpoints=None), needed=()) == []
    assert kept(run, "rollout") == kept(run, "update") == [0, 1, 2]


def test_unfinished_stages_are_not_touched(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    attempt = run.stage(1, "rollout").begin_attempt()
    record = write_shard(attempt.path / "shard-00000.h5", sample((2,)), attributes={})
    attempt.publish_part(0, [record])
    for iteration in (2, 3):
        add_iteration(run, iteration)
    apply(run, Keep(rollouts=1), needed=())
    assert kept(run, "rollout") == [3]
    assert (attempt.path / "shard-00000.h5").exists()


def test_a_removal_that_was_killed_is_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3)
    folder = run.stage(0, "rollout").path
    (folder / "manifest.json").rename(folder / "removed.json")
    assert run.stage(0, "rollout").manifest() is None
    apply(run, Keep(rollouts=2), needed=())
    assert [path.name for path in (folder / "attempt-0001").iterdir()] == ["metrics.jsonl"]


def test_applying_again_and_again_gives_the_same_as_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    retention = Retention(run, Keep(rollouts=2, checkpoints=1, every=4, best=True))
    scores: dict[int, float] = {}
    for iteration in range(1, 9):
        add_iteration(run, iteration)
        scores[iteration] = -abs(iteration - 5.0)
        retention.apply(needed={(iteration - 2, "rollout")}, scores=scores)
        assert kept(run, "rollout") == list(range(max(0, iteration - 2), iteration + 1))
    assert kept(run, "update") == [0, 4, 5, 8]


@pytest.mark.parametrize(
    "wrong", [{"rollouts": 0}, {"checkpoints": -1}, {"every": 0}, {"every": 2.5}, {"rollouts": True}]
)
def test_impossible_policies_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"Keep\.{next(iter(wrong))}: want a whole number >= 1"):
        Keep(**wrong)
