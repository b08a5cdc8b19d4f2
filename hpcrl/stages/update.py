"""The update stage: epochs of minibatches over the blocks, one gradient tree, one optimiser step each.

Whatever the rule: its minibatches are unions of the blocks' parts, of steps for PPO and of whole responses for text.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from hpcrl.algorithms import PPO
from hpcrl.algorithms.language_ppo import LanguagePPO
from hpcrl.algorithms.text_rule import TextRule
from hpcrl.data import Trajectories
from hpcrl.errors import InputError
from hpcrl.stages.advantage import Advantage
from hpcrl.stages.batch import StepBatch
from hpcrl.stages.stage import Phase, Stage, StageContext, StageInterruptedError
from hpcrl.stages.text_batch import TextBatch
from hpcrl.store.killpoints import reach

Float64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


_PROGRESS_DUE = 65536.0
"""Larger than any number of blocks, and exact in float32 beside their sum."""


@dataclasses.dataclass(frozen=True)
class Update(Stage):
    """Trains one role with an algorithm on this iteration's steps.

    Minibatch m is the union of every block's m-th part; steps never move between ranks. Every part's gradient is a leaf
    of the fixed tree over blocks, so any number of ranks takes the same optimiser steps, bit for bit.
    """

    algorithm: PPO | TextRule
    """The loss, the update rule and its knobs."""
    advantage: Advantage | None = None
    """Estimate advantages here, from current values, before every epoch, instead of in a stage of its own."""
    model: str = "actor"
    """The role that is trained."""
    mesh: str = "main"
    """The mesh on which it runs."""
    phase: Phase | None = None
    """When it takes part; None: always."""
    name: str = "update"
    """Names its folder; once in a pipeline."""

    def __post_init__(self) -> None:
        if not isinstance(self.algorithm, PPO | TextRule):
            raise InputError(f"Update.algorithm: want PPO(...) or a rule of text, given {self.algorithm!r}")
        if self.advantage is not None and not isinstance(self.algorithm, PPO):
            raise InputError(
                f"Update.advantage: want None with {type(self.algorithm).__name__}, given one; write Advantage(...) as "
                "a stage before the update"
            )
        if not self.name or "/" in self.name:
            raise InputError(f"Update.name: want a folder name without '/', given {self.name!r}")
        if self.advantage is not None and self.advantage.recompute is None:
            raise InputError(
                "Update.advantage: want Advantage(..., recompute='epoch'), given recompute=None; set it, or write "
                "Advantage(...) as a stage before the update"
            )

    @property
    def is_text(self) -> bool:
        """Whether its rule learns from text."""
        return isinstance(self.algorithm, TextRule)

    @property
    def reads(self) -> tuple[str, ...]:
        if isinstance(self.algorithm, TextRule):
            return ("actions", "prompt_tokens", *self.algorithm.fields)
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
    """Where an update stands: the next epoch and minibatch, and sums of the statistics so far."""

    epoch: int = 0
    minibatch: int = 0
    optimizer_steps: int = 0
    early_stop: bool = False
    """Target KL reached: no further optimiser step."""


class _UpdateRun:
    """One update in progress on this rank."""

    def __init__(self, stage: Update, context: StageContext) -> None:
        self.stage, self.algorithm, self.context = stage, stage.algorithm, context
        self.started = time.perf_counter()
        self.resident = context.residents.get(stage.model)
        self.flat = self.resident.model.flat
        self.optimizer = self.resident.ready_to_train(stage.name, self.algorithm.build_optimizer)
        self.batch = self._open_batch({block: self._inputs(block) for block in context.owned})
        self.share_done = context.iteration / context.num_iterations
        self.learning_rate = self.algorithm.learning_rate_at(self.share_done)
        # One element more than the gradient carries what ranks must agree on at the same step: see _pack_request.
        size = self.flat.size
        self._leaves = [np.zeros(size + 1, np.float32) for _ in context.owned]
        self._total = np.zeros(size + 1, np.float32)
        self._sums = [np.zeros(self.algorithm.num_statistics, np.float64) for _ in context.owned]
        self._gradient_norm_sum = 0.0
        self._stored_estimates: Mapping[str, Mapping[str, Array]] = {}
        self._part_sums: Float64 = np.zeros((0, 0))
        """Of each minibatch over all blocks: what its parts must know of the whole."""
        self._last_epoch_begun = -1

    def _open_batch(self, blocks: Mapping[int, Trajectories]) -> StepBatch | TextBatch:
        if isinstance(self.algorithm, PPO):
            return StepBatch(blocks, self.algorithm, seed=self.context.seed, iteration=self.context.iteration)
        return TextBatch(blocks, self.algorithm, seed=self.context.seed, iteration=self.context.iteration)

    def _inputs(self, block: int) -> Trajectories:
        """One block's steps, none of them older than the pipeline allows.

        Raises: InputError; an older policy than promised would be corrected wrongly, and silently.
        """
        steps, lag = self.context.inputs(block), self.context.policy_lag
        versions = steps.per_trajectory.get("policy_version")
        if lag is not None and versions is not None and len(versions):
            oldest = int(versions.min())
            if self.resident.version - oldest > lag:
                raise InputError(
                    f"stage '{self.stage.name}', iteration {self.context.iteration}, block {block}: want steps of "
                    f"policy version {self.resident.version - lag} or newer (policy_lag={lag}), "
                    f"given version {oldest}; restore the run folder from a copy, or branch from a checkpoint"
                )
        return steps

    def run(self) -> None:
        cursor = self._resume_or_begin()
        while cursor.epoch < self.algorithm.num_epochs and not cursor.early_stop:
            if self._last_epoch_begun != cursor.epoch:
                self._begin_epoch(cursor.epoch)
            asked_to_stop, progress_due = self._optimizer_step(cursor)
            done = cursor.epoch * self.algorithm.num_minibatches + cursor.minibatch
            self.context.tick(self.stage.name, done, self.algorithm.num_epochs * self.algorithm.num_minibatches)
            if asked_to_stop and cursor.epoch < self.algorithm.num_epochs:
                self._save_progress(cursor)
                raise StageInterruptedError
            if progress_due and cursor.epoch < self.algorithm.num_epochs:
                self._save_progress(cursor)
        self._finish(cursor)

    def _begin_epoch(self, epoch: int) -> None:
        """The epoch's order of steps, fresh advantages where asked for, and what normalises them."""
        self._last_epoch_begun = epoch
        if self.stage.advantage is not None and not self._restore_estimates():
            self._estimate_advantages(self.stage.advantage)
        self.batch.begin_epoch(epoch)
        leaves = [self.batch.part_sums(block) for block in self.context.owned]
        self._part_sums = self.context.tree.sum(leaves).reshape(self.algorithm.num_minibatches, -1)

    def _estimate_advantages(self, advantage: Advantage) -> None:
        assert isinstance(self.batch, StepBatch)  # a rule of text takes no advantage of its own
        self.batch.estimate_advantages(self.resident.actor_critic, advantage)

    def _part_gradient(self, block: int, minibatch: int) -> Float64:
        """The gradient of one block's part, in the flat buffer; returns its statistics."""
        if isinstance(self.batch, StepBatch):
            assert isinstance(self.algorithm, PPO)
            return self.algorithm.part_gradient(
                self.resident.actor_critic,
                self.batch.part(block, minibatch),
                self.batch.totals(self._part_sums, minibatch),
                progress=self.share_done,
            )
        assert isinstance(self.algorithm, TextRule)
        return self.algorithm.part_gradient(
            self.resident.decoder,
            self.batch.part(block, minibatch),
            self.batch.totals(self._part_sums, minibatch),
            progress=self.share_done,
        )

    def _optimizer_step(self, cursor: _Cursor) -> tuple[bool, bool]:
        """One minibatch: every block's gradient, the tree, one step.

        Returns whether any rank was asked to stop, and whether progress is due; the same on all ranks.
        """
        statistics = []
        for block, leaf in zip(self.context.owned, self._leaves, strict=True):
            statistics.append(self._part_gradient(block, cursor.minibatch))
            leaf[:-1] = self.flat.gradients_array()
            leaf[-1] = self._pack_request(block)
        if self._kl_reached(statistics):
            cursor.early_stop = True
            return False, False
        total = self.context.tree.sum(self._leaves, out=self._total)
        self.flat.gradients_array()[:] = total[:-1]
        reach("optimizer.before_step")
        try:
            norm = self.optimizer.step(self.learning_rate, self.algorithm.max_grad_norm)
        except FloatingPointError as error:
            raise FloatingPointError(f"epoch {cursor.epoch}, minibatch {cursor.minibatch}: {error}") from error
        reach("optimizer.after_step")
        for sums, numbers in zip(self._sums, statistics, strict=True):
            sums += numbers
        self._gradient_norm_sum += norm
        cursor.optimizer_steps += 1
        cursor.minibatch += 1
        if cursor.minibatch == self.algorithm.num_minibatches:
            cursor.epoch, cursor.minibatch = cursor.epoch + 1, 0
        return bool(total[-1] % _PROGRESS_DUE > 0), bool(total[-1] >= _PROGRESS_DUE)

    def _pack_request(self, block: int) -> float:
        """1 when this rank was asked to stop, plus _PROGRESS_DUE from block 0's owner when its clock says so."""
        asked = float(self.context.stop_requested())
        return asked + _PROGRESS_DUE if block == 0 and self.context.progress_due() else asked

    def _kl_reached(self, statistics: list[Float64]) -> bool:
        """Whether this minibatch diverged so far that the update ends before its step; the same on all ranks."""
        if getattr(self.algorithm, "target_kl", None) is None:
            return False
        assert isinstance(self.algorithm, PPO | LanguagePPO)  # the rules that have a target
        sums = self.context.tree.sum([numbers.copy() for numbers in statistics])
        return self.algorithm.stops_at(self.algorithm.finish_statistics(sums)["approximate_kl"])

    def _resume_or_begin(self) -> _Cursor:
        """Go on from the newest published progress; else move the value scale once and begin."""
        stored = self.context.output.load_progress()
        if stored is not None:
            tensors, state = stored
            self.resident.load(tensors, self.resident.version, self.stage.name)
            for sums, block in zip(self._sums, self.context.owned, strict=True):
                sums[:] = tensors["statistics"][block_key(block)]
            self._gradient_norm_sum = cast(float, state["gradient_norm_sum"])
            self._stored_estimates = tensors if "advantages" in tensors else {}
            return _Cursor(**cast(Mapping[str, Any], state["cursor"]))
        if isinstance(self.algorithm, PPO) and self.algorithm.normalize_values is not None:
            if self.stage.advantage is not None:
                self._estimate_advantages(self.stage.advantage)
            returns = [moments_of(steps["returns"]) for steps in self.batch.blocks.values()]
            self.algorithm.advance_value_statistics(self.resident.actor_critic, self.context.tree.sum(returns))
        return _Cursor()

    def _restore_estimates(self) -> bool:
        """Take the advantages of an epoch that was interrupted in its middle; False when there are none."""
        stored, self._stored_estimates = self._stored_estimates, {}
        for block in self.context.owned if stored else []:
            assert isinstance(self.batch, StepBatch)  # only an update with an advantage of its own stores any
            self.batch.replace(block, {name: stored[name][block_key(block)] for name in ("advantages", "returns")})
        return bool(stored)

    def _save_progress(self, cursor: _Cursor) -> None:
        mine: dict[str, dict[str, Array]] = {
            "statistics": {block_key(block): sums for block, sums in zip(self.context.owned, self._sums, strict=True)}
        }
        if self.stage.advantage is not None and cursor.minibatch > 0:
            # Mid-epoch: the epoch's advantages came from the values at its beginning, which are gone.
            for name in ("advantages", "returns"):
                mine[name] = {block_key(block): steps[name] for block, steps in self.batch.blocks.items()}
        gathered = self.context.comm.all_gather(mine)
        groups = {name: {key: array for part in gathered for key, array in part[name].items()} for name in mine}
        self.context.output.save_progress(
            {**self.resident.tensors(), **groups},
            {"cursor": dataclasses.asdict(cursor), "gradient_norm_sum": self._gradient_norm_sum},
        )

    def _finish(self, cursor: _Cursor) -> None:
        """Advance what is frozen during a rollout, raise the version, publish."""
        if isinstance(self.batch, StepBatch):
            observation_statistics = self.resident.actor_critic.observation_statistics
            if observation_statistics is not None:
                leaves = [moments_of(steps["observations"]) for steps in self.batch.blocks.values()]
                observation_statistics.advance(self.context.tree.sum(leaves))
        self.resident.version += 1
        finished = self.algorithm.finish_statistics(self.context.tree.sum(self._sums))
        steps = max(cursor.optimizer_steps, 1)
        facts = {
            **{name: value if np.isfinite(value) else None for name, value in finished.items()},
            "gradient_norm": self._gradient_norm_sum / steps,
            "learning_rate": self.learning_rate,
            "optimizer_steps": cursor.optimizer_steps,
            "early_stop": cursor.early_stop,
            "steps": self.batch.num_steps(self._part_sums),
            "num_iterations": self.context.num_iterations,
            "seconds": time.perf_counter() - self.started,
        }
        self.context.output.log(facts)
        self.context.output.emit_checkpoint(facts)


def block_key(block: int) -> str:
    """Names a block's arrays in a progress file."""
    return f"block-{block:05d}"


def moments_of(rows: Array) -> Float64:
    """(n, sums, sums of squares) of rows [n, ...] in float64."""
    from hpcrl.models.statistics import moments

    return moments(rows)
