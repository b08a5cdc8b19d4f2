"""The stop flag: which signals raise it, who agrees, and what a second Ctrl-C does."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hpcrl.signals import STOP_SIGNALS, StopFlag

ROOT = Path(__file__).parents[1]


class Ranks:
    """This rank, and whether another one's flag is up."""

    def __init__(self, another: bool) -> None:
        self.another = another

    def any(self, flag: bool) -> bool:
        return flag or self.another


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_raises_the_flag_once_and_for_all(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert not stop.requested
        assert stop.reason == ""
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.reason == number.name
        assert stop.agreed(Ranks(another=False))


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopFlag():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_importing_installs_nothing() -> None:
    code = (
        "import signal, hpcrl.signals, hpcrl.comm, hpcrl.launch.ranks\n"
        "print([signal.getsignal(n) is signal.SIG_DFL for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)])"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "[True, True, True]\n"


def test_what_another_rank_was_asked_counts_for_all() -> None:
    with StopFlag() as stop:
        assert not stop.agreed(Ranks(another=False))
        assert stop.agreed(Ranks(another=True))
        assert stop.requested
        assert stop.reason == "another rank"


def test_a_later_signal_keeps_the_first_reason_but_ctrl_c_takes_over() -> None:
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    code = (
        "import os, signal\nfrom hpcrl.signals import StopFlag\n"
        "with StopFlag() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT); print(stop.reason, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('not reached')"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "SIGINT\n"), ended.stderr


def test_other_threads_are_refused() -> None:
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with StopFlag():
                pass
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "want the main thread" in str(errors[0])
