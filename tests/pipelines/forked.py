"""Runs in forks of one warm process, so that a test of a hundred kills need not import PyTorch a hundred times."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.pipelines.runs import Finished

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.fx.experimental.symbolic_shapes",  # what PyTorch imports when a layer is made without its numbers
        "gymnasium.envs.classic_control",
        "tyro",
        "hpcrl.cli.run",
        "hpcrl.runner",
        "hpcrl.launch.ranks",
        "hpcrl.models.actor_critic",
        "hpcrl.models.networks",
        "hpcrl.ops.recurrence",
        "hpcrl.report.page",
    ]
)


def _play(arguments: list[str], output: str, kill_at: str | None, setup: str) -> None:
    """In the fork: `hpcrl ARGUMENTS --on here`, its output in a file, dying at a kill point if one is named."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from hpcrl.cli import main
    from hpcrl.store import killpoints

    sys.argv = ["hpcrl", *arguments]
    if kill_at is not None:
        killpoints._killer = killpoints._Killer(kill_at)
    exec(setup, {})
    sys.exit(main(arguments))


class ForkedRun:
    """`hpcrl ARGUMENTS` in a fork that has begun; `setup` is Python to execute before it."""

    def __init__(self, *arguments: object, output: Path, kill_at: str | None = None, setup: str = "") -> None:
        self._output = output
        self.process: ForkServerProcess = _CONTEXT.Process(
            target=_play, args=([str(argument) for argument in arguments], str(output), kill_at, setup)
        )
        self.process.start()

    def send_signal(self, number: int) -> None:
        """To the run."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, timeout: float = 120) -> Finished:
        """Until it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s:\n{self._output.read_text()}")
        return Finished(self.process.exitcode, self._output.read_text())


def forked(
    *arguments: object, folder: Path, kill_at: str | None = None, setup: str = "", timeout: float = 120
) -> Finished:
    """Run a command in a fork to its end; its output is kept in `folder`."""
    output = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
    return ForkedRun(*arguments, output=output, kill_at=kill_at, setup=setup).wait(timeout)
