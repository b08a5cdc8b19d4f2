"""What pipeline.json holds beside the pipeline itself, and how both are read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hpcrl.data.configuration import from_plain, to_plain
from hpcrl.envs import EnvDescription, Space
from hpcrl.errors import CorruptFileError
from hpcrl.pipeline import Pipeline


def describe(description: EnvDescription | None) -> dict[str, Any] | None:
    """Spaces as JSON values, so that replay and offline training need no environment package."""
    if description is None:
        return None
    plain: dict[str, Any] = {}
    for name in ("observation_space", "action_space"):
        space: Space = getattr(description, name)
        plain[name] = {
            field.name: value.tolist() if hasattr(value := getattr(space, field.name), "tolist") else to_plain(value)
            for field in dataclasses.fields(space)
        }
    return plain | {
        "frame_stack": description.frame_stack,
        "restart": description.restart,
        "max_episode_steps": description.max_episode_steps,
    }


def stored_description(document: Mapping[str, Any]) -> EnvDescription | None:
    """The description that `describe` stored."""
    import numpy as np

    if document["spaces"] is None:
        return None
    stored: dict[str, Any] = dict(document["spaces"])
    for name in ("observation_space", "action_space"):
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored[name].items()
        }
        for bound in ("low", "high"):
            if fields[bound] is not None:
                fields[bound] = np.asarray(stored[name][bound], np.float64)
        stored[name] = Space(**fields)
    return EnvDescription(**stored)


def stored_pipeline(document: Mapping[str, Any]) -> Pipeline:
    """The pipeline that pipeline.json holds.

    Raises: CorruptFileError when it does not describe one.
    """
    pipeline = from_plain(document["pipeline"])
    if not isinstance(pipeline, Pipeline):
        raise CorruptFileError("pipeline.json: want a pipeline, given something else")
    return pipeline
