"""A run made once by the real runner, and what tests make of copies of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcrl.store.layout import MANIFEST, REMOVED
from hpcrl.store.manifest import Manifest
from hpcrl.store.run_folder import RunFolder

PIPELINE = '''
"""Three iterations of CartPole."""

from hpcrl import PPO, Advantage, Evaluate, Keep, Mlp, Pipeline, Reached, Rollout, Update


def tiny(num_iterations: int = 3) -> Pipeline:
    """PPO on CartPole, as small as it gets."""
    return Pipeline(
        name="tiny-cartpole",
        num_iterations=num_iterations,
        num_blocks=2,
        models={"actor": Mlp(hidden=(8,))},
        stages=[
            Rollout(env="CartPole-v1", num_envs=4, num_steps=48),
            Advantage(gamma=0.97),
            Update(PPO(num_epochs=2, num_minibatches=2, learning_rate=1e-3)),
            Evaluate(every=2, episodes=4, stop_when=Reached("return", 400)),
        ],
        keep=Keep(rollouts=1),
    )
'''


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the tests are over."""
    return tempfile.TemporaryDirectory(prefix="hpcrl-report-test-")


@functools.cache
def pipeline_file() -> Path:
    """The pipeline's file, in a folder of its own."""
    path = Path(_folder().name) / "tiny.py"
    path.write_text(PIPELINE)
    return path


@functools.cache
def finished_run() -> Path:
    """The run, finished; look at it, but change only copies."""
    path = pipeline_file().parent / "run"
    arguments = ["run", pipeline_file(), "--on", "here", "--run", path, "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "hpcrl.cli", *map(str, arguments)],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return path


def copy_of(run: Path, folder: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(run, folder / "run"))


def stage_path(run: Path, iteration: int, stage: str) -> Path:
    return RunFolder(run).stage(iteration, stage).path


def read_manifest(run: Path, iteration: int, stage: str) -> Manifest:
    """A stage's manifest, its files removed or not."""
    folder = RunFolder(run).stage(iteration, stage)
    manifest = folder.manifest() or folder.removed()
    assert manifest is not None
    return manifest


def rewrite_manifest(run: Path, iteration: int, stage: str, change: Callable[[Manifest], dict[str, Any]]) -> None:
    """Replaces fields of a manifest, its seal made anew."""
    folder = stage_path(run, iteration, stage)
    path = next(folder / name for name in (MANIFEST, REMOVED) if (folder / name).exists())
    manifest = Manifest.read(path)
    path.write_bytes(dataclasses.replace(manifest, **change(manifest)).to_bytes())


def add_launch(run: Path, number: int, started: str) -> None:
    """Another start of the same run."""
    facts = json.loads((run / "launches/launch-0001.json").read_text())
    (run / f"launches/launch-{number:04d}.json").write_text(json.dumps({**facts, "started": started}))


def unpublish(run: Path, iteration: int, stage: str) -> None:
    """As if a kill had come before the manifest."""
    (stage_path(run, iteration, stage) / MANIFEST).unlink()


def drop_iterations(run: Path, first: int) -> None:
    """As if the run had not come so far."""
    for iteration in RunFolder(run).iterations():
        if iteration >= first:
            shutil.rmtree(run / f"iteration-{iteration:06d}")


def digests(run: Path) -> dict[str, str]:
    """Every file of a folder by its content."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }
