"""Starting a run: ranks here or under mpiexec (`ranks`), or jobs of a scheduler (`submit`).

From Python: `from hpcrl.launch import submit`; `submit(pipeline, site)` gives a Run with status, wait, cancel and logs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcrl.launch.submission import Run, submit

__all__ = ["Run", "submit"]


def __getattr__(name: str) -> object:
    # Resolved at first use: ranks are started on every launch, jobs are submitted rarely.
    if name in __all__:
        return getattr(importlib.import_module("hpcrl.launch.submission"), name)
    raise AttributeError(f"module 'hpcrl.launch' has no attribute {name!r}; it has {', '.join(__all__)}")
