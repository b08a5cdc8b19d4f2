"""Runs a pipeline: prepares the folder, joins the ranks, loops over iterations, stops cleanly."""

from hpcrl.runner.prepare import (
    Launch,
    Prepared,
    check_pipeline,
    check_resumable,
    open_run,
    stored_description,
    stored_pipeline,
)
from hpcrl.runner.session import run_rank

__all__ = [
    "Launch",
    "Prepared",
    "check_pipeline",
    "check_resumable",
    "open_run",
    "run_rank",
    "stored_description",
    "stored_pipeline",
]
