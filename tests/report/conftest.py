"""A finished run for looking at, and a copy of it for changing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.tiny_run import copy_of, finished_run


@pytest.fixture(scope="session")
def run() -> Path:
    return finished_run()


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return copy_of(run, tmp_path)
