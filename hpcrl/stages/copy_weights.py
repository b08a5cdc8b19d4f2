"""The copy-weights stage: a role takes over, or follows, the weights of another."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from hpcrl.errors import InputError
from hpcrl.stages.stage import Phase, Stage, StageContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyWeights(Stage):
    """target = weight x source + (1 - weight) x target, tensor by tensor, where both have one of that name.

    weight 1 in a phase of one iteration starts a reference or a critic from a policy that was just fine-tuned; a small
    weight in every iteration makes the reference an exponential moving average of the policy (arXiv:2404.10719,
    section 5). A value head that the source lacks stays as it is.
    Raises: InputError for a weight outside (0, 1], or a source that is its own target.
    """

    source: str = "actor"
    """The role that is read."""
    target: str = "reference"
    """The role that moves."""
    weight: float = 1.0
    """Of the source, in (0, 1]."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "copy_weights"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        if not 0.0 < self.weight <= 1.0:
            raise InputError(f"CopyWeights.weight: want a number in (0, 1], given {self.weight}")
        if self.source == self.target:
            raise InputError(f"CopyWeights.target: want another role than source='{self.source}', given the same")

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return ()

    @property
    def role(self) -> str | None:
        return self.source

    @property
    def trains(self) -> str | None:
        return self.target

    def run(self, context: StageContext) -> None:
        started = time.perf_counter()
        source, target = context.residents.get(self.source), context.residents.get(self.target)
        given, arrays = source.model.arrays(), target.model.arrays()
        shared = [name for name in arrays if name in given]
        wrong = [name for name in shared if arrays[name].shape != given[name].shape]
        if wrong or not shared:
            what = f"{wrong[0]} of the same shape" if wrong else "tensors of the same names"
            raise InputError(f"stage '{self.name}': want {what} in '{self.source}' and '{self.target}', given others")
        for name in shared:
            weight = np.float32(self.weight)
            arrays[name] = given[name] if weight == 1 else weight * given[name] + (1 - weight) * arrays[name]
        target.model.load_arrays(arrays)
        target.version += 1
        facts = {"tensors": len(shared), "weight": self.weight, "seconds": time.perf_counter() - started}
        context.output.log(facts)
        context.output.emit_checkpoint(facts)
