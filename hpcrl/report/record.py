"""A run as its folder tells it: what every stage published, which launches worked on it, who does now."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcrl.data.configuration import from_plain
from hpcrl.errors import CorruptFileError
from hpcrl.pipeline import Pipeline
from hpcrl.report.holdings import Holding, read_holdings
from hpcrl.report.jobs import Jobs, jobs_of, read_tries, said_ends
from hpcrl.report.launches import Launch, launch_numbers, read_launches, with_signs
from hpcrl.report.queue import Scheduler
from hpcrl.report.resume import resume_command
from hpcrl.stages import Stage
from hpcrl.store.layout import METRICS
from hpcrl.store.ledger import LOOP
from hpcrl.store.manifest import Manifest
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """One published stage of one iteration; times are seconds since 1970."""

    iteration: int
    stage: str
    manifest: Manifest
    is_removed: bool
    """Retention took its files; the manifest's facts are still known."""
    row: Mapping[str, Any]
    """The newest row of its metrics.jsonl, from rank 0; empty where a kill came before it was written."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage said about itself when it was published."""
        return self.manifest.extra

    @property
    def published(self) -> float:
        """When the manifest appeared."""
        return datetime.fromisoformat(self.manifest.created).timestamp()

    @property
    def seconds(self) -> float:
        """How long it computed; where no row says so, how long its files took."""
        if "began" in self.row:
            return float(self.row["ended"]) - float(self.row["began"])
        return float(self.row.get("seconds", self.facts.get("seconds", self.manifest.seconds)))

    @property
    def ended(self) -> float:
        """When it had computed; writing behind ends later, when it is `published`."""
        return float(self.row.get("ended", self.published))

    @property
    def began(self) -> float:
        return self.ended - self.seconds


_NEWEST_LAUNCHES = 512
"""Launches that are read where only the newest iterations are looked at: those of a window of jobs and their arrays."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Everything that reports are made of; reading it writes nothing."""

    run: RunFolder
    document: Mapping[str, Any]
    """pipeline.json: the resolved pipeline, its spaces, versions."""
    pipeline: Pipeline
    iterations: tuple[int, ...]
    """All iterations that have a folder, also those whose stages were not read."""
    stages: tuple[StageRecord, ...]
    """Published stages in the order of iterations, then of the pipeline."""
    num_launches: int
    """All launches there were."""
    launches: tuple[Launch, ...]
    """Launches read, by number: all, or the newest."""
    holdings: tuple[Holding, ...]
    """Who holds the run's lease and those of its jobs, dead or alive."""
    jobs: Jobs | None
    """What was submitted to a scheduler; None when nothing ever was."""
    read_at: float

    @classmethod
    def read(cls, path: Path, *, newest: int | None = None, scheduler: Scheduler | None = None) -> RunRecord:
        """A run, or the newest so many of its iterations.

        Args: scheduler: asked about jobs that have not ended; None: their state is told from files alone.
        Raises: InputError when `path` holds no run; CorruptFileError naming a damaged document.
        """
        run, path, read_at = RunFolder.open(path), Path(path), time.time()
        document = run.pipeline()
        pipeline = from_plain(document["pipeline"])
        if not isinstance(pipeline, Pipeline):
            raise CorruptFileError(f"{path}/pipeline.json: want a pipeline, given {type(pipeline).__name__}")
        iterations = tuple(run.iterations())
        chosen = iterations if newest is None else iterations[-newest:]
        folders = [run.stage(iteration, stage.name) for iteration in chosen for stage in pipeline.stages]
        stages = tuple(record for folder in folders if (record := read_stage(folder)) is not None)
        window = None if newest is None else _window(pipeline, chosen, stages)
        numbers = launch_numbers(path)
        tries = read_tries(path, window)
        launches = with_signs(
            read_launches(path, numbers if newest is None else numbers[-_NEWEST_LAUNCHES:]),
            published=[record.published for record in stages],
            by_attempt=_last_published(stages),
            ends=said_ends(tries or ()),
        )
        holdings = read_holdings(path, lambda name: window is None or _is_in_window(name, window[0]))
        jobs = None if tries is None else jobs_of(path, tries, launches, holdings, scheduler, read_at)
        return cls(run, document, pipeline, iterations, stages, len(numbers), tuple(launches), holdings, jobs, read_at)

    def of_stage(self, name: str) -> list[StageRecord]:
        """One stage's records, by iteration."""
        return [record for record in self.stages if record.stage == name]

    def of_iteration(self, iteration: int) -> dict[str, StageRecord]:
        """One iteration's records by stage name."""
        return {record.stage: record for record in self.stages if record.iteration == iteration}

    def due(self, iteration: int) -> list[Stage]:
        """The stages that belong to an iteration."""
        return [stage for stage in self.pipeline.stages if stage.due(iteration)]

    def finished_iterations(self) -> list[int]:
        """Iterations read of which every stage is published."""
        return _finished(self.pipeline, self.stages)

    @property
    def resume_command(self) -> str:
        """What a user types to go on with this run; empty where nothing tells it."""
        return resume_command(self.run.path, self.launches)


def read_stage(folder: StageFolder) -> StageRecord | None:
    """A published stage, removed or not; None when it is unfinished. Raises: CorruptFileError."""
    manifest = folder.manifest()
    is_removed = manifest is None
    if manifest is None:
        manifest = folder.removed()
    if manifest is None:
        return None
    rows = (
        _last_row(folder.path / attempt / METRICS) for attempt in sorted(manifest.attempts, key=_number, reverse=True)
    )
    return StageRecord(folder.iteration, folder.stage, manifest, is_removed, next(filter(None, rows), {}))


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics.jsonl; empty when there is none. A long update has many rows: one is parsed."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    end = text.rfind(b"\n")
    if end < 0:
        return {}
    row: dict[str, Any] = json.loads(text[text.rfind(b"\n", 0, end) + 1 : end])
    return row


def _number(attempt: str) -> int:
    return int(attempt.rpartition("-")[2])


def _finished(pipeline: Pipeline, stages: Sequence[StageRecord]) -> list[int]:
    published = {(record.iteration, record.stage) for record in stages}
    return [
        iteration
        for iteration in sorted({record.iteration for record in stages})
        if all((iteration, stage.name) in published for stage in pipeline.stages if stage.due(iteration))
    ]


def _last_published(stages: Sequence[StageRecord]) -> dict[int, float]:
    """Number of a launch -> when the last stage that holds an attempt of it was published."""
    found: dict[int, float] = {}
    for record in stages:
        for attempt in record.manifest.attempts:
            number = _number(attempt)
            found[number] = max(found.get(number, 0.0), record.published)
    return found


def _window(pipeline: Pipeline, chosen: Sequence[int], stages: Sequence[StageRecord]) -> list[int]:
    """The iterations whose jobs a person looks for, from the newest finished one on; and one more before them.

    The jobs of that one tell when those after it could start.
    """
    finished = _finished(pipeline, stages)
    first = max((finished[-1] if finished else chosen[0] if chosen else 0) - 1, 0)
    return [first, *(iteration for iteration in chosen if iteration > first)]


def _is_in_window(name: str, first: int) -> bool:
    """Whether a lease named UNIT or UNIT_ELEMENT is of an iteration from `first` on, or of all iterations."""
    match = re.fullmatch(r".+-(\d{6,}|loop)(?:_\d+)?", name)
    return match is not None and (match[1] == LOOP or int(match[1]) >= first)
