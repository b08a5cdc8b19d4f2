"""One rank's session, from joining the world to leaving it together with all others."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar, cast

from hpcrl.comm import Collectives, leave, open_world
from hpcrl.data import Blocks
from hpcrl.envs import EnvDescription
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline
from hpcrl.runner.checks import check_models, check_resumable
from hpcrl.runner.display import Display
from hpcrl.runner.loop import WAITING, Loop
from hpcrl.runner.part import Part, parts_of_world
from hpcrl.runner.position import Position, clear_leftovers, find_position, machine_notes, refuse_gap
from hpcrl.runner.prepare import Launch, Prepared, open_run, register_launch, set_aside
from hpcrl.signals import BAD_INPUT, DONE, FAILED, REQUEUE, StopFlag
from hpcrl.store.lease import Lease, LeaseHeldError
from hpcrl.store.processes import Process, local_launcher
from hpcrl.store.run_folder import RunFolder
from hpcrl.store.writer import WriteBehind

T = TypeVar("T")


class RefusedError(InputError):
    """Bad input that all ranks know of: they leave together."""

    is_held = False
    """Whether it was refused because somebody else works on it."""


def run_rank(pipeline: Pipeline, launch: Launch) -> NoReturn:
    """Play this rank's share and leave with the code all ranks agree on: 0, 85 (requeue), 2 (bad input) or 1."""
    comm = open_session()
    with StopFlag() as stop:
        leave(comm, play_session(pipeline, launch, comm, stop))


def open_session() -> Collectives:
    """The world of this launch, in a process that is ready to play."""
    # The writing thread shares the interpreter with the stages: hand over after 0.5 ms, not Python's 5 ms, which is
    # longer than a small stage.
    sys.setswitchinterval(0.0005)
    return open_world()


def play_session(
    pipeline: Pipeline,
    launch: Launch,
    comm: Collectives,
    stop: StopFlag,
    part: Part | None = None,
    last_words: Callable[[int, str], None] = lambda code, reason: None,
) -> int:
    """Play until the part (None: the whole run) is done or the session was asked to stop; errors are told on stderr.

    Args: last_words: told the code and the reason before a rank that fails alone ends all of them.
    Returns: the exit code for `leave`, or WAITING.
    """
    try:
        return _play(pipeline, launch, comm, stop, part)
    except RefusedError as error:
        if comm.rank == 0:
            print(f"hpcrl run: {error}", file=sys.stderr, flush=True)
        if error.is_held and launch.unit:
            return WAITING
        if comm.rank == 0:
            last_words(BAD_INPUT, str(error))
        return BAD_INPUT
    except InputError as error:
        # One rank may see alone that a file is damaged or the disk full; the others must not wait for it.
        print(f"hpcrl run: {error}", file=sys.stderr, flush=True)
        last_words(BAD_INPUT, str(error))
        comm.abort(BAD_INPUT)
    except SystemExit as error:
        # Not ours: an environment or a library called sys.exit. The others would wait for this rank for ever.
        words = f"something called sys.exit({error.code!r}) while the run played; mend it, then run again"
        print(f"hpcrl run: rank {comm.rank} of {comm.size} failed: {words}", file=sys.stderr, flush=True)
        last_words(FAILED, words)
        comm.abort(FAILED)
    except Exception as error:
        if not isinstance(error, FloatingPointError):  # its message says it all
            traceback.print_exc()
        print(
            f"hpcrl run: rank {comm.rank} of {comm.size} failed: {type(error).__name__}: {error}; what is published "
            f"stays, and the same command goes on from there",
            file=sys.stderr,
        )
        last_words(FAILED, f"{type(error).__name__}: {error}")
        comm.abort(FAILED)


def _play(pipeline: Pipeline, launch: Launch, comm: Collectives, stop: StopFlag, job: Part | None) -> int:
    parts = ask_rank_zero(comm, lambda: parts_of_world(pipeline, comm.size)) if job is None else (job,)
    description = ask_rank_zero(comm, lambda: _check(pipeline, launch, parts, comm.size))
    with _hold_lease(launch, comm):
        prepared = ask_rank_zero(comm, lambda: open_run(pipeline, launch, description))
        number = ask_rank_zero(comm, lambda: register_launch(prepared.run, launch, comm.size, job))
        position = ask_rank_zero(comm, lambda: _look(prepared, parts))
        display = Display(pipeline.name, pipeline.num_iterations, quiet=launch.quiet or comm.rank != 0)
        display.say(_greeting(prepared, launch, comm.size, position))
        for note in machine_notes(prepared.run, position, pipeline.compute_threads) if comm.rank == 0 else ():
            display.say(note)
        part, ranks = _choose_part(parts, comm)
        with WriteBehind() as writer:
            loop = Loop(
                prepared, launch, number=number, position=position, comm=ranks, stop=stop, writer=writer, part=part
            )
            code = loop.play()
        code = _agree(comm, code)
        if comm.rank == 0:
            loop.gate.forget()
        display.say(_farewell(prepared, launch, code, stop))
        return code


def _choose_part(parts: Sequence[Part], comm: Collectives) -> tuple[Part, Collectives]:
    """The loop that this rank plays in, and the ranks that play it together."""
    if len(parts) == 1:
        return parts[0], comm
    index = next(index for index, part in enumerate(parts) if comm.rank in (part.ranks or ()))
    ranks = comm.split(index, comm.rank)
    assert ranks is not None  # every rank passes a color
    return parts[index], ranks


def _agree(comm: Collectives, code: int) -> int:
    """The loops of a world may end differently: one that was stopped speaks for all."""
    codes = comm.all_gather(code)
    return next((wanted for wanted in (REQUEUE, WAITING) if wanted in codes), DONE)


def ask_rank_zero(comm: Collectives, question: Callable[[], T]) -> T:
    """Rank 0's answer on every rank; when it refuses, all do, and leave together."""
    answer = refused = None
    if comm.rank == 0:
        try:
            answer = question()
        except InputError as error:
            refused = (str(error), isinstance(error, LeaseHeldError))
    answer, refused = comm.broadcast((answer, refused))
    if refused is not None:
        refusal = RefusedError(refused[0])
        refusal.is_held = refused[1]
        raise refusal
    return cast(T, answer)


def _check(pipeline: Pipeline, launch: Launch, parts: Sequence[Part], ranks: int) -> EnvDescription | None:
    """Every check of the input, before anything is written; with --fresh, the old run is then out of the way."""
    for part in parts:
        share = len(part.ranks) if part.ranks is not None else ranks
        Blocks(pipeline.num_blocks, pipeline.num_blocks).check_ranks(share * part.num_elements)
    description = check_resumable(pipeline, launch)
    check_models(pipeline, description)
    if launch.fresh and RunFolder.exists(launch.run):
        set_aside(launch.run)
    return description


@contextlib.contextmanager
def _hold_lease(launch: Launch, comm: Collectives) -> Iterator[None]:
    """Rank 0 takes the run, or its unit of work, for all ranks and notes their processes; gives it back at the end."""
    lease: Lease | None = None

    def take() -> None:
        nonlocal lease
        lease = _acquire(launch)

    ask_rank_zero(comm, take)
    try:
        processes = comm.all_gather(Process.this())
        if lease is not None:
            lease.record(processes)
        comm.barrier()
        yield
    finally:
        if lease is not None:
            lease.release()
            if launch.lease is not None:
                with contextlib.suppress(OSError):  # others' leases are in there
                    launch.lease.rmdir()
                    launch.lease.parent.rmdir()


def _acquire(launch: Launch) -> Lease:
    """The lease; a job waits for one whose holder is ending (SLURM starts the next while the last is being killed)."""
    deadline = time.monotonic() + launch.lease_patience_seconds
    while True:
        try:
            return Lease.acquire(launch.lease or launch.run, launcher=local_launcher())
        except (LeaseHeldError, FileNotFoundError) as error:  # the holder removes its folder as it leaves
            if isinstance(error, LeaseHeldError) and time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _look(prepared: Prepared, parts: Sequence[Part]) -> Position:
    """Rank 0, alone with these stages: clear what dead launches left, then see where the run stands."""
    since = parts[0].iteration
    position = find_position(prepared.run, prepared.pipeline, since=since)
    refuse_gap(prepared.run, prepared.pipeline, position)
    stages = {stage for part in parts for stage in part.stages}
    if len(stages) == len(prepared.pipeline.stages):
        prepared.run.remove_leftovers()
    if all(part.num_elements == 1 for part in parts):  # the other elements of an array are at work beside this one
        clear_leftovers(prepared.run, position, stages, since)
    return position


def _greeting(prepared: Prepared, launch: Launch, ranks: int, position: Position) -> str:
    pipeline = prepared.pipeline
    where = f"{prepared.run.path}: {ranks} rank{'s' * (ranks > 1)} x {pipeline.compute_threads} thread"
    if position.newest_iteration < 0:
        return f"{where}, starting"
    return f"{where}, resuming at iteration {position.newest_iteration + 1} of {pipeline.num_iterations}"


def _farewell(prepared: Prepared, launch: Launch, code: int, stop: StopFlag) -> str:
    path = prepared.run.path
    if launch.unit and code != REQUEUE:
        return f"{path}: {launch.unit}: {'done' if code == DONE else 'its input is not there yet'}"
    if code == DONE:
        return f"{path}: done; look at it with: hpcrl report {shlex.quote(str(path))}"
    return f"{path}: stopped ({stop.reason}), everything is published; go on with: {launch.command}"
