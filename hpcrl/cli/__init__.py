"""The command line: hpcrl run, show, status, replay, report, export, logs, cancel, doctor, job."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpcrl.errors import InputError
from hpcrl.signals import BAD_INPUT, DONE

_DESCRIPTION = "Reinforcement learning as restartable batch jobs."
_EXIT_CODES = (
    "exit codes: 0 done; 85 stopped on request, the same command goes on; 2 refused, nothing written; 1 failed"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 85 requeue me, 2 bad input, 1 failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, rest = parser.parse_known_args(given)
    if options.command == "logs" and len(rest) == 1 and options.what is None and not rest[0].startswith("-"):
        options.what, rest = rest[0], []  # argparse gives an optional word that stands behind a flag away
    if options.command not in ("run", "show") and rest:
        command_parser(options.command).error(f"want no further arguments, given {' '.join(rest)}")
    options.given = given
    try:
        return int(options.handler(options, rest))
    except InputError as error:
        print(f"hpcrl {options.command}: {error}", file=sys.stderr)
        if "HPCRL_EXIT_CODE_FILE" in os.environ:  # a rank: its launcher reads the code there
            from hpcrl.comm.exit_code import record_exit_code

            record_exit_code(BAD_INPUT)
        return BAD_INPUT
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # before a run listens for it, or in a command that has nothing to save
        print(f"hpcrl {options.command}: interrupted", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations (a misspelt option of a pipeline must not become one of ours); complains in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, epilog=_EXIT_CODES)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hpcrl", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, summary) in _COMMANDS.items():
        # A pipeline file adds options of its own to `run` and `show`, so these two print their help themselves.
        add(commands.add_parser(name, add_help=name not in ("run", "show"), help=summary, description=summary))
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command, for its help."""
    add, summary = _COMMANDS[name]
    parser = _Parser(prog=f"hpcrl {name}", add_help=False, description=summary)
    add(parser)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_run)
    parser.add_argument("pipeline", nargs="?", help="a Python file that defines one function returning a Pipeline")
    parser.add_argument("-h", "--help", action="store_true", help="this help, and the pipeline's own options")
    parser.add_argument(
        "--on",
        choices=("here", "mpi", "slurm", "sbatch"),
        help="this process; mpiexec (default when ranks > 1); SLURM jobs, through submitit or through sbatch scripts",
    )
    parser.add_argument("--site", type=Path, metavar="FILE", help="the cluster, for --on slurm | sbatch (docs/site.md)")
    parser.add_argument("--dry-run", action="store_true", help="with --on sbatch: print the scripts; write nothing")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="data-parallel ranks (default: min(cores, num_blocks)); same bits"
    )
    parser.add_argument(
        "--mesh",
        action="append",
        default=[],
        metavar="NAME.dp=N",
        help="ranks (dp) or jobs (array) of one mesh; same bits",
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="run folder (default: runs/NAME); an old one resumes")
    parser.add_argument("--fresh", action="store_true", help="rename an existing run folder and start over")
    parser.add_argument("--branch", metavar="DIR", type=Path, help="new run folder, started from a checkpoint (--from)")
    parser.add_argument("--from", dest="branch_from", metavar="RUN@K", help="the checkpoint: run folder @ iteration")
    parser.add_argument("--compute-threads", type=int, metavar="N", help="threads per rank; changes bits")
    parser.add_argument("--seed", type=int, metavar="N", help="key of all randomness (default: the pipeline's)")
    parser.add_argument("--num-iterations", type=int, metavar="N", help="iterations in all; a resumed run may grow")
    parser.add_argument("--handoff", choices=("memory", "disk"), default="memory", help="disk: stages read inputs back")
    parser.add_argument("--quiet", action="store_true", help="no progress lines")


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_show)
    parser.add_argument("pipeline", nargs="?", help="a Python file that defines one function returning a Pipeline")
    parser.add_argument("-h", "--help", action="store_true", help="this help, and the pipeline's own options")
    parser.add_argument("--ranks", type=int, metavar="N", help="as for hpcrl run")
    parser.add_argument("--mesh", action="append", default=[], metavar="NAME.dp=N", help="as for hpcrl run")
    parser.add_argument("--on", choices=("sbatch",), help="also print the sbatch scripts that hpcrl run would submit")
    parser.add_argument("--site", type=Path, metavar="FILE", help="the cluster, for --on sbatch (docs/site.md)")


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_status)
    parser.add_argument("run", type=Path, help="run folder")


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_replay)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--iteration", type=int, metavar="K", help="one iteration (default: all whose shards are kept)")
    parser.add_argument("--only", choices=("advantage", "update"), help="leave out the other")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_report)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="file to write (default: RUN/report.html)")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="also write TensorBoard files there")


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_job)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--segment", metavar="NAME", help="which stages (hpcrl show lists the segments)")
    parser.add_argument("--iteration", type=int, metavar="K", help="default: the next unfinished one")
    parser.add_argument("--try", dest="number", type=int, metavar="N", help="try of the ledger (default: a new one)")
    parser.add_argument("--first-element", type=int, default=0, metavar="E", help="added to SLURM_ARRAY_TASK_ID")
    parser.add_argument("--guard", action="store_true", help="only repair: submit what is missing")


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_logs)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("what", nargs="?", metavar="STAGE", help="a segment or stage (default: the newest job)")
    parser.add_argument("--lines", type=int, default=50, metavar="N", help="how many lines from the end (default: 50)")
    parser.add_argument("--follow", action="store_true", help="go on printing what is appended, until Ctrl-C")
    parser.add_argument("--list", action="store_true", help="list the log files")


def _add_cancel(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_cancel)
    parser.add_argument("run", type=Path, help="run folder")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_doctor)
    parser.add_argument("--site", type=Path, metavar="FILE", help="the site file to try (docs/site.md)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="a folder on the shared file system (default: runs)"
    )


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.cli.run import run_command

    return run_command(options, rest)


def _show(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.cli.show import show_command

    return show_command(options, rest)


def _status(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.report.status import print_status

    return print_status(options.run)


def _replay(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.replay import replay_command

    return replay_command(options.run, iteration=options.iteration, only=options.only)


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.report.page import write_report

    print(write_report(options.run, out=options.out, tensorboard=options.tensorboard))
    return 0


def _job(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.launch.job import run_guard, run_job

    if options.guard:
        return run_guard(options.run, number=options.number)
    if options.segment is None:
        raise InputError("--segment: want the name of one, given none; hpcrl show PIPELINE lists them")
    return run_job(
        options.run,
        segment=options.segment,
        iteration=options.iteration,
        number=options.number,
        first_element=options.first_element,
    )


def _logs(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.launch.logs import print_logs

    return print_logs(options.run, options.what, lines=options.lines, follow=options.follow, list_files=options.list)


def _cancel(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.launch.cancel import print_cancel

    return print_cancel(options.run)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(handler=_export)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--role", metavar="NAME", help="which model (default: the first that is trained)")
    parser.add_argument("--iteration", type=int, metavar="K", help="as it was after this one (default: the newest)")


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.export import export

    print(export(options.run, options.out, role=options.role, iteration=options.iteration))
    return DONE


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    from hpcrl.launch.doctor import doctor_command

    return doctor_command(options.site, folder=options.folder)


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "run": (_add_run, "start or resume a pipeline"),
    "show": (_add_show, "print a pipeline's graph and its sizes; runs nothing"),
    "status": (_add_status, "where a run stands"),
    "replay": (_add_replay, "recompute advantages and updates from stored shards and compare them"),
    "report": (_add_report, "write one HTML file about a run"),
    "export": (_add_export, "write a language model of a run as a Hugging Face folder"),
    "logs": (_add_logs, "the logs of a run that plays as jobs"),
    "cancel": (_add_cancel, "end a run's jobs; hpcrl run goes on with it"),
    "doctor": (_add_doctor, "try what a site file says on the cluster"),
    "job": (_add_job, "one job of a submitted run, from inside (what the sbatch scripts call)"),
}
