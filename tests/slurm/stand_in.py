"""In place of a job's interpreter: plays a unit whose segment's name says how it ends, whichever door started it.

'done', 'refused' and 'failed' end so at once; 'stopped' asks to be requeued on its first start; 'waits' does so when it
is told to stop, after at most two minutes. Each rank writes one line into RUN/played.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import types
from pathlib import Path

from hpcrl.comm.exit_code import record_exit_code
from hpcrl.signals import BAD_INPUT, DONE, FAILED, REQUEUE, StopFlag

RANK = int(os.environ.get("SLURM_PROCID", "0"))
RESTARTS = int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def run_job(path: Path, *, segment: str, iteration: int | None, number: int | None, first_element: int = 0) -> int:
    """As hpcrl.launch.job.run_job; the other ranks leave half a second after rank 0, as slow ones do."""
    with StopFlag() as stop:
        element = first_element + int(os.environ.get("SLURM_ARRAY_TASK_ID", "-1"))
        note(path, segment, iteration, number, element)
        code = outcome(segment, stop)
        note(path, "code", code, stop.reason or "none")
    if RANK == 0:
        record_exit_code(code)
    time.sleep(0.5 * RANK)
    return code


def run_guard(path: Path, *, number: int | None) -> int:
    """As hpcrl.launch.job.run_guard."""
    note(path, "guard", None, number, -1)
    return DONE


def outcome(segment: str, stop: StopFlag) -> int:
    if segment == "stopped":
        return DONE if RESTARTS else REQUEUE
    if segment == "waits" and not RESTARTS:
        deadline = time.monotonic() + 120
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.02)
        return REQUEUE if stop.requested else FAILED
    return {"refused": BAD_INPUT, "failed": FAILED}.get(segment, DONE)


def note(path: Path, *facts: object) -> None:
    line = " ".join(map(str, (f"rank={RANK}", f"restarts={RESTARTS}", *facts))) + "\n"
    with open(path / "played", "a") as file:
        file.write(line)


def command(words: list[str]) -> int:
    """`hpcrl job ...`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--segment")
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--iteration", type=int)
    parser.add_argument("--try", dest="number", type=int)
    parser.add_argument("--first-element", type=int, default=0)
    given = parser.parse_args(words)
    if given.guard:
        return run_guard(given.run, number=given.number)
    return run_job(
        given.run,
        segment=given.segment,
        iteration=given.iteration,
        number=given.number,
        first_element=given.first_element,
    )


def run_pipeline(words: list[str]) -> int:
    """`hpcrl run PIPELINE --run RUN --ranks N ...` under srun."""
    pipeline, run_option, run, *rest = words
    assert run_option == "--run", words
    note(Path(run), "run", pipeline, *rest)
    return DONE


def main(words: list[str]) -> int:
    """What follows the interpreter's name."""
    words = words[2:] if words[:2] == ["-m", "mpi4py"] else words
    assert words[0] == "-m", words
    if words[1:3] == ["hpcrl.cli", "run"]:
        return run_pipeline(words[3:])
    if words[1] == "hpcrl.cli":
        assert words[2] == "job", words
        return command(words[3:])
    assert words[1] == "hpcrl.launch.function_job", words
    job = types.ModuleType("hpcrl.launch.job")
    job.run_job, job.run_guard = run_job, run_guard  # type: ignore[attr-defined]
    sys.modules["hpcrl.launch.job"] = job
    from hpcrl.launch.function_job import main as play

    return play(words[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
