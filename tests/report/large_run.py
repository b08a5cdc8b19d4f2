"""A run of any size, made in seconds: sealed manifests that list every shard, and as many of the shards as asked for.

    python -m tests.report.large_run FOLDER [--iterations 1000] [--blocks 64] [--files newest | all] [--jobs]

It looks like a run of ten stages in the middle of its last iteration. Its shards are empty.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from hpcrl.algorithms import PPO
from hpcrl.data import Mesh
from hpcrl.data.configuration import to_plain
from hpcrl.models import Mlp
from hpcrl.pipeline import Pipeline
from hpcrl.stages import Advantage, Evaluate, Rollout, Update
from hpcrl.store.layout import METRICS, attempt_name, shard_name
from hpcrl.store.ledger import Claim, End, Ledger, Unit
from hpcrl.store.manifest import FileRecord, Manifest, Part
from hpcrl.store.run_folder import RunFolder
from tests.report.stand_ins import Generate, Guard, Redistribute, Refine, Score, Values

Files = Literal["newest", "all"]

SECONDS = 60.0
"""What one iteration takes; the last one is two thirds through."""
ELEMENTS = 4
"""Array elements of the jobs that play."""
_FIELDS = {"rollout": 9, "advantage": 2, "update": 6}
"""Fields in each file of a stage; one where it is not named."""


def large_pipeline(iterations: int, blocks: int, *, jobs: bool) -> Pipeline:
    """Ten stages, all of them due in every iteration.

    Args: jobs: the rollout stands on a mesh of its own, as an array of jobs: segments 'rollout' and 'generate'.
    """
    return Pipeline(
        name="large",
        num_iterations=iterations,
        num_blocks=blocks,
        models={"actor": Mlp(hidden=(8,))},
        meshes={"play": Mesh(world="play", array=ELEMENTS)} if jobs else {},
        stages=[
            Rollout(env="CartPole-v1", num_envs=blocks, num_steps=128, mesh="play" if jobs else "main"),
            Generate(),
            Score(),
            Values(),
            Refine(),
            Guard(),
            Advantage(),
            Update(PPO(num_minibatches=2)),
            Redistribute(),
            Evaluate(every=1, episodes=4),
        ],
    )


def make_large_run(
    path: Path, *, iterations: int = 1000, blocks: int = 64, files: Files = "newest", jobs: bool = False
) -> Path:
    """Makes the run and returns its path.

    Args:
        files: "newest": shards of the two newest iterations; "all": an empty file for each shard of the run.
        jobs: it is played as SLURM jobs: with a ledger, launches and leases.
    """
    pipeline = large_pipeline(iterations, blocks, jobs=jobs)
    begin = datetime.now(UTC).timestamp() - SECONDS * (iterations - 1 / 3)
    with mock.patch("os.fsync"):  # thousands of small files: this run need not survive a power failure
        run = RunFolder.create(path, {"pipeline": to_plain(pipeline)})
        (path / "launches").mkdir()
        stages = [stage.name for stage in pipeline.stages]
        for iteration in range(iterations):
            newest = iteration == iterations - 1
            done = stages[: 2 * len(stages) // 3] if newest else stages
            for number, stage in enumerate(done):
                ended = begin + SECONDS * (iteration + (number + 1) / len(stages))
                _publish(run, iteration, stage, blocks, ended, with_files=files == "all" or iteration >= iterations - 2)
            if newest:
                _begin(run, iteration, stages[len(done)], blocks)
        if jobs:
            _add_jobs(path, begin, iterations, len(stages))
        else:
            _write_launch(path, 1, begin, {"job": None, "ranks": 2})
    return path


def _publish(run: RunFolder, iteration: int, stage: str, blocks: int, ended: float, *, with_files: bool) -> None:
    folder = run.stage(iteration, stage).path
    attempt = folder / attempt_name(1)
    os.makedirs(attempt)
    records = _records(stage, blocks)
    seconds = SECONDS / 10
    extra: dict[str, Any] = {"seconds": seconds}
    if stage == "rollout":
        extra |= {"episode_returns": [float(iteration)] * 20, "episode_lengths": [20] * 20}
    if stage == "evaluate":
        extra |= {"returns": [1.0, 3.0], "lengths": [1, 3], "return_mean": 2.0, "length_mean": 2.0, "stop": False}
    created = datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds")
    manifest = Manifest(stage, iteration, 1, records, created, seconds, {"host": "node-1"}, extra=extra)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (attempt / METRICS).write_text(json.dumps({"began": ended - seconds, "ended": ended}) + "\n")
    if with_files:
        for block in range(blocks):
            os.close(os.open(attempt / shard_name(block), os.O_CREAT | os.O_WRONLY))


def _records(stage: str, blocks: int) -> Sequence[FileRecord]:
    checksums = {f"field_{number}": f"{number:032x}" for number in range(_FIELDS.get(stage, 1))}
    return [
        FileRecord(f"{attempt_name(1)}/{shard_name(block)}", 0, "0" * 32, 128, 4, checksums) for block in range(blocks)
    ]


def _begin(run: RunFolder, iteration: int, stage: str, blocks: int) -> None:
    """The stage that is being worked on: an attempt, and a third of its blocks."""
    folder = run.stage(iteration, stage).path
    os.makedirs(folder / attempt_name(1))
    for block in range(blocks // 3):
        part = Part(block, 1, _records(stage, blocks)[block : block + 1], {}, {"host": "node-1"}, 1.0)
        (folder / f"part-{block:05d}.json").write_bytes(part.to_bytes())


def _add_jobs(path: Path, begin: float, iterations: int, stages: int) -> None:
    """Two jobs an iteration: an array that plays, and one that trains; the newest one trains, a guard behind it."""
    launches = 0
    for iteration in range(iterations):
        started = begin + SECONDS * iteration
        for index, (segment, elements) in enumerate((("rollout", tuple(range(ELEMENTS))), ("generate", None))):
            job, unit = str(1 + 2 * iteration + index), Unit(segment, iteration)
            _submit(path, unit, job, started - 10.0, elements)
            ended = started + SECONDS / stages * (1 if segment == "rollout" else stages)
            for element in elements or (None,):
                launches += 1
                facts = {"job": job, "ranks": 1, "unit": unit.name, "element": element, "restart_count": 0}
                _write_launch(path, launches, started, facts)
                if segment == "rollout" or iteration < iterations - 1:
                    Ledger(path).record_end(unit, 1, element, End("done", "", job, 0, _iso(ended)))
    _submit(path, Unit("guard", None), str(1 + 2 * iterations), begin + SECONDS * (iterations - 1), None)


def _submit(path: Path, unit: Unit, job: str, at: float, elements: tuple[int, ...] | None) -> None:
    with mock.patch("hpcrl.store.ledger.now", return_value=_iso(at)):
        Ledger(path).claim(Claim(unit, 1, f"token-{job}", "sbatch", _iso(at), elements=elements))
        Ledger(path).record_job(unit, 1, job)


def _write_launch(path: Path, number: int, started: float, facts: dict[str, Any]) -> None:
    facts = {"command": "hpcrl run large.py", "host": "node-1", "pid": 1, **facts, "started": _iso(started)}
    (path / f"launches/launch-{number:04d}.json").write_text(json.dumps(facts, indent=1) + "\n")


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--files", choices=("newest", "all"), default="newest")
    parser.add_argument("--jobs", action="store_true")
    arguments = parser.parse_args()
    make_large_run(
        arguments.folder,
        iterations=arguments.iterations,
        blocks=arguments.blocks,
        files=arguments.files,
        jobs=arguments.jobs,
    )


if __name__ == "__main__":
    main()
