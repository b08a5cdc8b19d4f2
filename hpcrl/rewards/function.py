"""A user's own reward: a Python function, named by where it is."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hpcrl.data.configuration import near_names
from hpcrl.errors import InputError
from hpcrl.rewards.interface import Columns


@dataclasses.dataclass(frozen=True)
class FunctionReward:
    """A function (prompts, responses, columns) -> floats, as `module:function` or `file.py:function`.

    prompts and responses are lists of text, columns a dict of lists; the answer is a finite number for each response.
    A file's name is taken from the working folder; a module must be importable.
    Raises: InputError when the name has no such form; from `score`, when nothing callable is found there.
    Example:
        >>> FunctionReward("statistics:mean").function([1, 3])
        2
    """

    name: str

    def __post_init__(self) -> None:
        where, _, function = str(self.name).rpartition(":")
        if not where or not function.isidentifier():
            raise InputError(f"reward: want 'module:function' or 'file.py:function', given {self.name!r}")

    def __getstate__(self) -> dict[str, object]:
        # What was imported does not travel; the name does.
        return {"name": self.name}

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself.

        Raises: InputError when the module or file is missing, cannot be imported, or has no such function.
        """
        where, _, name = self.name.rpartition(":")
        module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where, self.name)
        found = getattr(module, name, None)
        if found is None:
            public = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
            raise InputError(f"reward {self.name}: {where} has no {name!r}; {near_names(name, public)}")
        if not callable(found):
            raise InputError(f"reward {self.name}: want a function, given {type(found).__name__} ({found!r})")
        return found  # type: ignore[no-any-return]  # callable, as was just seen

    def score(self, prompts: Sequence[str], responses: Sequence[str], columns: Columns) -> npt.ArrayLike:
        """What the function answers, as it comes; `checked_scores` looks at it."""
        lists = {name: list(column) for name, column in columns.items()}
        return self.function(list(prompts), list(responses), lists)  # type: ignore[no-any-return]  # checked by the caller


def _load_module(name: str, reward: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise InputError(f"reward {reward}: importing {name} failed: {error}") from error
        raise InputError(
            f"reward {reward}: want a module that can be imported, given {name!r}; install it, put its folder on "
            "PYTHONPATH, or name its file: 'file.py:function'"
        ) from error
    except Exception as error:
        raise InputError(f"reward {reward}: importing {name} raised {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"reward: want a Python file, {path} is not there (working folder: {Path.cwd()})")
    # A name of its own: two files of one name in different folders stay apart, and dataclasses find their module.
    name = f"hpcrl_reward_{path.resolve().as_posix().replace('/', '_').replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a name that ends with .py has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"reward: importing {path} raised {type(error).__name__}: {error}") from error
    return module
