"""What a person types to go on with a run: as the newest launch was typed, or the newest submission."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hpcrl.report.launches import Launch
from hpcrl.report.wording import path_text
from hpcrl.store.documents import read_document
from hpcrl.store.layout import PAPERS


def resume_command(run_path: Path, launches: Sequence[Launch]) -> str:
    """The command; empty where neither a launch nor a submission tells it.

    Args: launches: by number, the newest last.
    Raises: CorruptFileError when the submission's document is damaged.
    """
    newest = launches[-1] if launches else None
    if (run_path / PAPERS).exists():
        papers = read_document(run_path / PAPERS, "jobs")
        # What a job was launched with is older than what was submitted since.
        submitted = datetime.fromisoformat(papers["submitted"]).timestamp()
        if newest is None or newest.place is not None or newest.started < submitted:
            return str(papers["command"] or f"hpcrl run PIPELINE --on {papers['door']} --run {path_text(run_path)}")
    return newest.command if newest is not None else ""
