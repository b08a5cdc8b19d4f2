"""A film strip: pictures of one episode, rendered from the newest checkpoint or taken from stored frames."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcrl.data import Trajectories
from hpcrl.envs import VectorEnv, make_env
from hpcrl.errors import InputError
from hpcrl.report.record import RunRecord
from hpcrl.report.wording import number_text, plural
from hpcrl.stages import Evaluate, Rollout
from hpcrl.store.checkpoint import read_checkpoint
from hpcrl.store.layout import iteration_name
from hpcrl.store.manifest import Manifest
from hpcrl.store.shards import read_shard

Picture = npt.NDArray[np.uint8]

PICTURES = 12
_MOST_STEPS = 2000
_MOST_SECONDS = 5.0
_WIDEST = 320
"""Pixels; a wider picture is thinned out, for a strip shows it smaller anyway."""


@dataclasses.dataclass(frozen=True)
class Film:
    """Pictures with the step they were taken at; or none, and the reason."""

    pictures: tuple[tuple[int, Picture], ...]
    caption: str


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of 0 .. count - 1, first and last among them.

    Example:
        >>> evenly(9, 3), evenly(2, 5)
        ([0, 4, 8], [0, 1])
    """
    return sorted({round(float(index)) for index in np.linspace(0, count - 1, min(count, wanted))})


def film_of(record: RunRecord) -> Film:
    """Stored frames where observations are images; else an episode played and rendered with the newest checkpoint."""
    rollout = record.pipeline.rollout
    if rollout is None:
        return Film((), "No film: this run plays no environment; it learns from stored rollouts.")
    try:
        if is_image(record):
            return _stored_film(record)
        manifest = newest_checkpoint(record)
        if manifest is None:
            return Film((), "No film yet: no checkpoint is kept.")
        return _rendered_film(record, rollout, manifest)
    except (InputError, ImportError) as error:
        return Film((), f"No film: {error}")


def is_image(record: RunRecord) -> bool:
    """Whether the run's observations are pictures: uint8, [H, W] (also stacks of them) or [H, W, 3]."""
    space = record.document["spaces"]["observation_space"]
    shape = space["shape"]
    return space["dtype"] == "uint8" and (
        record.document["spaces"]["frame_stack"] > 1 or len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    )


def longest_trajectory(record: RunRecord) -> tuple[Trajectories, int] | None:
    """The longest trajectory of the newest kept rollout, and its iteration; None where no rollout is kept."""
    kept = [stage for stage in record.of_stage("rollout") if not stage.is_removed]
    if not kept:
        return None
    folder = record.run.stage(kept[-1].iteration, "rollout")
    best: Trajectories | None = None
    for file in kept[-1].manifest.files:
        if not file.name.rpartition("/")[2].startswith("shard-"):
            continue
        block = read_shard(folder.file(file), record=file, verify=False)
        index = int(np.argmax(block.lengths)) if block.num_trajectories else 0
        if block.num_steps and (best is None or block.lengths[index] > best.lengths[0]):
            best = block.select(np.array([index]))
    return (best, kept[-1].iteration) if best is not None else None


def newest_checkpoint(record: RunRecord) -> Manifest | None:
    """The manifest of the newest stage whose checkpoint is kept."""
    kept = [stage.manifest for stage in record.stages if not stage.is_removed and stage.manifest.holds_checkpoint]
    return kept[-1] if kept else None


def _stored_film(record: RunRecord) -> Film:
    stored = longest_trajectory(record)
    if stored is None:
        return Film((), "No film yet: no rollout is kept.")
    trajectory, iteration = stored
    pictures = pictures_of(trajectory)
    first = int(trajectory["episode_step"][0])
    total = float(trajectory["rewards"].sum())
    return Film(
        tuple((first + index, np.asarray(pictures[index])) for index in evenly(len(pictures), PICTURES)),
        f"What the policy saw: stored frames of the longest trajectory of {iteration_name(iteration)}'s rollout "
        f"(lane {int(trajectory['lane'][0])}, episode {int(trajectory['episode'][0])}, "
        f"{plural(trajectory.num_steps, 'step')}, sum of rewards {number_text(total)}).",
    )


def pictures_of(trajectory: Trajectories) -> Picture:
    """One picture per step of a single trajectory, and its final one, uint8[T + 1, H, W] or [T + 1, H, W, 3]."""
    if "frames" in trajectory.ragged:
        frames: Picture = trajectory.ragged["frames"].values[-(trajectory.num_steps + 1) :]
        return frames
    return np.concatenate([trajectory.steps["observations"], trajectory.per_trajectory["final_observations"]])


def _rendered_film(record: RunRecord, rollout: Rollout, manifest: Manifest) -> Film:
    from hpcrl.ops.random import Draw

    with _quiet_drawing():
        environment = make_env(
            rollout.env,
            lanes=range(1),
            seed=record.pipeline.seed,
            options={**rollout.env_options, "render_mode": "rgb_array"},
            draw=Draw.EVALUATE_RESET,
        )
        with contextlib.closing(environment):
            environment.reset()
            if environment.render() is None:  # asked first: loading the model takes longer
                return Film((), f"No film: {rollout.env} draws no pictures.")
            model = _load(record, rollout, environment, manifest)
            # Played twice: pictures can take longer than everything else, so only those that are shown are drawn.
            played = _play(record, environment, model, ())
            chosen = evenly(played.steps, PICTURES)
            pictures = _play(record, environment, model, chosen).pictures
    how = "greedy" if _is_greedy(record) else "drawn"
    end = "to its end" if played.ended else "the beginning of an episode"
    return Film(
        tuple(pictures.items()),
        f"An episode played with the checkpoint of {iteration_name(manifest.iteration)}, {how} actions: "
        f"{plural(played.steps, 'step')}, {end}, return {number_text(played.total)}.",
    )


def _load(record: RunRecord, rollout: Rollout, environment: VectorEnv, manifest: Manifest) -> Any:
    """The acting network as the checkpoint holds it."""
    records = [file for file in manifest.files if "/checkpoint/" in file.name]
    folder = record.run.stage(manifest.iteration, manifest.stage).file(records[0]).parent
    checkpoint = read_checkpoint(folder, records, groups=[rollout.model])
    config = record.pipeline.models[rollout.model]
    model = config.build(environment.observation_space, environment.action_space, seed=0)
    model.load_arrays(checkpoint.roles[rollout.model])
    return model


@dataclasses.dataclass(frozen=True)
class _Played:
    """One episode, or its beginning."""

    steps: int
    total: float
    """Sum of its rewards."""
    ended: bool
    pictures: Mapping[int, Picture]
    """Step -> what it looked like before that step's action."""


def _play(record: RunRecord, environment: VectorEnv, model: Any, steps_to_draw: Container[int]) -> _Played:
    """Plays episode 0; the same at every call."""
    from hpcrl.ops.random import Draw, normals, uniforms

    draw = normals if model.random_kind == "normal" else uniforms
    greedy, count = _is_greedy(record), model.random_numbers_per_action
    numbers: npt.NDArray[Any] = np.zeros((1, count))
    pictures: dict[int, Picture] = {}
    total, deadline = 0.0, time.monotonic() + _MOST_SECONDS
    observations = environment.reset()
    for step in range(_MOST_STEPS):
        if step in steps_to_draw and (picture := environment.render()) is not None:
            pictures[step] = np.asarray(picture)
        if not greedy:
            numbers = draw(
                record.pipeline.seed, np.zeros(1, np.int64), step=step, iteration=0, draw=Draw.EVALUATE_ACTION,
                count=count,
            )  # fmt: skip
        actions, _, _ = model.act(observations, numbers, greedy=greedy)
        result = environment.step(actions)
        total += float(result.rewards[0])
        ended = bool(result.terminated[0] or result.truncated[0])
        if ended or time.monotonic() > deadline:
            return _Played(step + 1, total, ended, pictures)
        observations = result.observations
    return _Played(_MOST_STEPS, total, False, pictures)


def _is_greedy(record: RunRecord) -> bool:
    """As the run's own evaluation acts; greedy where it has none."""
    stage = record.pipeline.find(Evaluate)
    return stage.greedy if isinstance(stage, Evaluate) else True


@contextlib.contextmanager
def _quiet_drawing() -> Iterator[None]:
    """Drawing libraries told that there is no screen, unless the user told them something."""
    chosen = {"SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    if not os.environ.get("DISPLAY"):
        chosen["MUJOCO_GL"] = "egl"
    added = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def data_address(picture: Picture) -> str:
    """A picture [H, W] or [H, W, 3] as the address of an embedded PNG."""
    from matplotlib.image import imsave

    thinned = picture[:: -(-picture.shape[1] // _WIDEST), :: -(-picture.shape[1] // _WIDEST)]
    buffer = io.BytesIO()
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if thinned.ndim == 2 else {}
    imsave(buffer, np.ascontiguousarray(thinned), format="png", **grey)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
