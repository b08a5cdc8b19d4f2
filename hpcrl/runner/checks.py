"""Everything about the input that can be refused, found out before anything is written."""

from __future__ import annotations

from pathlib import Path

from hpcrl.data.configuration import differences
from hpcrl.envs import EnvDescription, describe_env
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline, refuse_changes
from hpcrl.residents import Residents
from hpcrl.runner.branch import branch_source, refuse_another_branch
from hpcrl.runner.handoff import kept_rollouts
from hpcrl.runner.position import INITIAL, refuse_growth_before_redone
from hpcrl.runner.prepare import Launch
from hpcrl.runner.stored import stored_description, stored_pipeline
from hpcrl.stages import Evaluate
from hpcrl.store.run_folder import RunFolder


def check_pipeline(pipeline: Pipeline) -> EnvDescription | None:
    """What only the outside can tell: the environment exists, the model fits its spaces, the inputs are there.

    Returns: the environment's spaces; None for a pipeline of text.
    Raises: InputError; nothing is written.
    """
    for stage in pipeline.stages:
        stage.check()
    if pipeline.is_text and pipeline.inputs is None:
        return None
    if pipeline.rollout is None and pipeline.inputs is None:
        raise InputError("Pipeline: want a Rollout stage or inputs=RUN, given neither; add one of them")
    description = _check_inputs(pipeline) if pipeline.rollout is None else pipeline.rollout.describe()
    evaluate = pipeline.find(Evaluate)
    if description is not None and isinstance(evaluate, Evaluate):
        env, options = evaluate.played(pipeline.rollout)
        if (evaluate.env, evaluate.env_options) != (None, None):
            _check_same_spaces(env, describe_env(env, options), description)
    return description


def _check_inputs(pipeline: Pipeline) -> EnvDescription | None:
    """The spaces of the run that offline training reads, if its rollouts can be read block by block."""
    run = RunFolder.open(Path(str(pipeline.inputs)))
    document = run.pipeline()
    kept_rollouts(run)
    num_blocks = document["pipeline"]["num_blocks"]
    if num_blocks != pipeline.num_blocks:
        raise InputError(
            f"Pipeline.num_blocks: want {num_blocks}, as the rollouts in {run.path} have, given {pipeline.num_blocks}"
        )
    description = stored_description(document)
    if (description is None) != pipeline.is_text:
        kinds = ("an environment", "text") if pipeline.is_text else ("text", "an environment")
        raise InputError(f"Pipeline.inputs: want a run of {kinds[1]}, given {run.path}, a run of {kinds[0]}")
    return description


def _check_same_spaces(env: str, given: EnvDescription, wanted: EnvDescription) -> None:
    for name in ("observation_space", "action_space", "frame_stack"):
        if getattr(given, name) != getattr(wanted, name):
            raise InputError(
                f"Evaluate.env: {env}: want the {name} that the model is trained on, {getattr(wanted, name)}, given "
                f"{getattr(given, name)}; evaluate on an environment with the same spaces"
            )


def check_resumable(pipeline: Pipeline, launch: Launch) -> EnvDescription | None:
    """Everything about the input that can be refused, found out without writing anything.

    Raises: InputError.
    """
    description = check_pipeline(pipeline)
    path = launch.run
    if RunFolder.exists(path) and not launch.fresh:
        stored = RunFolder.open(path).pipeline()
        # Through the classes of today: fields that a stored pipeline does not know yet have their defaults.
        refuse_changes(differences(stored_pipeline(stored).plain(), pipeline.plain()), str(path))
        refuse_growth_before_redone(RunFolder.open(path), pipeline, stored_pipeline(stored).num_iterations)
        if launch.branch_from is not None:
            refuse_another_branch(path, stored, launch.branch_from)
        return description
    if not RunFolder.exists(path):
        _refuse_foreign_folder(path)
    if launch.branch_from is not None:
        source = branch_source(launch.branch_from)[0]
        if launch.fresh and Path(source).resolve() == path.resolve():
            raise InputError(f"--from {launch.branch_from}: want another run than {path}, which --fresh sets aside")
    return description


def check_models(pipeline: Pipeline, description: EnvDescription | None) -> None:
    """Whether every model fits the environment's spaces; builds them, so this is for a rank, which has PyTorch loaded.

    Raises: InputError; nothing is written.
    """
    residents = Residents(pipeline.models, description, pipeline.seed)
    for role in pipeline.models:
        residents.get(role)


def _refuse_foreign_folder(path: Path) -> None:
    """Only what a start leaves that was killed before it published pipeline.json may be there."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise InputError(f"{path}: want a folder for the run, given a path through the file {above}; use --run DIR")
    foreign = path.is_dir() and not all(_is_of_a_killed_start(entry) for entry in path.iterdir())
    # Asked last: another launch may have made the run meanwhile, and then the lease decides.
    if foreign and not RunFolder.exists(path):
        raise InputError(
            f"{path}: want an empty or missing folder, or one that holds a run, given one that holds other files; "
            "use --run DIR"
        )


def _is_of_a_killed_start(entry: Path) -> bool:
    if entry.name == INITIAL:
        return all(file.name == "state.json" or file.suffix == ".safetensors" for file in entry.glob("[!.]*"))
    return entry.name.startswith("lease") or (entry.name.startswith(".") and entry.name.endswith(".tmp"))
