"""One rank's session, from joining the world to leaving it together with all others."""

from __future__ import annotations

import traceback
from typing import NoReturn

from hpcrl.comm import Collectives, leave, open_world
from hpcrl.errors import InputError
from hpcrl.pipeline import Pipeline
from hpcrl.runner.prepare import Launch, open_run
from hpcrl.signals import BAD_INPUT, FAILED, StopFlag


def run_rank(pipeline: Pipeline, launch: Launch) -> NoReturn:
    """Play this rank's share and leave with the code all ranks agree on: 0, 85 (requeue), 2 (bad input) or 1."""
    comm = open_world()
    try:
        code = _play(pipeline, launch, comm)
    except InputError as error:
        # One rank may see alone that a file is damaged or a disk full; the others must not wait for it.
        print(f"hpcrl run: {error}", flush=True)
        if comm.size > 1:
            comm.abort(BAD_INPUT)
        code = BAD_INPUT
    except Exception:
        traceback.print_exc()
        comm.abort(FAILED)
    leave(comm, code)


def _play(pipeline: Pipeline, launch: Launch, comm: Collectives) -> int:
    refused = None
    prepared = None
    if comm.rank == 0:
        try:
            prepared = open_run(pipeline, launch)
        except InputError as error:
            refused = str(error)
    refused = comm.broadcast(refused)
    if refused is not None:
        if comm.rank == 0:
            print(f"hpcrl run: {refused}", flush=True)
        return BAD_INPUT
    prepared = comm.broadcast(prepared)
    with StopFlag() as stop:
        return _with_lease(prepared, launch, comm, stop)
