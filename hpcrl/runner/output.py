"""Where a stage's results go: handed on in memory, written behind, published in the graph's order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hpcrl.comm import Collectives
from hpcrl.data import Trajectories
from hpcrl.residents import Residents
from hpcrl.runner.handoff import Handoff, merge_facts
from hpcrl.store.attempt import Attempt
from hpcrl.store.checkpoint import read_checkpoint, write_checkpoint
from hpcrl.store.layout import lanes_name, shard_name
from hpcrl.store.manifest import FileRecord
from hpcrl.store.metrics import MetricsWriter
from hpcrl.store.shards import write_shard, write_shard_by_scratch
from hpcrl.store.stage_folder import StageFolder
from hpcrl.store.writer import WriteBehind

Array = npt.NDArray[Any]
_ORDER_TIMEOUT_SECONDS = 900.0
_Block = tuple[Trajectories | None, Trajectories | None, Mapping[str, object]]
"""One block's fields, lanes and facts."""


class StageOutput:
    """One stage's output in one iteration, on one rank."""

    def __init__(
        self,
        folder: StageFolder,
        earlier: Sequence[StageFolder],
        *,
        launch: int,
        compute_threads: int,
        comm: Collectives,
        writer: WriteBehind,
        handoff: Handoff,
        residents: Residents,
        num_blocks: int,
        finished: frozenset[int],
        trained: str | None,
        with_checkpoint: bool,
        scratch: Path | None,
        attributes: Mapping[str, object],
    ) -> None:
        self._folder, self._earlier = folder, earlier
        self._launch, self._compute_threads = launch, compute_threads
        self._comm, self._writer, self._handoff, self._residents = comm, writer, handoff, residents
        self._num_blocks, self._finished = num_blocks, finished
        self._trained, self._with_checkpoint, self._scratch = trained, with_checkpoint, scratch
        self._attributes = attributes
        self._attempt: Attempt | None = None
        self._blocks: dict[int, _Block] = {}
        self._began = time.time()
        self._rows: list[Mapping[str, object]] = []
        self.facts: list[Mapping[str, object]] = []

    def finished_blocks(self) -> frozenset[int]:
        return self._finished

    def emit(
        self,
        block: int,
        trajectories: Trajectories | None,
        *,
        lanes: Trajectories | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        part_facts = dict(facts or {})
        self.facts.append(part_facts)
        if trajectories is not None:
            self._handoff.put(self._folder.iteration, self._folder.stage, block, trajectories, lanes)
        self._blocks[block] = (trajectories, lanes, part_facts)

    def finish(self) -> None:
        """The stage has run: write and publish this rank's blocks together, with one fsync of each folder.

        Also with nothing to write: a dead launch may have published the last part, and died before the manifest.
        """
        if self._blocks or self._finished:
            blocks, self._blocks = self._blocks, {}
            held = [part for fields, lanes, _ in blocks.values() for part in (fields, lanes) if part is not None]
            self._submit(lambda: self._write_blocks(blocks), sum(part.num_bytes for part in held), "blocks")

    def emit_checkpoint(self, facts: Mapping[str, object]) -> None:
        self.facts.append(dict(facts))
        if self._comm.rank != 0:
            return
        assert self._trained is not None  # only a stage that trains calls it
        resident = self._residents.get(self._trained)
        extra = {**facts, "state": resident.state(), "checkpoint": self._with_checkpoint}
        tensors = resident.tensors() if self._with_checkpoint else {}
        size = sum(array.nbytes for group in tensors.values() for array in group.values())
        self._submit(lambda: self._write_whole(tensors, extra), size, "checkpoint")

    def emit_facts(self, facts: Mapping[str, object]) -> None:
        self.facts.append(dict(facts))
        if self._comm.rank == 0:
            self._submit(lambda: self._write_whole({}, dict(facts)), 0, "result")

    def save_progress(self, tensors: Mapping[str, Mapping[str, Array]], state: Mapping[str, object]) -> None:
        if self._comm.rank == 0:
            self._writer.flush()
            self._begin().save_progress(lambda folder: write_checkpoint(folder, tensors, state), extra={})
        self._comm.barrier()

    def load_progress(self) -> tuple[Mapping[str, Mapping[str, Array]], Mapping[str, object]] | None:
        progress = self._folder.load_progress()
        if progress is None:
            return None
        checkpoint = read_checkpoint(self._folder.path / progress.folder, progress.files)
        return checkpoint.roles, checkpoint.state

    def log(self, row: Mapping[str, object]) -> None:
        # Seconds since 1970: the report draws its timeline from them; no published field depends on them.
        self._rows.append({**row, "began": self._began, "ended": time.time()})

    def _submit(self, job: Callable[[], object], num_bytes: int, what: str) -> None:
        name = f"{what} of {self._folder.stage}, iteration {self._folder.iteration}"
        self._writer.submit(job, num_bytes=num_bytes, iteration=self._folder.iteration, what=name)

    def _begin(self) -> Attempt:
        if self._attempt is None:
            self._attempt = self._folder.begin_attempt(self._launch, compute_threads=self._compute_threads)
        return self._attempt

    def _write_blocks(self, blocks: Mapping[int, _Block]) -> None:
        if blocks:
            self._publish_blocks(blocks)
        self._folder.publish_if_complete(self._num_blocks, merge=merge_facts)

    def _publish_blocks(self, blocks: Mapping[int, _Block]) -> None:
        attempt = self._begin()
        parts = {}
        for block, (trajectories, lanes, facts) in blocks.items():
            attributes = {**self._attributes, "block": block}
            named = ((shard_name(block), trajectories), (lanes_name(block), lanes))
            files = [
                self._write_shard(attempt.path / name, part, attributes) for name, part in named if part is not None
            ]
            parts[block] = (files, facts)
        self._write_metrics(attempt)
        attempt.publish_parts(parts)

    def _write_shard(self, path: Path, part: Trajectories, attributes: Mapping[str, object]) -> FileRecord:
        if self._scratch is None:
            return write_shard(path, part, attributes=attributes)
        return write_shard_by_scratch(path, part, attributes=attributes, scratch=self._scratch)

    def _write_whole(self, tensors: Mapping[str, Mapping[str, Array]], extra: Mapping[str, object]) -> None:
        attempt = self._begin()
        files: Sequence[FileRecord] = []
        if tensors:
            folder = attempt.path / "checkpoint"
            files = [record.under("checkpoint") for record in write_checkpoint(folder, tensors, self._state(extra))]
        self._write_metrics(attempt)
        self._wait_for_earlier()
        attempt.publish(files, dict(extra))

    @staticmethod
    def _state(extra: Mapping[str, object]) -> dict[str, object]:
        state = extra["state"]
        assert isinstance(state, dict)
        return state

    def _write_metrics(self, attempt: Attempt) -> None:
        rows, self._rows = self._rows, []
        if rows and self._comm.rank == 0:
            with MetricsWriter(attempt.metrics) as metrics:
                for row in rows:
                    metrics.write(row)

    def _wait_for_earlier(self) -> None:
        """Manifests are published in the graph's order: other ranks' parts of the stages before this one come first."""
        deadline = time.monotonic() + _ORDER_TIMEOUT_SECONDS
        for folder in self._earlier:
            while not folder.is_done():
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{folder.path}: other ranks published no manifest in {_ORDER_TIMEOUT_SECONDS} s"
                    )
                time.sleep(0.0005)
