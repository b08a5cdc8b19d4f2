"""Progress of a run: a live line on a terminal, one plain line a minute in a log; rank 0 speaks."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

_LOG_SECONDS = 60.0
_TERMINAL_SECONDS = 0.1


class Display:
    """Says where the run is. Silent when `quiet` or on other ranks than 0; `say` lines come out unless quiet."""

    def __init__(self, name: str, num_iterations: int, *, quiet: bool, stream: TextIO | None = None) -> None:
        self.name, self.num_iterations, self.quiet = name, num_iterations, quiet
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._shown = 0.0
        self._began = time.monotonic()
        self._iteration = 0
        self._latest: dict[str, Any] = {}
        self._width = 0

    def iteration(self, iteration: int) -> None:
        self._iteration = iteration

    def facts(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Remember the numbers worth showing."""
        if facts.get("episode_returns"):
            returns = facts["episode_returns"]
            self._latest["return"] = sum(returns) / len(returns)
        if stage == "evaluate":
            self._latest["evaluation"] = facts["return_mean"]

    def tick(self, what: str, done: int, total: int) -> None:
        """Show where the current stage is, if it is time to."""
        if self.quiet:
            return
        now = time.monotonic()
        if now - self._shown < (_TERMINAL_SECONDS if self._live else _LOG_SECONDS):
            return
        self._shown = now
        numbers = "".join(f"  {name} {value:.1f}" for name, value in self._latest.items())
        text = (
            f"{self.name}  iteration {self._iteration + 1}/{self.num_iterations}  {what} {done}/{total}{numbers}  "
            f"{now - self._began:.0f} s"
        )
        if self._live:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """One whole line."""
        if self.quiet:
            return
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._stream.write(text + "\n")
        self._stream.flush()
