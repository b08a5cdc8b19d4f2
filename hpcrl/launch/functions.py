"""The door `slurm`: units of work as functions, pickled and run by submitit; and submitit for functions of your own."""

from __future__ import annotations

import math
import os
import pickle
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcrl.errors import InputError
from hpcrl.launch.job_files import make_own_folder, put_script, tell_on_stderr, write_file
from hpcrl.launch.ranks import THREAD_VARIABLES
from hpcrl.launch.request import GUARD, Request, Surroundings
from hpcrl.launch.sbatch_options import resource_options, script_options, submission_options
from hpcrl.launch.scripts import check_request, interpreter, launch_lines, make_job_folders, render
from hpcrl.launch.template import around
from hpcrl.scheduler.site import Launch, Resources
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.trust import refuse_foreign, refuse_foreign_if_there
from hpcrl.signals import DONE, REQUEUE, STOP_SIGNALS

try:
    import submitit
    from submitit.core.core import Job
    from submitit.core.utils import DelayedSubmission, JobPaths
except ModuleNotFoundError as missing:
    raise InputError(
        "--on slurm: want submitit, which is not installed; install it with pip install 'hpcrl[slurm]', or use "
        "--on sbatch"
    ) from missing

_NAMED: Final = frozenset(
    {"account", "constraint", "cpus-per-task", "gres", "job-name", "mem-per-cpu", "nodes", "ntasks-per-node"}
    | {"partition", "qos", "time"}
)
"""Options that submitit has a parameter for."""
_RANKS: Final = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "SLURM_PROCID")
"""Where launchers tell a process its rank; under mpirun SLURM itself says 0 to all."""
_PATTERNS: Final = ("%j", "%t", "%A", "%a")
_WITHOUT_END: Final = 2**31
PICKLE_NAME: Final = re.compile(r"(.+)-(\d{6,}|loop)-(\d{2,})-\d+\.pkl")
"""Segment, iteration and try of a pickled unit; its first element stands behind them."""


class SegmentFailedError(RuntimeError):
    """A unit of work ended badly; `code` is the job's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Segment:
    """A unit of work as a function: all that is pickled of it. Every rank of a job calls it.

    Example:
        >>> import pickle
        >>> unit = Segment("/scratch/runs/ppo", "rollout", 17, 1)
        >>> pickle.loads(pickle.dumps(unit)) == unit
        True
    """

    run: str
    """The run folder, absolute."""
    segment: str
    """Its name; 'guard' for the job that only repairs."""
    iteration: int | None
    """None: all iterations."""
    number: int | None
    """Which try."""
    first_element: int = 0

    def __call__(self) -> int:
        """Does the same as `hpcrl job`; returns 0.

        Raises: SegmentFailedError on rank 0 when the unit was refused or failed; SystemExit with the code on other
        ranks, so that a job leaves one result, and on all ranks when the job is to be requeued, so that it leaves none.
        """
        code = self._play()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # too late: submitit's own handler would requeue what has ended
        if code == REQUEUE or rank_of_process() != 0:
            sys.exit(code)
        if code != DONE:
            raise SegmentFailedError(f"{self.segment}: ended with exit code {code}; the job's log says why", code)
        return code

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again when it is asked to stop: the same, since a run goes on from its folder."""
        return DelayedSubmission(self)

    def _play(self) -> int:
        from hpcrl.launch.job import run_guard, run_job

        run = Path(self.run)
        if self.segment == GUARD.segment:
            return run_guard(run, number=self.number)
        return run_job(
            run,
            segment=self.segment,
            iteration=self.iteration,
            number=self.number,
            first_element=self.first_element,
        )


class Functions:
    """Submits requests as functions through submitit, from RUN/jobs/submitit/; see `Door`.

    A job asks for the same as one of `Scripts`, has the same name, comment and log, is told to stop in the same way,
    and is requeued by the same lines.

    Args: say: told in one line what a person should know.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        slurm: Slurm | None = None,
        *,
        say: Callable[[str], None] = tell_on_stderr,
    ) -> None:
        self._surroundings, self._slurm, self._say = surroundings, slurm or Slurm(), say

    def check(self, requests: tuple[Request, ...]) -> None:
        """Refuses what `prepare` and `submit` would refuse; writes nothing.

        Raises: InputError for names that cannot stand in a script or that submitit would take for a pattern, for a
        script that somebody else could have written, and when there is no srun.
        """
        _refuse_without_srun()
        for request in requests:
            _refuse_patterns(request.run)
            check_request(request, self._surroundings)
            refuse_foreign_if_there(_script_path(request))

    def prepare(self, requests: tuple[Request, ...]) -> None:
        """Makes the folders of pickles and logs.

        Raises: InputError when the disk is full or read-only, a folder belongs to somebody else, or submitit would take
        its name for a pattern.
        """
        for run in {request.run for request in requests}:
            _refuse_patterns(run)
            make_job_folders(run, self._say)
            make_own_folder(pickle_folder(run), is_private=True)

    def submit(self, request: Request) -> str:
        """Submits one job (or array) and returns its id.

        Raises: SubmissionRefusedError; SchedulerUnavailableError; InputError for names that cannot stand in a script,
        and when the disk is full or read-only.
        """
        self.prepare((request,))
        unit = request.unit
        function = Segment(str(request.run), unit.segment, unit.iteration, request.number, request.first_element)
        return str(self.executor(request).submit(function).job_id)

    def executor(self, request: Request) -> submitit.SlurmExecutor:
        """submitit's executor for the jobs of one request. Raises: InputError."""
        return _UnitExecutor(request, self._surroundings, self._slurm, self._say)


class _UnitExecutor(submitit.SlurmExecutor):
    """Submits one function as the job of a request.

    Beside submitit's own: what the job unpickles lies there before it is submitted, so the submitter may die at any
    moment; and sbatch is called as everywhere in hpcrl, with a time limit and without this job's own variables.
    """

    def __init__(self, request: Request, surroundings: Surroundings, slurm: Slurm, say: Callable[[str], None]) -> None:
        folder = pickle_folder(request.run)
        _refuse_without_srun()
        # Requests to stop do not count as submitit's timeouts: how often a unit is tried is decided from the ledger.
        super().__init__(folder, max_num_timeout=_WITHOUT_END, python='"$PYTHON"')
        self._request, self._surroundings, self._slurm, self._say = request, surroundings, slurm, say
        self._module = f'hpcrl.launch.function_job {shlex.quote(str(folder))} "$@"'
        before, after = around(render(request, surroundings, self._module), "launch")
        options = script_options(request, surroundings.site)
        self.update_parameters(
            **{name.replace("-", "_"): value for name, value in options.items() if name in _NAMED},
            additional_parameters={
                name: True if value is None else value for name, value in options.items() if name not in _NAMED
            },
            # Signals go to the shell, which passes them on, as in scripts: MPI launch lines that are not srun work too.
            use_srun=False,
            stderr_to_stdout=True,
            setup=before.splitlines(),
            teardown=after.splitlines(),
            wckey=None,
            **({} if "nodes" in options else {"nodes": None}),
        )

    @property
    def _submitit_command_str(self) -> str:
        return "\n".join(launch_lines(self._request, self._surroundings.site.launch, self._module))

    def _internal_process_submissions(self, delayed_submissions: Sequence[DelayedSubmission]) -> list[Job[Any]]:
        (delayed,) = delayed_submissions
        delayed.set_timeout(self._request.resources.time_minutes, self.max_num_timeout)
        request, site = self._request, self._surroundings.site
        name = f"{request.unit.name}-{request.number:02d}-{request.first_element}.pkl"
        write_file(self.folder / name, pickle.dumps(delayed), mode=0o600)
        script = _script_path(request)
        put_script(script, self._make_submission_file_text(self._submitit_command_str, "") + "\n", self._say)
        refuse_foreign(script)
        job = self._slurm.submit(
            script,
            [name],
            [*submission_options(request, site), *site.resources(request.unit.segment).extra],
            token=request.token,
            folder=self._surroundings.folder,
        )
        return [submitit.SlurmJob(folder=self.folder, job_id=job, tasks=[0])]


def executor(
    surroundings: Surroundings,
    folder: Path,
    *,
    resources: Resources | None = None,
    ranks: int = 1,
    compute_threads: int = 1,
    name: str = "functions",
) -> submitit.AutoExecutor:
    """submitit's executor, set up as the site says, for functions of your own: futures, arrays, checkpoints.

    Args:
        surroundings: the site, folders of your modules, and the folder in which the functions run.
        folder: where submitit keeps pickles, results and logs; on the shared file system. Nobody else may write to it.
        resources: what a job asks for; None: the site's default.
        ranks: tasks of each job; they form one MPI world where the site starts ranks with srun.
        compute_threads: of each rank's matrix libraries.
        name: of the jobs.
    Raises: InputError when there is no srun, or the folder belongs to somebody else.
    Example:
        from hpcrl.launch.functions import executor
        site = executor(Surroundings(read_site(), (), Path.cwd()), Path("jobs"))
        jobs = site.map_array(evaluate, checkpoints)
        print([job.result() for job in jobs])
    """
    site = surroundings.site
    asked = site.default if resources is None else resources
    _refuse_without_srun()
    make_own_folder(JobPaths.get_first_id_independent_folder(folder), is_private=True)
    options = resource_options(asked, ranks, compute_threads, site.launch)
    options.setdefault("nodes", "1")
    options["ntasks-per-node"] = str(math.ceil(ranks / int(options["nodes"] or 1)))
    del options["ntasks"]
    prefix = f"{site.launch.prefix} " if site.launch.prefix else ""
    made = submitit.AutoExecutor(
        folder, cluster="slurm", slurm_python=f"{prefix}{shlex.quote(interpreter(site.launch))}"
    )
    made.update_parameters(
        slurm_job_name=name,
        **{f"slurm_{key.replace('-', '_')}": _number(value) for key, value in options.items()},
        slurm_signal_delay_s=site.limits.signal_lead_seconds,
        slurm_array_parallelism=site.limits.array_throttle or _WITHOUT_END,
        slurm_srun_args=_srun_arguments(site.launch),
        slurm_setup=_setup_lines(surroundings, compute_threads),
        slurm_additional_parameters={"requeue": True, **_long_options(asked.extra)},
    )
    return made


def pickle_folder(run: Path) -> Path:
    """Where a run's pickled functions lie; only its user may look there."""
    return run / "jobs" / "submitit"


def _script_path(request: Request) -> Path:
    """Where the script that unpickles a request's function lies."""
    return pickle_folder(request.run) / f"{request.unit.segment}.sh"


def _setup_lines(surroundings: Surroundings, compute_threads: int) -> list[str]:
    launch = surroundings.site.launch
    lines = [f"cd -- {shlex.quote(str(surroundings.folder))} || exit 1", *launch.setup]
    variables: Mapping[str, str] = {
        **dict.fromkeys(THREAD_VARIABLES, str(compute_threads)),
        **launch.instruction_variables(),
    }
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append("export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}")
    if surroundings.python_path:
        modules = shlex.quote(":".join(surroundings.python_path))
        lines.append(f"export PYTHONPATH={modules}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def _srun_arguments(launch: Launch) -> list[str]:
    """The MPI launch line's own options, where it is srun; submitit starts tasks with srun in any case."""
    program, *arguments = shlex.split(launch.mpi)
    return arguments if program == "srun" else []


def _long_options(extra: Sequence[str]) -> dict[str, object]:
    """sbatch's options as submitit takes them. Raises: InputError for a short one."""
    found: dict[str, object] = {}
    for word in extra:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise InputError(f"resources.extra: want long options for submitit (--name=value), given {word!r}")
        found[name.removeprefix("--")] = value if equals else True
    return found


def _number(value: str | None) -> str | int | None:
    return int(value) if value is not None and value.isdecimal() else value


def _refuse_patterns(folder: Path) -> None:
    for pattern in _PATTERNS:
        if pattern in str(folder):
            raise InputError(
                f"{folder}: want a folder without {pattern} in its path (submitit puts the job's number in its place); "
                f"choose another with --run, or use --on sbatch"
            )


def _refuse_without_srun() -> None:
    if submitit.SlurmExecutor.affinity() <= 0:
        raise InputError("srun: want SLURM's commands on PATH, given none; use a login node, or load its module")


def rank_of_process() -> int:
    """This process's rank, as its launcher tells it; 0 where there is none."""
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), "0"))
