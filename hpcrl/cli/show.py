"""`hpcrl show`: a pipeline's graph and its sizes as text; runs nothing, writes nothing."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcrl.cli.pipeline_file import load_pipeline
from hpcrl.cli.run import print_help, say, spread
from hpcrl.cli.sizes import PER_STEP, PER_TRAJECTORY, Batch, Field, batch_of, fields_of, role_sizes
from hpcrl.data import Blocks
from hpcrl.envs import EnvDescription, Space
from hpcrl.pipeline import Pipeline
from hpcrl.report.wording import bytes_text, count_text, plural
from hpcrl.segments import segments
from hpcrl.stages import Evaluation, Stage
from hpcrl.store.retention import Keep


def show_command(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the pipeline that a file makes with these options; returns 0.

    Raises: InputError for everything that `hpcrl run` would refuse.
    """
    if options.help or options.pipeline is None:
        return print_help("show", options.pipeline)
    from hpcrl.runner import check_pipeline

    pipeline = load_pipeline(Path(options.pipeline), rest, options)
    # As `hpcrl run` would spread it.
    pipeline, _ = spread(argparse.Namespace(ranks=options.ranks, on=options.on, mesh=options.mesh), pipeline)
    text = show_text(pipeline, check_pipeline(pipeline), options.pipeline)
    if options.on == "sbatch":
        from hpcrl.launch.submission import dry_run

        python_path = [Path(options.pipeline).resolve().parent]
        text += f"\n\n{dry_run(pipeline, options.site, python_path=python_path, say=say)}"
    print(text)
    return 0


def show_text(pipeline: Pipeline, description: EnvDescription | None, file: str) -> str:
    """All of it, in lines."""
    batch = batch_of(pipeline, description)
    stage_lines = [line for stage in pipeline.stages for line in _stage(stage, pipeline, description, batch)]
    roles = role_sizes(pipeline, description)
    model_lines = [
        f"  {size.role:<12} {type(pipeline.models[size.role]).__name__}, "
        f"{plural(size.parameters, 'parameter')}, {bytes_text(size.bytes)} in a checkpoint"
        for size in roles
    ]
    checkpoint_bytes = sum(size.bytes for size in roles)
    return "\n".join(
        [
            f"{pipeline.name}: {plural(pipeline.num_iterations, 'iteration')}, seed {pipeline.seed}",
            "",
            "stages",
            *stage_lines,
            "",
            "models",
            *model_lines,
            "",
            "spread",
            *_spread(pipeline),
            "",
            "on disk (offsets and file headers come on top)",
            *_disk(pipeline, description, batch, checkpoint_bytes),
            "",
            f"start it with: hpcrl run {shlex.quote(file)}",
        ]
    )


def _stage(stage: Stage, pipeline: Pipeline, description: EnvDescription | None, batch: Batch | None) -> Iterator[str]:
    every = getattr(stage, "every", 1)
    marks = [f"drives {stage.role}"] if stage.role is not None else []
    marks += [f"trains {stage.trains}"] if stage.trains is not None else []
    marks += [f"every {every} iterations"] if every > 1 else []
    if stage.phase is not None:
        first, last = stage.phase.start + 1, stage.phase.stop
        end = "the end" if last is None else str(last)
        marks.append(f"iteration {first}" if first == last else f"iterations {first} to {end}")
    yield f"  {stage.name:<12} {type(stage).__name__}" + (f": {', '.join(marks)}" if marks else "")
    if stage is pipeline.rollout and description is not None:
        yield f"    plays      {_environment(pipeline, description)}"
    if isinstance(stage, Evaluation) and stage.stop_when is not None:
        rule = stage.stop_when
        times = f", {rule.times} times in a row" if rule.times > 1 else ""
        yield f"    stops      the run when the mean {rule.metric} reaches {rule.threshold:g}{times}"
    if stage.reads:
        yield f"    reads      {', '.join(stage.reads)}"
    fields = fields_of(stage, description)
    for index, field in enumerate(fields):
        yield f"    {'writes' if index == 0 else '':<10} {_field(field, batch)}"
    if fields and batch is not None:
        more = _trajectory_bytes(fields, batch)
        per_episode = f", and {bytes_text(more)} for every episode that ends in it" if more else ""
        yield f"    {'bytes':<10} {bytes_text(batch.bytes(fields))} an iteration{per_episode}"


def _environment(pipeline: Pipeline, description: EnvDescription) -> str:
    rollout = pipeline.rollout
    assert rollout is not None  # asked of the rollout stage only
    limit = description.max_episode_steps
    return (
        f"{rollout.env}: observations {_space(description.observation_space)}, "
        f"actions {_space(description.action_space)}, "
        f"{f'at most {count_text(limit)} steps' if limit else 'no time limit'}, restart level {description.restart}"
    )


def _space(space: Space) -> str:
    if space.kind == "discrete":
        return f"one of {space.n}"
    if space.kind == "multi_discrete":
        return f"one each of {list(space.nvec or ())}"
    return f"{space.dtype}{list(space.shape)}"


def _field(field: Field, batch: Batch | None) -> str:
    many = "trajectories" if field.per == PER_TRAJECTORY else f"{field.per}s"
    count = count_text(batch.rows(field)) if batch is not None else many
    at_least = ">= " if batch is not None and field.per != PER_STEP else ""
    return f"{field.name:<20} {field.dtype}[{', '.join([at_least + count, *map(str, field.shape)])}]"


def _trajectory_bytes(fields: list[Field], batch: Batch) -> int:
    """What one more trajectory adds."""
    more = dataclasses.replace(batch, num_trajectories=batch.num_trajectories + 1)
    return more.bytes(fields) - batch.bytes(fields)


def _spread(pipeline: Pipeline) -> Iterator[str]:
    found = segments(pipeline)
    if len(found) > 1:
        for segment in found:
            mesh = segment.mesh
            jobs = f"{plural(mesh.array, 'job')} of " if mesh.array > 1 else ""
            ranks = f"{jobs}{plural(mesh.size, 'rank')} x {plural(pipeline.compute_threads, 'thread')}"
            yield f"  {segment.name:<12} on mesh {segment.mesh_name} of world {mesh.world}: {ranks}, {segment.title}"
        if pipeline.policy_lag:
            yield f"  rollouts act {plural(pipeline.policy_lag, 'update')} late"
        return
    size = pipeline.mesh.dp
    ranks = f"{plural(size, 'rank')} x {plural(pipeline.compute_threads, 'thread')}"
    if pipeline.rollout is None:
        yield f"  {plural(pipeline.num_blocks, 'block')} on {ranks}"
        return
    blocks = Blocks(pipeline.num_blocks, pipeline.rollout.num_envs)
    yield f"  {plural(pipeline.num_blocks, 'block')} of {plural(blocks.lanes_per_block, 'environment')} on {ranks}"
    for rank in range(size):
        owned = blocks.owned(rank, size)
        first, last = blocks.lanes(owned.start).start, blocks.lanes(owned.stop - 1).stop - 1
        yield f"  rank {rank}: {_range('block', owned.start, owned.stop - 1)}, {_range('environment', first, last)}"


def _range(noun: str, first: int, last: int) -> str:
    return f"{noun} {first}" if first == last else f"{noun}s {first} to {last}"


def _disk(
    pipeline: Pipeline, description: EnvDescription | None, batch: Batch | None, checkpoint_bytes: int
) -> Iterator[str]:
    total = 0
    if batch is not None:
        per_iteration = sum(batch.bytes(fields_of(stage, description)) for stage in pipeline.stages)
        kept = min(pipeline.keep.rollouts or pipeline.num_iterations, pipeline.num_iterations)
        total += kept * per_iteration
        models = bytes_text(checkpoint_bytes)
        yield f"  an iteration writes {bytes_text(per_iteration)} of fields and {models} of models"
        yield f"  {plural(kept, 'rollout')} kept: {bytes_text(kept * per_iteration)}"
    count = checkpoints_kept(pipeline.keep, pipeline.num_iterations, pipeline.checkpoint_every)
    total += count * checkpoint_bytes
    yield f"  {plural(count, 'checkpoint')} kept at most: {bytes_text(count * checkpoint_bytes)}"
    yield f"  in all about {bytes_text(total)} ({_rule(pipeline.keep)})"


def checkpoints_kept(keep: Keep, num_iterations: int, checkpoint_every: int = 1) -> int:
    """Most checkpoints that lie on disk at the run's end.

    Example:
        >>> checkpoints_kept(Keep(checkpoints=2, every=50, best=True), 100)
        5
        >>> checkpoints_kept(Keep(checkpoints=None), 100, checkpoint_every=10)
        10
    """
    last = num_iterations - 1
    there = [number for number in range(num_iterations) if number == last or (number + 1) % checkpoint_every == 0]
    if keep.checkpoints is None:
        return len(there)
    kept = set(there[-keep.checkpoints :])
    if keep.every is not None:
        kept |= {number for number in there if number % keep.every == 0}
    return min(len(kept) + keep.best, len(there))


def _rule(keep: Keep) -> str:
    rules = [f"keep: {'all' if keep.rollouts is None else keep.rollouts} rollouts"]
    rules.append(f"{'all' if keep.checkpoints is None else keep.checkpoints} checkpoints")
    rules += [f"every {keep.every}th"] if keep.every is not None else []
    rules += ["the best"] if keep.best else []
    return ", ".join(rules)
