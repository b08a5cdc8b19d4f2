"""The update stage: epochs of minibatches over the blocks, one gradient tree, one optimiser step each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms import PPO
from hpcrl.errors import InputError
from hpcrl.stages.advantage import Advantage
from hpcrl.stages.batch import BlockBatch
from hpcrl.stages.stage import Stage, StageContext, StageInterruptedError
from hpcrl.store.killpoints import reach

if TYPE_CHECKING:
    from hpcrl.residents import Resident

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Update(Stage):
    """Trains one role with an algorithm on this iteration's steps.

    Minibatch m is the union of every block's m-th part; steps never move between ranks. Every part's gradient is a leaf
    of the fixed tree over blocks, so any number of ranks takes the same optimiser steps, bit for bit.
    """

    name: ClassVar[str] = "update"

    algorithm: PPO
    """The loss, the update rule and its knobs."""
    advantage: Advantage | None = None
    """Estimate advantages here, from current values, before every epoch, instead of in a stage of its own."""
    model: str = "actor"
    """The role that is trained."""

    def __post_init__(self) -> None:
        if self.advantage is not None and self.advantage.recompute is None:
            raise InputError(
                "Update.advantage: want Advantage(..., recompute='epoch'), given recompute=None; set it, or write "
                "Advantage(...) as a stage before the update"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        recorded = ("observations", "actions", "log_probs", "values")
        if self.advantage is not None:
            return (*recorded, *(name for name in self.advantage.reads if name not in recorded))
        return (*recorded, "advantages", "returns")

    @property
    def writes(self) -> tuple[str, ...]:
        return ()

    @property
    def role(self) -> str | None:
        return self.model

    @property
    def trains(self) -> str | None:
        return self.model

    def run(self, context: StageContext) -> None:
        _UpdateRun(self, context).run()


@dataclasses.dataclass
class _Cursor:
    """Where an update stands: the next epoch and minibatch, optimiser steps taken, sums of the statistics so far."""

    epoch: int
    minibatch: int
    optimizer_steps: int
    sums: Float64
    stopped: bool = False  # target KL reached: no further optimiser step


class _UpdateRun:
    """One update in progress on this rank."""

    def __init__(self, stage: Update, context: StageContext) -> None:
        self.stage, self.algorithm, self.context = stage, stage.algorithm, context
        self.resident: Resident = context.residents.get(stage.model)
        self.started = time.perf_counter()
        self.batches = [
            BlockBatch(block, context.inputs(block), self.resident.model, stage.advantage) for block in context.owned
        ]
        self.progress = context.iteration / context.num_iterations
        self.learner = self.algorithm.learner(self.resident.model, self.resident.optimizer, self.progress)
        self.counts = self._counts()

    def _counts(self) -> Int64:
        """Steps in each minibatch over all blocks, int64[num_minibatches]."""
        minibatches = self.algorithm.num_minibatches
        leaves = [np.array(batch.part_lengths(minibatches), np.float64) for batch in self.batches]
        return self.context.tree.sum(leaves).astype(np.int64)

    def run(self) -> None:
        cursor = self._resume_or_begin()
        for epoch in range(cursor.epoch, self.algorithm.num_epochs):
            if cursor.stopped:
                break
            self._begin_epoch(epoch)
            for minibatch in range(cursor.minibatch if epoch == cursor.epoch else 0, self.algorithm.num_minibatches):
                self._step(cursor, epoch, minibatch)
                if cursor.stopped:
                    break
        self._finish(cursor)
