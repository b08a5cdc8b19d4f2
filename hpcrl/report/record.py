"""A run as its folder tells it: what every stage published, which launches worked on it, who does now."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcrl.data.configuration import from_plain
from hpcrl.errors import CorruptFileError
from hpcrl.pipeline import Pipeline
from hpcrl.stages import Stage
from hpcrl.store.layout import METRICS
from hpcrl.store.lease import Holder, find_holder
from hpcrl.store.manifest import Manifest
from hpcrl.store.metrics import read_rows
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


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of `hpcrl run` on this run, launches/launch-NNNN.json."""

    number: int
    started: float
    last_sign: float
    """When the last stage was published before the next launch began; `started` where none was."""
    facts: Mapping[str, Any]

    @property
    def command(self) -> str:
        """What a user types to go on."""
        return str(self.facts.get("command") or "")


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
    launches: tuple[Launch, ...]
    holder: Holder | None
    """Who holds the lease, dead or alive; None when nobody does."""
    read_at: float

    @classmethod
    def read(cls, path: Path, *, newest: int | None = None) -> RunRecord:
        """A run, or the newest so many of its iterations.

        Raises: InputError when `path` holds no run; CorruptFileError naming a damaged document.
        """
        run = RunFolder.open(path)
        document = run.pipeline()
        pipeline = from_plain(document["pipeline"])
        if not isinstance(pipeline, Pipeline):
            raise CorruptFileError(f"{path}/pipeline.json: want a pipeline, given {type(pipeline).__name__}")
        iterations = tuple(run.iterations())
        chosen = iterations if newest is None else iterations[-newest:]
        folders = [run.stage(iteration, stage.name) for iteration in chosen for stage in pipeline.stages]
        stages = tuple(record for folder in folders if (record := read_stage(folder)) is not None)
        launches = tuple(_launches(Path(path), stages))
        return cls(run, document, pipeline, iterations, stages, launches, find_holder(Path(path)), time.time())

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
        published = {(record.iteration, record.stage) for record in self.stages}
        return [
            iteration
            for iteration in sorted({record.iteration for record in self.stages})
            if all((iteration, stage.name) in published for stage in self.due(iteration))
        ]

    @property
    def resume_command(self) -> str:
        """What a user types to go on with this run."""
        return self.launches[-1].command if self.launches else ""


def read_stage(folder: StageFolder) -> StageRecord | None:
    """A published stage, removed or not; None when it is unfinished. Raises: CorruptFileError."""
    manifest = folder.manifest()
    is_removed = manifest is None
    if manifest is None:
        manifest = folder.removed()
    if manifest is None:
        return None
    rows = [row for attempt in sorted(manifest.attempts) for row in read_rows(folder.path / attempt / METRICS)]
    return StageRecord(folder.iteration, folder.stage, manifest, is_removed, rows[-1] if rows else {})


def _launches(path: Path, stages: tuple[StageRecord, ...]) -> Iterator[Launch]:
    found = []
    for file in sorted((path / "launches").glob("launch-*.json")):
        try:
            facts = json.loads(file.read_text())
            started = datetime.fromisoformat(facts["started"]).timestamp()
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{file}: want the JSON that hpcrl wrote, given something else ({error})") from error
        found.append((int(file.stem.removeprefix("launch-")), started, facts))
    for index, (number, started, facts) in enumerate(found):
        until = found[index + 1][1] if index + 1 < len(found) else float("inf")
        signs = [record.published for record in stages if started <= record.published < until]
        yield Launch(number, started, max(signs, default=started), facts)
