"""metrics.jsonl: one JSON line per step of a stage; the report and TensorBoard files are derived from these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcrl.store.disk_errors import explain_write_errors
from hpcrl.store.killpoints import reach
from hpcrl.store.layout import METRICS, attempt_name
from hpcrl.store.manifest import FileRecord, record_file
from hpcrl.store.publish import write_all
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder


class MetricsWriter:
    """Appends rows to an attempt's metrics.jsonl; a context manager. Each row reaches the file at once.

    Args:
        path: Attempt.metrics.
        carry: rows of an earlier attempt up to the progress that this one goes on from; they come first.
    """

    def __init__(self, path: Path, carry: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path = path
        self.rows = 0
        with explain_write_errors(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        for row in carry:
            self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row: text, numbers (NumPy's too), lists; NaN and Infinity as Python's json reads them."""
        line = json.dumps(row, default=_plain).encode() + b"\n"
        reach("metrics.before_write")
        with explain_write_errors(self.path):
            end = os.fstat(self._descriptor).st_size
            try:
                write_all(self._descriptor, line, end)
            except OSError:
                os.ftruncate(self._descriptor, end)  # half a line would spoil the rows that follow it
                raise
        reach("metrics.after_write")
        self.rows += 1

    def close(self) -> FileRecord:
        """Fsyncs and closes; returns the record to publish with the attempt's other files."""
        with explain_write_errors(self.path):
            os.fsync(self._descriptor)
            os.close(self._descriptor)
        return record_file(self.path)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of one metrics.jsonl, at most `limit`; none when it is not there; less a line cut short by a kill."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind(b"\n") + 1].splitlines()
    return [json.loads(line) for line in whole[:limit]]


def read_metrics(run: RunFolder, stage: str | None = None) -> list[dict[str, Any]]:
    """All rows of a run: of every published stage (removed ones too), and of the newest attempt of an unfinished one.

    Each row gets "iteration" and "stage", in order of iterations. `stage` chooses one stage.
    """
    return [
        {"iteration": folder.iteration, "stage": folder.stage, **row}
        for iteration in run.iterations()
        for folder in run.stages(iteration)
        if stage in (None, folder.stage)
        for path in _metrics_files(folder)
        for row in read_rows(path)
    ]


def _metrics_files(folder: StageFolder) -> Iterator[Path]:
    manifest = folder.manifest() or folder.removed()
    if manifest is not None:
        yield from (folder.path / attempt / METRICS for attempt in sorted(manifest.attempts))
    elif folder.attempts():
        yield folder.path / attempt_name(folder.attempts()[-1]) / METRICS


def _plain(value: object) -> Any:
    """NumPy scalars and arrays as Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"metrics: want text, numbers or lists, given {type(value).__name__}")
