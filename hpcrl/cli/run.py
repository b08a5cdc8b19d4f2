"""`hpcrl run`: read the pipeline file, check everything, then play it here or under mpiexec."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline


def run_command(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Start or resume; returns the exit code."""
    if options.help or options.pipeline is None:
        return print_help("run", options.pipeline)
    from hpcrl.launch import is_rank, launch
    from hpcrl.runner import Launch, check_resumable, run_rank

    pipeline = load_pipeline(Path(options.pipeline), rest, options)
    ranks = choose_ranks(options, pipeline)
    pipeline = dataclasses.replace(pipeline, mesh=dataclasses.replace(pipeline.mesh, dp=ranks))
    run_path = options.branch or options.run or Path("runs") / pipeline.name
    choices = Launch(
        run=Path(run_path),
        fresh=options.fresh,
        branch_from=options.branch_from,
        handoff=options.handoff,
        quiet=options.quiet,
        command=_resume_command(options, rest, run_path),
    )
    if is_rank():
        run_rank(pipeline, choices)
    check_resumable(pipeline, choices)  # every check of the input comes before a process is started
    if options.on == "mpi" or (options.on is None and ranks > 1):
        arguments = ["run", *_rank_arguments(options, rest, ranks, run_path)]
        return launch(arguments, on="mpi", ranks=ranks, compute_threads=pipeline.compute_threads)
    return launch(
        [],
        on="here",
        ranks=ranks,
        compute_threads=pipeline.compute_threads,
        run_here=lambda _: run_rank(pipeline, choices),
    )


def load_pipeline(path: Path, arguments: Sequence[str], options: argparse.Namespace) -> Pipeline:
    """The pipeline that a file's function returns for these command-line arguments.

    Raises: InputError when the file is missing, defines no such function or more than one.
    """
    import tyro

    function = pipeline_function(path)
    pipeline: Pipeline = tyro.cli(function, args=list(arguments), prog=f"hpcrl run {path}")
    changes: dict[str, Any] = {
        name: getattr(options, name, None)
        for name in ("seed", "compute_threads", "num_iterations")
        if getattr(options, name, None) is not None
    }
    return dataclasses.replace(pipeline, **changes) if changes else pipeline


def pipeline_function(path: Path) -> Callable[..., Pipeline]:
    """The one function of a file that is annotated to return a Pipeline."""
    if not path.is_file():
        raise InputError(f"pipeline: want a Python file, given {path}, which is not there; see the folder pipelines/")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise InputError(f"pipeline: want a Python file (.py), given {path}")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        specification.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}") from error
    functions = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and typing.get_type_hints(value).get("return") is Pipeline
    ]
    if len(functions) != 1:
        found = ", ".join(function.__name__ for function in functions) or "none"
        raise InputError(f"{path}: want one public function annotated '-> Pipeline', given {found}")
    return functions[0]


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
    from hpcrl.launch import default_ranks

    return default_ranks(pipeline.num_blocks, pipeline.compute_threads)


def _rank_arguments(options: argparse.Namespace, rest: Sequence[str], ranks: int, run_path: Path) -> list[str]:
    arguments = [options.pipeline, "--ranks", str(ranks), "--on", "mpi", "--run", str(run_path)]
    for name in ("seed", "compute_threads", "num_iterations", "branch_from"):
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{'from' if name == 'branch_from' else name.replace('_', '-')}", str(value)]
    flags = [f"--{name}" for name in ("fresh", "quiet") if getattr(options, name)]
    arguments += ["--handoff", options.handoff, *flags]
    return [*arguments, *rest]


def _resume_command(options: argparse.Namespace, rest: Sequence[str], run_path: Path) -> str:
    given = ["hpcrl", "run", options.pipeline, *rest]
    if options.ranks is not None:
        given += ["--ranks", str(options.ranks)]
    if options.run is not None or options.branch is not None:
        given += ["--run", str(run_path)]
    for name in ("seed", "compute_threads", "num_iterations"):
        value = getattr(options, name)
        if value is not None:
            given += [f"--{name.replace('_', '-')}", str(value)]
    return " ".join(given)


def print_help(command: str, pipeline: str | None) -> int:
    """The command's own options, then the pipeline's."""
    from hpcrl.cli import command_parser

    command_parser(command).print_help()
    if pipeline is not None:
        import tyro

        print(f"\noptions of {pipeline}:")
        tyro.cli(pipeline_function(Path(pipeline)), args=["--help"], prog=f"hpcrl {command} {pipeline}")
    return 0
