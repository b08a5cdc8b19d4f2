"""The pipeline that a user's file makes: the file imported, its function called with the command line's options."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from hpcrl.data.configuration import near_names
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline

_OVERRIDES = ("seed", "compute_threads", "num_iterations")
"""Fields of every pipeline that `hpcrl run` has options for, whether or not the file's function does."""


def load_pipeline(path: Path, arguments: Sequence[str], options: argparse.Namespace) -> Pipeline:
    """The pipeline that a file's function returns for these command-line arguments.

    Raises: InputError when the file is missing or broken, for an option that neither the function nor the command has,
        and for everything a Pipeline refuses. SystemExit with code 2 for a value that its option cannot take.
    """
    import tyro

    function = pipeline_function(path)
    given = {name: getattr(options, name, None) for name in _OVERRIDES}
    own = inspect.signature(function).parameters
    passed_on = [
        word
        for name, value in given.items()
        if value is not None and name in own
        for word in (flag_of(name), str(value))
    ]
    with _explained(path):
        pipeline, unknown = tyro.cli(
            function, args=[*arguments, *passed_on], prog=f"hpcrl run {path}", return_unknown_args=True
        )
    if unknown:
        _refuse_unknown(unknown, path, function, options.command)
    if not isinstance(pipeline, Pipeline):
        raise InputError(f"{path}: want {function.__name__}() to return a Pipeline, given {type(pipeline).__name__}")
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(pipeline, **changes) if changes else pipeline


def pipeline_function(path: Path) -> Callable[..., Pipeline]:
    """The one function of a file that is annotated to return a Pipeline.

    Raises: InputError when the file is missing or broken, or has no such function or more than one.
    """
    module = _import(path)
    with _explained(path):
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
        raise InputError(
            f"{path}: want one public function annotated '-> Pipeline', given {found}; see pipelines/ppo_cartpole.py"
        )
    return functions[0]


def flag_of(name: str) -> str:
    """flag_of('num_envs') -> '--num-envs'."""
    return f"--{name.replace('_', '-')}"


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        is_folder = "is a folder" if path.is_dir() else "is not there"
        raise InputError(
            f"pipeline: want a Python file, given {path}, which {is_folder}; it comes first: hpcrl run FILE"
        )
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise InputError(f"pipeline: want a Python file (.py), given {path}")
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "") != path:
        raise InputError(f"{path}: want a name that no loaded module has, given {path.stem!r}; rename the file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))  # for `env="my_module:my_env"` beside the pipeline
    with _explained(path):
        specification.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """A mistake in a user's file as one line that names the file's line; InputError passes."""
    try:
        yield
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(
            f"{error.filename or path}, line {error.lineno}: {error.msg}; mend it, then run again"
        ) from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise InputError(f"{where}: {type(error).__name__}: {error}; mend it, then run again") from error


def _refuse_unknown(unknown: Sequence[str], path: Path, function: Callable[..., Pipeline], command: str) -> None:
    from hpcrl.cli import command_parser

    word = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
    help_command = f"see hpcrl {command} {path} --help"
    if not word.startswith("-"):
        raise InputError(f"want one pipeline file and options after it, given another word, {word!r}; {help_command}")
    known = [name for action in command_parser(command)._actions for name in action.option_strings]
    for name, parameter in inspect.signature(function).parameters.items():
        known.append(flag_of(name))
        if isinstance(parameter.default, bool):
            known.append(flag_of(f"no_{name}"))
    raise InputError(
        f"{word}: want an option of {path} or of hpcrl {command}, given an unknown one "
        f"({near_names(word, list(dict.fromkeys(known)))}); {help_command}"
    )
