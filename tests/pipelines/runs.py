"""Runs started as a user starts them, in processes of their own, and their published bits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hpcrl.store.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "pipelines" / "tiny.py"


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    output: str


def command(*arguments: object) -> list[str]:
    """`hpcrl ARGUMENTS`, with this interpreter."""
    return [sys.executable, "-m", "hpcrl.cli", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """One compute thread, and no kill point unless a test sets one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HPCRL_")}
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}


def hpcrl(*arguments: object, timeout: float = 120, **variables: str) -> Finished:
    """Run a command to its end."""
    done = subprocess.run(
        command(*arguments),
        env=environment(**variables),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Start a command; its output is read with communicate()."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(**variables),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def published_bits(run_path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Stage of an iteration -> file -> field -> checksum, of everything ever published in a run, removed or not."""
    run = RunFolder.open(run_path)
    found = {}
    for iteration in run.iterations():
        for folder in run.stages(iteration):
            manifest = folder.manifest() or folder.removed()
            if manifest is not None:
                files = {Path(file.name).name: dict(file.checksums) for file in manifest.files if file.checksums}
                found[f"{iteration}/{folder.stage}"] = files
    return found


def published_facts(run_path: Path, stage: str) -> list[dict[str, object]]:
    """What a stage published beside its files, by iteration; times left out."""
    run = RunFolder.open(run_path)
    manifests = [run.stage(iteration, stage).manifest() for iteration in run.iterations()]
    return [{k: v for k, v in m.extra.items() if k != "seconds"} for m in manifests if m is not None]


def leftovers(run_path: Path) -> list[str]:
    """Files in a finished run that nothing published refers to."""
    run = RunFolder.open(run_path)
    found = [str(path) for path in run_path.glob("lease*")]
    found += [str(path) for path in run_path.rglob("*.tmp")]
    for iteration in run.iterations():
        for folder in run.stages(iteration):
            manifest = folder.manifest() or folder.removed()
            if manifest is None:
                found.append(str(folder.path))
                continue
            found += [str(path) for path in folder.path.glob("part-*.json")]
            found += [str(path) for path in folder.path.glob("progress-*.json")]
            wanted = set(manifest.attempts)
            found += [str(path) for path in folder.path.glob("attempt-*") if path.name not in wanted]
    return found
