"""The code of docs/tutorials/your_own_environment.md, run as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "your_own_environment.md"


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's files: each Python block begins with its file's name."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.py", "ppo_thermostat.py", "thermostat.py"]
    return tmp_path


def run(folder, *arguments):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_look(folder):
    done = run(folder, "look.py")
    assert done.returncode == 0, done.stderr
    assert "restart='replay', max_episode_steps=100" in done.stdout
    assert "episodes so far, by lane: [" in done.stdout


def test_train_and_go_on(folder):
    train = ("-m", "hpcrl.cli", "run", "ppo_thermostat.py", "--run", "run", "--on", "here", "--num-iterations")
    for iterations in (1, 2):
        done = run(folder, *train, str(iterations))
        assert done.returncode == 0, done.stdout + done.stderr
        finished = sorted(path.parent.parent.name for path in folder.glob("run/iteration-*/update/manifest.json"))
        assert len(finished) == iterations
