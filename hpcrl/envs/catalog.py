"""Which environment a name means, and which back end plays it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from hpcrl.errors import InputError

BACKENDS = ("scalar", "native", "ale", "envpool")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a name was found to mean.

    `id` is the registered id, or EnvPool's task name; `factory` makes the environment where the name is
    "module:attribute"; `backend` is one of `BACKENDS`.
    """

    name: str
    backend: str
    id: str = ""
    factory: Callable[..., Any] | None = None


def find(env: str, options: Mapping[str, object]) -> Entry:
    """The environment of that name: `CartPole-v1`, `ALE/Pong-v5`, `envpool:Pong-v5`, `my_module:MyEnv` or `:My-v0`.

    Raises: InputError for an unknown name (with near ones), a missing extra (with its install command), or a back end
    that cannot play it.
    """
    if not isinstance(env, str) or not env:
        raise InputError(f"env: want an environment's name, such as 'CartPole-v1', given {env!r}")
    asked = options.get("backend")
    if asked is not None and asked not in BACKENDS:
        raise InputError(f"{env}: option backend: want one of {', '.join(BACKENDS)}, given {asked!r}")
    if env.startswith("envpool:") or asked == "envpool":
        return _find_in_envpool(env, env.removeprefix("envpool:"), asked)
    if ":" in env:
        return _find_in_module(env, asked)
    return _registered(env, env, asked)


def _registered(name: str, env_id: str, asked: object) -> Entry:
    import gymnasium

    if env_id.startswith("ALE/"):
        require("ale_py", "atari", name)
    if importlib.util.find_spec("ale_py") is not None:
        import ale_py

        gymnasium.register_envs(ale_py)
    spec = gymnasium.registry.get(env_id)
    if spec is None:
        near = _near(env_id, list(gymnasium.registry))
        raise InputError(f"env: want a registered Gymnasium id, given {name!r}; {near}, or use 'module:attribute'")
    backend = str(asked) if asked is not None else _default_backend(env_id, spec)
    if backend == "native" and spec.vector_entry_point is None:
        raise InputError(f"{name}: option backend: want 'scalar' (it has no vector form of its own), given 'native'")
    if backend == "ale" and not env_id.startswith("ALE/"):
        raise InputError(f"{name}: option backend: 'ale' wants an id that begins with ALE/, such as 'ALE/Pong-v5'")
    if backend == "scalar" and spec.entry_point is None:
        raise InputError(f"{name}: option backend: want 'native' (it has no scalar form), given 'scalar'")
    return Entry(name, backend, env_id)


def _default_backend(env_id: str, spec: Any) -> str:
    if env_id.startswith("ALE/"):
        return "ale"
    return "native" if is_cartpole(spec) or spec.entry_point is None else "scalar"


def is_cartpole(spec: Any) -> bool:
    """Whether a registered id is played by Gymnasium's CartPoleVectorEnv, whose state can be taken out."""
    return bool(spec.vector_entry_point == "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv")


def _find_in_envpool(name: str, task: str, asked: object) -> Entry:
    require("envpool", "envpool", name)
    if asked not in (None, "envpool"):
        raise InputError(
            f"{name}: option backend: want 'envpool' for a name that begins with envpool:, given {asked!r}"
        )
    import envpool

    # Gymnasium calls Pong ALE/Pong-v5, EnvPool Pong-v5.
    task = task.removeprefix("ALE/")
    tasks = envpool.list_all_envs()
    if task not in tasks:
        raise InputError(f"env: want a task of EnvPool, given {name!r}; {_near(task, tasks)}")
    return Entry(name, "envpool", task)


def _find_in_module(env: str, asked: object) -> Entry:
    module_name, _, attribute = env.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise InputError(
            f"env: want a module that can be imported before the colon of {env!r}, given {module_name!r}; "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    factory = getattr(module, attribute, None)
    if factory is None:
        import gymnasium

        if attribute in gymnasium.registry:
            return _registered(env, attribute, asked)
        near = _near(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise InputError(
            f"env: want a class, a function or a registered id in {module_name!r}, given {attribute!r}; {near}"
        )
    if not callable(factory):
        raise InputError(f"env: want a class or a function that makes an environment, given {env!r}, a {type(factory)}")
    if asked not in (None, "scalar"):
        raise InputError(f"{env}: option backend: want 'scalar' for 'module:attribute', given {asked!r}")
    return Entry(env, "scalar", factory=factory)


def _near(given: str, names: list[str]) -> str:
    """A hint with the names most like the one given, whatever their case."""
    by_lower = {name.lower(): name for name in names}
    bare = {name.lower().rpartition("/")[2]: name for name in names}
    found = [by_lower[name] for name in difflib.get_close_matches(given.lower(), by_lower, n=4, cutoff=0.6)]
    found += [bare[name] for name in difflib.get_close_matches(given.lower(), bare, n=4, cutoff=0.6)]
    unique = list(dict.fromkeys(found))[:4]
    return f"near: {', '.join(unique)}" if unique else "no name here is near it"


def require(package: str, extra: str, env: str) -> None:
    """Refuses an environment whose package is not installed.

    Raises: InputError naming the extra to install.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{env}: want the package {package}, which is not installed; pip install 'hpcrl[{extra}]'")
