"""One rank's session, from joining the world to leaving it together with all others."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from hpcrl.comm import Collectives, leave, open_world
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline
from hpcrl.runner.display import Display
from hpcrl.runner.loop import Loop
from hpcrl.runner.position import Position, clear_leftovers, find_position
from hpcrl.runner.prepare import Launch, Prepared, open_run, register_launch
from hpcrl.signals import BAD_INPUT, DONE, FAILED, StopFlag
from hpcrl.store.lease import Lease
from hpcrl.store.processes import Process
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.writer import WriteBehind


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
    except Exception:
        traceback.print_exc()
        comm.abort(FAILED)
    leave(comm, code)


def _play(pipeline: Pipeline, launch: Launch, comm: Collectives, stop: StopFlag) -> int:
    refused = None
    prepared = None
    if comm.rank == 0:
        try:
            prepared = open_run(pipeline, launch)
        except InputError as error:
            refused = str(error)
    refused = comm.broadcast(refused)
    if refused is not None:
        raise RefusedError(refused)
    prepared = comm.broadcast(prepared)
    assert prepared is not None  # rank 0 refused or prepared
    with _hold_lease(prepared.run, comm):
        number = comm.broadcast(register_launch(prepared.run, launch, comm.size) if comm.rank == 0 else 0)
        position = comm.broadcast(_look(prepared) if comm.rank == 0 else None)
        assert position is not None
        display = Display(pipeline.name, pipeline.num_iterations, quiet=launch.quiet or comm.rank != 0)
        display.say(_greeting(prepared, launch, comm.size, position))
        with WriteBehind() as writer:
            loop = Loop(prepared, launch, number=number, position=position, comm=comm, stop=stop, writer=writer)
            code = loop.play()
        display.say(_farewell(prepared, launch, code, stop))
        return code


@contextlib.contextmanager
def _hold_lease(run: RunFolder, comm: Collectives) -> Iterator[None]:
    """Rank 0 takes the run for all ranks and notes their processes; it gives it back when all are done."""
    refused = lease = None
    if comm.rank == 0:
        try:
            lease = Lease.acquire(run.path)
        except InputError as error:
            refused = str(error)
    refused = comm.broadcast(refused)
    if refused is not None:
        raise RefusedError(refused)
    processes = comm.all_gather(Process.this())
    if lease is not None:
        lease.record(processes)
    comm.barrier()
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


def _look(prepared: Prepared) -> Position:
    """Rank 0, alone with the run: clear what dead launches left, then see where it stands."""
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
