"""TensorBoard files, read back with TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrl.cli import main
from hpcrl.report.history import History
from hpcrl.report.record import RunRecord
from hpcrl.report.tensorboard import write_events
from tests.report.tiny_run import digests, read_manifest


def test_the_usual_tags_hold_what_the_manifests_say(run: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = digests(run)
    assert main(["report", str(run), "--out", str(tmp_path / "r.html"), "--tensorboard", str(tmp_path / "tb")]) == 0
    assert digests(run) == before
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "train/approx_kl",
        "train/clip_fraction",
        "train/loss",
        "train/value_loss",
        "train/policy_gradient_loss",
        "train/explained_variance",
        "train/learning_rate",
        "train/entropy",
        "time/fps",
        "eval/mean_reward",
    }
    updates = [read_manifest(run, i, "update").extra for i in range(3)]
    losses = events.Scalars("train/value_loss")
    assert [point.step for point in losses] == [192, 384, 576]
    np.testing.assert_allclose([point.value for point in losses], [row["value_loss"] for row in updates], rtol=1e-6)
    [evaluation] = events.Scalars("eval/mean_reward")
    assert evaluation.step == 384
    assert evaluation.value == pytest.approx(read_manifest(run, 1, "evaluate").extra["return_mean"])
    returns = [value for i in range(3) for value in read_manifest(run, i, "rollout").extra["episode_returns"]]
    assert events.Scalars("rollout/ep_rew_mean")[-1].value == pytest.approx(np.mean(returns[-100:]), rel=1e-6)
    ended = [row.ended for row in History.of(RunRecord.read(run)).iterations]
    np.testing.assert_allclose([point.wall_time for point in losses], ended, rtol=0, atol=1e-3)


def test_writing_again_replaces(run: Path, tmp_path: Path) -> None:
    record = RunRecord.read(run)
    first = write_events(record, tmp_path)
    content = first.read_bytes()
    assert write_events(record, tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert first.read_bytes() == content
