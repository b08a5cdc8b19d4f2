"""hpcrl: reinforcement learning as restartable batch jobs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcrl.algorithms import PPO
    from hpcrl.data import Mesh, Trajectories
    from hpcrl.models import Cnn, Mlp
    from hpcrl.pipeline import Pipeline
    from hpcrl.stages import Advantage, Evaluate, Reached, Rollout, Update
    from hpcrl.store.retention import Keep

__version__ = "0.1.0"

# Where each public name lives: resolved on first use, so that `import hpcrl` is instant on a login node.
_HOMES = {
    "Advantage": "hpcrl.stages",
    "Cnn": "hpcrl.models",
    "Evaluate": "hpcrl.stages",
    "Keep": "hpcrl.store.retention",
    "Mesh": "hpcrl.data",
    "Mlp": "hpcrl.models",
    "PPO": "hpcrl.algorithms",
    "Pipeline": "hpcrl.pipeline",
    "Reached": "hpcrl.stages",
    "Rollout": "hpcrl.stages",
    "Trajectories": "hpcrl.data",
    "Update": "hpcrl.stages",
}

__all__ = [
    "PPO",
    "Advantage",
    "Cnn",
    "Evaluate",
    "Keep",
    "Mesh",
    "Mlp",
    "Pipeline",
    "Reached",
    "Rollout",
    "Trajectories",
    "Update",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpcrl' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
