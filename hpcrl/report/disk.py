"""What a run takes on disk: by stage, kept and removed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from hpcrl.report.record import RunRecord


@dataclasses.dataclass(frozen=True)
class StageBytes:
    """One stage over all iterations read, in bytes of published files."""

    stage: str
    published: int
    kept: int
    files: int
    """Files kept."""

    @property
    def removed(self) -> int:
        return self.published - self.kept


def bytes_by_stage(record: RunRecord) -> list[StageBytes]:
    """In the pipeline's order."""
    found = []
    for stage in record.pipeline.stages:
        records = record.of_stage(stage.name)
        kept = [entry.manifest for entry in records if not entry.is_removed]
        found.append(
            StageBytes(
                stage=stage.name,
                published=sum(entry.manifest.bytes for entry in records),
                kept=sum(manifest.bytes for manifest in kept),
                files=sum(len(manifest.files) for manifest in kept),
            )
        )
    return found


def bytes_on_disk(path: Path) -> int:
    """Sizes of all files below a folder, whatever they are; files that vanish meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total
