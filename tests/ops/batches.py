"""Ragged batches, and the five recurrences under one calling convention, each beside its oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import reference

from hpcrl.ops import recurrence


@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed inputs of all recurrences; any array library."""

    rewards: Any
    values: Any
    action_values: Any
    ratios: Any
    bootstrap_values: Any
    offsets: Any

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """The same batch with each field changed."""
        return Batch(*(change(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def with_dtype(self, change: Callable[[Any], Any]) -> Batch:
        """Changes the floating-point fields only."""
        return dataclasses.replace(self.map(change), offsets=self.offsets)


def ragged(lengths: Sequence[int], seed: int = 0) -> Batch:
    """Normal rewards and values, log-normal ratios, every third trajectory terminated."""
    rng = np.random.default_rng(seed)
    num_steps = int(sum(lengths))

    def normal(count: int) -> np.ndarray:
        return rng.standard_normal(count).astype(np.float32)

    bootstrap = normal(len(lengths))
    bootstrap[::3] = 0.0
    ratios = np.exp(0.5 * normal(num_steps)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Batch(normal(num_steps), normal(num_steps), normal(num_steps), ratios, bootstrap, offsets)


@dataclasses.dataclass(frozen=True)
class Op:
    """One recurrence: `run` gives the kernel's arrays, `oracle` those of reference.py."""

    name: str
    inputs: tuple[str, ...]
    scalars: dict[str, float]

    def _call(self, function: Callable[..., Any], batch: Batch, options: dict[str, Any]) -> tuple[Any, ...]:
        result = function(*(getattr(batch, name) for name in self.inputs), **self.scalars, **options)
        return result if isinstance(result, tuple) else (result,)

    def run(self, batch: Batch, **options: Any) -> tuple[Any, ...]:
        return self._call(getattr(recurrence, self.name), batch, options)

    def oracle(self, batch: Batch) -> tuple[Any, ...]:
        return self._call(getattr(reference, self.name), batch, {})

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("out",) if self.name in ("td_lambda", "reward_to_go") else ("out", "returns_out")


_PACKED = ("rewards", "values", "bootstrap_values", "offsets")
OPS = (
    Op("gae", _PACKED, {"gamma": 0.99, "gae_lambda": 0.95}),
    Op("td_lambda", _PACKED, {"gamma": 0.99, "td_lambda": 0.9}),
    Op("reward_to_go", ("rewards", "bootstrap_values", "offsets"), {"gamma": 0.97}),
    Op("vtrace", (*_PACKED, "ratios"), {"gamma": 0.98, "trace_lambda": 0.97, "rho_clip": 1.2, "c_clip": 1.05}),
    Op("retrace", (*_PACKED, "action_values", "ratios"), {"gamma": 0.98, "trace_lambda": 0.95}),
)
