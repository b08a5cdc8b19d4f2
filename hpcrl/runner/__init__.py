"""Runs a pipeline: prepares the folder, joins the ranks, loops over iterations, stops cleanly."""

from hpcrl.runner.checks import check_pipeline, check_resumable
from hpcrl.runner.prepare import Launch, Prepared, open_run
from hpcrl.runner.session import run_rank
from hpcrl.runner.stored import stored_description, stored_pipeline

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
