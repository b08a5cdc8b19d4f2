"""Where real data lies that is not part of the repository: the folder HPCRL_DATA, else ../shared/data beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("HPCRL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared_data(name: str) -> str:
    """A file's path; skips the test, saying what is missing, where it is not."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"real data: no {path}; put it there, or say where the folder is with HPCRL_DATA")
    return str(path)
