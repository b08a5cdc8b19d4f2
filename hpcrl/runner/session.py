"""One rank's session, from joining the world to leaving it together with all others."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from hpcrl.comm import Collectives, leave, open_world
from hpcrl.data import Blocks
from hpcrl.envs import EnvDescription
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline
from hpcrl.runner.checks import check_models, check_resumable
from hpcrl.runner.display import Display
from hpcrl.runner.loop import Loop
from hpcrl.runner.position import Position, clear_leftovers, find_position, machine_notes
from hpcrl.runner.prepare import Launch, Prepared, open_run, register_launch, set_aside
from hpcrl.signals import BAD_INPUT, DONE, FAILED, StopFlag
from hpcrl.store.lease import Lease
from hpcrl.store.processes import Process, local_launcher
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.writer import WriteBehind

T = TypeVar("T")


class RefusedError(InputError):
    """Bad input that all ranks know of: they leave together."""


def run_rank(pipeline: Pipeline, launch: Launch) -> NoReturn:
    """Play this rank's share and leave with the code all ranks agree on: 0, 85 (requeue), 2 (bad input) or 1."""
    # The writing thread shares the interpreter with the stages: hand over after 0.5 ms, not Python's 5 ms, which is
    # longer than a small stage.
    sys.setswitchinterval(0.0005)
    comm = open_world()
    with StopFlag() as stop:
        _run_and_leave(pipeline, launch, comm, stop)


def _run_and_leave(pipeline: Pipeline, launch: Launch, comm: Collectives, stop: StopFlag) -> NoReturn:
    try:
        code = _play(pipeline, launch, comm, stop)
    except RefusedError as error:
        if comm.rank == 0:
            print(f"hpcrl run: {error}", file=sys.stderr, flush=True)
        code = BAD_INPUT
    except InputError as error:
        # One rank may see alone that a file is damaged or the disk full; the others must not wait for it.
        print(f"hpcrl run: {error}", file=sys.stderr, flush=True)
        comm.abort(BAD_INPUT)
    except Exception as error:
        if not isinstance(error, FloatingPointError):  # its message says it all
            traceback.print_exc()
        print(
            f"hpcrl run: rank {comm.rank} of {comm.size} failed: {type(error).__name__}: {error}; what is published "
            f"stays, and the same command goes on from there",
            file=sys.stderr,
        )
        comm.abort(FAILED)
    leave(comm, code)


def _play(pipeline: Pipeline, launch: Launch, comm: Collectives, stop: StopFlag) -> int:
    description = _ask_rank_zero(comm, lambda: _check(pipeline, launch, comm.size))
    with _hold_lease(launch.run, comm):
        prepared = _ask_rank_zero(comm, lambda: open_run(pipeline, launch, description))
        number = _ask_rank_zero(comm, lambda: register_launch(prepared.run, launch, comm.size))
        position = _ask_rank_zero(comm, lambda: _look(prepared))
        display = Display(pipeline.name, pipeline.num_iterations, quiet=launch.quiet or comm.rank != 0)
        display.say(_greeting(prepared, launch, comm.size, position))
        for note in machine_notes(prepared.run, position, pipeline.compute_threads) if comm.rank == 0 else ():
            display.say(note)
        with WriteBehind() as writer:
            loop = Loop(prepared, launch, number=number, position=position, comm=comm, stop=stop, writer=writer)
            code = loop.play()
        display.say(_farewell(prepared, launch, code, stop))
        return code


def _ask_rank_zero(comm: Collectives, question: Callable[[], T]) -> T:
    """Rank 0's answer on every rank; when it refuses, all do, and leave together."""
    answer = refused = None
    if comm.rank == 0:
        try:
            answer = question()
        except InputError as error:
            refused = str(error)
    answer, refused = comm.broadcast((answer, refused))
    if refused is not None:
        raise RefusedError(refused)
    return cast(T, answer)


def _check(pipeline: Pipeline, launch: Launch, ranks: int) -> EnvDescription:
    """Every check of the input, before anything is written; with --fresh, the old run is then out of the way."""
    Blocks(pipeline.num_blocks, pipeline.num_blocks).check_ranks(ranks)
    description = check_resumable(pipeline, launch)
    check_models(pipeline, description)
    if launch.fresh and RunFolder.exists(launch.run):
        set_aside(launch.run)
    return description


@contextlib.contextmanager
def _hold_lease(run_path: Path, comm: Collectives) -> Iterator[None]:
    """Rank 0 takes the run for all ranks and notes their processes; it gives it back when all are done."""
    lease: Lease | None = None

    def take() -> None:
        nonlocal lease
        lease = Lease.acquire(run_path, launcher=local_launcher())

    _ask_rank_zero(comm, take)
    try:
        processes = comm.all_gather(Process.this())
        if lease is not None:
            lease.record(processes)
        comm.barrier()
        yield
    finally:
        if lease is not None:
            lease.release()


def _look(prepared: Prepared) -> Position:
    """Rank 0, alone with the run: clear what dead launches left, then see where it stands."""
    prepared.run.remove_leftovers()
    position = find_position(prepared.run, prepared.pipeline)
    clear_leftovers(prepared.run, position)
    return position


def _greeting(prepared: Prepared, launch: Launch, ranks: int, position: Position) -> str:
    pipeline = prepared.pipeline
    where = f"{prepared.run.path}: {ranks} rank{'s' * (ranks > 1)} x {pipeline.compute_threads} thread"
    if position.newest_iteration < 0:
        return f"{where}, starting"
    return f"{where}, resuming at iteration {position.newest_iteration + 1} of {pipeline.num_iterations}"


def _farewell(prepared: Prepared, launch: Launch, code: int, stop: StopFlag) -> str:
    path = prepared.run.path
    if code == DONE:
        return f"{path}: done; look at it with: hpcrl report {path}"
    return f"{path}: stopped ({stop.reason}), everything is published; go on with: {launch.command}"
