"""What a job of the door `slurm` runs on every rank: checks what it is about to unpickle, then hands it to submitit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from submitit.core.job_environment import JobEnvironment
from submitit.core.submission import process_job
from submitit.core.utils import JobPaths

from hpcrl.comm.exit_code import record_exit_code
from hpcrl.errors import InputError
from hpcrl.launch.functions import PICKLE_NAME, SegmentFailedError, rank_of_process
from hpcrl.launch.job_files import refuse_open_folder
from hpcrl.launch.repair import my_job
from hpcrl.scheduler.trust import refuse_foreign
from hpcrl.signals import BAD_INPUT, DONE
from hpcrl.store.ledger import LOOP, End, Ledger, Unit, now
from hpcrl.store.publish import temporary_beside


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m hpcrl.launch.function_job FOLDER PICKLE`, in a job; returns its exit code."""
    folder, name = sys.argv[1:] if arguments is None else arguments
    os.environ["SUBMITIT_FOLDER"] = folder
    paths = JobEnvironment().paths
    try:
        lay_out(Path(folder) / name, paths)
        process_job(folder)
    except SegmentFailedError as error:
        return error.code
    except InputError as error:
        print(f"hpcrl job: {error}", file=sys.stderr)
        if rank_of_process() == 0:
            with contextlib.suppress(InputError):
                _tell_ledger(Path(folder).parent.parent, name, str(error))
        record_exit_code(BAD_INPUT)  # srun ends the other ranks when the first has left, and tells their end
        return BAD_INPUT
    paths.submitted_pickle.unlink(missing_ok=True)
    return DONE


def lay_out(source: Path, paths: JobPaths) -> None:
    """Puts a pickled function where submitit looks for this job's, if only this user can have written it.

    Raises: InputError when somebody else could have; FileNotFoundError.
    """
    refuse_open_folder(source.parent)
    refuse_foreign(source)
    if rank_of_process() == 0:
        for path in (paths.submitted_pickle, paths.result_pickle):
            # Where an earlier start of this job was killed; submitit would refuse to go on.
            path.with_suffix(f"{path.suffix}.save_tmp").unlink(missing_ok=True)
    # Ranks do this at the same time, each to the same effect.
    temporary = temporary_beside(paths.submitted_pickle)
    os.link(source, temporary)
    os.replace(temporary, paths.submitted_pickle)
    temporary.unlink(missing_ok=True)  # rename(2) leaves it when both were the same file


def _tell_ledger(run: Path, name: str, reason: str) -> None:
    """What was refused here will be refused again, and there may be no other job to see that.

    Args: name: of the pickle, which says which try this is; nothing of it was read.
    """
    match = PICKLE_NAME.fullmatch(name)
    if match is None:
        return
    unit = Unit(match[1], None if match[2] == LOOP else int(match[2]))
    ledger = Ledger(run)
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    ledger.record_end(unit, int(match[3]), None, End("refused", reason, my_job(), restarts, now()))
    ledger.halt(f"{unit.name}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
