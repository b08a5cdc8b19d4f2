"""The door `sbatch`: readable batch scripts in the run folder, made from the templates, submitted as they are."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from hpcrl.errors import InputError
from hpcrl.launch.job_files import make_own_folder, put_script, tell_on_stderr
from hpcrl.launch.lustre import striping_hint
from hpcrl.launch.request import GUARD, Request, Surroundings
from hpcrl.launch.sbatch_options import directive, option_word, script_options, submission_options
from hpcrl.launch.template import fill, template
from hpcrl.scheduler.refusals import SubmissionRefusedError
from hpcrl.scheduler.site import Launch
from hpcrl.scheduler.slurm import Slurm
from hpcrl.scheduler.trust import refuse_foreign, refuse_foreign_if_there
from hpcrl.store.publish import make_folder

_JOB_COMMAND: Final = 'hpcrl.cli job "$RUN" --segment "$SEGMENT" "$@"'
_GUARD_COMMAND: Final = 'hpcrl.cli job "$RUN" --guard "$@"'


def render(request: Request, surroundings: Surroundings, module: str | None = None) -> str:
    """The script of a request's segment: its template, with what the run and the site decide between the markers.

    It holds nothing of the environment, and is the same for every iteration and try of the segment.

    Args:
        module: what is started in place of `hpcrl job`, as shell words: a module and its arguments.
    Raises: InputError for names that cannot stand in a script.
    """
    site = surroundings.site
    options = script_options(request, site)
    words = [option_word(name, value) for name, value in options.items()]
    words += site.resources(request.unit.segment).extra
    return fill(
        template(template_name(request, options)),
        {
            "resources": [directive(word) for word in words],
            "run": _run_lines(request, surroundings),
            "site": _site_lines(site.launch),
            "launch": launch_lines(request, site.launch, module),
        },
    )


def template_name(request: Request, options: Mapping[str, str | None]) -> str:
    """Which template a request's script is made from."""
    if request.unit == GUARD:
        return "guard"
    if request.unit.iteration is None:
        return "loop"
    if request.elements is not None:
        return "rollout"
    return "update-gpu" if "gres" in options else "segment"


def interpreter(launch: Launch) -> str:
    """The jobs' Python, as `read_site` chooses it where the site names none."""
    return launch.python or ("python3" if launch.prefix else sys.executable)


def _run_lines(request: Request, surroundings: Surroundings) -> list[str]:
    for folder in surroundings.python_path:
        if ":" in folder:
            raise InputError(f"{folder}: want a folder of modules without ':' (PYTHONPATH cannot name it); rename it")
    values = {
        "FOLDER": str(surroundings.folder),
        "RUN": str(request.run),
        **({} if request.unit == GUARD else {"SEGMENT": request.unit.segment}),
        "MODULES": ":".join(surroundings.python_path),
        "THREADS": str(request.compute_threads),
    }
    return [f"{name}={shlex.quote(value)}" for name, value in values.items()]


def _site_lines(launch: Launch) -> list[str]:
    variables = [f"export {name}={shlex.quote(value)}" for name, value in launch.instruction_variables().items()]
    return [*launch.setup, f"PYTHON={shlex.quote(interpreter(launch))}", *variables]


def launch_lines(request: Request, launch: Launch, module: str | None = None) -> list[str]:
    """The command that starts the ranks, in the background so that the shell can pass signals on; or the guard.

    Args: module: see `render`.
    """
    prefix = f"{launch.prefix} " if launch.prefix else ""
    if request.unit == GUARD:
        return [f'{prefix}"$PYTHON" -m {module or _GUARD_COMMAND}']
    # Without -m mpi4py, an exception on one rank would leave the others waiting for ever.
    return [f"{launch.mpi} \\", f'  {prefix}"$PYTHON" -m mpi4py -m {module or _JOB_COMMAND} &']


class Scripts:
    """Submits requests as scripts in RUN/jobs/, one for each segment; see `Door`.

    A script that a person edited is used as it is, until the site or the pipeline asks for another one; then it is set
    aside as NAME.edited and written anew.

    Args: say: told in one line what a person should know.
    """

    def __init__(
        self, surroundings: Surroundings, slurm: Slurm, *, say: Callable[[str], None] = tell_on_stderr
    ) -> None:
        self._surroundings, self._slurm, self._say = surroundings, slurm, say

    def check(self, requests: tuple[Request, ...]) -> None:
        """Refuses what `prepare` and `submit` would refuse; writes nothing.

        Raises: InputError for names that cannot stand in a script, and for a script that somebody else could have
        written.
        """
        for request in requests:
            check_request(request, self._surroundings)
            refuse_foreign_if_there(script_path(request))

    def prepare(self, requests: tuple[Request, ...]) -> None:
        """Writes the scripts of these requests' segments, and the folder of their logs.

        Raises: InputError for names that cannot stand in a script, for a script that somebody else could have written,
        and when the disk is full or read-only.
        """
        scripts = {script_path(request): render(request, self._surroundings) for request in requests}
        for run in {request.run for request in requests}:
            make_job_folders(run, self._say)
        for path, text in scripts.items():
            put_script(path, text, self._say)

    def submit(self, request: Request) -> str:
        """Submits one job (or array) and returns its id.

        Raises: SubmissionRefusedError; SchedulerUnavailableError; InputError for a script that somebody else could
        have written.
        """
        path = script_path(request)
        refuse_foreign(path)
        return self._slurm.submit(
            path,
            request.arguments,
            submission_options(request, self._surroundings.site),
            token=request.token,
            folder=self._surroundings.folder,
        )

    def ask(self, requests: tuple[Request, ...], say: Callable[[str], None]) -> None:
        """Has SLURM say whether it would take one job of each segment; submits nothing, leaves nothing behind.

        Args: say: told in one line when it would take one later only.
        Raises: SubmissionRefusedError; SchedulerUnavailableError.
        """
        segments: dict[str, Request] = {}
        for request in requests:
            segments.setdefault(request.unit.segment, request)
        with tempfile.TemporaryDirectory(prefix="hpcrl-dry-run-") as folder:
            for segment, request in segments.items():
                script = Path(folder) / script_path(request).name
                script.write_text(render(request, self._surroundings), encoding="utf-8")
                # The jobs that it would wait for are not there yet.
                alone = dataclasses.replace(request, dependency=(), begin_minutes=0)
                try:
                    self._slurm.check(script, submission_options(alone, self._surroundings.site))
                except SubmissionRefusedError as error:
                    words = str(error).replace(str(script), segment)  # a file that is about to go
                    if not error.is_temporary:
                        raise SubmissionRefusedError(words, error.kind) from error
                    say(words)

    def dry_run(self, requests: tuple[Request, ...]) -> str:
        """What would be submitted: each sbatch line, then each script. Writes nothing.

        Raises: InputError for names that cannot stand in a script.
        """
        scripts: dict[Path, str] = {}
        lines = []
        for request in requests:
            path = script_path(request)
            scripts[path] = render(request, self._surroundings)
            options = submission_options(request, self._surroundings.site)
            lines.append(shlex.join(["sbatch", *options, str(path), *request.arguments]))
        parts = ["\n".join(lines), *(f"===== {path}\n{text.rstrip()}" for path, text in scripts.items())]
        return "\n\n".join(parts) + "\n"


def check_request(request: Request, surroundings: Surroundings) -> None:
    """Raises: InputError for names that can stand neither in a script nor on sbatch's command line."""
    render(request, surroundings)
    submission_options(request, surroundings.site)


def script_path(request: Request) -> Path:
    """Where the script of a request's segment lies."""
    return request.run / "jobs" / f"{request.unit.segment}.sbatch"


def make_job_folders(run: Path, say: Callable[[str], None]) -> None:
    """Makes RUN/jobs, which nobody else may write to, and RUN/logs, which SLURM wants to be there.

    Raises: InputError when the disk is full or read-only.
    """
    is_new = not (run / "logs").is_dir()
    make_own_folder(run / "jobs")
    make_folder(run / "logs")
    if is_new and (hint := striping_hint(run, os.environ)) is not None:
        say(hint)
