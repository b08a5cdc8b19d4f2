"""Running SLURM's commands: each with a time limit, and again for a while when the controller does not answer."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpcrl.errors import InputError
from hpcrl.scheduler.refusals import SchedulerUnavailableError, did_not_arrive, is_unavailable, slurm_words

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    command: str
    """The command's name."""
    code: int | None
    """None: it had not ended within the time limit."""
    output: str
    complaint: str
    """What it wrote to standard error."""

    @property
    def is_missing(self) -> bool:
        """Whether this is no answer: neither yes nor no."""
        return self.code is None or self.was_killed or (self.code != 0 and is_unavailable(self.complaint))

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it: SLURM asks a job to stop by signals to all of its processes."""
        return self.code is not None and self.code < 0

    @property
    def did_arrive(self) -> bool:
        """Whether the request may have reached the controller, answered or not."""
        return not (self.is_missing and self.code is not None and did_not_arrive(self.complaint))

    @property
    def words(self) -> str:
        """Its complaint in one line."""
        return slurm_words(self.complaint) or f"{self.command} ended with code {self.code} and said nothing"


class Commands:
    """Runs commands; a controller that does not answer is asked again, with pauses that double from 1 s to 60 s.

    Args:
        environment: where PATH is looked up.
        call_seconds: longest that one command may take.
        patience_seconds: how long to go on asking; 0: once.
        say: told once per call that has to wait, in one line.
        sleep: waits that many seconds; it may raise to end the waiting.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        call_seconds: float,
        patience_seconds: float,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._environment = environment
        self._call_seconds = call_seconds
        self._patience_seconds = patience_seconds
        self._say = say
        self._sleep = sleep

    def find(self, name: str) -> str | None:
        """Where a command is; None when it is not on PATH."""
        return shutil.which(name, path=self._environment.get("PATH", ""))

    def run(self, words: Sequence[str], environment: Mapping[str, str], folder: str | None = None) -> Answer:
        """One call. Raises: InputError when there is no such command."""
        program = self.find(words[0])
        if program is None:
            raise InputError(
                f"{words[0]}: want SLURM's commands on PATH, given none; use a login node, or load the cluster's module"
            )
        try:
            done = subprocess.run(
                [program, *words[1:]],
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._call_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(words[0], None, "", f"no answer in {self._call_seconds:g} s")
        return Answer(words[0], done.returncode, done.stdout, done.stderr)

    def ask(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: str | None = None,
        before_repeating: Callable[[Answer], Answer | None] = lambda _: None,
    ) -> Answer:
        """Calls until there is an answer, yes or no.

        Args:
            before_repeating: gets an answer that is missing; may give another to go on with instead of asking again.
        Raises: SchedulerUnavailableError when patience ends; InputError when there is no such command.
        """
        began = time.monotonic()
        for number, pause in enumerate(_pauses()):
            answer = self.run(words, environment, folder)
            if not answer.is_missing:
                return answer
            waited = time.monotonic() - began
            if waited + pause > self._patience_seconds:
                raise SchedulerUnavailableError(
                    f"{words[0]}: no answer from SLURM's controller in {waited:.0f} s: {answer.words}; "
                    f"see whether it is up (scontrol ping), then go on with the same command"
                )
            if number == 0:
                self._say(f"SLURM's controller does not answer ({answer.words}); asking again for a while")
            self._sleep(pause)
            if (found := before_repeating(answer)) is not None:
                return found
        raise AssertionError("pauses do not end")


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)
