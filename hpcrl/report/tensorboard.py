"""TensorBoard files with the field's usual tags, derived from published manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hpcrl.report.curves import statistics_of
from hpcrl.report.history import History, Iteration, evaluation_mean
from hpcrl.report.record import RunRecord
from hpcrl.store.disk_errors import explain_write_errors

TAGS = {
    "policy_loss": "train/policy_gradient_loss",
    "value_loss": "train/value_loss",
    "loss": "train/loss",
    "approximate_kl": "train/approx_kl",
    "clip_fraction": "train/clip_fraction",
    "explained_variance": "train/explained_variance",
    "learning_rate": "train/learning_rate",
}
"""Our names -> those of Stable-Baselines3; other statistics keep their name under train/."""

Scalar = tuple[float, int, str, float]
"""(seconds since 1970, steps, tag, value)."""


def write_events(record: RunRecord, folder: Path) -> Path:
    """Writes one event file, replacing the one that an earlier report of this run wrote there.

    The step of every point is the number of environment steps so far; its time is when the stage ended.
    Returns: the file.
    Raises: InputError for a full or read-only disk.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    # TensorBoard reads every file whose name holds "tfevents"; its own writer's names differ at every writing.
    path = folder / f"events.out.tfevents.{record.pipeline.name}.hpcrl"
    began = record.launches[0].started if record.launches else record.read_at
    with explain_write_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                writer = RecordWriter(file)
                writer.write(Event(wall_time=began, step=0, file_version="brain.Event:2").SerializeToString())
                for moment, step, tag, value in scalars_of(History.of(record)):
                    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                    writer.write(Event(wall_time=moment, step=step, summary=summary).SerializeToString())
                writer.flush()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def scalars_of(history: History) -> Iterator[Scalar]:
    """All points, by iteration."""
    statistics = {name: dict(points) for name, points in statistics_of(history).items()}
    means = zip(history.running_means(), history.running_means("lengths"), strict=True)
    for row, (mean_return, mean_length) in zip(history.iterations, means, strict=True):
        points: dict[str, float | None] = {"rollout/ep_rew_mean": mean_return, "rollout/ep_len_mean": mean_length}
        if row.working_seconds > 0:
            points["time/fps"] = row.steps_so_far / row.working_seconds
        points["time/iterations"] = row.number + 1
        for name, values in statistics.items():
            points[TAGS.get(name, f"train/{name}")] = values.get(row.number + 1)
        points |= _evaluation(row)
        for tag, value in points.items():
            if value is not None:
                yield row.ended, row.steps_so_far, tag, float(value)


def _evaluation(row: Iteration) -> dict[str, float | None]:
    if row.evaluation is None:
        return {}
    return {"eval/mean_reward": evaluation_mean(row), "eval/mean_ep_length": float(row.evaluation["length_mean"])}
