"""Branches: a new run that starts from a published checkpoint of another."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcrl.errors import InputError
from hpcrl.store.checkpoint import read_checkpoint, write_checkpoint
from hpcrl.store.manifest import FileRecord
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.stage_folder import StageFolder

INITIAL = "initial"
"""Folder of the checkpoint that a branch starts from."""


def branch_source(branch_from: str) -> tuple[str, int, StageFolder, list[FileRecord]]:
    """Run, iteration, stage folder and file records of the checkpoint that RUN@ITERATION names."""
    source, _, number = branch_from.rpartition("@")
    if not source or not number.isdecimal():
        raise InputError(
            f"--from: want RUN@ITERATION, for example runs/ppo-cartpole@17, given {branch_from!r}; name both"
        )
    run = RunFolder.open(Path(source))
    folder = run.stage(int(number), "update")
    manifest = folder.manifest()
    if manifest is None or not manifest.holds_checkpoint:
        kept = [str(iteration) for iteration in run.iterations() if _holds_checkpoint(run.stage(iteration, "update"))]
        raise InputError(
            f"--from {branch_from}: want an iteration whose checkpoint is kept, given one without; kept: "
            f"{', '.join(kept) or 'none'}"
        )
    return source, int(number), folder, [record for record in manifest.files if "/checkpoint/" in record.name]


def _holds_checkpoint(folder: StageFolder) -> bool:
    manifest = folder.manifest()
    return manifest is not None and manifest.holds_checkpoint


def refuse_another_branch(path: Path, stored: Mapping[str, Any], branch_from: str) -> None:
    """The same command resumes a branch; a run with another origin is not that branch."""
    origin = stored.get("branched_from")
    given = f"{origin['run']}@{origin['iteration']}" if origin is not None else "a run of its own"
    if given != branch_from:
        raise InputError(
            f"--branch {path}: want a missing folder, or the branch from {branch_from}, given {given}; choose another "
            "folder, or resume it with --run"
        )


def make_branch(path: Path, document: dict[str, Any], branch_from: str) -> RunFolder:
    """A new run whose initial checkpoint is a published one of another run."""
    source, iteration, folder, records = branch_source(branch_from)
    checkpoint = read_checkpoint((folder.path / records[0].name).parent, records)
    versions = dict.fromkeys(checkpoint.state["versions"], 0)
    if (path / INITIAL).exists():
        shutil.rmtree(path / INITIAL)  # of a start that was killed before it published pipeline.json
    write_checkpoint(path / INITIAL, checkpoint.roles, {**checkpoint.state, "versions": versions})
    return RunFolder.create(path, {**document, "branched_from": {"run": source, "iteration": iteration}})
