"""`hpcrl run`: read the pipeline file, check everything, then play it here or under mpiexec."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hpcrl.cli.pipeline_file import flag_of, load_pipeline, pipeline_function
from hpcrl.data import Mesh
from hpcrl.errors import InputError
from hpcrl.pipeline import MAIN, Pipeline
from hpcrl.report.wording import path_text

if TYPE_CHECKING:
    from hpcrl.runner import Launch

COMMAND: Final = "HPCRL_COMMAND"
"""Environment variable: what the user typed, told to the ranks so that they can say how to go on."""


def run_command(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Start or resume; returns the exit code."""
    if options.help:
        return print_help("run", options.pipeline)
    if options.pipeline is None:
        raise InputError("want a pipeline file, given none; for example: hpcrl run pipelines/ppo_cartpole.py")
    from hpcrl.launch.active import refuse_beside_jobs
    from hpcrl.launch.ranks import is_rank, launch
    from hpcrl.runner import Launch, check_resumable, run_rank

    pipeline, ranks = spread(options, load_pipeline(Path(options.pipeline), rest, options))
    run_path = _run_path(options, pipeline)
    choices = Launch(
        run=run_path,
        fresh=options.fresh,
        branch_from=options.branch_from,
        handoff=options.handoff,
        quiet=options.quiet,
        command=resume_command(options.given),
    )
    if options.on in ("slurm", "sbatch"):
        return submit_command(options, pipeline, choices)
    if options.site is not None or options.dry_run:
        raise InputError("--site, --dry-run: want --on slurm or --on sbatch beside them")
    if is_rank():
        run_rank(pipeline, choices)
    check_resumable(pipeline, choices)  # every check of the input comes before a process is started
    refuse_beside_jobs(run_path, say)
    if options.on == "mpi" or (options.on is None and ranks > 1):
        arguments = ["run", *_rank_arguments(options, rest, ranks, run_path)]
        return launch(
            arguments,
            on="mpi",
            ranks=ranks,
            compute_threads=pipeline.compute_threads,
            environment={COMMAND: choices.command},
        )
    return launch(
        [],
        on="here",
        ranks=ranks,
        compute_threads=pipeline.compute_threads,
        run_here=lambda _: run_rank(pipeline, choices),
    )


def submit_command(options: argparse.Namespace, pipeline: Pipeline, choices: Launch) -> int:
    """`--on slurm | sbatch`: submits the run and returns; or, with --dry-run, prints what would be submitted."""
    from hpcrl.launch.submission import dry_run, submit
    from hpcrl.runner import check_resumable

    if options.branch is not None:
        raise InputError(f"--branch: want --on here or mpi for a branch's first start, given --on {options.on}")
    if options.handoff != "memory":
        raise InputError(f"--handoff: jobs hand on through the disk, given --on {options.on}; leave it out")
    python_path = [Path(options.pipeline).resolve().parent]
    if options.dry_run:
        if options.on != "sbatch":
            raise InputError("--dry-run: want --on sbatch (submitit makes no scripts to print), given --on slurm")
        check_resumable(pipeline, choices)
        print(dry_run(pipeline, options.site, run=choices.run, python_path=python_path, say=say))
        return 0
    run = submit(
        pipeline,
        options.site,
        run=choices.run,
        door=options.on,
        fresh=choices.fresh,
        command=choices.command,
        python_path=python_path,
        say=say,
    )
    name = path_text(run.path)
    if run.is_finished():
        print(f"{run.path}: look at it with: hpcrl report {name}")
        return 0
    print(f"{run.path}: submitted; look with: hpcrl status {name}; end it with: hpcrl cancel {name}")
    return 0


def say(line: str) -> None:
    """What a person should know beside the result, which stands on stdout."""
    print(line, file=sys.stderr, flush=True)


def spread(options: argparse.Namespace, pipeline: Pipeline) -> tuple[Pipeline, int]:
    """The pipeline on the meshes asked for, and how many ranks its world has."""
    from hpcrl.runner.part import world_size

    pipeline = set_meshes(pipeline, options.mesh)
    together = world_size(pipeline)
    if together is None and options.on in ("slurm", "sbatch"):
        return _for_jobs(options, pipeline)
    if together is None or options.on == "here":
        ranks = choose_ranks(options, pipeline)
        return dataclasses.replace(pipeline, mesh=dataclasses.replace(pipeline.mesh, dp=ranks)), ranks
    if options.ranks not in (None, together):
        raise InputError(
            f"--ranks: want {together} (the meshes {', '.join(pipeline.all_meshes)} together), given {options.ranks}; "
            "set one mesh's with --mesh NAME.dp=N"
        )
    return pipeline, together


def _for_jobs(options: argparse.Namespace, pipeline: Pipeline) -> tuple[Pipeline, int]:
    """As many ranks as the pipeline says: the cores of the login node do not matter."""
    if options.ranks is not None and len({stage.mesh for stage in pipeline.stages}) > 1:
        raise InputError("--ranks: want --mesh NAME.dp=N, because the pipeline has several meshes, given --ranks")
    if options.ranks is not None:
        pipeline = dataclasses.replace(pipeline, mesh=dataclasses.replace(pipeline.mesh, dp=options.ranks))
    return pipeline, pipeline.mesh.size


def set_meshes(pipeline: Pipeline, settings: Sequence[str]) -> Pipeline:
    """The pipeline with --mesh NAME.dp=N and --mesh NAME.array=N applied."""
    meshes = pipeline.all_meshes
    for setting in settings:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)\.(dp|array)=(\d+)", setting)
        if match is None or match[1] not in meshes:
            raise InputError(
                f"--mesh: want NAME.dp=N or NAME.array=N with one of {', '.join(meshes)}, given {setting!r}"
            )
        meshes[match[1]] = _with_degree(meshes[match[1]], match[2], int(match[3]))
    main = meshes.pop(MAIN)
    return dataclasses.replace(pipeline, mesh=main, meshes=meshes) if settings else pipeline


def _with_degree(mesh: Mesh, axis: str, degree: int) -> Mesh:
    return dataclasses.replace(mesh, ranks=None, **{axis: degree})  # type: ignore[arg-type]  # axis is dp or array


def choose_ranks(options: argparse.Namespace, pipeline: Pipeline) -> int:
    """The ranks asked for, or one per core and block where MPI is installed."""
    if options.ranks is not None:
        if options.ranks < 1:
            raise InputError(f"--ranks: want a whole number >= 1, given {options.ranks}")
        if options.on == "here" and options.ranks > 1:
            raise InputError(f"--on here: want 1 rank (this process), given --ranks {options.ranks}; use --on mpi")
        return int(options.ranks)
    if options.on == "here":
        return 1
    if importlib.util.find_spec("mpi4py") is None and options.on is None:
        return 1
    from hpcrl.launch.ranks import default_ranks

    return default_ranks(pipeline.num_blocks, pipeline.compute_threads)


def _run_path(options: argparse.Namespace, pipeline: Pipeline) -> Path:
    """Where the run lies, from --run, --branch or the pipeline's name."""
    if options.branch is not None and options.run is not None:
        raise InputError(f"--branch {options.branch}: names the run's folder, as --run {options.run} does; give one")
    if (options.branch is None) != (options.branch_from is None):
        given, missing = ("--from", "--branch DIR") if options.branch is None else ("--branch", "--from RUN@ITERATION")
        raise InputError(f"{given}: want {missing} beside it: a branch has a new folder and an old checkpoint")
    return Path(options.branch or options.run or Path("runs") / pipeline.name)


def _rank_arguments(options: argparse.Namespace, rest: Sequence[str], ranks: int, run_path: Path) -> list[str]:
    folder = "--run" if options.branch is None else "--branch"
    arguments = [options.pipeline, "--ranks", str(ranks), "--on", "mpi", folder, str(run_path)]
    for name in ("seed", "compute_threads", "num_iterations"):
        value = getattr(options, name)
        if value is not None:
            arguments += [flag_of(name), str(value)]
    if options.branch_from is not None:
        arguments += ["--from", options.branch_from]
    arguments += [word for setting in options.mesh for word in ("--mesh", setting)]
    flags = [flag_of(name) for name in ("fresh", "quiet") if getattr(options, name)]
    arguments += ["--handoff", options.handoff, *flags]
    return [*arguments, *rest]


def resume_command(given: Sequence[str]) -> str:
    """What a user types to go on: the same command, less --fresh; it can be pasted into a shell."""
    if COMMAND in os.environ:
        return os.environ[COMMAND]  # a rank: the user typed the launcher's command
    return shlex.join([*_program(), *(word for word in given if word != "--fresh")])


def _program() -> list[str]:
    """The program as this shell finds it."""
    typed = Path(sys.argv[0])
    if typed.name == "__main__.py":
        return [sys.executable, "-m", "hpcrl.cli"]
    found = shutil.which("hpcrl")
    is_on_path = found is not None and typed.exists() and Path(found).samefile(typed)
    return ["hpcrl"] if is_on_path else [str(typed)]


def print_help(command: str, pipeline: str | None) -> int:
    """The command's own options, then the pipeline's."""
    from hpcrl.cli import command_parser

    command_parser(command).print_help()
    if pipeline is not None:
        import tyro

        print(f"\noptions of {pipeline}:")
        tyro.cli(pipeline_function(Path(pipeline)), args=["--help"], prog=f"hpcrl {command} {pipeline}")
    return 0
