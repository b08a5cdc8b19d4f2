"""EnvPool's C++ environments: a back end for throughput."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hpcrl.envs.episodes import EpisodeCounter
from hpcrl.envs.interface import Array, StepResult
from hpcrl.envs.native import NativeEnvs
from hpcrl.errors import InputError
from hpcrl.ops.random import Draw


class EnvPoolEnvs(NativeEnvs):
    """EnvPool in its ordered form, all lanes each step; restart level "fresh".

    The step after an ending only resets (`valid` False). Each lane's generator starts from its episode's key, and goes
    on from there: later episodes are the engine's, so that a restart cannot find them again.
    """

    def __init__(
        self, task: str, lanes: range, seed: int, draw: Draw, *, num_threads: int, options: Mapping[str, object]
    ) -> None:
        import envpool

        self.name, self.lanes, self._engine, self._mode = f"envpool:{task}", lanes, None, "NextStep"
        self._task, self._options, self._num_threads = task, dict(options), num_threads
        with _quiet():
            spec = envpool.make_spec(task, **self._options)
            self._open_gates(spec.observation_space, spec.action_space)
        self.max_episode_steps = int(spec.config.max_episode_steps)
        shape = self.observation_space.shape
        stack = int(getattr(spec.config, "stack_num", 1))
        if self.observation_space.dtype == "uint8" and len(shape) == 3 and shape[0] == stack:
            self.frame_stack = stack
        self._counter = EpisodeCounter(self.name, lanes, seed, draw)
        self.episode, self.episode_step = self._counter.episode, self._counter.episode_step
        self._ended = np.zeros(len(lanes), np.bool_)
        self._in_flight = False

    def _begin_episodes(self) -> Array:
        """A new engine, for an EnvPool is seeded only when it is made."""
        import envpool

        self.close()
        self._ended = np.zeros(len(self.lanes), np.bool_)
        with _quiet():
            self._engine = envpool.make(
                self._task,
                env_type="gymnasium",
                num_envs=len(self.lanes),
                num_threads=self._num_threads,
                env_seed=self._counter.current_keys(),
                **self._options,
            )
            observations, _ = self._engine.reset()
        self.observations = self._observe.batch(observations, len(self.lanes))
        return self.observations

    def step(self, actions: Array) -> StepResult:
        self.send(actions)
        return self.receive()

    def send(self, actions: Array) -> None:
        engine: Any = self._engine
        engine.send(self._gate(actions))
        self._in_flight = True

    def receive(self) -> StepResult:
        if not self._in_flight:
            raise RuntimeError(f"{self.name}: receive() without send()")
        self._in_flight = False
        engine: Any = self._engine
        return self._read(*engine.recv())

    def render(self) -> None:
        return None

    def close(self) -> None:
        if self._engine is not None:
            if self._in_flight:
                self._engine.recv()
                self._in_flight = False
            self._engine.close()
            self._engine = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Gymnasium's warning of lost digits: EnvPool declares its float64 bounds as float32, every time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
        yield


def check_options(task: str, options: Mapping[str, object]) -> None:
    """Refuses what EnvPool's configuration of this task does not have.

    Raises: InputError naming the option and those there are.
    """
    import envpool

    ours = {"num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players", "gym_reset_return_info"}
    allowed = sorted(set(envpool.make_spec(task).config._fields) - ours)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise InputError(f"envpool:{task}: options: want some of {', '.join(allowed)}, given {', '.join(unknown)}")
