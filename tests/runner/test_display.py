"""Progress: a live line on a terminal, one line a minute in a log, nothing when quiet."""

from __future__ import annotations

import io

import pytest

import hpcrl.runner.display as display_module
from hpcrl.runner.display import Display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_one_line_a_minute(clock: list[float]) -> None:
    log = io.StringIO()
    display = Display("cartpole", 10, quiet=False, stream=log)
    display.iteration(3)
    display.facts("rollout", {"episode_returns": [10.0, 20.0]})
    for step in range(1, 131):
        clock[0] += 1.0
        display.tick("rollout", step, 130)
    lines = log.getvalue().splitlines()
    assert lines[0] == "cartpole  iteration 4/10  rollout 1/130  return 15.0  1 s"
    assert [line.split()[4] for line in lines] == ["1/130", "61/130", "121/130"]


def test_a_terminal_s_line_is_overwritten_and_cleared_for_whole_lines(clock: list[float]) -> None:
    terminal = Terminal()
    display = Display("cartpole", 10, quiet=False, stream=terminal)
    display.tick("rollout", 1, 2)
    display.facts("evaluate", {"return_mean": 475.0})
    clock[0] += 1.0
    display.tick("update", 2, 2)
    display.say("done")
    text = terminal.getvalue()
    assert text.startswith("\rcartpole  iteration 1/10  rollout 1/2  0 s\r")
    assert "update 2/2  evaluation 475.0  1 s" in text
    assert text.endswith(" \rdone\n")
    assert text.count("\n") == 1


def test_quiet_says_nothing(clock: list[float]) -> None:
    log = io.StringIO()
    display = Display("cartpole", 10, quiet=True, stream=log)
    display.tick("rollout", 1, 2)
    display.say("done")
    assert log.getvalue() == ""
